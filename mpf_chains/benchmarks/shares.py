"""Prompts whose answers, asked many times, should have the classes of an attribute in the shares of a target table."""

from __future__ import annotations

from collections.abc import Sequence

from mpf_chains.benchmarks.readers.catalogue import ItemSet
from mpf_chains.benchmarks.readers.targets import TARGETS, rows_of
from mpf_chains.benchmarks.rows import Row
from mpf_chains.targets import TargetTable, phrasings
from mpf_chains.targets.phrasings import Kind, Part


def target_prompts(
    table: TargetTable,
    kind: Kind = "answers",
    part: Part = "held_out",
    *,
    templates: Sequence[str] | None = None,
) -> ItemSet[Row]:
    """Prompts about every context of a target table, for `evaluate`.

    Args:
        table: The targets; `table.select(...)` for some of the contexts, such as held-out ones.
        kind: "answers" (default): the attribute is asked for. "stories": it shows in a text.
        part: Which of the shipped phrasings: "held_out" (default) or "train". Not used where templates are given.
        templates: Phrasings of your own, with ``{context}`` or ``{a_context}``. Default the shipped ones.

    Returns:
        A row for each context and template; its entity is the context.

    Raises:
        InvalidInput: As `mpf_chains.targets.phrasings`; or if a template has no place for a context.

    Examples:
        >>> table = TargetTable.of({"nurse": {"female": 0.9, "male": 0.1}}, {"gender": ("female", "male")})
        >>> items = target_prompts(table, templates=["Write the gender of {a_context}."])
        >>> [(row.entity, row.question) for row in items]
        [('nurse', 'Write the gender of a nurse.')]
    """
    texts = phrasings(kind, table.attributes, part) if templates is None else templates
    return ItemSet(TARGETS, tuple(rows_of(table, kind, texts)))
