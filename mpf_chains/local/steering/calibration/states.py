"""What a model's output layer gets where answers begin, and what it makes of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mpf_chains.errors import NotSupportedError
from mpf_chains.local.prompt import write_prompt
from mpf_chains.local.steering.calibration.rows import Readings
from mpf_chains.local.steering.tokens import SteeringTokens
from mpf_chains.targets.templates import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def read_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    tokens: SteeringTokens,
    *,
    batch: int = 16,
) -> Readings:
    """Read prompts once, for rows to be fitted to.

    Args:
        model: A causal language model; not used by others meanwhile.
        tokenizer: Its tokenizer, with a chat template, which writes each prompt as a user's turn.
        prompts: At least one.
        tokens: Whose rows are to be fitted.
        batch: Prompts read together. Default 16.

    Raises:
        InvalidInput: If a token is no single token (see `SteeringTokens.ids`).
        NotSupportedError: If the model has no output layer.
    """
    ids = list(tokens.ids(model, tokenizer))
    written = [write_prompt(tokenizer, [{"role": "user", "content": prompt.text}]) for prompt in prompts]
    order = sorted(range(len(written)), key=lambda i: len(written[i]))
    states, rest, logits = (np.empty((len(written), *shape)) for shape in ((width(model),), (), (len(ids),)))
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        with torch.inference_mode():
            inputs, scores = last_states(model, [written[i] for i in some])
        scores = scores.double()
        if not tokens.new:
            logits[some] = scores[:, ids].cpu().numpy()
            scores[:, ids] = float("-inf")
        rest[some] = scores.logsumexp(-1).cpu().numpy()
        states[some] = inputs.double().cpu().numpy()
    if tokens.new:
        logits[:] = 0
    return Readings(states, rest, logits, tuple(prompt.context for prompt in prompts))


def last_states(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the output layer gets behind each prompt, shape (prompts, width), and the logits, (prompts, vocabulary).

    Args:
        model: A causal language model.
        prompts: Token ids; they are padded on the left.
    """
    size = max(map(len, prompts))
    ids = torch.tensor([[0] * (size - len(each)) + list(each) for each in prompts], device=model.device)
    mask = torch.tensor([[0] * (size - len(each)) + [1] * len(each) for each in prompts], device=model.device)
    was_training = model.training
    model.train(mode=False)  # no dropout
    try:
        with output_inputs(model) as seen:
            output = model(input_ids=ids, attention_mask=mask, use_cache=False, **arguments(model, mask, 1))
    finally:
        model.train(was_training)
    return seen[0][:, -1], output.logits[:, -1]


def arguments(model: PreTrainedModel, mask: torch.Tensor, columns: int) -> dict[str, Any]:
    """What a model is told beside ids and mask: the positions of rows padded on the left, and how many logits to make.

    Args:
        model: A causal language model.
        mask: Shape (rows, columns): 0 for padding, 1 for tokens.
        columns: How many of the last columns get logits.
    """
    accepted = inspect.signature(model.forward).parameters
    told: dict[str, Any] = {"logits_to_keep": columns} if "logits_to_keep" in accepted else {}
    if "position_ids" in accepted:
        told["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return told


@contextmanager
def output_inputs(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """While open, what the output layer gets at each call is collected: shape (rows, positions, width)."""
    seen: list[torch.Tensor] = []
    handle = output_layer(model).register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def width(model: PreTrainedModel) -> int:
    """How many values the output layer gets per position."""
    return int(output_layer(model).weight.shape[1])


def embedded(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """What the model's input layer makes of some tokens, shape (tokens, width), in float32."""
    layer: Any = model.get_input_embeddings()
    with torch.no_grad():
        found: torch.Tensor = layer(torch.tensor(list(ids), device=layer.weight.device)).float()
    return found


def output_layer(model: PreTrainedModel) -> Any:
    """The layer whose rows are tokens.

    Raises:
        NotSupportedError: If the model has none.
    """
    untyped: Any = model
    layer = untyped.get_output_embeddings()
    if getattr(layer, "weight", None) is None or layer.weight.ndim != 2:
        raise NotSupportedError(f"{type(model).__name__} has no output layer whose rows are tokens.")
    return layer
