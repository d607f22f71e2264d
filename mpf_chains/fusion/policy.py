"""Who answers how often: weights, perspectives and the draw of a request, in one immutable record."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias

from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.utils.uuid import uuid7

from mpf_chains.artifact import Calibration, Fallback, Mode, Weights, WeightsLike
from mpf_chains.core.sampling import IIDSampler, QuotaSampler, Sampler
from mpf_chains.errors import InvalidInput, WeightsError
from mpf_chains.perspectives import Perspective, PerspectiveSet

EntityOf: TypeAlias = str | Callable[[list[BaseMessage]], str | None] | None
"""Whose weights to use: a name, a function of the conversation, or None."""


class Draw(NamedTuple):
    """What was drawn for one request.

    Args:
        key: What the draw depends on besides seed, entity and index.
        entity: Whose weights were used, or None.
        perspectives: The drawn perspectives; none where ``strength`` left the request to the bare model.
        version: Of the weights.
        shadow: Whether the bare model answers all the same.
    """

    key: str
    entity: str | None
    perspectives: tuple[Perspective, ...]
    version: str
    shadow: bool = False

    @property
    def steered(self) -> bool:
        """Whether the perspectives have a say in the answer."""
        return bool(self.perspectives) and not self.shadow

    @property
    def names(self) -> list[str]:
        """The drawn perspectives' names."""
        return [perspective.name for perspective in self.perspectives]

    def record(self, mode: Mode, **more: Any) -> dict[str, Any]:
        """What ends up in ``response_metadata["mpf"]``: what answered, and under "shadow" what would have."""
        field = "perspective" if mode == "sampled" else "perspectives"
        drawn: Any = (*self.names, None)[0] if mode == "sampled" else self.names
        nothing: Any = None if mode == "sampled" else []
        record = {"mode": mode, field: drawn, **more, "entity": self.entity, "key": self.key}
        record["weights_version"] = self.version
        return {**record, field: nothing, "shadow": drawn} if self.shadow else record


@dataclass(frozen=True)
class Policy:
    """Checked settings of a draw. Immutable, so that a request that holds one sees one version of everything.

    Args:
        weights, perspectives, entity, fallback, seed, sampler, strength, shadow: As for
            :class:`~mpf_chains.fusion.router.PerspectiveRouter`.

    Raises:
        InvalidInput: If an argument is wrong (WeightsError for the weights).
    """

    weights: Weights
    perspectives: PerspectiveSet
    entity: EntityOf = None
    fallback: Fallback = "error"
    seed: int | None = None
    sampler: Sampler = field(default_factory=IIDSampler)
    strength: float = 1.0
    shadow: bool = False

    @classmethod
    def of(
        cls,
        weights: WeightsLike,
        perspectives: PerspectiveSet | Sequence[Perspective] | None = None,
        *,
        sampler: Literal["iid", "quota"] | Sampler = "iid",
        seed: int | None = None,
        **settings: Any,
    ) -> Policy:
        """Check whatever was given to a Runnable, chat model or middleware."""
        if perspectives is None:
            if not isinstance(weights, Calibration):
                raise InvalidInput("`perspectives` are missing; only a Calibration as `weights` brings its own.")
            perspectives = weights.perspectives
        if not isinstance(perspectives, PerspectiveSet):
            perspectives = PerspectiveSet(perspectives)
        checked = Weights.of(weights, perspectives)
        return cls(checked, perspectives, seed=seed, sampler=_resolve(sampler, seed), **settings)

    def __post_init__(self) -> None:
        if self.fallback == "pooled" and self.weights.pooled is None:
            raise WeightsError('fallback="pooled" needs pooled weights, and `weights` have none.')
        if isinstance(self.strength, bool) or not isinstance(self.strength, int | float) or not 0 <= self.strength <= 1:
            raise InvalidInput(f"`strength` is {self.strength!r}; it must be a number from 0 (off) to 1.")

    def key(self, configurable: Mapping[str, Any], run_id: object = None) -> str:
        """The request's key: "mpf_key" of the config, else the run id, else a fresh one."""
        given = configurable.get("mpf_key")
        return str(given if given is not None else run_id or uuid7())

    def draw(
        self, messages: Callable[[], list[BaseMessage]], configurable: Mapping[str, Any], key: str, n: int
    ) -> Draw:
        """Draw n perspectives for a request.

        Args:
            messages: Gives the conversation; called only if the entity is a function of it.
            configurable: The config's; its "mpf_entity" comes before ``entity``.
            key: See :meth:`key`.
            n: At least 1.

        Raises:
            WeightsError: If there are no weights for the entity and ``fallback`` is "error".
        """
        entity = configurable.get("mpf_entity")
        if entity is None:
            entity = self.entity(messages()) if callable(self.entity) else self.entity
        if entity is not None and not isinstance(entity, str):
            raise InvalidInput(f"The entity is {entity!r}; it must be text or None.")
        weights = self.weights.lookup(entity, self.fallback)
        group = entity or ""
        if isinstance(self.sampler, QuotaSampler) and self.seed not in (None, self.sampler.seed):
            group = f"{group} (seed {self.seed})"  # one sampler keeps the counts of every configured seed
        names: list[str] = []
        if self._steers(key, group):
            names = [self.sampler.draw(weights, key=key, index=index, entity=group) for index in range(n)]
        return Draw(key, entity, tuple(self.perspectives[name] for name in names), self.weights.version, self.shadow)

    def rehearsed(self) -> Policy:
        """A policy that draws what this one will draw next, without counting."""
        return replace(self, sampler=copy.deepcopy(self.sampler))

    def _steers(self, key: str, group: str) -> bool:
        # "steered" sorts before "unsteered": a key that is steered at one strength is steered at every higher one.
        if self.strength in (0, 1):
            return self.strength == 1
        odds = {"steered": float(self.strength), "unsteered": 1.0 - self.strength}
        return self.sampler.draw(odds, key=key, index=-1, entity=f"{group} (strength)") == "steered"


@dataclass(frozen=True)
class MentionedEntity:
    """Finds the entity that the user named last: pass it as ``entity=``.

    The human messages are searched from the newest to the oldest, so that "And its exams?" is about the one named
    before; within a message the last mention counts, as prompts put retrieved text before the question. Text of
    others (system, answers, tools) is not searched.

    Args:
        names: The entities' names. Matched as whole words, case aside; the longest name goes first.
        default: Returned if none is named. Default None.

    Examples:
        >>> entity = MentionedEntity(("ETH", "ETH Zurich", "EPFL"))
        >>> entity([HumanMessage("Is eth zurich any good?")])
        'ETH Zurich'
    """

    names: tuple[str, ...]
    default: str | None = None

    def __call__(self, messages: Sequence[BaseMessage]) -> str | None:
        """The entity mentioned last, or the default."""
        options = "|".join(re.escape(name) for name in sorted(self.names, key=len, reverse=True))
        known = {name.casefold(): name for name in self.names}
        for message in reversed(messages):
            if isinstance(message, HumanMessage) and known:
                found = re.findall(rf"(?<!\w)(?:{options})(?!\w)", message.text, re.IGNORECASE)
                if found:
                    return known.get(found[-1].casefold(), self.default)
        return self.default


def _resolve(sampler: str | Sampler, seed: int | None) -> Sampler:
    if sampler == "iid" or (type(sampler) is IIDSampler and seed is not None):
        return IIDSampler(seed or 0)
    if sampler == "quota":
        return QuotaSampler(seed or 0)
    if isinstance(sampler, str) or not isinstance(sampler, Sampler):
        raise InvalidInput(f'`sampler` is {sampler!r}; it must be "iid", "quota" or an object with a draw method.')
    if seed is not None and not isinstance(sampler, QuotaSampler):
        raise InvalidInput("`seed` is for the named samplers; a sampler of your own brings its seed.")
    return sampler
