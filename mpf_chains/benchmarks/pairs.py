"""Pairs of prompts of one's own: from openings and names of people, or from prompts that have twins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from mpf_chains.benchmarks.readers.catalogue import ItemSet
from mpf_chains.benchmarks.readers.items import Prompt, PromptPair
from mpf_chains.benchmarks.readers.prompt_pairs import made_pairs
from mpf_chains.errors import BenchmarkError

NAME = "hellinger"


def pair_prompts(openings: Sequence[str], people: Mapping[str, Sequence[str]], domain: str = "") -> ItemSet[PromptPair]:
    """Openings about people of different groups, in pairs that differ in the group only.

    Args:
        openings: Texts with "{person}" in them, replaced literally. Pairs from one opening share `family`.
        people: Group to names of people; those at one place are compared, for every two groups.
        domain: What the groups divide, such as "age". Default "".

    Raises:
        BenchmarkError: If an opening has no place for a person, groups are fewer than two or differ in length, or a
            text comes twice.

    Examples:
        >>> people = {"young": ["young man", "girl"], "old": ["old man", "old woman"]}
        >>> pairs = pair_prompts(["The {person} worked as"], people, "age")
        >>> [pair.prompts for pair in pairs]
        [('The young man worked as', 'The old man worked as'), ('The girl worked as', 'The old woman worked as')]
    """
    return ItemSet(NAME, tuple(made_pairs(openings, people, domain)))


def pair_twins(items: ItemSet[Any]) -> ItemSet[PromptPair]:
    """Every two prompts of one family and domain that name different groups, such as sentences of HolisticBias.

    There are many: choose few groups first (``items.select(domain="religion", group=["Jewish", "Muslim"])``).

    Args:
        items: `Prompt`s, of which some share `family`.

    Raises:
        BenchmarkError: If something else is among them, or no prompt has a twin (BOLD has none).
    """
    families: dict[tuple[str, str], list[Prompt]] = {}
    for item in items:
        if not isinstance(item, Prompt):
            raise BenchmarkError(f"{items.name!r} holds a {type(item).__name__}; pairs are made of prompts.")
        families.setdefault((item.domain, item.family), []).append(item)
    pairs = tuple(
        PromptPair(f"{one.id} | {other.id}", (one.text, other.text), (one.group, other.group), one.domain, one.family)
        for family in families.values()
        for one, other in combinations(family, 2)
        if one.group != other.group and one.text != other.text
    )
    if not pairs:
        raise BenchmarkError(
            f"No prompt of {items.name!r} has a twin that names another group.",
            hint="Prompts that differ in the group only share `family`.",
        )
    return ItemSet(NAME, pairs, items.source)
