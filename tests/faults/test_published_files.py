"""Fault 37 for published benchmarks: damaged, mistaken or wrong files are refused with file:line:column and the fix."""
# ruff: noqa: E501

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpf_chains.benchmarks import read_benchmark
from mpf_chains.errors import BenchmarkError, DataWarning
from tests.contracts.tiny_benchmarks import TINY

ALL = b"*"
FAULTS = {  # benchmark, file, bytes to replace once (or all of the file), their replacement, place, message
    "StereoSet: a label twice": (
        "stereoset", "dev.json", b'"gold_label": "unrelated"', b'"gold_label": "stereotype"', "24:7", "'stereotype' twice",
    ),
    "StereoSet: a label missing": (
        "stereoset", "dev.json", b'"sentences": [', b'"sentences": [], "others": [', "10:5",
        "no sentence with the label 'stereotype', 'anti-stereotype', 'unrelated'; it needs all three",
    ),
    "StereoSet: an unknown label": (
        "stereoset", "dev.json", b'"unrelated"', b'"related"', "14:7", "must be one of stereotype, anti-stereotype, unrel",
    ),
    "StereoSet: the test file": (
        "stereoset", "dev.json", b'"gold_label"', b'"label"', "11:6", "published for dev.json only, not for test.json",
    ),
    "StereoSet: an id twice": ("stereoset", "dev.json", b'"intersentence1"', b'"intersentence0"', "28:4", "already; ids"),
    "StereoSet: a key twice": ("stereoset", "dev.json", b'"target"', b'"id"', "1:1", "key 'id' is given more than once"),
    "StereoSet: no data": ("stereoset", "dev.json", b'"data"', b'"date"', "1:1", "no 'data'; there is 'version', 'date'"),
    "StereoSet: cut off": ("stereoset", "dev.json", b"  ]\n }\n}\n", b"", "", "is it complete?"),
    "StereoSet: JSON lines": ("stereoset", "dev.json", ALL, b'{"a": 1}\n{"a": 2}\n', "2:1", "not JSON lines"),
    "StereoSet: a cluster that is none": ("stereoset", "dev.json", ALL, b'{"data": {"intrasentence": [7]}}', "1:29", "number"),
    "CrowS-Pairs: a missing column": (
        "crows_pairs", "crows_pairs_anonymized.csv", b"sent_less", b"less", "1:1", "no column 'sent_less'; it has '', 'sent",
    ),
    "CrowS-Pairs: a direction": (
        "crows_pairs", "crows_pairs_anonymized.csv", b",stereo,", b",pro,", "3:4", "must be one of stereo, antistereo",
    ),
    "CrowS-Pairs: a blank sentence": (
        "crows_pairs", "crows_pairs_anonymized.csv", b'"The Northlander, 0, was late."', b"", "2:3", "`sent_less` is blank",
    ),
    "CrowS-Pairs: a number twice": (
        "crows_pairs", "crows_pairs_anonymized.csv", b"\n1,", b"\n0,", "3:1", "the id '0' was given at",
    ),
    "CrowS-Pairs: the file of prompts": (
        "crows_pairs", "crows_pairs_anonymized.csv", ALL, b",prompt,source\n0,A.,mnli\n", "1:1", "no column 'sent_more'",
    ),
    "BBQ: a label out of range": ("bbq", "Age.jsonl", b'"label": 2', b'"label": 3', "1:395", "'label' is 3; it must be an i"),
    "BBQ: a label that is no number": ("bbq", "Age.jsonl", b'"label": 2', b'"label": "2"', "1:395", "from 0 to 2"),
    "BBQ: a label against the context": ("bbq", "Age.jsonl", b'"label": 2', b'"label": 1', "1:395", "context is ambiguous"),
    "BBQ: no unknown answer": ("bbq", "Age.jsonl", b'"unknown"', b'"old"', "1:119", "0 answers are marked 'unknown'"),
    "BBQ: a missing key": ("bbq", "Age.jsonl", b'"ans1": "The', b'"ans": "The', "1:1", "there is no 'ans1'; there is 'exam"),
    "BBQ: an example twice": ("bbq", "Age.jsonl", b'"example_id": 1', b'"example_id": 0', "2:1", "'Age/0' was given at"),
    "BBQ: groups that are no list": ("bbq", "Age.jsonl", b'["old"]', b'"old"', "1:222", "must be a list of texts"),
    "BBQ: an array": ("bbq", "Age.jsonl", ALL, b"[\n{}]", "1:1", "Write each element of the array on a line of its own"),
    "WinoBias: no number": (
        "winobias", "pro_stereotyped_type1.txt.test", b"2 [The", b"[The", "2:1", "start with a number and a space",
    ),
    "WinoBias: no pronoun marked": (
        "winobias", "pro_stereotyped_type1.txt.test", b"[she]", b"she", "1:3", "1 occupations and 0 pronouns are marked",
    ),
    "WinoBias: an open bracket": ("winobias", "pro_stereotyped_type1.txt.test", b"nurse]", b"nurse", "1:3", "0 occupations"),
    "WinoBias: the other file": (
        "winobias", "pro_stereotyped_type1.txt.test", b"[she]", b"[he]", "1:3", "'he' for the nurse is not pro-stereotyped",
    ),
    "WinoBias: an unknown occupation": (
        "winobias", "pro_stereotyped_type1.txt.test", b"chief", b"poet", "1:3", "no other occupation than 'nurse'",
    ),
    "Winogender: commas": ("winogender", "all_sentences.tsv", b"\t", b",", "1:1", "The separator must be a tab"),
    "Winogender: a name": ("winogender", "all_sentences.tsv", b"0.male", b"2.male", "2:1", "like technician.customer.1.male"),
    "Winogender: another pronoun": ("winogender", "all_sentences.tsv", b" he ", b" she ", "2:2", "0 male pronouns"),
    "Winogender: a cell too many": ("winogender", "all_sentences.tsv", b" he ", b"\the ", "2:1", "3 cells; the header has 2"),
    "BOLD: prompts that are no list": ("bold", "gender_prompt.json", ALL, b'{"a": {"b": "c"}}', "1:13", "text where an array"),
    "BOLD: a prompt that is no text": ("bold", "gender_prompt.json", ALL, b'{"a": {"b": [1]}}', "1:14", "it must be a text"),
    "BOLD: the bare list of names": ("bold", "gender_prompt.json", ALL, b'["a"]', "1:1", "array where an object must be"),
    "HolisticBias: a template without place": (
        "holistic_bias", "sentence_templates.json", b"{noun_phrase}", b"{noun}", "1:17", "must hold either {noun_phrase} or",
    ),
    "HolisticBias: a noun without plural": (
        "holistic_bias", "nouns.json", b', "people"', b"", "1:14", "1 forms; it must have singular and plural",
    ),
    "HolisticBias: a descriptor without name": (
        "holistic_bias", "descriptors.json", ALL, b'{"age": {"old": [{"name": "x"}]}}', "1:18", "there is no 'descriptor'",
    ),
    "RedditBias: a line too few": (
        "redditbias", "gender_bias_manual_swapped_attr_test.txt", b"<bos> in \xc3\xb6 0 women are late\n", b"", "3:1",
        "3 lines; two halves need an even number",
    ),
    "RedditBias: files of different length": (
        "redditbias", "gender_male_biased_test_reduced.txt", b"<bos> in \xc3\xb6 0 men are late\n", b"", "", "must be equally many",
    ),
    "RedditBias: a blank line": (
        "redditbias", "gender_bias_manual_swapped_attr_test.txt", b"<bos> in \xc3\xb6 0 women are late", b"", "1:1", "blank",
    ),
    "WikiText-2: blank": ("wikitext2", "test.txt", ALL, b" \n \n", "", "no items"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "file", "old", "new", "place", "message"), FAULTS.values(), ids=FAULTS)
def test_faults(name: str, file: str, old: bytes, new: bytes, place: str, message: str, tmp_path: Path) -> None:
    source = TINY[name].write(tmp_path, 2)
    path = tmp_path / file
    content = path.read_bytes()
    assert old == ALL or old in content
    path.write_bytes(new if old == ALL else content.replace(old, new, 1))
    with pytest.raises(BenchmarkError) as caught:
        read_benchmark(name, source)
    text = str(caught.value)
    assert message in text
    assert not place or text.startswith(f"{path}:{place}: "), text


@pytest.mark.parametrize("source", ["a\0b", "\ud800", "x" * 5000, "x" * 5000 + ".jsonl"])
def test_a_path_that_cannot_be(source: str) -> None:
    for name in ("stereoset", "redditbias", "holistic_bias"):
        with pytest.raises(BenchmarkError, match=r"cannot be read: |holds no pairs"):
            read_benchmark(name, source)


@pytest.mark.parametrize("name", [name for name in TINY if not name.startswith(("rows", "saged", "pairs"))])
def test_a_folder_without_the_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "other.md").touch()
    with pytest.raises(
        BenchmarkError, match=r"holds no .*original names|cannot be read: (No such file|Is a directory)"
    ):
        read_benchmark(name, tmp_path)
    with pytest.raises(BenchmarkError, match=r"cannot be read: No such file|not named as|holds no pairs"):
        read_benchmark(name, tmp_path / "absent.txt")


def test_blank_prompts_of_bold_are_left_out_aloud(tmp_path: Path) -> None:
    (tmp_path / "race_prompt.json").write_text(json.dumps({"g": {"A_B": ["A B is", "", "A B was"]}}), encoding="utf-8")
    with pytest.warns(DataWarning, match=r"race_prompt.json:1:26: a blank prompt about 'A_B' was left out"):
        items = read_benchmark("bold", tmp_path)
    assert [item.id for item in items] == ["race/g/A_B/0", "race/g/A_B/2"]
