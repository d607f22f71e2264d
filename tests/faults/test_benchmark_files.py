"""Fault 37: damaged and mistaken benchmark files are refused with file:line:column and the fix."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from mpf_chains.benchmarks import Benchmark, iter_rows
from mpf_chains.errors import BenchmarkError

GOOD = b'{"id": "1", "entity": "E", "question": "Q?", "target_text": "A."}\n'
HEAD = b"id,entity,question,target_text,target_score.x,split,metadata\n"
LINE = b"1,E,Q?,A.,,,\n"


def second(**changes: object) -> bytes:
    row = {"id": "2", "entity": "E", "question": "Q?", "target_text": "A.", **changes}
    return GOOD + json.dumps(row).encode()


JSONL = {
    "not UTF-8": (GOOD + b'{"id": "\xc3\xa9\xff"}', "2:10", "byte 0xff is not UTF-8. Save the file as UTF-8"),
    "UTF-16": (codecs.BOM_UTF16_LE + GOOD.decode().encode("utf-16-le"), "1:1", "UTF-16; it must be UTF-8"),
    "NUL": (GOOD + b'{"id": "\0"}', "2:9", "NUL"),
    "escaped NUL": (second(entity="a\0b"), "2:13", "`entity` holds a NUL"),
    "half a surrogate": (second(question="a\ud800"), "2:28", "half of a surrogate pair at character 2"),
    "the same id twice": (GOOD + b"\n" + GOOD, "3:1", "the id '1' was given on line 1 already"),
    "missing key": (GOOD + b'{"id": "2", "question": "Q?"}', "2:1", "no 'entity'; id, entity, question are needed"),
    "unknown key": (second(target="A."), "2:67", "unknown key 'target'; allowed are id, entity"),
    "key twice": (b'{"id": "1", "id": "2"}', "1:1", "the key 'id' is given more than once"),
    "empty": (b"", "1:1", "the file is empty"),
    "blank": (b"\n \r\n", "1:1", "no rows"),
    "an array": (
        b"[\n" + GOOD.strip() + b"\n]",
        "1:1",
        "a JSON array starts here; JSON lines have one object per line",
    ),
    "pretty-printed": (b'{\n"id": "1"}', "1:2", "not JSON"),
    "a number": (GOOD + b"7", "2:1", "a JSON int where one JSON object must be"),
    "cut off": (GOOD + b'{"id": "2", "ent', "2:13", "Every line must hold one complete JSON object."),
    "id of a wrong type": (second(id=2), "2:2", "`id` is a int; it must be a text"),
    "target of a wrong type": (second(target_text=["A."]), "2:46", "`target_text` is a list"),
    "scores of a wrong type": (second(target_score=0.5), "2:67", "must map features to scores"),
    "score of a wrong type": (second(target_score={"x": True}), "2:67", "'x' is True; it must be a finite number"),
    "metadata of a wrong type": (second(metadata=[]), "2:67", "`metadata` is a list; it must be an object"),
    "NaN": (GOOD + b'{"id": "2", "metadata": {"x": NaN}}', "2:31", "NaN is no JSON number"),
    "overflow": (GOOD + b'{"id":"2","entity":"E","question":"Q","target_score":{"x":1e999}}', "2:39", "inf"),
    "endless integer": (b'{"id": ' + b"9" * 5000 + b"}", "1:1", "not usable JSON"),
    "a score beyond floats": (second(target_score={"x": 10**400}), "2:67", "'x' is 1000"),
    "split": (second(split="test"), "2:67", "'test'; it must be one of decomposition, validation"),
    "blank entity": (second(entity=" "), "2:13", "`entity` is blank"),
    "blank question": (second(question=""), "2:28", "`question` is blank"),
    "blank target": (second(target_text=""), "2:46", "`target_text` is blank; it must hold some text. Leave it out"),
    "too deep to parse": (b'{"id": ' + b"[" * 200_000, "1:1", "nested too deep"),
    "too deep to keep": (second(metadata={"x": json.loads("[" * 40 + "]" * 40)}), "2:67", "deeper than 32 levels"),
    "a broken baseline": (b'{"benchmark": "b", "baseline": {"E": {"title": "x"}}}\n' + GOOD, "1:1", "no perspective"),
    "a baseline with half a surrogate": (
        b'{"benchmark": "b", "baseline": {"E": {"name": "\\ud800"}}}\n' + GOOD,
        "1:1",
        "`baseline` holds half of a surrogate",
    ),
    "a name with half a surrogate": (
        b'{"benchmark": "\\ud800"}\n' + GOOD,
        "1:1",
        "`benchmark` holds half of a surrogate",
    ),
    "a baseline too deep": (
        b'{"benchmark": "b", "baseline": {"E": ' + b'{"a":' * 40 + b"1" + b"}" * 42 + b"\n" + GOOD,
        "1:1",
        "deeper than 32",
    ),
}
CSV = {
    "not UTF-8": (HEAD + LINE + b"2,\xff,Q?,A.,,,\n", "3:3", "byte 0xff is not UTF-8"),
    "NUL": (HEAD + LINE + b"2,\0,Q?,A.,,,\n", "3:3", "NUL"),
    "the same id twice": (HEAD + LINE + b"\r\n" + LINE, "4:1", "the id '1' was given on line 2 already"),
    "missing column": (b"id,question\n1,Q?\n", "1:1", "no column 'entity'; it has 'id', 'question'"),
    "semicolons": (HEAD.replace(b",", b";"), "1:1", "The separator must be a comma"),
    "unknown column": (b"id,entity,question,target\n1,E,Q?,A.\n", "1:4", "unknown column 'target'"),
    "column twice": (b"id,entity,question,id\n1,E,Q?,2\n", "1:4", "'id' is given more than once"),
    "empty": (b"", "1:1", "the file is empty"),
    "header only": (HEAD, "1:1", "no rows"),
    "too few fields": (HEAD + LINE + b"2,E\n", "3:1", "2 fields; the header has 7"),
    "too many fields": (HEAD + b"1,E,Well, why?,A.,,,\n", "2:1", "8 fields; the header has 7"),
    "open quote": (HEAD + LINE + b'2,"E\nQ?,A.,,,\n', "3:1", "Is a double quote left open"),
    "old line ends": (HEAD.replace(b"\n", b"\r") + LINE, "1:1", "not CSV"),
    "blank entity": (HEAD + LINE + b"2, ,Q?,A.,,,\n", "3:2", "`entity` is blank"),
    "after a long row": (HEAD + b'1,E,"Q\n\n?",A.,,,\n2,,Q?,A.,,,\n', "5:2", "`entity` is blank"),
    "score": (HEAD + b"1,E,Q?,A.,high,,\n", "2:5", "'target_score.x' is 'high'; it must be a finite number"),
    "NaN score": (HEAD + b"1,E,Q?,A.,nan,,\n", "2:5", "'target_score.x' is 'nan'; it must be a finite number"),
    "overflow": (HEAD + b"1,E,Q?,A.,1e999,,\n", "2:1", "'x' is inf; it must be a finite number"),
    "score as in code": (HEAD + b"1,E,Q?,A.,1_0,,\n", "2:5", "'1_0'; it must be a finite number"),
    "split": (HEAD + b"1,E,Q?,A.,,test,\n", "2:6", "'test'; it must be one of"),
    "metadata": (HEAD + b"1,E,Q?,A.,,,{x}\n", "2:7", "Every cell must hold one complete JSON object."),
    "SAGED without question": (b"keyword,prompts,baseline\nE,,A.\n", "2:2", "`question` is blank"),
}


@pytest.mark.parametrize(("content", "place", "message"), JSONL.values(), ids=JSONL)
def test_json_lines(content: bytes, place: str, message: str, tmp_path: Path) -> None:
    refused(tmp_path / "bench.jsonl", content, place, message)


@pytest.mark.parametrize(("content", "place", "message"), CSV.values(), ids=CSV)
def test_csv(content: bytes, place: str, message: str, tmp_path: Path) -> None:
    refused(tmp_path / "bench.csv", content, place, message)


def refused(path: Path, content: bytes, place: str, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(BenchmarkError) as caught:
        Benchmark.read(path)
    assert str(caught.value).startswith(f"{path}:{place}: ")
    assert message in str(caught.value)


def test_rows_before_the_damage_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    path.write_bytes(GOOD + b"{")
    rows = iter_rows(path)
    assert next(rows).id == "1"
    with pytest.raises(BenchmarkError, match=":2:2: not JSON"):
        next(rows)


def test_a_file_that_is_one_huge_line_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    with path.open("wb") as file:
        file.truncate(20 * 2**20)  # a hole: takes no space
    with pytest.raises(BenchmarkError, match="longer than 16 MiB"):
        Benchmark.read(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.jsonl", "cannot be read: No such file"),
        ("bench.json", "Write each element of the JSON array on a line of a .jsonl file"),
        ("bench.xlsx", "suffix '.xlsx'; benchmarks are .jsonl, .ndjson or .csv files"),
        ("a\0b.jsonl", "cannot be read: embedded null byte"),
        ("\ud800.csv", "cannot be read: 'utf-8' codec can't encode"),
        ("x" * 5000 + ".jsonl", "cannot be read: File name too long"),
    ],
)
def test_wrong_paths(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError) as caught:
        Benchmark.read(tmp_path / name)
    assert message in str(caught.value)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    path.write_bytes(GOOD)
    with pytest.raises(BenchmarkError, match=r"absent/bench.jsonl cannot be written: No such file"):
        Benchmark.read(path).write(tmp_path / "absent/bench.jsonl")


def test_a_row_without_target_is_refused_when_the_benchmark_is_made(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    path.write_bytes(GOOD + b'{"id": "2", "entity": "F", "question": "Q?"}')
    assert len(list(iter_rows(path))) == 2  # reading rows alone needs no targets
    with pytest.raises(BenchmarkError, match=r"1 of 2 rows have neither .* first is '2' about 'F'.* baseline=\{entity"):
        Benchmark.read(path)
