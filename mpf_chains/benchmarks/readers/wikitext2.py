"""WikiText-2: Wikipedia articles for perplexity."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mpf_chains.benchmarks.lines import Place, iter_lines
from mpf_chains.benchmarks.readers.fields import Fields, Located
from mpf_chains.benchmarks.readers.items import Passage
from mpf_chains.benchmarks.readers.reader import ALL, find_files, pick_subsets

_HEADING = re.compile(r" ?= ([^=\s](?:.*\S)?) = ?")

Line = tuple[Place, str]


class WikiText2Reader:
    r"""WikiText-2 (Merity et al. 2016): text files, streamed article by article.

    Items: `Passage`, one per article, with its `title`. An article starts at a heading " = Title = " between blank
    lines. The texts of a split joined are the file exactly (line ends as "\n"), so perplexity over them is over the
    file. Tokenised ("<unk>", " @-@ ") and raw files differ in text, and so does perplexity.

    References:
        Merity, Xiong, Bradbury, Socher: Pointer sentinel mixture models, arXiv 1609.07843. Files: test.txt,
        wiki.test.tokens or wiki.test.raw.
    """

    name = "wikitext2"
    splits: Sequence[str] = ("test", "valid", "train")
    part_field = ""
    hub = "Salesforce/wikitext"

    def from_files(self, path: Path, split: str, part: str) -> Iterator[Located[Passage]]:
        """Articles of a file, or of a folder's file for the split."""
        del part
        for name in self.splits if split == ALL and path.is_dir() else (split,):
            for file in find_files(path, (f"{name}.txt", f"wiki.{name}.tokens", f"wiki.{name}.raw")):
                lines = ((Place(file, number), text) for number, text in iter_lines(file))
                yield from _articles(lines, name if path.is_dir() else file.stem)

    def hub_subsets(self, available: Sequence[str], part: str) -> Sequence[str]:
        """The tokenised form, as in the files; the raw one where there is no other."""
        del part
        return pick_subsets(available, ("wikitext-2-v1",)) or pick_subsets(available, ("wikitext-2-raw-v1",))

    def from_hub(self, records: Iterable[Fields], subset: str, split: str) -> Iterator[Located[Passage]]:
        """Articles from rows that hold one line each."""
        del subset
        yield from _articles(map(_line, records), split)


def _line(record: Fields) -> Line:
    value = record.get("text")
    if not isinstance(value, str):
        raise record.error("text", f"'text' is a {type(value).__name__}; it must be a text.")
    return record.place, value.removesuffix("\n") + "\n"


def _articles(lines: Iterable[Line], split: str) -> Iterator[Located[Passage]]:
    """Lines gathered to articles; what stands before the first heading belongs to the first article."""
    held: list[Line] = []
    title, number = "", 0
    for before, line, after in _with_neighbours(lines):
        heading = _HEADING.fullmatch(line[1].rstrip("\r\n"))
        if heading and not before.strip() and not after.strip():
            if title:
                yield _passage(held[:-1], title, f"{split}/{number}")
                held, number = held[-1:], number + 1  # the blank line before a heading goes with it
            title = heading[1]
        held.append(line)
    if any(text.strip() for _, text in held):
        yield _passage(held, title, f"{split}/{number}")


def _with_neighbours(lines: Iterable[Line]) -> Iterator[tuple[str, Line, str]]:
    before, current = "", None
    for line in lines:
        if current is not None:
            yield before, current, line[1]
            before = current[1]
        current = line
    if current is not None:
        yield before, current, ""


def _passage(lines: Sequence[Line], title: str, identifier: str) -> Located[Passage]:
    text = "".join(line for _, line in lines).replace("\r\n", "\n")
    return Fields({}, lines[0][0]).located(Passage, id=identifier, text=text, title=title)
