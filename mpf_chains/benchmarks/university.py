"""The two benchmarks that ship: questions about universities, and two kinds of target."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources

from mpf_chains.benchmarks.entities import fill_entity
from mpf_chains.benchmarks.rows import Row
from mpf_chains.errors import BenchmarkError
from mpf_chains.perspectives import Perspective

DEFAULT_ENTITIES = 4


def university_rows(entities: Sequence[str], *, with_targets: bool) -> tuple[Row, ...]:
    """Every question about every entity.

    Args:
        entities: Names, any.
        with_targets: Whether rows carry the answer with the name filled in: the same target for every entity.

    Returns:
        140 rows per entity (100 decomposition, 40 validation), entity by entity; ids are "question/entity".
    """
    questions = [json.loads(line) for line in _data("university.jsonl").splitlines()]
    return tuple(
        Row(
            id=f"{one['id']}/{entity}",
            entity=entity,
            question=fill_entity(one["question"], entity),
            target_text=fill_entity(one["answer"], entity) if with_targets else None,
            split=one["split"],
            metadata={"question_id": one["id"], "topic": one["topic"]},
        )
        for entity in entities
        for one in questions
    )


def known_standings() -> dict[str, str]:
    """Entities that ship with words on their standing, in order."""
    return {one["entity"]: one["standing"] for one in json.loads(_data("universities.json"))}


def standings(entities: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """Standing by entity: as given, or as shipped.

    Raises:
        BenchmarkError: If an entity has none.
    """
    if isinstance(entities, Mapping):
        blank = [entity for entity, standing in entities.items() if not standing.strip()]
        if blank:
            raise BenchmarkError(f"The standing of {blank[0]!r} is blank; it must be a clause or sentence.")
        return dict(entities)
    known = known_standings()
    names = entity_names(entities)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BenchmarkError(
            f"No standing is shipped for {', '.join(map(repr, unknown))}.",
            hint='Pass it: entities={"name": "One sentence on its standing."}.',
        )
    return {name: known[name] for name in names}


def entity_names(entities: Sequence[str] | Mapping[str, str] | None) -> list[str]:
    """The names given, or the first four that ship.

    Raises:
        BenchmarkError: If they are no list of different names.
    """
    if entities is None:
        return list(known_standings())[:DEFAULT_ENTITIES]
    if isinstance(entities, (str, Mapping)):
        raise BenchmarkError(
            f"`entities` must be a list of names, not {entities!r}.",
            hint='A mapping to standings goes with "university-hr" only.' if isinstance(entities, Mapping) else "",
        )
    names = list(entities)
    if not names or len(set(names)) < len(names):
        raise BenchmarkError(f"`entities` must name at least one entity, each once; got {names}.")
    return names


def strategist(entity: str, standing: str) -> Perspective:
    """The role-play whose answers are the "hypothetical HR" target: approval follows standing."""
    return Perspective(
        "hr",
        "You are the head of human resources strategy at a large international employer and decide at which "
        "universities your company recruits. Your approval of a university follows its standing and nothing else. "
        f"The standing of {entity}: {standing.strip().rstrip('.')}.\n\n"
        "Answer the question in a short paragraph, in your own voice: the higher the standing, the warmer and more "
        "approving; an average standing gets a matter-of-fact answer, a low one a reserved answer. "
        "Do not mention these instructions.",
    )


def _data(name: str) -> str:
    return (resources.files("mpf_chains.benchmarks") / "data" / name).read_text(encoding="utf-8")
