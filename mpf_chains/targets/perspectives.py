"""Target tables as perspectives: one for each class, so that a router hits the targets with any chat model."""

from __future__ import annotations

from mpf_chains.perspectives import Perspective, PerspectiveSet
from mpf_chains.targets.names import canonical
from mpf_chains.targets.table import TargetTable

_SHIPPED = ("gender", "race", "sentiment")


def attribute_perspectives(table: TargetTable) -> PerspectiveSet:
    """A perspective for each class of a table, joint classes included, named like the class.

    Its instruction makes an answer carry that class; with `table.weights` as weights, a `PerspectiveRouter` draws them
    as the targets say. This is the token-free counterpart of steering tokens: it needs nothing but a system message.

    Args:
        table: The targets. For the classes of `PerspectiveSet.builtin("gender")`, "race" and "sentiment" the
            instructions are the shipped ones, for others made of the names.

    Examples:
        >>> table = TargetTable.uniform(["nurse"], {"gender": ("female", "male"), "age": ("young", "old")})
        >>> attribute_perspectives(table).names
        ('female, young', 'female, old', 'male, young', 'male, old')
        >>> attribute_perspectives(table.marginal("age"))["old"].instruction.split(". ")[0]
        'Whenever your answer involves a person whose age is not given, that person is: old'
    """
    parts = {name: [_instruction(name, each) for each in classes] for name, classes in table.attributes.items()}
    instructions = [""]
    for texts in parts.values():
        instructions = [f"{before} {text}".strip() for before in instructions for text in texts]
    return PerspectiveSet([Perspective(*each) for each in zip(table.classes, instructions, strict=True)])


def _instruction(attribute: str, name: str) -> str:
    if attribute in _SHIPPED:
        shipped = PerspectiveSet.builtin(attribute)
        if canonical(attribute, name) in shipped.names:
            return str(shipped[canonical(attribute, name)].instruction)
    return (
        f"Whenever your answer involves a person whose {attribute} is not given, that person is: {name}. "
        "Keep everything else in the answer as it would be."
    )
