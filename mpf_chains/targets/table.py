"""Target tables: for each context (an occupation), the shares of the classes of one or several attributes."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpf_chains.core.sampling import Sampler
from mpf_chains.errors import InvalidInput

Array = NDArray[np.float64]
TOLERANCE = 1e-6
"""How far the sum of a context's shares may be from 1."""


@dataclass(frozen=True, eq=False)
class TargetTable:
    """Which share of the outputs about each context should have which class.

    With several attributes a class is one of each ("female, asian"), and the table holds their joint shares.

    Args:
        attributes: Name of each attribute → its classes, at least two.
        contexts: What is asked about, such as occupations; at least one, all different, and not by case only.
        shares: Shape (contexts, classes), or (contexts, classes of the first attribute, of the second, ...). None
            negative; those of a context sum to 1 (tolerance 1e-6, which is then divided out).

    Raises:
        InvalidInput: If names are blank or repeated, or the shares are no distributions.

    Examples:
        >>> table = TargetTable({"gender": ("female", "male")}, ("nurse", "plumber"), [[0.9, 0.1], [0.05, 0.95]])
        >>> table["nurse"]
        {'female': 0.9, 'male': 0.1}
    """

    attributes: Mapping[str, Sequence[str]]
    contexts: Sequence[str]
    shares: ArrayLike

    def __post_init__(self) -> None:
        attributes = {name: tuple(classes) for name, classes in dict(self.attributes).items()}
        if not attributes:
            raise InvalidInput("A target table needs an attribute, such as {'gender': ('female', 'male')}.")
        for name, classes in attributes.items():
            _check_names(f"Attribute {name!r}", "classes", classes, least=2)
        _check_names("The target table", "attributes", tuple(attributes), least=1)
        _check_names("The target table", "contexts", self.contexts, least=1)
        contexts = tuple(self.contexts)
        folded = [context.casefold() for context in contexts]
        alike = sorted(context for context, name in zip(contexts, folded, strict=True) if folded.count(name) > 1)
        if alike:
            raise InvalidInput(f"The contexts {', '.join(map(repr, alike))} differ by upper and lower case only.")
        _check_names("The target table", "joint classes", joint_classes(attributes), least=2)
        shares = _distributions(self.shares, attributes, contexts)
        object.__setattr__(self, "attributes", MappingProxyType(attributes))
        object.__setattr__(self, "contexts", contexts)
        object.__setattr__(self, "shares", shares)

    def __reduce__(self) -> tuple[Any, ...]:
        return TargetTable, (dict(self.attributes), self.contexts, self.joint)  # a mapping proxy cannot be pickled

    @classmethod
    def of(
        cls,
        shares: Mapping[str, Mapping[str | tuple[str, ...], float]],
        attributes: Mapping[str, Sequence[str]],
    ) -> TargetTable:
        """A table from mappings.

        Args:
            shares: Context → class → share. A joint class is a tuple with one class of each attribute, or its name.
                A class that is left out has share 0.
            attributes: Name of each attribute → its classes.

        Raises:
            InvalidInput: If a class is unknown, or the shares are no distributions.

        Examples:
            >>> TargetTable.of({"nurse": {"female": 0.9, "male": 0.1}}, {"gender": ("female", "male")}).contexts
            ('nurse',)
        """
        names = joint_classes({name: tuple(classes) for name, classes in attributes.items()})
        flat = np.zeros((len(shares), len(names)))
        for i, (context, row) in enumerate(shares.items()):
            for key, share in row.items():
                name = key if isinstance(key, str) else joint_name(key)
                if name not in names:
                    raise InvalidInput(
                        f"Context {context!r} has a share for {name!r}; the classes are {', '.join(map(repr, names))}."
                    )
                flat[i, names.index(name)] = share
        return cls(attributes, tuple(shares), flat)

    @classmethod
    def constant(cls, contexts: Iterable[str], shares: Mapping[str, float], attribute: str) -> TargetTable:
        """The same shares in every context.

        Args:
            contexts: At least one.
            shares: Class → share.
            attribute: Its name.

        Raises:
            InvalidInput: If the shares are no distribution.
        """
        names = tuple(contexts)
        return cls({attribute: tuple(shares)}, names, [list(shares.values())] * len(names))

    @classmethod
    def uniform(cls, contexts: Iterable[str], attributes: Mapping[str, Sequence[str]]) -> TargetTable:
        """Equal shares of all (joint) classes in every context.

        Args:
            contexts: At least one.
            attributes: Name of each attribute → its classes.

        Examples:
            >>> TargetTable.uniform(["nurse"], {"gender": ("female", "male")})["nurse"]
            {'female': 0.5, 'male': 0.5}
        """
        names = tuple(contexts)
        sizes = [len(classes) for classes in attributes.values()]
        return cls(attributes, names, np.full((len(names), *sizes), 1 / max(1, int(np.prod(sizes)))))

    @property
    def attribute(self) -> str:
        """Its name; of several attributes their names, as in "gender × race"."""
        return " × ".join(self.attributes)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes; of several attributes the joint ones, the last attribute varying fastest."""
        return joint_classes(self.attributes)

    @property
    def joint(self) -> Array:
        """The shares, shape (contexts, classes of the first attribute, ...)."""
        return np.asarray(self.shares, dtype=np.float64)

    @property
    def flat(self) -> Array:
        """The shares, shape (contexts, classes)."""
        return self.joint.reshape(len(self.contexts), -1)

    @property
    def weights(self) -> dict[str, dict[str, float]]:
        """Context → class → share: what `PerspectiveRouter` takes as weights of perspectives named like the classes."""
        return {context: self[context] for context in self.contexts}

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all names and shares."""
        content = [{name: list(classes) for name, classes in self.attributes.items()}, list(self.contexts)]
        found = hashlib.sha256(json.dumps(content, ensure_ascii=False).encode())
        found.update(np.ascontiguousarray(self.joint).tobytes())
        return found.hexdigest()

    def __len__(self) -> int:
        return len(self.contexts)

    def __contains__(self, context: object) -> bool:
        return context in self.contexts

    def __getitem__(self, context: str) -> dict[str, float]:
        """Class → share in a context.

        Raises:
            InvalidInput: If the table has no such context.
        """
        return dict(zip(self.classes, self.flat[self._index(context)].tolist(), strict=True))

    def select(self, contexts: Iterable[str]) -> TargetTable:
        """The table of some of the contexts, in the order given.

        Raises:
            InvalidInput: If the table lacks one.
        """
        names = tuple(contexts)
        return TargetTable(self.attributes, names, self.joint[[self._index(name) for name in names]])

    def marginal(self, *attributes: str) -> TargetTable:
        """The shares of some of the attributes, summed over the others.

        Args:
            attributes: Names; they are kept in the table's own order.

        Raises:
            InvalidInput: If the table lacks one, or none is given.

        Examples:
            >>> table = TargetTable.uniform(["nurse"], {"gender": ("female", "male"), "age": ("young", "old")})
            >>> table.marginal("gender")["nurse"]
            {'female': 0.5, 'male': 0.5}
        """
        unknown = [name for name in attributes if name not in self.attributes]
        if unknown or not attributes:
            raise InvalidInput(
                f"There is no attribute {', '.join(map(repr, unknown)) or 'named'}; the table has "
                f"{', '.join(map(repr, self.attributes))}."
            )
        summed = tuple(axis for axis, name in enumerate(self.attributes, 1) if name not in attributes)
        kept = {name: classes for name, classes in self.attributes.items() if name in attributes}
        return TargetTable(kept, self.contexts, self.joint.sum(axis=summed))

    def draw(self, context: str, sampler: Sampler, *, key: str = "", index: int = 0) -> str:
        """Draw a class for a context.

        Args:
            context: One of the table's.
            sampler: `mpf_chains.core.sampling.QuotaSampler` for realised shares that stay within one draw of the
                target at every count, `IIDSampler` for independent draws.
            key: The request's key; quota draws do not use it.
            index: Which draw of that request, from 0.

        Returns:
            One of `classes`, never one with share 0.

        Raises:
            InvalidInput: If the table has no such context.

        Examples:
            >>> from mpf_chains.core.sampling import QuotaSampler
            >>> table = TargetTable.of({"nurse": {"female": 0.75, "male": 0.25}}, {"gender": ("female", "male")})
            >>> sampler = QuotaSampler()
            >>> [table.draw("nurse", sampler) for _ in range(8)].count("male")
            2
        """
        return sampler.draw(self[context], key=key, index=index, entity=f"{self.attribute}: {context}")

    def _index(self, context: str) -> int:
        if context not in self.contexts:
            near = difflib.get_close_matches(context, self.contexts, n=3)
            raise InvalidInput(
                f"The targets of {self.attribute} have no context {context!r}"
                + (f"; near it are {', '.join(map(repr, near))}." if near else "."),
                hint="Add a row for it, or infer its target.",
            )
        return self.contexts.index(context)


def joint_name(classes: Sequence[str]) -> str:
    """The name of one class of each attribute together.

    Examples:
        >>> joint_name(("female", "asian"))
        'female, asian'
    """
    return ", ".join(classes)


def joint_classes(attributes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Names of all combinations of classes, the last attribute varying fastest."""
    return tuple(joint_name(classes) for classes in product(*attributes.values()))


def _check_names(whose: str, what: str, names: Sequence[str], *, least: int) -> None:
    if isinstance(names, str) or not all(isinstance(name, str) and name.strip() for name in names):
        raise InvalidInput(f"{whose} has {what} {names!r}; they must be texts that are not blank.")
    if len(names) < least:
        raise InvalidInput(f"{whose} has {len(names)} {what}; at least {least} are needed.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidInput(f"{whose} has {what} given more than once: {', '.join(map(repr, twice))}.")


def _distributions(shares: ArrayLike, attributes: Mapping[str, Sequence[str]], contexts: Sequence[str]) -> Array:
    """The shares as a read-only array of their own, each context's divided by its sum."""
    sizes = tuple(len(classes) for classes in attributes.values())
    try:
        values = np.array(shares, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"Shares must be numbers: {error}.") from error
    if values.shape not in {(len(contexts), *sizes), (len(contexts), int(np.prod(sizes)))}:
        raise InvalidInput(
            f"Shares have shape {values.shape}; for these contexts and classes it is {len(contexts), *sizes}."
        )
    flat, names = np.asarray(values.reshape(len(contexts), -1)), joint_classes(attributes)
    for i, j in np.argwhere(~(np.isfinite(flat) & (flat >= 0))).tolist():
        raise InvalidInput(
            f"The share of {names[j]!r} in context {contexts[i]!r} is {flat[i, j]}; it must be a number from 0 to 1."
        )
    sums = flat.sum(axis=1)
    for i in np.flatnonzero(np.abs(sums - 1) > TOLERANCE).tolist():
        hint = (
            "Give shares, not percentages." if abs(sums[i] - 100) < 1 else "Divide them by their sum if that is meant."
        )
        raise InvalidInput(
            f"The shares of context {contexts[i]!r} sum to {sums[i]:.6g}; they must sum to 1 (tolerance "
            f"{TOLERANCE:g}).",
            hint=hint,
        )
    sums[np.abs(sums - 1) < 1e-12] = 1.0  # what a division left off stays as it is
    values = np.asarray((flat / sums[:, None]).reshape(len(contexts), *sizes))
    values.setflags(write=False)
    return values
