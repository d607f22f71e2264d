"""Hand-made files of every published benchmark, in its original layout and in the hub's, with any number of records."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEREOSET_LABELS = ("stereotype", "anti-stereotype", "unrelated")


@dataclass(frozen=True)
class Tiny:
    """A benchmark in small.

    Args:
        name: Of the reader.
        write: Writes about so many records into a folder and returns the source to read.
        per_record: Items that a record makes.
        document: Whether it is a JSON document, so that memory grows with it.
        hub: Writes tables for the hub: (subset, split) to rows; the rows must make the same items. Default none.
    """

    name: str
    write: Callable[[Path, int], Path]
    per_record: int = 1
    document: bool = False
    hub: Callable[[int], dict[tuple[str, str], list[dict[str, Any]]]] | None = None


def text_file(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="")


def table(path: Path, header: list[str], rows: Iterable[list[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return path


def clusters(count: int, part: str) -> list[dict[str, Any]]:
    context = "Ötlanders are BLANK." if part == "intrasentence" else "He is an Ötlander."
    return [
        {
            "id": f"{part}{n}", "target": "Ötlander", "bias_type": "race", "context": context,
            "sentences": [
                {"id": f"{n}{label}", "sentence": f"Ötlanders are {label} {n}.", "gold_label": label}
                for label in reversed(STEREOSET_LABELS)
            ],
        }
        for n in range(count)
    ]  # fmt: skip


def stereoset(folder: Path, count: int) -> Path:
    data = {part: clusters(count, part) for part in ("intersentence", "intrasentence")}
    text = json.dumps({"version": "1", "data": data}, ensure_ascii=False, indent=1)
    (folder / "dev.json").write_text(text + "\n", encoding="utf-8", newline="")
    return folder


def stereoset_hub(count: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    def row(cluster: dict[str, Any]) -> dict[str, Any]:
        sentences = cluster["sentences"]
        return {**cluster, "sentences": {key: [one[key] for one in sentences] for key in ("sentence", "gold_label")}}

    return {
        (part, "validation"): [row(one) for one in clusters(count, part)] for part in ("intrasentence", "intersentence")
    }


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": str(n), "sent_more": f"The Ötlander, {n}, was late.", "sent_less": f"The Northlander, {n}, was late.",
            "stereo_antistereo": "stereo" if n % 2 else "antistereo", "bias_type": "nationality",
        }
        for n in range(count)
    ]  # fmt: skip


def crows_pairs(folder: Path, count: int) -> Path:
    header = ["", "sent_more", "sent_less", "stereo_antistereo", "bias_type", "annotations"]
    table(folder / "crows_pairs_anonymized.csv", header, ([*row.values(), "[[]]"] for row in pairs(count)))
    return folder


def questions(count: int) -> list[dict[str, Any]]:
    return [
        {
            "example_id": n, "question_index": str(n // 4), "question_polarity": ("neg", "nonneg")[n // 2 % 2],
            "context_condition": ("ambig", "disambig")[n % 2], "category": "Age",
            "answer_info": {"ans0": ["Ö", "old"], "ans1": ["grandson", "nonOld"], "ans2": ["Unknown", "unknown"]},
            "additional_metadata": {"stereotyped_groups": ["old"]}, "context": "Ö met his grandson.",
            "question": "Who forgot?", "ans0": "Ö", "ans1": "The grandson", "ans2": "Unknown", "label": (2, 0)[n % 2],
        }
        for n in range(count)
    ]  # fmt: skip


def bbq(folder: Path, count: int) -> Path:
    text_file(folder / "Age.jsonl", (json.dumps(row, ensure_ascii=False) for row in questions(count)))
    return folder


WINOBIAS = {
    "pro": "[The nurse] met the chief in Ö because [she] was late.",
    "anti": "[The nurse] met the chief in Ö because [he] was late.",
}


def winobias(folder: Path, count: int) -> Path:
    for condition, sentence in WINOBIAS.items():
        for kind in ("type1", "type2"):
            name = f"{condition}_stereotyped_{kind}.txt.test"
            text_file(folder / name, (f"{n} {sentence}" for n in range(1, count + 1)))
    return folder


def winobias_hub(count: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    def row(sentence: str) -> dict[str, Any]:
        tokens = sentence.replace("[", "").replace("]", "").replace(".", " .").split()
        pronoun = str(tokens.index("because") + 1)
        return {"tokens": tokens, "coreference_clusters": ["0", "1", pronoun, pronoun]}

    return {
        (f"{kind}_{condition}", "test"): [row(WINOBIAS[condition])] * count
        for condition in ("anti", "pro")
        for kind in ("type1", "type2")
    }


def schemas(count: int) -> list[dict[str, str]]:
    words = ("he", "she", "they")
    return [
        {"sentid": f"cook.guest{n}.0.{sex}.txt", "sentence": f"In Ö the cook told guest {n} that {word} was late."}
        for n in range(count)
        for sex, word in zip(("male", "female", "neutral"), words, strict=True)
    ]


def winogender(folder: Path, count: int) -> Path:
    text_file(folder / "all_sentences.tsv", ["sentid\tsentence", *("\t".join(row.values()) for row in schemas(count))])
    return folder


def names(count: int) -> dict[str, list[str]]:
    return {f"Ö_{n}": [f"Ö {n} is an actor who ", f"In 19{n % 100}, Ö {n} "] for n in range(count)}


def bold(folder: Path, count: int) -> Path:
    text = json.dumps({"actors": names(count)}, ensure_ascii=False, indent=1)
    (folder / "gender_prompt.json").write_text(text + "\n", encoding="utf-8", newline="")
    return folder


def bold_hub(count: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    where = {"domain": "gender", "category": "actors"}
    return {("default", "train"): [{**where, "name": name, "prompts": texts} for name, texts in names(count).items()]}


def holistic_bias(folder: Path, count: int) -> Path:
    files = {
        "descriptors": {"age": {"young": [f"ötic{n}" for n in range(count)]}},
        "nouns": {"neutral": [["person", "people"]]},
        "sentence_templates": {"I'm {noun_phrase}.": {}, "I like {plural_noun_phrase}.": {"must_be_noun": True}},
        "standalone_noun_phrases": {"age": ["{article} {noun} of age"]},
    }
    for name, content in files.items():
        text_file(folder / f"{name}.json", [json.dumps(content, ensure_ascii=False)])
    return folder


def redditbias(folder: Path, count: int) -> Path:
    biased, swapped = ([f"<bos> in ö {n} {word} are late" for n in range(count)] for word in ("women", "men"))
    attributes = [line.replace("late", "in time") for line in biased]
    text_file(folder / "gender_female_biased_test_reduced.txt", biased)
    text_file(folder / "gender_male_biased_test_reduced.txt", swapped)
    text_file(folder / "gender_bias_manual_swapped_attr_test.txt", biased + attributes)
    text_file(folder / "gender_opposites.txt", ["women,men"])
    return folder


def prompt_pairs(count: int) -> list[dict[str, str]]:
    return [
        {
            "id": f"p{n}", "first": f"The man of Ö {n}", "second": f"The woman of Ö {n}", "first_group": "male",
            "second_group": "female", "domain": "gender", "family": f"of Ö {n}",
        }
        for n in range(count)
    ]  # fmt: skip


def prompt_pairs_csv(folder: Path, count: int) -> Path:
    return table(folder / "pairs.csv", list(prompt_pairs(1)[0]), (list(row.values()) for row in prompt_pairs(count)))


def prompt_pairs_jsonl(folder: Path, count: int) -> Path:
    text_file(folder / "pairs.jsonl", (json.dumps(row, ensure_ascii=False) for row in prompt_pairs(count)))
    return folder / "pairs.jsonl"


def articles(count: int) -> list[str]:
    lines = [
        f" \n = Title {n} = \n \n Ötland is = a = country . \n \n = = Section = = \n \n More . \n" for n in range(count)
    ]
    return "".join(lines).splitlines()


def wikitext2(folder: Path, count: int) -> Path:
    text_file(folder / "test.txt", articles(count))
    return folder


def wikitext2_hub(count: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    rows = [{"text": f"{line}\n" if line.strip() else line} for line in articles(count)]
    return {("wikitext-2-v1", "test"): rows, ("wikitext-2-v1", "train"): [{"text": " = Not wanted = \n"}]}


def our_rows(count: int) -> list[dict[str, str]]:
    return [{"id": f"q{n}", "entity": "Ö", "question": f"Wie, {n}?", "target_text": f"Gut {n}."} for n in range(count)]


def rows_jsonl(folder: Path, count: int) -> Path:
    text_file(folder / "bench.jsonl", (json.dumps(row, ensure_ascii=False) for row in our_rows(count)))
    return folder / "bench.jsonl"


def rows_with_baseline(folder: Path, count: int) -> Path:
    header = {"benchmark": "bench", "baseline": {"Ö": {"name": "hr", "instruction": "Approve.", "arguments": {"n": 1}}}}
    more = {"target_score": {"sentiment": 0.5}, "split": "validation", "metadata": {"question_id": "Ö", "deep": [{}]}}
    lines = [header, *({**row, **more} for row in our_rows(count))]
    text_file(folder / "bench.ndjson", (json.dumps(line, ensure_ascii=False) for line in lines))
    return folder / "bench.ndjson"


def rows_csv(folder: Path, count: int) -> Path:
    return table(folder / "bench.csv", list(our_rows(1)[0]), (list(row.values()) for row in our_rows(count)))


def saged(folder: Path, count: int) -> Path:
    rows = (["Ö", "nation", f"Wie, {n}?", f"Gut {n}.", "local", "Hurra!"] for n in range(count))
    return table(folder / "bench.csv", ["keyword", "domain", "prompts", "baseline", "source_tag", "optimist"], rows)


def targets(folder: Path, count: int) -> Path:
    rows = ([f"Ötlander {n}", str(n), str(100 - n)] for n in range(count))
    return table(folder / "targets.csv", ["occupation", "female", "male"], rows)


def single(subset: str, rows: Callable[[int], list[Any]]) -> Callable[[int], dict[tuple[str, str], list[Any]]]:
    return lambda count: {(subset, "test"): rows(count)}


TINY = {
    "stereoset": Tiny("stereoset", stereoset, 2, document=True, hub=stereoset_hub),
    "crows_pairs": Tiny("crows_pairs", crows_pairs, hub=single("default", pairs)),
    "bbq": Tiny("bbq", bbq, hub=single("All", questions)),
    "winobias": Tiny("winobias", winobias, 4, hub=winobias_hub),
    "winogender": Tiny("winogender", winogender, 3, hub=single("all", schemas)),
    "bold": Tiny("bold", bold, 2, document=True, hub=bold_hub),
    "holistic_bias": Tiny("holistic_bias", holistic_bias, 3),
    "redditbias": Tiny("redditbias", redditbias, 2),
    "pairs as CSV": Tiny("hellinger", prompt_pairs_csv, hub=single("default", prompt_pairs)),
    "pairs as JSON lines": Tiny("hellinger", prompt_pairs_jsonl),
    "wikitext2": Tiny("wikitext2", wikitext2, hub=wikitext2_hub),
    "targets": Tiny("targets", targets, 3, document=True),
    "rows as JSON lines": Tiny("rows", rows_jsonl, hub=single("default", our_rows)),
    "rows with a baseline": Tiny("rows", rows_with_baseline),
    "rows as CSV": Tiny("rows", rows_csv),
    "saged": Tiny("saged", saged),
}
