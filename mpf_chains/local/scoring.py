"""Rows of spans through causal language models: trees with a mask of their own, chains as they are."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpf_chains.errors import GenerationError
from mpf_chains.local.likelihood import Limits, Row, Scores, Span, batches, pack
from mpf_chains.local.packed import CorrectedModel, PackedModel, PlainModel, Trees

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mpf_chains.local.experts.files.loading import LoadedPair

_LOGITS = 2**26  # logits in memory at a time, on a CPU; 8 times as many elsewhere
_PIECE = 2**23  # of those how many are worked on at a time, on a CPU
_takes_trees: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()
Places = NDArray[np.int64]


def limits(model: PackedModel) -> Limits:
    """How rows and batches are made for a model.

    Spans share rows if the model (and each of its experts) reads a small tree as it reads its branches one by one
    (tried once), which it does not if it ignores masks or positions (recurrent models, ALiBi). Attention windows and
    changes of the rotary embedding with length are beyond that trial, so spans longer than those begin to matter stay
    alone.
    """
    cpu = _on_cpu(model)
    reaches: list[Any] = []
    for each in model.models:
        config = each.config.get_text_config()
        rope = getattr(config, "rope_parameters", None) or {}
        reaches += [
            getattr(config, "sliding_window", None),
            getattr(config, "attention_chunk_size", None),
            getattr(config, "max_position_embeddings", None),
            rope.get("original_max_position_embeddings"),
        ]
    return Limits(
        row=128 if cpu else 512,
        reach=min((int(reach) for reach in reaches if reach), default=None),
        batch=max(64, min(1024 if cpu else 16384, _room(model))),
        share=all(map(takes_trees, model.models)),
    )


def score(model: PackedModel, rows: Sequence[Row]) -> list[Scores]:
    """Log-probabilities of the targets of each span, in the order of rows and their spans.

    Args:
        model: A model, alone or with experts.
        rows: Either chains or trees.

    Raises:
        GenerationError: If logits are not finite.
    """
    batch = _batch(rows)
    scores = np.empty(len(batch.targets))
    with torch.inference_mode():
        for which, place, logits in _read(model, batch, model.logits):
            chosen = logits[place, batch.targets[which].to(logits.device)]
            scores[which] = (chosen.double() - _norm(logits)[place].double()).cpu().numpy()
    return batch.split(scores)


def scan_spans(
    model: PreTrainedModel,
    pairs: Sequence[LoadedPair],
    size: int,
    spans: Sequence[Span],
    strengths: Scores,
    *,
    positions: int = 1024,
) -> Iterator[tuple[Span, Scores, Scores]]:
    """`scan` of any spans, packed; in the order in which batches finish.

    Args:
        model: The base model.
        pairs: Its expert pairs.
        size: Tokens of the vocabulary.
        spans: Tokens read and tokens scored.
        strengths: α of each pair, shape (points, pairs).
        positions: Tokens read at once, at most, where rows are no longer than that. Default 1024.

    Yields:
        Each span with what `scan` gives for it.
    """
    corrected = CorrectedModel(model, pairs, [0.0] * len(pairs), size)
    bounds = limits(corrected)
    bounds = replace(bounds, batch=min(bounds.batch, positions))
    for rows in batches(pack(spans, bounds), bounds):
        for span, found in zip(
            (span for row in rows for span in row.spans), scan(corrected, rows, strengths), strict=True
        ):
            yield span, *found


def next_tokens(model: PackedModel, rows: Sequence[Row], size: int) -> list[NDArray[np.float32]]:
    """Log-probabilities of all tokens behind each span, shape (size,); arguments as for `score`.

    Args:
        model: A model, alone or with experts.
        rows: Either chains or trees, of spans with one target, which does not matter.
        size: Tokens of the vocabulary; logits behind it are not given.
    """
    batch = _batch(rows)
    found: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(batch.targets)
    with torch.inference_mode():
        for which, place, logits in _read(model, batch, model.logits):
            logs = (logits - _norm(logits)[:, None])[:, :size].float().cpu().numpy()
            for target, row in zip(which.tolist(), place.tolist(), strict=True):
                found[target] = logs[row].copy()
    return found


def scan(model: CorrectedModel, rows: Sequence[Row], strengths: Scores) -> list[tuple[Scores, Scores]]:
    """What `score` gives at many strengths, and how far each of these laws is from the base model's, in one reading.

    With z̃ = z + α·c: ln p(target) = z̃(target) − lse(z̃), and KL(base ‖ corrected) = lse(z̃) − lse(z) − α·E c, where
    the expectation is the base model's.

    Args:
        model: A model with experts; its own strengths are not used.
        rows: As for `score`.
        strengths: α of each pair, shape (points, pairs).

    Returns:
        For each span the log-probability of each target, and the divergence of the laws that it is drawn from, at
        least 0; in nats, both of shape (points, targets).

    Raises:
        GenerationError: If logits are not finite.
    """
    batch = _batch(rows)
    logs, divergences = np.empty((2, len(strengths), len(batch.targets)))
    with torch.inference_mode():
        for which, place, parts in _read(model, batch, model.parts):
            alphas = torch.from_numpy(strengths).to(parts.device)
            at = parts[:, place, batch.targets[which].to(parts.device)].double()
            total, expected, norms = (each.double() for each in _moments(parts, strengths))
            logs[:, which] = (at[0] + alphas @ at[1:] - norms[:, place]).cpu().numpy()
            divergences[:, which] = (norms - total - alphas @ expected).clamp(min=0)[:, place].cpu().numpy()
    return list(zip(batch.split(logs), batch.split(divergences), strict=True))


def _moments(parts: torch.Tensor, strengths: Scores) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-sum-exp of z, expectation of each contrast, and log-sum-exp of z̃ at each strength; last dimension: places."""
    totals, means, norms = [], [], []
    for z, *contrasts in torch.split(parts, _block(parts), dim=1):
        total = _norm(z)
        law = (z - total[:, None]).exp()
        here = []
        for alphas in strengths:
            moved = z
            for alpha, contrast in zip(alphas.tolist(), contrasts, strict=True):
                moved = torch.add(moved, contrast, alpha=alpha) if alpha else moved
            here.append(_norm(moved))
        totals.append(total)
        means.append(torch.stack([(law * each).sum(-1) for each in contrasts]))
        norms.append(torch.stack(here))
    return torch.cat(totals), torch.cat(means, dim=1), torch.cat(norms, dim=1)


def next_parts(model: CorrectedModel, rows: Sequence[Row]) -> torch.Tensor:
    """z, and z⁺ − z⁻ of each pair, behind each span, shape (1 + pairs, spans, vocabulary).

    Args:
        model: A model with experts; its own strengths are not used.
        rows: As for `next_tokens`.
    """
    batch = _batch(rows)
    found: list[torch.Tensor] = [torch.empty(0)] * len(batch.targets)
    with torch.inference_mode():
        for which, place, parts in _read(model, batch, model.parts):
            for target, row in zip(which.tolist(), place.tolist(), strict=True):
                found[target] = parts[:, row]
    return torch.stack(found, dim=1)


def _norm(logits: torch.Tensor) -> torch.Tensor:
    norm = torch.cat([part.logsumexp(-1) for part in torch.split(logits, _block(logits))])
    if not norm.isfinite().all():
        raise GenerationError(
            "The model's logits are not all finite.", hint="With experts: lower alpha, if a model's own are."
        )
    return norm


def _block(logits: torch.Tensor) -> int:
    """Positions whose logits stay in a CPU's cache together."""
    return 8 if logits.device.type == "cpu" else logits.shape[-2]


def takes_trees(model: PreTrainedModel) -> bool:
    """Whether the model reads a tree, given by mask and positions, as it reads its branches."""
    if model.config._attn_implementation not in {"eager", "sdpa"}:
        return False
    if model not in _takes_trees:
        _takes_trees[model] = _try(model)
    return _takes_trees[model]


def _try(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    size = min(12, getattr(config, "max_position_embeddings", None) or 12)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=(2, size)).tolist()
    branches = [Span(0, ids[0], ids[1]), Span(1, ids[0][:5] + ids[1][5:], ids[0]), Span(2, ids[1], ids[0])]
    tree = Row(branches[0])
    for branch in branches[1:]:
        tree.add(branch)
    plain = PlainModel(model)
    alone = np.stack([score(plain, [Row(branch)])[0] for branch in branches])
    try:
        together = np.stack(score(plain, [tree]))
    except Exception:  # whatever a model that takes no such mask may raise
        return False
    tolerance = torch.finfo(model.dtype).eps ** 0.5 * alone.std()
    return bool(((together - alone) ** 2).mean() ** 0.5 <= tolerance)


def _on_cpu(model: PackedModel) -> bool:
    return model.models[0].device.type == "cpu"


def _room(model: PackedModel) -> int:
    """Positions that are read at a time, for the logits that are held for each."""
    return int(_LOGITS * (1 if _on_cpu(model) else 8) // model.held)


@dataclass(frozen=True, eq=False)
class _Batch:
    """Rows as tensors.

    Args:
        ids: Token ids, padded on the right, where causal models do not look, shape (rows, columns).
        places: Row and column of each position whose successors are asked for, shape (places, 2).
        owners: For each target the number of its place, shape (targets,).
        targets: Token ids, shape (targets,).
        lengths: How many of the targets each span has.
        trees: None: chains.
    """

    ids: torch.Tensor
    places: Places
    owners: Places
    targets: torch.Tensor
    lengths: Sequence[int]
    trees: Trees | None

    def split(self, found: Scores) -> list[Scores]:
        """What was found for each target, by span; targets are the last dimension."""
        return np.split(found, np.cumsum(self.lengths)[:-1], axis=-1)


def _batch(rows: Sequence[Row]) -> _Batch:
    size = max(len(row.tokens) for row in rows)
    ids = np.zeros((len(rows), size), dtype=np.int64)
    nodes: list[tuple[int, int]] = []
    trees = None
    if all(row.is_chain for row in rows):
        for i, row in enumerate(rows):
            ids[i, : len(row.tokens)] = row.tokens
            nodes += [(i, node) for node in row.places[0]]
    else:
        positions = np.zeros_like(ids)
        seen = np.broadcast_to(np.eye(size, dtype=bool), (len(rows), size, size)).copy()
        for i, row in enumerate(rows):
            scored = sorted({node for each in row.places for node in each})  # first, so that only they get logits
            order = np.array(scored + sorted(set(range(len(row.tokens))) - set(scored)))
            ancestors = _ancestors(row.parents)
            n = len(order)
            ids[i, :n] = np.array(row.tokens)[order]
            positions[i, :n] = ancestors.sum(axis=1)[order] - 1
            seen[i, :n, :n] = ancestors[np.ix_(order, order)]
            column = {node: j for j, node in enumerate(scored)}
            nodes += [(i, column[node]) for each in row.places for node in each]
        trees = Trees(torch.from_numpy(seen), torch.from_numpy(positions))
    places, owners = np.unique(np.array(nodes), axis=0, return_inverse=True)
    spans = [span for row in rows for span in row.spans]
    targets = torch.tensor([target for span in spans for target in span.targets])
    lengths = [len(span.targets) for span in spans]
    return _Batch(torch.from_numpy(ids), places, owners.reshape(-1), targets, lengths, trees)


def _ancestors(parents: Sequence[int]) -> NDArray[np.bool_]:
    """Whether one node is another or lies on the way to it from its root, shape (nodes, nodes)."""
    seen = np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            seen[node] |= seen[parent]
    return seen


def _read(
    model: PackedModel, batch: _Batch, give: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
) -> Iterator[tuple[Places, torch.Tensor, torch.Tensor]]:
    """Read a batch; long chains in pieces, through a cache.

    Args:
        model: What reads.
        batch: What it reads.
        give: `PackedModel.logits`, or something like it.

    Yields:
        Numbers of some targets; which of the places that follow each has; what ``give`` gives for those places. Each
        target comes once.
    """
    rows, size = batch.ids.shape
    columns = batch.places[:, 1]
    step = max(1, _room(model) // rows)
    cached = all("past_key_values" in inspect.signature(each.forward).parameters for each in model.models)
    if batch.trees or not cached or columns.max() - columns.min() < step:
        step = size
    at_once = max(1, _PIECE * (1 if _on_cpu(model) else 8) // model.held)
    cache: Any = None
    for start in range(0, size, step):
        end = min(start + step, size)
        (here,) = np.nonzero((columns >= start) & (columns < end))
        first, stop = (columns[here].min(), columns[here].max() + 1) if len(here) else (end - 1, end)
        asked = slice(int(first - start), int(stop - start))
        states, cache = model.read(batch.ids[:, start:end], asked, batch.trees, cache, more=end < size)
        for low in range(0, len(here), at_once):
            some = here[low : low + at_once]
            number = np.full(len(columns), -1)
            number[some] = np.arange(len(some))
            (which,) = np.nonzero(number[batch.owners] >= 0)
            at = torch.from_numpy(batch.places[some] - [0, first])
            given = give(states, at[:, 0], at[:, 1])
            yield which, torch.from_numpy(number[batch.owners[which]]).to(given.device), given
