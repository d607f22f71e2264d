"""The fields that the Runnables and the chat model share, and what assigning to one does."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from langchain_core.runnables import Runnable
from pydantic import BaseModel, ConfigDict, Field, InstanceOf

from mpf_chains.artifact import Calibration, Fallback, Mode, Weights, WeightsLike
from mpf_chains.core.sampling import IIDSampler, Sampler
from mpf_chains.errors import DataWarning
from mpf_chains.fusion.merge import MERGE_INSTRUCTION, random_code
from mpf_chains.fusion.policy import EntityOf, Policy
from mpf_chains.perspectives import Perspective, PerspectiveSet, Position
from mpf_chains.runtime import model_identity

Kept = TypeVar("Kept")
Given = TypeVar("Given")
_ASSIGNING = threading.RLock()
_DRAWING = ("entity", "fallback", "strength", "shadow")


if TYPE_CHECKING:

    class _Assigned(Generic[Kept, Given]):
        """To type checkers: a field that keeps one type and may be assigned others."""

        def __get__(self, instance: object, owner: type | None = None) -> Kept: ...
        def __set__(self, instance: object, value: Given) -> None: ...


class Settings(BaseModel):
    """Fields of everything that draws perspectives.

    Assigning to one checks them all and then takes effect at once: requests that began before keep what they began
    with, and no lock is held. A Calibration assigned as ``weights`` brings its perspectives.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    _assignable: ClassVar[frozenset[str]] = frozenset()

    if TYPE_CHECKING:
        perspectives: _Assigned[PerspectiveSet, PerspectiveSet | Sequence[Perspective]]
        weights: _Assigned[Weights, WeightsLike]
    else:
        perspectives: InstanceOf[PerspectiveSet]
        weights: InstanceOf[Weights]
    entity: EntityOf = None
    fallback: Fallback = "error"
    position: Position = "before"
    seed: int | None = None
    sampler: InstanceOf[Sampler] = Field(default_factory=IIDSampler)
    strength: float = 1.0
    shadow: bool = False

    if TYPE_CHECKING:
        _policy: Policy  # kept in __dict__: pydantic's private attributes take microseconds to read

    def __init__(
        self,
        *,
        weights: WeightsLike,
        perspectives: PerspectiveSet | Sequence[Perspective] | None = None,
        sampler: Literal["iid", "quota"] | Sampler = "iid",
        seed: int | None = None,
        **fields: Any,
    ) -> None:
        # Here and not in validators, so that callers get our errors and not pydantic's wrapping of them.
        drawing = {name: fields[name] for name in _DRAWING if name in fields}
        policy = Policy.of(weights, perspectives, sampler=sampler, seed=seed, **drawing)
        fields |= {"weights": policy.weights, "perspectives": policy.perspectives, "sampler": policy.sampler}
        super().__init__(seed=seed, **fields)
        mode = self._mode
        if isinstance(weights, Calibration) and weights.mode != mode:
            warnings.warn(
                f"{type(self).__name__} answers in {mode} mode; its weights were calibrated for {weights.mode} mode "
                f'and may do worse. Calibrate with mode="{mode}".',
                DataWarning,
                stacklevel=3,
            )
        self._settle(policy)

    @property
    def _mode(self) -> Mode:
        raise NotImplementedError

    def _drawing(self, model: Runnable[Any, Any], policy: Policy) -> dict[str, Any]:
        """What decides answers, apart from the request: for keys and caches."""
        named = getattr(self.entity, "__qualname__", None) or repr(self.entity)
        return {
            "model": _identity(model),
            "mode": self._mode,
            "weights_version": policy.weights.version,
            "perspectives": policy.perspectives.digest,
            "entity": self.entity if isinstance(self.entity, str | None) else named,
            "sampler": type(self.sampler).__name__,
            **{name: getattr(self, name) for name in ("fallback", "seed", "strength", "shadow", "position")},
        }

    def _settle(self, policy: Policy) -> None:
        """Take the policy into use, at once."""
        self.__dict__["_policy"] = policy

    def _changed(self, changes: Mapping[str, Any]) -> Any:
        """A new instance with some fields changed and everything checked."""
        if isinstance(changes.get("weights"), Calibration):
            changes = {"perspectives": None, **changes}
        fields = {name: self.__dict__[name] for name in type(self).model_fields}
        return type(self)(**{**fields, **changes})

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Collect the fields that :meth:`__setattr__` checks: all that are ours and not LangChain's."""
        super().__pydantic_init_subclass__(**kwargs)
        ours = [base for base in cls.__mro__ if base.__module__.startswith("mpf_chains.")]
        own = {name for base in ours for name in base.__annotations__}
        cls._assignable = frozenset(own & set(cls.model_fields))

    def __setattr__(self, name: str, value: Any) -> None:
        if "_policy" not in self.__dict__ or name not in self._assignable:
            super().__setattr__(name, value)
            return
        with _ASSIGNING:  # two changes at a time must not undo each other; requests take no lock
            self.__dict__.update(self._changed({name: value}).__dict__)  # in one step, as far as other threads see

    def _frozen(self) -> Any:
        """A copy that no assignment changes any more, to serve a request with."""
        copy = object.__new__(type(self))  # pydantic's own way to copy takes several times as long
        object.__setattr__(copy, "__dict__", self.__dict__.copy())
        for name in ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"):
            object.__setattr__(copy, name, getattr(self, name))
        return copy

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Any:
        """As in pydantic, but what is updated is checked, and takes effect."""
        copied = super().model_copy(deep=deep)
        return copied._changed(update) if update else copied


class FusionSettings(Settings):
    """Fields of what merges answers."""

    n: int = Field(default=5, ge=1)
    merge_instruction: str = Field(default=MERGE_INSTRUCTION, min_length=1)
    merge_model: InstanceOf[Runnable[Any, Any]] | None = None
    on_error: Literal["renormalise", "raise"] = "renormalise"
    when_tools: Literal["sample", "raise"] = "sample"
    dedupe: bool | None = None
    delimiter: Callable[[], str] = Field(default=random_code, repr=False)

    def _merging(self, model: Runnable[Any, Any]) -> dict[str, Any]:
        """What decides merges: see `_drawing`."""
        merger = self.merge_model or model
        return {"n": self.n, "merge_instruction": self.merge_instruction, "merge_model": _identity(merger)}


def _identity(model: Runnable[Any, Any]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # that a part cannot be read matters to a ledger, not here
        return model_identity(model)
