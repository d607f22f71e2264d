"""CrowS-Pairs: two sentences that differ in the group they name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mpf_chains.benchmarks.readers.fields import Fields, Located, csv_fields
from mpf_chains.benchmarks.readers.items import ANTI_STEREOTYPE, STEREOTYPE, Choice
from mpf_chains.benchmarks.readers.reader import find_files, pick_subsets

_REQUIRED = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")


class CrowsPairsReader:
    """CrowS-Pairs (Nangia et al. 2020): a CSV file, streamed.

    Items: `Choice` with the labels "stereotype" (sent_more) and "anti-stereotype" (sent_less), in this order; `group`
    is the bias type; `condition` is the direction, "stereo" or "antistereo". The id is the number
    in the file's first column, which has no name, else the number of the row from 0.

    References:
        Nangia, Vania, Bhalerao, Bowman: CrowS-Pairs, EMNLP 2020. Files: crows_pairs_anonymized.csv of
        github.com/nyu-mll/crows-pairs.
    """

    name = "crows_pairs"
    splits: Sequence[str] = ()
    part_field = ""
    hub = "nyu-mll/crows_pairs"

    def from_files(self, path: Path, split: str, part: str) -> Iterator[Located[Choice]]:
        """Pairs of the CSV file."""
        del split, part
        for file in find_files(path, ("crows_pairs_anonymized.csv",), folders=("", "data")):
            for number, fields in enumerate(csv_fields(file, _REQUIRED)):
                yield _pair(fields, number)

    def hub_subsets(self, available: Sequence[str], part: str) -> Sequence[str]:
        """One subset."""
        del part
        return pick_subsets(available, ("crows_pairs", "english"))

    def from_hub(self, records: Iterable[Fields], subset: str, split: str) -> Iterator[Located[Choice]]:
        """Pairs with the same columns."""
        del subset, split
        for number, record in enumerate(records):
            yield _pair(record, number)


def _pair(fields: Fields, number: int) -> Located[Choice]:
    return fields.located(
        Choice,
        id=str(fields.values.get("") or fields.values.get("id") or number),
        group=fields.text("bias_type"),
        candidates=(fields.text("sent_more"), fields.text("sent_less")),
        labels=(STEREOTYPE, ANTI_STEREOTYPE),
        condition=fields.one_of("stereo_antistereo", ("stereo", "antistereo")),
    )
