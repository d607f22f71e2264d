"""Rows of spans through a causal language model: trees with a mask of their own, chains as they are."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpf_chains.local.likelihood import Limits, Row, Scores, Span

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOGITS = 2**26  # logits in memory at a time, on a CPU; 8 times as many elsewhere
_takes_trees: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()


def limits(model: PreTrainedModel) -> Limits:
    """How rows and batches are made for this model.

    Spans share rows if the model reads a small tree as it reads its branches one by one (tried once), which it does
    not if it ignores masks or positions (recurrent models, ALiBi). Attention windows and changes of the rotary
    embedding with length are beyond that trial, so spans longer than those begin to matter stay alone.
    """
    cpu = model.device.type == "cpu"
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    reaches = [
        getattr(config, "sliding_window", None),
        getattr(config, "attention_chunk_size", None),
        getattr(config, "max_position_embeddings", None),
        rope.get("original_max_position_embeddings"),
    ]
    return Limits(
        row=128 if cpu else 512,
        reach=min((int(reach) for reach in reaches if reach), default=None),
        batch=max(64, min(1024 if cpu else 16384, _room(model))),
        share=takes_trees(model),
    )


def score(model: PreTrainedModel, rows: Sequence[Row]) -> list[Scores]:
    """Log-probabilities of the targets of each span, in the order of rows and their spans.

    Args:
        model: A causal language model.
        rows: Either chains or trees.
    """
    with torch.inference_mode():
        chains = all(row.is_chain for row in rows)
        scores = _score_chains(model, rows) if chains else _score_trees(model, rows)
    lengths = [len(span.targets) for row in rows for span in row.spans]
    return np.split(scores, np.cumsum(lengths)[:-1])


def takes_trees(model: PreTrainedModel) -> bool:
    """Whether the model reads a tree, given by mask and positions, as it reads its branches."""
    if model.config._attn_implementation not in {"eager", "sdpa"}:
        return False
    if model not in _takes_trees:
        _takes_trees[model] = _try(model)
    return _takes_trees[model]


def _try(model: PreTrainedModel) -> bool:
    ids = np.random.default_rng(0).integers(model.config.get_text_config().vocab_size, size=(2, 12)).tolist()
    branches = [Span(0, ids[0], ids[1]), Span(1, ids[0][:5] + ids[1][:7], ids[0]), Span(2, ids[1], ids[0])]
    tree = Row(branches[0])
    for branch in branches[1:]:
        tree.add(branch)
    alone = np.stack([score(model, [Row(branch)])[0] for branch in branches])
    try:
        together = np.stack(score(model, [tree]))
    except Exception:  # whatever a model that takes no such mask may raise
        return False
    tolerance = torch.finfo(model.dtype).eps ** 0.5 * alone.std()
    return bool(((together - alone) ** 2).mean() ** 0.5 <= tolerance)


def _room(model: PreTrainedModel) -> int:
    """Positions whose logits are held at a time."""
    return int(_LOGITS * (1 if model.device.type == "cpu" else 8) // model.config.get_text_config().vocab_size)


def _score_chains(model: PreTrainedModel, rows: Sequence[Row]) -> Scores:
    """Chains padded on the right, where causal models do not look; long ones in pieces, through a cache."""
    size = max(len(row.tokens) for row in rows)
    ids = torch.tensor([row.tokens + [0] * (size - len(row.tokens)) for row in rows], device=model.device)
    places = np.array([(i, column) for i, row in enumerate(rows) for column in row.places[0]])
    targets = np.array([target for row in rows for target in row.spans[0].targets])
    first = int(places[:, 1].min())
    step = max(1, _room(model) // len(rows))
    if size - first <= step or "past_key_values" not in inspect.signature(model.forward).parameters:
        logits, _ = _logits(model, ids, np.arange(first, size))
        return _pick(logits, places - [0, first], targets)
    scores = np.empty(len(targets))
    cache: Any = None
    for start in range(0, size, step):
        piece = ids[:, start : start + step]
        logits, cache = _logits(
            model, piece, np.arange(piece.shape[1]), past_key_values=cache, use_cache=start + step < size
        )
        here = (places[:, 1] >= start) & (places[:, 1] < start + step)
        scores[here] = _pick(logits, places[here] - [0, start], targets[here])
    return scores


def _score_trees(model: PreTrainedModel, rows: Sequence[Row]) -> Scores:
    """Trees side by side: nodes that targets follow come first, so that only their logits are computed."""
    size = max(len(row.tokens) for row in rows)
    ids = np.zeros((len(rows), size), dtype=np.int64)
    positions = np.zeros_like(ids)
    seen = np.broadcast_to(np.eye(size, dtype=bool), (len(rows), size, size)).copy()
    places: list[tuple[int, int]] = []
    kept = 0
    for i, row in enumerate(rows):
        scored = sorted({node for nodes in row.places for node in nodes})
        rest = sorted(set(range(len(row.tokens))) - set(scored))
        order = np.array(scored + rest)
        ancestors = _ancestors(row.parents)
        n = len(order)
        ids[i, :n] = np.array(row.tokens)[order]
        positions[i, :n] = ancestors.sum(axis=1)[order] - 1
        seen[i, :n, :n] = ancestors[np.ix_(order, order)]
        column = {node: j for j, node in enumerate(scored)}
        places += [(i, column[node]) for nodes in row.places for node in nodes]
        kept = max(kept, len(scored))
    targets = np.array([target for row in rows for span in row.spans for target in span.targets])
    mask = torch.full(seen.shape, torch.finfo(model.dtype).min, dtype=model.dtype)
    mask[torch.from_numpy(seen)] = 0
    logits, _ = _logits(
        model,
        torch.from_numpy(ids).to(model.device),
        np.arange(kept),
        attention_mask=mask[:, None].to(model.device),
        position_ids=torch.from_numpy(positions).to(model.device),
    )
    return _pick(logits, np.array(places), targets)


def _ancestors(parents: Sequence[int]) -> NDArray[np.bool_]:
    """Whether one node is another or lies on the way to it from its root, shape (nodes, nodes)."""
    seen = np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            seen[node] |= seen[parent]
    return seen


def _logits(
    model: PreTrainedModel, ids: torch.Tensor, columns: NDArray[np.int64], **arguments: Any
) -> tuple[torch.Tensor, Any]:
    """Logits of some columns, in float32 at least, shape (rows, columns, vocabulary); and the cache if one is used."""
    accepted = inspect.signature(model.forward).parameters
    if "use_cache" in accepted:
        arguments.setdefault("use_cache", False)
    keep = torch.from_numpy(columns).to(ids.device)
    chosen = "logits_to_keep" in accepted and len(columns) < ids.shape[1]
    output: Any = model(input_ids=ids, **arguments, **({"logits_to_keep": keep} if chosen else {}))
    logits = output.logits if output.logits.shape[1] == len(columns) else output.logits[:, keep]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), getattr(output, "past_key_values", None)


def _pick(logits: torch.Tensor, places: NDArray[np.int64], targets: NDArray[np.int64]) -> Scores:
    """Log-probability of each target at its (row, column)."""
    rows, columns = torch.from_numpy(places).to(logits.device).T
    chosen = logits[rows, columns, torch.from_numpy(targets).to(logits.device)]
    norm = torch.logsumexp(logits, dim=-1)[rows, columns]
    scores: Scores = chosen.cpu().double().numpy() - norm.cpu().double().numpy()
    return scores
