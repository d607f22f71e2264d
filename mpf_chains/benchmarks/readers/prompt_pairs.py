"""Pairs of openings that differ in the group named: those that ship, and a user's own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import combinations
from pathlib import Path

from mpf_chains.benchmarks.lines import Place
from mpf_chains.benchmarks.readers.fields import Fields, Located, csv_fields
from mpf_chains.benchmarks.readers.items import PromptPair
from mpf_chains.benchmarks.readers.reader import pick_subsets
from mpf_chains.benchmarks.strict_json import iter_objects
from mpf_chains.errors import BenchmarkError

SHIPPED = "openings"
PERSON = "{person}"
_REQUIRED = ("first", "second")
_SUFFIXES = (".csv", ".jsonl", ".ndjson")


class PromptPairsReader:
    """Pairs of prompts for the Hellinger distance between next-token distributions; the parts are the domains.

    Source: "openings", which ships: 24 openings such as "The {person} worked as", each with 6 pairs of people of
    different gender ("man" and "woman", ...), race and religion, 432 pairs in all. Or a CSV file or JSON lines,
    streamed, with the columns "first" and "second" (the prompts) and, where known, "id", "first_group",
    "second_group", "domain" and "family" (pairs from one template share it). On the hub: the same columns.

    Items: `PromptPair`. Of those that ship, `family` is the opening: pairs made from one are resampled together.

    What ships was written for this package (MIT). It is not the list of Tong et al. (arXiv 2412.01711), so figures are
    not comparable with theirs: that list, ten openings with three pairs of people each for three domains, is in
    local_bias.md of github.com/EliottZemour/nlg_bias and is not published here.
    """

    name = "hellinger"
    splits: Sequence[str] = ()
    part_field = "domain"
    hub = "owner/name"

    def from_files(self, path: Path, split: str, part: str) -> Iterator[Located[PromptPair]]:
        """Pairs of a file, or those that ship."""
        del split
        found: set[str] = set()
        for located in _shipped() if str(path) == SHIPPED and not path.exists() else _from_file(path):
            found.add(located.item.domain)
            if part in {"", located.item.domain}:
                yield located
        if part and part not in found:
            raise BenchmarkError(f"{path} has no part {part!r}; there is {', '.join(sorted(found - {''})) or 'none'}.")

    def hub_subsets(self, available: Sequence[str], part: str) -> Sequence[str]:
        """The default subset, or the only one."""
        del part
        return pick_subsets(available, ("default",))

    def from_hub(self, records: Iterable[Fields], subset: str, split: str) -> Iterator[Located[PromptPair]]:
        """Pairs with the same columns."""
        del subset, split
        for number, record in enumerate(records, 1):
            yield _pair(record, number)


def made_pairs(openings: Sequence[str], people: Mapping[str, Sequence[str]], domain: str) -> Iterator[PromptPair]:
    """Each opening about a person of each group, in pairs.

    Args:
        openings: Texts with "{person}" in them.
        people: Group to names of people; those at one place are compared, for every two groups.
        domain: What the groups divide.

    Raises:
        BenchmarkError: If an opening has no place for a person, or groups are fewer than two or differ in length.
    """
    bare = next((opening for opening in openings if PERSON not in opening), None)
    if bare is not None:
        raise BenchmarkError(f"The opening {bare!r} has no {PERSON}; a person is named where that stands.")
    lengths = {group: len(names) for group, names in people.items()}
    if len(people) < 2 or len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise BenchmarkError(f"`people` has {lengths} names; it must be two groups at least, with as many names each.")
    for opening in openings:
        for one, other in combinations(people, 2):
            for names in zip(people[one], people[other], strict=True):
                yield PromptPair(
                    id="/".join(part for part in (domain, *names, opening) if part),
                    prompts=(opening.replace(PERSON, names[0]), opening.replace(PERSON, names[1])),
                    groups=(one, other),
                    domain=domain,
                    family=opening,
                )


def _shipped() -> Iterator[Located[PromptPair]]:
    data = json.loads((resources.files("mpf_chains.benchmarks") / "data" / "openings.json").read_text("utf-8"))
    for domain, people in data["people"].items():
        for number, pair in enumerate(made_pairs(data["openings"], people, domain), 1):
            yield Located(Place(Path(SHIPPED), number), pair)


def _from_file(path: Path) -> Iterator[Located[PromptPair]]:
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise BenchmarkError(
            f"{path} has the suffix {suffix!r}; pairs of prompts are {', '.join(_SUFFIXES)} files.",
            hint=f'Those that ship are called "{SHIPPED}".',
        )
    if suffix == ".csv":
        records: Iterable[Fields] = csv_fields(path, _REQUIRED)
    else:
        records = (Fields(values, place, text) for place, text, values in iter_objects(path))
    for number, record in enumerate(records, 1):
        yield _pair(record, number)


def _pair(record: Fields, number: int) -> Located[PromptPair]:
    identifier = _optional(record, "id", str(number))
    return record.located(
        PromptPair,
        id=identifier,
        prompts=(record.text("first"), record.text("second")),
        groups=(_optional(record, "first_group", "first"), _optional(record, "second_group", "second")),
        domain=_optional(record, "domain", ""),
        family=_optional(record, "family", identifier),
    )


def _optional(record: Fields, name: str, default: str) -> str:
    given = record.values.get(name)
    return default if given is None or given == "" else record.text(name)
