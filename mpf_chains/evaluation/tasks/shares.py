"""Shares over many generations: the classes that answers express, against those of a target table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from mpf_chains.benchmarks import ItemSet, Row
from mpf_chains.errors import InvalidInput
from mpf_chains.evaluation import metrics
from mpf_chains.evaluation.intervals import DEFAULT, Resampling
from mpf_chains.evaluation.metrics import Measured, Metric
from mpf_chains.evaluation.tasks.task import Bounds, Measures, Record
from mpf_chains.features import Feature, attribute_feature
from mpf_chains.targets import TargetTable
from mpf_chains.targets.table import joint_name

GENERATIONS = 100
"""How often each context is asked about where nothing is said: as often as in arXiv 2604.05756."""

EXPRESSED = Metric(
    "expressed", "Answers with a class", 1, 0, 1, "share", "higher",
    "Share of the generations that express a class at all; the interval is that of Clopper & Pearson, Biometrika 1934",
)  # fmt: skip

Found = Mapping[str, Sequence[Mapping[str, str | None]]]
"""Context → of each of its generations, attribute → the class that it expresses, or None."""


class TargetShares:
    """Prompts about contexts, asked many times: error of the classes' shares, and how many answers express one.

    `target_mae` is taken among the answers that express a class (of each attribute, for joint ones); `expressed` says
    how many that are. A context in which none does counts in full: its realised shares are all 0. Of several attributes
    each is measured by itself, too, as "gender/target_mae".

    Source: arXiv 2604.05756: mean over classes, then over contexts, 100 generations each.
    """

    metrics: Sequence[str] = ("target_mae", "expressed")
    scored = True

    def draws(self, items: ItemSet[Any]) -> int:
        """As many as give each context 100 generations, over all its prompts."""
        return -(-GENERATIONS // max(Counter(item.entity for item in items).values()))

    def row(self, item: Row) -> Row:
        """As it is."""
        return item

    def features(self, given: Sequence[Feature], items: ItemSet[Row]) -> list[Feature]:
        """A classifier for each attribute: those given, and those that ship for the others."""
        (attributes, kind), *others = {_described(item) for item in items}
        if others:
            raise InvalidInput(
                f"{items.name!r} has items of several kinds or attributes; they are measured by themselves.",
                hint="Evaluate answers and stories one after the other.",
            )
        own = {feature.name: feature for feature in given}
        for name in own.keys() - dict(attributes).keys():
            raise InvalidInput(
                f"The feature {name!r} has nothing to judge: {items.name!r} is about {', '.join(dict(attributes))}.",
                hint="Name it after the attribute whose classes it gives.",
            )
        return [own.get(name) or attribute_feature(name, classes, kind) for name, classes in attributes]

    def record(self, item: Row, scores: Mapping[str, float], targets: Mapping[str, float]) -> Record:
        """The classes that the answer expresses, and the shares that the context should have."""
        del targets
        attributes = item.metadata["attributes"]
        return {
            "id": item.id,
            "group": item.entity,
            "classes": {name: _class(name, classes, scores[name]) for name, classes in attributes.items()},
            "targets": dict(item.metadata["targets"]),
            "attributes": {name: list(classes) for name, classes in attributes.items()},
        }

    def measures(self, records: Sequence[Record], bounds: Bounds) -> Measures:
        """Of all attributes together, and of several each."""
        del bounds
        found, table = found_in(records)
        return shares_of(found, table)


def shares_of(found: Found, table: TargetTable) -> Measures:
    """The measures of classes found in generations; see `measure_shares`."""
    joint = Measures(
        {"target_mae": lambda r: _error(found, table, r), "expressed": lambda r: _expressed(found, table, r)}
    )
    silent = [context for context in table.contexts if not any(_complete(each, table) for each in found[context])]
    total = sum(map(len, found.values()))
    lacking = sum(not _complete(each, table) for several in found.values() for each in several)
    if lacking:
        joint.notes.append(f"{lacking} of {total} answers express no {table.attribute}: they are not in target_mae.")
    if silent:
        joint.notes.append(f"No answer about {', '.join(silent)} expresses any: their realised shares count as 0.")
    if len(table.attributes) > 1:
        for name in table.attributes:
            joint.add(shares_of(found, table.marginal(name)), f"{name}/")
    return joint


def measure_shares(
    found: Mapping[str, Sequence[str | Sequence[str | None] | None]],
    table: TargetTable,
    resampling: Resampling = DEFAULT,
) -> dict[str, Measured]:
    """How far the classes of generations are from a target table; what `evaluate` measures, for texts of any origin.

    Source: arXiv 2604.05756 (mean over classes, then contexts, of |realised share − target share|).

    Args:
        found: Context → the class that each of its generations expresses, or None; of several attributes the name of
            a joint class, or one class, or None, for each in the table's order.
        table: The targets; its contexts must all be there.
        resampling: Level, resamples, simulated samples behind the floor's limit, seed.

    Returns:
        "target_mae" among the generations that express a class, by context, with the floor of independent draws and of
        quota draws; "expressed", the share of those that do; of several attributes also "gender/target_mae" and so on.

    Raises:
        InvalidInput: If a context or class is unknown, or a context has no generations.

    Examples:
        >>> table = TargetTable.of({"nurse": {"female": 0.75, "male": 0.25}}, {"gender": ("female", "male")})
        >>> measured = measure_shares({"nurse": ["female", "male", None, "female", "male"]}, table)
        >>> measured["target_mae"].value, measured["expressed"].value
        (0.25, 0.8)
    """
    lacking = [context for context in table.contexts if not found.get(context)]
    unknown = [context for context in found if context not in table]
    if lacking or unknown:
        raise InvalidInput(
            f"Contexts without generations: {', '.join(lacking) or 'none'}; without targets: "
            f"{', '.join(unknown) or 'none'}.",
            hint="Take `table.select(found)`.",
        )
    combinations = {joint_name(classes): classes for classes in product(*table.attributes.values())}

    def classes_of(one: str | Sequence[str | None] | None) -> dict[str, str | None]:
        several = combinations.get(one) if isinstance(one, str) else one
        if several is None and one is None:
            return {}
        known = zip(several or (), table.attributes.values(), strict=False)
        if several is None or len(several) != len(table.attributes) or not all(a in {None, *b} for a, b in known):
            raise InvalidInput(f"{one!r} is no class of {table.attribute}; they are {', '.join(combinations)}.")
        return dict(zip(table.attributes, several, strict=True))

    classes = {context: [classes_of(one) for one in several] for context, several in found.items()}
    return {key: measure(resampling) for key, measure in shares_of(classes, table).by_key.items()}


def found_in(records: Sequence[Record]) -> tuple[Found, TargetTable]:
    """Classes by context, and the targets, of the records of an evaluation."""
    found: dict[str, list[Mapping[str, str | None]]] = {}
    for record in records:
        found.setdefault(record["group"], []).append(record["classes"])
    targets = {record["group"]: record["targets"] for record in records}
    return found, TargetTable.of(targets, records[0]["attributes"])


def counts_of(found: Found, table: TargetTable) -> tuple[Any, Any]:
    """How often each class of a table, shape (contexts, classes), and none, (contexts,), was found."""
    drawn = [
        Counter(
            joint_name([each[name] or "" for name in table.attributes])
            for each in found[context]
            if _complete(each, table)
        )
        for context in table.contexts
    ]
    counts = np.array([[each[name] for name in table.classes] for each in drawn], dtype=np.float64)
    return counts, np.array([len(found[context]) for context in table.contexts]) - counts.sum(axis=1)


def _error(found: Found, table: TargetTable, resampling: Resampling) -> Measured:
    counts, other = counts_of(found, table)
    silent = np.where(counts.sum(axis=1) == 0, other, 0)
    return metrics.target_mae(counts, table.flat, other=silent, entities=table.contexts, resampling=resampling)


def _expressed(found: Found, table: TargetTable, resampling: Resampling) -> Measured:
    flags = [_complete(each, table) for context in table.contexts for each in found[context]]
    contexts = [context for context in table.contexts for _ in found[context]]
    whole = metrics.share(flags, by=contexts, resampling=resampling)
    parts = {name: replace(part, metric=EXPRESSED) for name, part in whole.parts.items()}
    return replace(whole, metric=EXPRESSED, parts=parts)


def _complete(classes: Mapping[str, str | None], table: TargetTable) -> bool:
    return all(classes.get(name) is not None for name in table.attributes)


def _described(item: Row) -> tuple[tuple[tuple[str, tuple[str, ...]], ...], Any]:
    try:
        attributes = item.metadata["attributes"].items()
        return tuple((name, tuple(classes)) for name, classes in attributes), item.metadata["kind"]
    except (KeyError, AttributeError, TypeError) as error:
        raise InvalidInput(
            f"The row {item.id!r} has no attributes and targets in its metadata.", hint="Use `target_prompts`."
        ) from error


def _class(attribute: str, classes: Sequence[str], score: float) -> str | None:
    if score not in range(-1, len(classes)):
        raise InvalidInput(
            f"The feature {attribute!r} gave {score}; it must give a class by number, or -1.",
            hint=f"Use ClassFeature(function, {tuple(classes)!r}, name={attribute!r}).",
        )
    return None if score < 0 else classes[int(score)]
