"""RedditBias: biased sentences, and the same about another group or with the opposite attribute."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from mpf_chains.benchmarks.lines import Place, iter_lines
from mpf_chains.benchmarks.readers.fields import Fields, Located
from mpf_chains.benchmarks.readers.items import ANTI_STEREOTYPE, STEREOTYPE, Choice
from mpf_chains.benchmarks.readers.reader import ALL, find_files
from mpf_chains.errors import BenchmarkError, NotSupportedError

_GROUPS = {
    "gender": ("female", "male"),
    "orientation": ("lgbtq", "straight"),
    "race": ("black", "white"),
    "religion1": ("jews", "christians"),
    "religion2": ("muslims", "christians"),
}
_HALVES = re.compile(r"([a-z]+\d?)_bias_manual_swapped_(attr|targets)_(train|test)\.txt")
_SIDES = re.compile(r"([a-z]+\d?)_([a-z]+)_biased_(valid|test)_reduced\.txt")
_SWAPPED = {"attr": "attributes", "targets": "targets"}

Line = tuple[Place, str]


class RedditBiasReader:
    """RedditBias (Barikeri et al. 2021): text files of sentences, streamed. The parts are the axes.

    Items: `Choice` with the labels "stereotype" (the biased sentence) and "anti-stereotype" (its counterpart), in this
    order; `group` is the axis ("gender", "orientation", "race", "religion1", "religion2"), `condition` what was swapped
    in the counterpart: "targets" (the group) or "attributes". A leading "<bos>" is cut off; nothing else is changed.

    Splits: "test" and "valid" are the authors' reduced evaluation pairs (targets), one file per group, line by line;
    "test" with swapped attributes holds the sentences of both before that reduction. "train" is for experts and
    anti-experts. Its files, and those of swapped attributes, hold the biased sentences and then their counterparts in
    the same order. In a few pairs the authors' swap changed nothing. A single file of either kind may be given as well.

    References:
        Barikeri, Lauscher, Vulić, Glavaš: RedditBias, ACL 2021. Files: text_files of github.com/umanlp/RedditBias.
    """

    name = "redditbias"
    splits: Sequence[str] = ("test", "valid", "train")
    part_field = "group"
    hub = ""

    def from_files(self, path: Path, split: str, part: str) -> Iterator[Located[Choice]]:
        """Pairs of a file, or of all in a folder (or in its folders by axis)."""
        if path.is_dir():
            if part and part not in _GROUPS:
                raise BenchmarkError(f"RedditBias has no axis {part!r}; there is {', '.join(_GROUPS)}.")
            folders = ("", *_GROUPS, "text_files", *(f"text_files/{axis}" for axis in _GROUPS))
            files = [file for folder in folders for file in sorted((path / folder).glob("*.txt"))]
            find_files(path, ("*.txt",), folders=folders)
        else:
            files = [path]
        found = 0
        for file in files:
            axis, swapped, of, other = _kind(file)
            if axis and part in {"", axis} and (split in {ALL, of} or not path.is_dir()):
                found += 1
                pairs = _sides(file, other) if other else _halves(file)
                for number, (biased, counterpart) in enumerate(pairs):
                    yield _pair(biased, counterpart, axis, swapped, f"{axis}/{of}/{swapped}/{number}")
        if not found:
            raise BenchmarkError(
                f"{path} holds no pairs for split {split!r}" + (f" of axis {part!r}." if part else "."),
                hint="Original names are like gender_bias_manual_swapped_attr_train.txt and "
                "gender_female_biased_test_reduced.txt, which needs gender_male_biased_test_reduced.txt beside it.",
            )

    def hub_subsets(self, available: Sequence[str], part: str) -> Sequence[str]:
        """There is no layout on the hub."""
        del available, part
        return ()

    def from_hub(self, records: Iterable[Fields], subset: str, split: str) -> Iterator[Located[Choice]]:
        """Not offered."""
        del records, subset, split
        raise NotSupportedError("RedditBias has no layout on the hub.", hint="Give its local folder.")


def _kind(file: Path) -> tuple[str, str, str, Path | None]:
    """Axis, what is swapped, split, and the file of counterparts (none where the file holds both halves).

    The axis is "" for files that hold no pairs, and for the one with the counterparts.
    """
    if match := _HALVES.fullmatch(file.name):
        axis, swapped, split = match.groups()
        reduced = axis in _GROUPS and (swapped, split) == ("targets", "test")
        if not (reduced and _first_side(file, axis).is_file()):
            return axis, _SWAPPED[swapped], split, None
    if match := _SIDES.fullmatch(file.name):
        axis, side, split = match.groups()
        groups = _GROUPS.get(axis, ())
        if groups and side == groups[0]:
            return axis, _SWAPPED["targets"], split, file.with_name(f"{axis}_{groups[1]}_biased_{split}_reduced.txt")
    return "", "", "", None


def _first_side(file: Path, axis: str) -> Path:
    return file.with_name(f"{axis}_{_GROUPS[axis][0]}_biased_test_reduced.txt")


def _lines(file: Path) -> Iterator[Line]:
    for number, text in iter_lines(file):
        if not text.strip():
            raise Place(file, number).error("the line is blank; each must hold a sentence.", hint="Remove the pair.")
        yield Place(file, number), text.strip().removeprefix("<bos>").strip()


def _halves(file: Path) -> Iterator[tuple[Line, Line]]:
    """Line n of the first half with line n of the second; the file is read twice at once, in flat memory."""
    count = sum(1 for _ in _lines(file))
    if count % 2:
        raise Place(file, count).error(f"the file has {count} lines; two halves need an even number.")
    return zip(_lines(file), islice(_lines(file), count // 2, None), strict=False)


def _sides(file: Path, other: Path) -> Iterator[tuple[Line, Line]]:
    counts = [sum(1 for _ in _lines(one)) for one in (file, other)]
    if counts[0] != counts[1]:
        raise Place(file, min(counts) + 1).error(
            f"the file has {counts[0]} lines and {other.name} has {counts[1]}; they must be equally many."
        )
    return zip(_lines(file), _lines(other), strict=True)


def _pair(biased: Line, counterpart: Line, axis: str, swapped: str, identifier: str) -> Located[Choice]:
    for place, text in (biased, counterpart):
        if not text:
            raise place.error('there is nothing after "<bos>"; each line must hold a sentence.')
    return Fields({}, biased[0]).located(
        Choice,
        id=identifier,
        group=axis,
        candidates=(biased[1], counterpart[1]),
        labels=(STEREOTYPE, ANTI_STEREOTYPE),
        condition=swapped,
    )
