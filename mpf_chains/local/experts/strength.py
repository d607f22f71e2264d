"""α by measurement: one reading of calibration texts gives bias and fluency at every strength of expert pairs.

z, z⁺ and z⁻ do not depend on α, so they are computed once for each position; what changes with α is a sum over the
vocabulary, which is taken for one strength after the other and thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from mpf_chains.core.distributions import Array
from mpf_chains.errors import InvalidInput
from mpf_chains.local.experts.curve import AlphaCurve, ChosenAlpha, Estimate, choose_alpha
from mpf_chains.local.experts.ensemble import ExpertEnsemble, check_columns
from mpf_chains.local.experts.reader import Reader
from mpf_chains.local.experts.variants import Variants
from mpf_chains.local.experts.vocabulary import vocabulary_size
from mpf_chains.local.likelihood import encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ALPHAS", "AlphaCurve", "Association", "ChosenAlpha", "Estimate", "alpha_curve", "choose_alpha"]

ALPHAS = (0.0, 0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # what is useful depends on the training
_LOGITS = 2**24  # held at a time: 64 MiB


@dataclass(frozen=True)
class Association:
    """Texts between which an unbiased model has no preference, as StereoSet and CrowS-Pairs have them.

    Args:
        stereotype: The stereotypical text.
        anti: The anti-stereotypical one.
        unrelated: A meaningless one. Default "": none.
        axis: What it is about ("gender"). Default "": not said.
        term: The target term ("nurse"); terms weigh equally. Default "": associations of the axis weigh equally.
    """

    stereotype: str
    anti: str
    unrelated: str = ""
    axis: str = ""
    term: str = ""


def alpha_curve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ensemble: ExpertEnsemble,
    *,
    associations: Sequence[Association] = (),
    texts: Sequence[str] = (),
    prompts: Sequence[tuple[str, str]] = (),
    alphas: Sequence[float] | Mapping[str, Sequence[float]] = ALPHAS,
    block: int = 256,
    positions: int = 1024,
    seed: int = 0,
    progress: bool = True,
) -> AlphaCurve:
    """Measure every strength of a grid with one forward pass of each model over each text.

    Args:
        model: The base model.
        tokenizer: The base model's.
        ensemble: The pairs; their own α is not used.
        associations: For the stereotype score.
        texts: For perplexity and KL: any fluent text that nobody was trained on.
        prompts: Pairs of prompts that differ in the group named, for the Hellinger distance.
        alphas: Strengths of every pair, or of each by name (those not named stay at 0); the grid has all their
            combinations, and zero. Time grows with it, memory does not. Default `ALPHAS`.
        block: Longest stretch of a text in ``texts`` that is read at once, in tokens; at least 2. Default 256.
        positions: Tokens that are read at once. Default 1024.
        seed: Seeds the resampling for the intervals. Default 0.
        progress: Whether to show a progress bar. Default True.

    Returns:
        The measurements. Probabilities are those before any sampler's temperature or filter.

    Raises:
        InvalidInput: If there is nothing to measure, no pair moves anything, a strength is not finite, a text is
            blank, or one is longer than a model can read.
        VocabularyMismatch: If a small model has another vocabulary.
    """
    points = _grid([pair.name for pair in ensemble.pairs], alphas)
    if not associations and not texts and not prompts:
        raise InvalidInput("There is nothing to measure on.", hint="Give `associations`, `texts` or `prompts`.")
    if not ensemble.members:
        raise InvalidInput("No pair moves anything: the halves of each are the same.", hint="Train them further.")
    ensemble.check_vocabulary(tokenizer)
    if block < 2:
        raise InvalidInput(f"`block` is {block}; it must be at least 2.")
    for i, each in enumerate(associations):
        if not each.stereotype.strip() or not each.anti.strip():
            raise InvalidInput(f"Association {i} has a blank text: {each}.")
    sentences = [half for each in associations for half in (each.stereotype, each.anti, each.unrelated)]
    there = [i for i, text in enumerate(sentences) if text.strip()]
    spans = [(i, *pair) for i, pair in zip(there, encode(tokenizer, [("", sentences[i]) for i in there]), strict=True)]
    for i, (before, targets) in enumerate(encode(tokenizer, [("", text) for text in texts]), len(sentences)):
        size = block - 1
        spans += [(i, before, targets[start : start + size]) for start in range(0, len(targets), size)]
    measuring = _Measuring(model, tokenizer, ensemble, points, progress)
    sums = measuring.texts([_Span(*span) for span in spans], len(sentences) + len(texts), positions)
    distances = measuring.prompts(prompts)
    cut = len(sentences)
    with np.errstate(invalid="ignore"):
        means = np.where(sums.tokens[:cut] > 0, sums.logs[:, :cut] / sums.tokens[:cut], np.nan)
    return AlphaCurve(
        pairs=tuple(pair.name for pair in ensemble.pairs),
        points=points,
        scores=means.reshape(len(points), -1, 3),
        axes=tuple(each.axis for each in associations),
        terms=tuple(each.term or f"#{i}" for i, each in enumerate(associations)),
        losses=-sums.logs[:, cut:],
        divergences=sums.divergences[:, cut:],
        tokens=sums.tokens[cut:],
        distances=distances,
        seed=seed,
    )


@dataclass(frozen=True)
class _Span:
    """Tokens of a text of which some are scored."""

    text: int
    before: Sequence[int]
    targets: Sequence[int]

    @property
    def ids(self) -> list[int]:
        return [*self.before, *self.targets[:-1]]


@dataclass(frozen=True)
class _Sums:
    """Over each text: of ln p and of KL, shape (points, texts); and its tokens, shape (texts,)."""

    logs: Array
    divergences: Array
    tokens: Array


class _Measuring:
    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        ensemble: ExpertEnsemble,
        points: Array,
        progress: bool,
    ) -> None:
        self._ensemble, self._progress = ensemble, progress
        self._base = Variants(model, [None])
        self._strengths = torch.from_numpy(points).to(torch.float32)
        self._tokenizer, self._size = tokenizer, vocabulary_size(tokenizer)

    def texts(self, spans: Sequence[_Span], texts: int, positions: int) -> _Sums:
        """Sums over the scored tokens of each text."""
        count = len(self._strengths)
        sums = _Sums(np.zeros((count, texts)), np.zeros((count, texts)), np.zeros(texts))
        with tqdm(total=len(spans), desc="alpha", unit="text", disable=not self._progress) as bar:
            for batch in _batches(spans, positions):
                owners: list[int] = []
                targets: list[int] = []
                ids: list[list[int]] = []
                width = max(len(span.targets) for span in batch)
                for span in batch:
                    owners += [span.text] * len(span.targets)
                    targets += span.targets
                    ids.append(span.ids)
                    sums.tokens[span.text] += len(span.targets)
                real = torch.tensor([[column >= width - len(s.targets) for column in range(width)] for s in batch])
                for kept, base, contrasts in self._read(ids, width, real):
                    here = torch.tensor(targets)[kept].to(base.device)
                    logs, divergences = _logs(base, contrasts, here, self._strengths)
                    to = np.array(owners)[kept.numpy()]
                    for i in range(count):
                        np.add.at(sums.logs[i], to, logs[i])
                        np.add.at(sums.divergences[i], to, divergences[i])
                bar.update(len(batch))
        return sums

    def prompts(self, prompts: Sequence[tuple[str, str]]) -> Array:
        """Hellinger distance of each pair of prompts, shape (points, pairs of prompts)."""
        distances = np.zeros((len(self._strengths), len(prompts)))
        for i, texts in enumerate(prompts):
            ids = [self._tokenizer(text)["input_ids"] for text in texts]
            if not all(ids) or any(not text.strip() for text in texts):
                raise InvalidInput(f"Pair {i} of `prompts` has a blank prompt: {texts!r}.")
            found = list(self._read(ids, 1, torch.ones(2, 1, dtype=torch.bool)))
            base = torch.cat([each for _, each, _ in found])
            contrasts = torch.cat([each for _, _, each in found])
            distances[:, i] = _distances(base, contrasts, self._strengths)
        return distances

    def _read(
        self, rows: Sequence[Sequence[int]], keep: int, real: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Logits of the base and contrasts of the pairs at some of the last columns, a few at a time.

        Args:
            rows: Token ids.
            keep: Columns.
            real: Which positions are wanted, shape (rows, keep).

        Yields:
            Which of the wanted positions, row by row; z there, shape (positions, vocabulary); z⁺ − z⁻, shape
            (pairs, positions, vocabulary).
        """
        size = max(map(len, rows))
        ids = torch.tensor([[0] * (size - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (size - len(row)) + [1] * len(row) for row in rows])
        reader = Reader((self._base, *self._ensemble.members))
        first, *others = reader.read(ids, None if mask.all() else mask, keep)
        number = real.flatten().cumsum(0).reshape(real.shape) - 1
        step = max(1, _LOGITS // (self._size * len(rows) * (1 + self._strengths.shape[1])))
        for start in range(0, keep, step):
            part = slice(start, start + step)
            chosen = real[:, part]
            if chosen.any():
                base = self._base.logits(first[:, :, part], torch.ones(1))
                check_columns(self._size, base)
                contrasts = self._ensemble.contributions([each[:, :, part] for each in others]).to(base.device)
                on = chosen.to(base.device)
                yield (
                    number[:, part][chosen],
                    base[..., : self._size][on],
                    contrasts[..., : self._size].transpose(0, 1)[:, on],
                )


def _logs(base: torch.Tensor, contrasts: torch.Tensor, targets: torch.Tensor, strengths: torch.Tensor) -> Any:
    """Give ln p(target) and KL(base ‖ corrected) at each position, two arrays of shape (points, positions).

    With z̃ = z + α c: ln p = z̃(target) − lse(z̃), and KL = lse(z̃) − lse(z) − α E c, the expectation under the base.
    """
    places = torch.arange(len(targets), device=base.device)
    total = base.logsumexp(-1)
    probabilities = (base - total[:, None]).exp()
    expected = torch.stack([(probabilities * each).sum(-1) for each in contrasts])
    at, moves = base[places, targets], contrasts[:, places, targets]
    logs, divergences = [], []
    for alphas in strengths.to(base.device):
        norm = _moved(base, contrasts, alphas).logsumexp(-1)
        logs.append(at + alphas @ moves - norm)
        divergences.append((norm - total - alphas @ expected).clamp(min=0))
    return tuple(torch.stack(each).double().cpu().numpy() for each in (logs, divergences))


def _distances(base: torch.Tensor, contrasts: torch.Tensor, strengths: torch.Tensor) -> Array:
    """√(1 − Σ √(p q)) of two positions at each point, shape (points,)."""
    found = []
    for alphas in strengths.to(base.device):
        logs = _moved(base, contrasts, alphas).double().log_softmax(-1)
        affinity = (logs.sum(0) / 2).logsumexp(-1).exp()
        found.append(float((1 - affinity).clamp(0, 1).sqrt()))
    return np.array(found)


def _moved(base: torch.Tensor, contrasts: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    moved = base.clone()
    for alpha, contrast in zip(alphas, contrasts, strict=True):
        if alpha:
            moved.add_(contrast, alpha=float(alpha))
    return moved


def _batches(spans: Sequence[_Span], positions: int) -> Iterator[list[_Span]]:
    """Spans of like length, as many as have that many positions with their padding, at least one."""
    batch: list[_Span] = []
    for span in sorted(spans, key=lambda span: -len(span.ids)):
        if batch and (len(batch) + 1) * len(batch[0].ids) > positions:
            yield batch
            batch = []
        batch.append(span)
    if batch:
        yield batch


def _grid(names: Sequence[str], alphas: Sequence[float] | Mapping[str, Sequence[float]]) -> Array:
    """All combinations of strengths, and zero, shape (points, pairs), in ascending order."""
    given = dict.fromkeys(names, alphas) if not isinstance(alphas, Mapping) else alphas
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise InvalidInput(f"`alphas` names {unknown[0]!r}; the pairs are: {', '.join(names)}.")
    values = [sorted({0.0, *map(float, given.get(name, ()))}) for name in names]
    grid = np.array(list(product(*values)))
    if not np.isfinite(grid).all():
        raise InvalidInput("A strength in `alphas` is not finite.")
    return grid
