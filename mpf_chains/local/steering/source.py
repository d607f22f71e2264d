"""The logits of steered answers, from behind their steering tokens on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mpf_chains.errors import GenerationError
from mpf_chains.local.decoding import Alone, Row
from mpf_chains.local.steering.steered import Steered

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SteeredRow(Row, Protocol):
    """A row whose answer begins with a steering token that it never gets to see."""

    @property
    def asks_model(self) -> bool:
        """Whether its class is drawn from the model's own shares."""
        ...

    def choose(self, own: Sequence[float]) -> int:
        """The index of its class.

        Args:
            own: The model's own shares of the classes at its prompt; empty unless it asks for them.
        """
        ...


class SteeredSource(Alone):
    """A model under a steering adapter, behind the steering token of each row.

    Distinct prompts are read once, however many rows have them. The class of a row is chosen with what that pass gave,
    its token is read behind the prompt from the same keys and values, and from there on rows are generated as others
    are: the token is in the model's memory, and nowhere else. A plain opening is drawn by what the model gives before
    the token.

    Args:
        model: The model.
        rows: What to generate.
        pad: Any valid token id.
        steered: The model with its adapter.
    """

    def __init__(self, model: PreTrainedModel, rows: Sequence[SteeredRow], pad: int, steered: Steered) -> None:
        self._steered = steered
        super().__init__(model, rows, pad)
        asking = {self.prompts[i]: i for i, row in enumerate(rows) if row.asks_model}
        own: dict[int, NDArray[np.float64]] = {}
        if asking:
            found = steered.shares_of(self._states[list(asking)], self.logits[list(asking.values())])
            own = dict(zip(asking, found, strict=True))
        tokens = [self._token(row, own.get(prompt)) for row, prompt in zip(rows, self.prompts, strict=True)]
        opening = self.logits
        self.step(torch.tensor(tokens, device=self.logits.device))
        if steered.plain_opening:
            self.logits = opening

    def _token(self, row: SteeredRow, own: NDArray[np.float64] | None) -> int:
        if row.asks_model and (own is None or not np.isfinite(own).all()):
            row.fail(GenerationError("The model's probabilities of the steering tokens are not all finite."))
            return self._steered.ids[0]
        return self._steered.ids[row.choose([] if own is None else own.tolist())]

    def _read(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with self._steered.active():
            logits = super()._read(ids, mask)
        self._states = self._steered.states
        return logits
