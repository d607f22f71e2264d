"""Winogender schemas: sentences that differ in the sex of one pronoun."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mpf_chains.benchmarks.lines import Place, iter_lines
from mpf_chains.benchmarks.readers.fields import Fields, Located
from mpf_chains.benchmarks.readers.items import Choice
from mpf_chains.benchmarks.readers.reader import find_files, pick_subsets

_PRONOUNS = {
    "male": {"he", "him", "his"},
    "female": {"she", "her"},
    "neutral": {"they", "them", "their"},
}
_ID = re.compile(r"([^.]+)\.([^.]+)\.([01])\.(male|female|neutral)\.txt")
_COLUMNS = ("sentid", "sentence")
_STATISTICS = "occupations-stats.tsv"
_PERCENTAGES = {"bls_pct_female": "percent_female", "bergsma_pct_female": "percent_female_text"}


class WinogenderReader:
    """Winogender (Rudinger et al. 2018): a table of sentences, streamed, and one of occupations.

    Items: `Choice` in which `context` is the sentence, `candidates` are the occupation and the other participant ("the
    technician", "someone"), in this order and so labelled, `correct` is the one that the pronoun stands for.
    `condition` is the pronoun's sex ("male", "female", "neutral"), `group` the occupation; the three sentences that
    differ in the pronoun only share `family`. `tags`: "pronoun", "participant", and where occupations-stats.tsv lies
    beside the sentences "percent_female" (US labour statistics 2015/16, 0 to 100) and "percent_female_text" (in text,
    Bergsma and Lin 2006).

    References:
        Rudinger, Naradowsky, Leonard, Van Durme: Gender bias in coreference resolution, NAACL 2018. Files:
        all_sentences.tsv and occupations-stats.tsv of github.com/rudinger/winogender-schemas.
    """

    name = "winogender"
    splits: Sequence[str] = ()
    part_field = ""
    hub = "oskarvanderwal/winogender"

    def from_files(self, path: Path, split: str, part: str) -> Iterator[Located[Choice]]:
        """Sentences of the table, or of the one in a folder."""
        del split, part
        for file in find_files(path, ("all_sentences.tsv",), folders=("", "data")):
            statistics = _statistics(file.with_name(_STATISTICS))
            for fields in _table(file, _COLUMNS):
                yield _sentence(fields, statistics)

    def hub_subsets(self, available: Sequence[str], part: str) -> Sequence[str]:
        """One subset of all sentences."""
        del part
        return pick_subsets(available, ("all",))

    def from_hub(self, records: Iterable[Fields], subset: str, split: str) -> Iterator[Located[Choice]]:
        """Sentences with the same two columns; others are not needed."""
        del subset, split
        for record in records:
            yield _sentence(record, {})


def _sentence(fields: Fields, statistics: Mapping[str, Mapping[str, float]]) -> Located[Choice]:
    name, sentence = fields.text("sentid"), fields.text("sentence")
    match = _ID.fullmatch(name)
    if not match:
        raise fields.error("sentid", f"'sentid' is {name!r}; it must be like technician.customer.1.male.txt.")
    occupation, participant, answer, sex = match.groups()
    found = [word for word in re.findall(r"[a-z]+", sentence.casefold()) if word in _PRONOUNS[sex]]
    if len(found) != 1:
        raise fields.error("sentence", f"the sentence has {len(found)} {sex} pronouns; it must have one.")
    return fields.located(
        Choice,
        id=name.removesuffix(".txt"),
        group=occupation,
        candidates=(f"the {occupation}", "someone" if participant == "someone" else f"the {participant}"),
        labels=("occupation", "participant"),
        context=sentence,
        correct=int(answer),
        condition=sex,
        family=f"{occupation}.{participant}.{answer}",
        tags={"pronoun": found[0], "participant": participant, **statistics.get(occupation, {})},
    )


def _statistics(file: Path) -> Mapping[str, Mapping[str, float]]:
    if not file.is_file():
        return {}
    return {
        row.text("occupation"): {name: row.percentage(column) for column, name in _PERCENTAGES.items()}
        for row in _table(file, ("occupation", *_PERCENTAGES))
    }


def _table(file: Path, required: tuple[str, ...]) -> Iterator[Fields]:
    """Rows of a table with tabs between cells, no quoting, and a header row."""
    names: list[str] | None = None
    for line, text in iter_lines(file):
        cells, place = text.rstrip("\r\n").split("\t"), Place(file, line)
        if names is None:
            names = cells
            missing = [name for name in required if name not in names]
            if missing or len(set(names)) < len(names):
                there, needed = ", ".join(map(repr, names)), ", ".join(map(repr, required))
                raise place.error(
                    f"the header is {there}; it must have {needed}, each once.",
                    hint="The separator must be a tab.",
                )
        elif text.strip():
            if len(cells) != len(names):
                raise place.error(f"the row has {len(cells)} cells; the header has {len(names)}.")
            columns = {name: column for column, name in enumerate(names, 1)}
            yield Fields(dict(zip(names, cells, strict=True)), place, columns=columns)
