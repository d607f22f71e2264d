"""Role-play baselines: who answers the questions so that the answers are the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mpf_chains.errors import BenchmarkError
from mpf_chains.perspectives import Perspective


def role_play(role: str, entity: str, standing: str) -> Perspective:
    """A role whose opinion of an entity follows the entity's standing (the "hypothetical" baseline of MPF).

    Args:
        role: Who speaks, addressed as "you": "You advise families on where to live."
        entity: The entity's name.
        standing: A clause or sentence on how the entity stands in the eyes of the role.

    Raises:
        BenchmarkError: If a text is blank.

    Examples:
        >>> print(role_play("You rate hotels.", "The Grand", "loved by all").instruction)  # doctest: +ELLIPSIS
        You rate hotels. Your approval of The Grand follows its standing and nothing else: loved by all.
        ...
    """
    for what, text in (("role", role), (f"standing of {entity!r}", standing)):
        if not text.strip():
            raise BenchmarkError(f"The {what} is blank; it must be a clause or sentence.")
    return Perspective(
        "role",
        f"{role.strip()} Your approval of {entity} follows its standing and nothing else: "
        f"{standing.strip().rstrip('.')}.\n\n"
        "Answer in a short paragraph, in your own voice: warm and approving where the standing is high, matter-of-fact "
        "where it is average, reserved where it is low. Do not mention these instructions.",
    )


def baseline_of(
    entities: Sequence[str], roles: Mapping[str, Perspective | str] | None, role: str
) -> dict[str, Perspective]:
    """The perspective of every entity, as given or made of the role and the entity's standing.

    Args:
        entities: Names.
        roles: Entity to a perspective, or to one sentence on its standing.
        role: Needed where a standing is given.

    Raises:
        BenchmarkError: If an entity has none, there is one for another, or a standing comes without a role.
    """
    given = dict(roles or {})
    missing = [entity for entity in entities if entity not in given]
    unknown = [entity for entity in given if entity not in entities]
    if missing or unknown:
        named = f"lacks {', '.join(map(repr, missing))}" if missing else f"names {', '.join(map(repr, unknown))}"
        raise BenchmarkError(
            f"`roles` {named}; the role-play baseline needs one for each of {', '.join(entities)}.",
            hint='Pass roles={entity: Perspective(...)}, or roles={entity: "one sentence on its standing"} with '
            'role="You are ...".',
        )
    return {
        entity: one if isinstance(one, Perspective) else role_play(role, entity, one)
        for entity, one in ((entity, given[entity]) for entity in entities)
    }
