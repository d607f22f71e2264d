"""`SharedSteering`: a steering adapter beside an engine's model, made ready once for all chat models that name it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, ClassVar

from mpf_chains.local.steering.choice import Choice

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mpf_chains.local.engine import Engine
    from mpf_chains.local.generation import Generation
    from mpf_chains.local.steering.adapter import SteeringAdapter
    from mpf_chains.local.steering.source import SteeredSource
    from mpf_chains.local.steering.steered import Steered


class SharedSteering:
    """A steering adapter beside an engine's model: checked and put on it by the first call.

    Use `SharedSteering.of`, which gives all who name the same adapter the same one.

    Args:
        engine: The model's.
        adapter: What steers it.
    """

    _sharing: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, engine: Engine, adapter: SteeringAdapter) -> None:
        self.adapter = adapter
        self._engine, self._loading = engine, threading.Lock()
        self._steered: Steered | None = None

    @classmethod
    def of(cls, engine: Engine, adapter: SteeringAdapter) -> SharedSteering:
        """The same adapter beside this engine, if somebody holds it, else a new one. Loads nothing."""
        key = (adapter.digest, adapter.base)
        with cls._sharing:
            shared = engine.steering.get(key)
            if shared is None:
                shared = engine.steering[key] = cls(engine, adapter)
            return shared

    @property
    def loaded(self) -> bool:
        """Whether it is on the model."""
        return self._steered is not None

    def load(self) -> Steered:
        """The steered model; makes it the first time. Not to be called by the engine's worker.

        Raises:
            InvalidInput: If the adapter does not fit the model: it was fitted on another, or a token is several tokens.
        """
        with self._loading:
            if self._steered is None:
                # in the worker, as the model must not be running while modules of it get hooks
                self._steered = self._engine.submit(self._put_on).result()
            return self._steered

    def _put_on(self, model: PreTrainedModel) -> Steered:
        from mpf_chains.local.steering.steered import Steered

        _, tokenizer, _ = self._engine.load()
        with self._engine.lock:  # a fast tokenizer may not be used by two threads at once
            return Steered(model, tokenizer, self.adapter)

    def begin(self, model: PreTrainedModel, rows: Sequence[Generation], pad: int) -> SteeredSource:
        """Read prompts and steering tokens; called by the engine's worker, with rows that this adapter steers."""
        import torch

        from mpf_chains.local.steering.source import SteeredSource

        if self._steered is None:
            raise RuntimeError("The steering adapter is not loaded.")
        with torch.inference_mode():
            return SteeredSource(model, rows, pad, self._steered)

    def reading(self) -> AbstractContextManager[None]:
        """While open, this thread reads texts under the adapter's low-rank changes; without any it changes nothing."""
        return nullcontext() if self._steered is None or self.adapter.lora is None else self._steered.active()


class Steering:
    """How one call is steered, and what came of it.

    Args:
        shared: The adapter beside the model.
        choice: How its class is chosen.

    Attributes:
        told: What was chosen, as plain data; empty until then.
    """

    def __init__(self, shared: SharedSteering, choice: Choice) -> None:
        self.shared, self.choice = shared, choice
        self.told: dict[str, object] = {}

    def choose(self, prompt: Sequence[int], seed: int | None, own: Sequence[float]) -> int:
        """See `SteeredRow.choose`."""
        chosen = self.choice.settle(prompt, seed, dict(zip(self.choice.adapter.tokens.classes, own, strict=False)))
        self.told = chosen.as_dict()
        return chosen.index
