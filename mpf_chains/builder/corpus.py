"""The texts a benchmark is built from: strings as they are, files read strictly. Nothing is fetched."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpf_chains.benchmarks.lines import Place, iter_lines
from mpf_chains.errors import BenchmarkError

Corpus = str | Path | Sequence[str | Path]
"""A text, a file, or a sequence of them. A `str` is always text, a `Path` always a file."""

SUFFIXES = (".txt", ".md", ".markdown", "")


@dataclass(frozen=True)
class Source:
    """One text of a corpus.

    Args:
        name: The file's name without folders, or "text 1", "text 2" by position for strings.
        text: All of it. Line ends are those of the file; a byte order mark is not part of it.
    """

    name: str
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_corpus(corpus: Corpus) -> list[Source]:
    """Read the texts of a corpus.

    Args:
        corpus: A text, a file (.txt, .md, .markdown or no suffix; UTF-8), or a sequence of them.

    Returns:
        The sources in the order given; those without text are left out, and so are repeated ones.

    Raises:
        BenchmarkError: If there is no text, a file cannot be used (naming file:line:column), or a text holds NUL or
            half of a surrogate pair.

    Examples:
        >>> [source.name for source in read_corpus(["One.", " ", "Two."])]
        ['text 1', 'text 3']
    """
    parts = [corpus] if isinstance(corpus, (str, Path)) else list(corpus)
    sources = [_source(part, number) for number, part in enumerate(parts, 1)]
    kept = {source.digest: source for source in reversed(sources) if source.text.strip()}
    if not kept:
        raise BenchmarkError(
            f"The corpus is empty: {len(parts)} texts, none with words.", hint="Pass text as str or files as Path."
        )
    return [source for source in sources if kept.get(source.digest) is source]


def _source(part: object, number: int) -> Source:
    if isinstance(part, Path):
        return Source(part.name, _read(part))
    if not isinstance(part, str):
        raise BenchmarkError(f"Part {number} of the corpus is a {type(part).__name__}; it must be a str or a Path.")
    name = f"text {number}"
    if re.fullmatch(r"\S+\.(?:txt|md|markdown)", part):
        raise BenchmarkError(
            f"Part {number} of the corpus is the text {part!r}.", hint=f"For the file, pass Path({part!r})."
        )
    if "\0" in part:
        raise BenchmarkError(
            f"{name} holds a NUL character at {part.index(chr(0)) + 1}; texts must not.", hint="Remove it."
        )
    try:
        part.encode()
    except UnicodeEncodeError as error:
        raise BenchmarkError(
            f"{name} holds half of a surrogate pair at character {error.start + 1}; it must be valid Unicode."
        ) from error
    return Source(name, part)


def _read(path: Path) -> str:
    if path.suffix.lower() not in SUFFIXES:
        raise BenchmarkError(
            f"{path} has the suffix {path.suffix!r}; a corpus is made of .txt and .md files.",
            hint="Convert it to plain text first.",
        )
    if path.is_dir():
        raise BenchmarkError(f"{path} is a folder.", hint=f"Pass its files: sorted(Path({str(path)!r}).glob('*.md')).")
    if path.is_file() and not path.stat().st_size:
        raise Place(path, 1).error("the file is empty; it must hold text.")
    return "".join(line for _, line in iter_lines(path))
