"""What experts changed, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from math import factorial
from typing import TYPE_CHECKING, Any

import torch

from mpf_chains.errors import InvalidInput
from mpf_chains.local.experts.ensemble import ExpertEnsemble
from mpf_chains.local.experts.explanation.records import ExplainedToken, Moved, check_explainable
from mpf_chains.local.experts.vocabulary import token_ids, vocabulary_size
from mpf_chains.local.logprobs import token_bytes
from mpf_chains.local.sampling import is_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ExplainedToken", "Moved", "explain", "explain_token"]


def explain(
    model: PreTrainedModel,
    ensemble: ExpertEnsemble,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    alphas: Mapping[str, float] | None = None,
    alternatives: int = 5,
) -> tuple[ExplainedToken, ...]:
    """Explain an answer, however it was generated: the base and the experts read it again, each in one pass.

    Args:
        model: The base model.
        ensemble: The pairs.
        tokenizer: The base model's.
        prompt: Token ids, at least 1; a list, or a tensor or array of one dimension.
        answer: The same.
        alphas: Strength of each pair by name, in place of the pairs' own.
            At most 12 may move something.
        alternatives: See `explain_token`.

    Returns:
        One record for each token of the answer.

    Raises:
        InvalidInput: If prompt or answer is empty or no list of token ids, a name is unknown, too many pairs move
            something, or a context is too short.
        VocabularyMismatch: If a small model has another vocabulary.
    """
    ensemble.check_vocabulary(tokenizer)
    size = vocabulary_size(tokenizer)
    prompt, answer = token_ids(prompt, size, "prompt"), token_ids(answer, size, "answer")
    if not prompt or not answer:
        raise InvalidInput("There is nothing to explain: `prompt` and `answer` must each have at least one token.")
    strengths = ensemble.strengths(alphas)
    moving = [loaded.pair.name for loaded in ensemble.loaded if strengths[loaded.pair.name] and not loaded.idle]
    _check(len(moving), alternatives)
    ensemble = ensemble.only(moving)
    ids, count = torch.tensor([[*prompt, *answer[:-1]]]), len(answer)
    with torch.inference_mode():
        untyped: Any = model
        base = untyped(input_ids=ids.to(model.device), use_cache=False).logits[0, -count:, :size].float()
        contrasts = base.new_zeros(0, count, size)
        if moving:
            contrasts = ensemble.contributions(ensemble.reader().read(ids, keep=count))[0].to(base.device)
        at = {name: strengths[name] for name in moving}
        told = [
            explain_token(token, base[i], contrasts[:, i], at, tokenizer, alternatives=alternatives)
            for i, token in enumerate(answer)
        ]
    none = dict.fromkeys(strengths, 0.0)
    return tuple(replace(each, contributions={**none, **each.contributions}) for each in told)


def explain_token(
    token: int,
    base: torch.Tensor,
    contrasts: torch.Tensor,
    alphas: Mapping[str, float],
    texts: Sequence[str] | Any,
    *,
    alternatives: int = 5,
) -> ExplainedToken:
    """Compare a token's probability without and with experts, before any sampler's temperature or filter.

    Args:
        token: The id that was chosen.
        base: z, the base model's logits, shape (vocabulary,).
        contrasts: z⁺ − z⁻ of each pair, shape (pairs, vocabulary); see `ExpertEnsemble.contributions`.
        alphas: Strength of each pair by name, in the order of ``contrasts``. At most 12 pairs.
        texts: Gives a token's text by its id: a list, or a tokenizer.
        alternatives: How many of the most moved tokens to name; at least 0. Default 5.

    Raises:
        InvalidInput: If names and contrasts differ in number, there are more than 12, or ``alternatives`` is negative.

    Examples:
        >>> base, contrasts = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([[-1.0, 1.0, 0.0]])
        >>> told = explain_token(1, base, contrasts, {"gender": 0.5}, ["he", "she", "it"], alternatives=2)
        >>> f"{told.text}: {told.before:.2f} -> {told.after:.2f}, {told.contributions['gender']:+.2f} nats"
        'she: 0.20 -> 0.39, +0.66 nats'
        >>> [(each.text, round(each.after, 2)) for each in told.alternatives]
        [('he', 0.5), ('she', 0.39)]
    """
    names = list(alphas)
    if len(names) != len(contrasts):
        raise InvalidInput(f"There are {len(names)} strengths for {len(contrasts)} pairs.")
    _check(len(names), alternatives)
    size = min(base.shape[-1], contrasts.shape[-1])
    base, strengths = base[:size].double(), torch.tensor(list(alphas.values())).double()
    moves = strengths[:, None].to(base.device) * contrasts[:, :size].double().to(base.device)
    before, after = base.log_softmax(-1).exp(), (base + moves.sum(0)).log_softmax(-1).exp()
    most = (after - before).abs().topk(min(alternatives, size)).indices.tolist()

    def moved(i: int) -> dict[str, Any]:
        return {"token": i, "text": _text(texts, i), "before": float(before[i]), "after": float(after[i])}

    parts = _shapley(token, base, moves)
    return ExplainedToken(
        **moved(token),
        contributions=dict(zip(names, parts, strict=True)),
        alternatives=tuple(Moved(**moved(i)) for i in most),
    )


def _check(pairs: int, alternatives: int) -> None:
    check_explainable(pairs)
    if not is_whole(alternatives, least=0):
        raise InvalidInput(f"`alternatives` is {alternatives!r}; it must be a whole number from 0.")


def _shapley(token: int, base: torch.Tensor, moves: torch.Tensor) -> list[float]:
    """Parts of the pairs in a token's log-probability; exact, with one log-sum-exp for each subset of the pairs."""
    count = len(moves)
    value = {
        subset: _log_probability(token, base + moves[list(subset)].sum(0))
        for size in range(count + 1)
        for subset in combinations(range(count), size)
    }
    parts = []
    for pair in range(count):
        others = [i for i in range(count) if i != pair]
        part = 0.0
        for size in range(count):
            weight = factorial(size) * factorial(count - size - 1) / factorial(count)
            for subset in combinations(others, size):
                part += weight * (value[tuple(sorted((*subset, pair)))] - value[subset])
        parts.append(part)
    return parts


def _log_probability(token: int, logits: torch.Tensor) -> float:
    return float(logits[token] - logits.logsumexp(-1))


def _text(texts: Any, token: int) -> str:
    if isinstance(texts, Sequence):
        return str(texts[token])
    return token_bytes(texts, token).decode(errors="backslashreplace")
