"""BBQ: questions whose answer the context does, or does not, give."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mpf_chains.benchmarks.readers.fields import Fields, Located, csv_fields
from mpf_chains.benchmarks.readers.items import ANTI_STEREOTYPE, STEREOTYPE, UNKNOWN, Choice
from mpf_chains.benchmarks.readers.reader import find_files, pick, pick_subsets
from mpf_chains.benchmarks.strict_json import iter_objects

CATEGORIES = (
    "Age", "Disability_status", "Gender_identity", "Nationality", "Physical_appearance", "Race_ethnicity",
    "Race_x_SES", "Race_x_gender", "Religion", "SES", "Sexual_orientation",
)  # fmt: skip
_CONDITIONS = {"ambig": "ambiguous", "disambig": "disambiguated"}
_POLARITIES = {"neg": "negative", "nonneg": "non-negative"}
_ANSWERS = ("ans0", "ans1", "ans2")
_METADATA = "additional_metadata.csv"
_CROSSED = re.compile(r"_|(?<=\bM)-|(?<=\bF)-|(?<=SES)-")
_SAME = {"woman": "f", "girl": "f", "man": "m", "boy": "m", "latina": "latino"} | {
    "lowses": "low ses", "highses": "high ses",
}  # fmt: skip

Stereotyped = Mapping[tuple[str, int], int]


class BBQReader:
    """BBQ (Parrish et al. 2022): one JSON-lines file per category, streamed. The parts are the categories.

    Items: `Choice` with the answers in their order and one label each: "unknown"; "stereotype", the answer that the
    stereotype gives to this question (the target group where `tags["polarity"]` is "negative", the other group where it
    is "non-negative"); "anti-stereotype", the other. `condition` is "ambiguous" (the right answer is "unknown") or
    "disambiguated"; `group` the category; `family` the template. Accuracy compares the chosen index with `correct`; the
    bias score counts "stereotype" among the chosen labels that are not "unknown".

    Which answer is the stereotype's comes from the authors' additional_metadata.csv where it is in the folder or in
    ../supplemental (read as a whole, some 10 MB), else from the groups named with the answers, as lm-evaluation-harness
    does. The groups alone decide alike in all but the crossed categories, Race_x_gender and Race_x_SES, of which they
    leave a third with no or two stereotype answers (and decide 68 otherwise).

    References:
        Parrish et al.: BBQ, Findings of ACL 2022; section 5 has the scores. Files: data/*.jsonl of
        github.com/nyu-mll/BBQ.
    """

    name = "bbq"
    splits: Sequence[str] = ()
    part_field = "group"
    hub = "oskarvanderwal/bbq"

    def from_files(self, path: Path, split: str, part: str) -> Iterator[Located[Choice]]:
        """Questions of one category's file, or of all in a folder."""
        del split
        files = find_files(path, ("*.jsonl",), folders=("", "data"))
        stereotyped = _stereotyped(path if path.is_dir() else path.parent)
        for file in pick({file.stem: file for file in files}, part, path).values():
            for place, text, values in iter_objects(file):
                yield _question(Fields(values, place, text), stereotyped)

    def hub_subsets(self, available: Sequence[str], part: str) -> Sequence[str]:
        """The part, or "All" where there is such a subset, else every category."""
        return pick_subsets(available, (part,)) if part or "All" not in available else ("All",)

    def from_hub(self, records: Iterable[Fields], subset: str, split: str) -> Iterator[Located[Choice]]:
        """Questions with the same columns."""
        del subset, split
        for record in records:
            yield _question(record, {})


def _question(fields: Fields, stereotyped: Stereotyped) -> Located[Choice]:
    category, number = fields.text("category"), fields.integer("example_id")
    condition = _CONDITIONS[fields.one_of("context_condition", _CONDITIONS)]
    polarity = _POLARITIES[fields.one_of("question_polarity", _POLARITIES)]
    correct = fields.integer("label", bound=len(_ANSWERS))
    labels = _labels(fields, polarity, stereotyped.get((category, number)))
    if (labels[correct] == UNKNOWN) != (condition == "ambiguous"):
        raise fields.error(
            "label", f"the right answer is number {correct}, {labels[correct]!r}, but the context is {condition}."
        )
    return fields.located(
        Choice,
        id=f"{category}/{number}",
        group=category,
        candidates=tuple(fields.text(name) for name in _ANSWERS),
        labels=labels,
        context=fields.text("context"),
        question=fields.text("question"),
        correct=correct,
        condition=condition,
        family=f"{category}/{fields.get('question_index')}",
        tags={"polarity": polarity},
    )


def _labels(fields: Fields, polarity: str, stereotyped: int | None) -> tuple[str, ...]:
    information = fields.inner("answer_info")
    groups = [information.texts(name) for name in _ANSWERS]
    unknown = [index for index, group in enumerate(groups) if group[-1:] == (UNKNOWN,)]
    if len(unknown) != 1:
        raise fields.error("answer_info", f"{len(unknown)} answers are marked 'unknown'; it must be one.")
    targets = {group.casefold() for group in fields.inner("additional_metadata").texts("stereotyped_groups")}
    labels = [ANTI_STEREOTYPE] * len(_ANSWERS)
    labels[unknown[0]] = UNKNOWN
    for index, group in enumerate(groups):
        if index not in unknown:
            marks = group if any(group) else fields.text(_ANSWERS[index]).split()
            named = not targets.isdisjoint(_group_names(marks))
            expected = (index == stereotyped) if stereotyped is not None else named == (polarity == "negative")
            labels[index] = STEREOTYPE if expected else ANTI_STEREOTYPE
    return tuple(labels)


def _group_names(marks: Sequence[str]) -> set[str]:
    """Names of the groups in the marks of an answer: crossed ones ("F-Black", "trans_M") apart, sex by its letter."""
    parts = {part for mark in marks for part in (mark, *re.split(_CROSSED, mark))}
    names = {part.casefold() for part in parts}
    return names | {_SAME[word] for name in names for word in name.split() if word in _SAME}


def _stereotyped(folder: Path) -> Stereotyped:
    """The stereotype's answer by category and example, as the authors give it; empty without their file."""
    places = [folder / _METADATA, folder / "supplemental" / _METADATA, folder.parent / "supplemental" / _METADATA]
    for file in places:
        if file.is_file():
            rows = csv_fields(file, ("category", "example_id", "target_loc"))
            return {
                (row.text("category"), row.number("example_id")): row.number("target_loc", bound=len(_ANSWERS))
                for row in rows
                if row.values["target_loc"] != "NA"
            }
    return {}
