"""α by measurement: one reading of calibration texts gives bias and fluency at every strength of expert pairs.

z, z⁺ and z⁻ do not depend on α, so they are computed once for each position; what changes with α is a sum over the
vocabulary, which is taken for one strength after the other and thrown away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from tqdm import tqdm

from mpf_chains.core.distributions import Array
from mpf_chains.errors import InvalidInput
from mpf_chains.local.experts.ensemble import ExpertEnsemble
from mpf_chains.local.experts.models.variants import output_rows
from mpf_chains.local.experts.strength.curve import AlphaCurve
from mpf_chains.local.experts.vocabulary import check_vocabulary, vocabulary_size
from mpf_chains.local.likelihood import Row, Span, encode
from mpf_chains.local.packed import CorrectedModel
from mpf_chains.local.sampling import as_number, is_whole
from mpf_chains.local.scoring import next_parts, scan_spans

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ALPHAS = (0.0, 0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # what is useful depends on the training

_LARGEST = 3.4e38  # of float32


@dataclass(frozen=True)
class Association:
    """Texts between which an unbiased model has no preference, as StereoSet and CrowS-Pairs have them.

    Args:
        stereotype: The stereotypical text.
        anti: The anti-stereotypical one.
        unrelated: A meaningless one. Default "": none.
        axis: What it is about ("gender"). Default "": not said.
        term: The target term ("nurse"); terms weigh equally. Default "": associations of the axis weigh equally.
        context: What the texts follow, such as the first sentence of StereoSet's intersentence items; it is read, and
            not scored. Default "": nothing.
    """

    stereotype: str
    anti: str
    unrelated: str = ""
    axis: str = ""
    term: str = ""
    context: str = ""


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
    resample: Literal["associations", "terms"] = "associations",
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
        positions: Tokens that are read at once; at least 1. Default 1024.
        seed: At least 0; seeds the resampling for the intervals. Default 0.
        resample: What is drawn anew for the intervals of scores of associations; see `AlphaCurve`.
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
    check_vocabulary(tokenizer, tokenizer, output_rows(model), "the base model")
    for name, value, least in (("block", block, 2), ("positions", positions, 1), ("seed", seed, 0)):
        if not is_whole(value, least=least):
            raise InvalidInput(f"`{name}` is {value!r}; it must be a whole number from {least}.")
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InvalidInput("`texts` must be a list of texts.")
    for i, each in enumerate(associations):
        if not each.stereotype.strip() or not each.anti.strip():
            raise InvalidInput(f"Association {i} has a blank text: {each}.")
    sentences = [
        (each.context, f" {text}" if each.context and text.strip() else text)
        for each in associations
        for text in (each.stereotype, each.anti, each.unrelated)
    ]
    limits = (_context(model), ensemble.context)
    measuring = _Measuring(model, tokenizer, ensemble, points, min((each for each in limits if each), default=None))
    spans = [*measuring.whole(sentences), *measuring.pieces(texts, len(sentences), block)]
    sums = measuring.texts(spans, len(sentences) + len(texts), positions, progress)
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
        resample=resample,
    )


@dataclass(frozen=True)
class _Sums:
    """Over each text: of ln p and of KL, shape (points, texts); and its tokens, shape (texts,)."""

    logs: Array
    divergences: Array
    tokens: Array


@dataclass(frozen=True, eq=False)
class _Measuring:
    """What reads.

    Args:
        model: The base model.
        tokenizer: Its tokenizer.
        ensemble: The pairs.
        strengths: Shape (points, pairs).
        context: Tokens that all models can read. None: any number.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ensemble: ExpertEnsemble
    strengths: Array
    context: int | None

    def whole(self, sentences: Sequence[tuple[str, str]]) -> Iterator[Span]:
        """Texts after their contexts, those that are not blank, each in one piece."""
        there = [i for i, (_, text) in enumerate(sentences) if text.strip()]
        encoded = encode(self.tokenizer, [sentences[i] for i in there])
        for i, (before, targets) in zip(there, encoded, strict=True):
            span = Span(i, [*before, *targets[:-1]], targets)
            self._check_length(len(span.ids), f"Association {i // 3}")
            yield span

    def pieces(self, texts: Sequence[str], start: int, block: int) -> Iterator[Span]:
        """Pieces of texts, whose numbers begin with ``start``, each read after the token that begins a text."""
        size = min(block, self.context or block) - 1
        for i, (before, targets) in enumerate(encode(self.tokenizer, [("", text) for text in texts]), start):
            for place in range(0, len(targets), size):
                some = targets[place : place + size]
                yield Span(i, [*before, *some[:-1]], some)

    def texts(self, spans: Sequence[Span], texts: int, positions: int, progress: bool) -> _Sums:
        """Sums over the scored tokens of each text."""
        count, size = len(self.strengths), vocabulary_size(self.tokenizer)
        sums = _Sums(np.zeros((count, texts)), np.zeros((count, texts)), np.zeros(texts))
        found = scan_spans(self.model, self.ensemble.loaded, size, spans, self.strengths, positions=positions)
        for span, logs, divergences in tqdm(found, "alpha", len(spans), unit="text", disable=not progress):
            sums.logs[:, span.text] += logs.sum(axis=1)
            sums.divergences[:, span.text] += divergences.sum(axis=1)
            sums.tokens[span.text] += len(span.targets)
        return sums

    def prompts(self, prompts: Sequence[tuple[str, str]]) -> Array:
        """Hellinger distance of each pair of prompts, shape (points, pairs of prompts)."""
        distances = np.zeros((len(self.strengths), len(prompts)))
        loaded = self.ensemble.loaded
        corrected = CorrectedModel(self.model, loaded, [0.0] * len(loaded), vocabulary_size(self.tokenizer))
        for i, texts in enumerate(prompts):
            ids = [list(self.tokenizer(text)["input_ids"]) for text in texts]
            if not all(ids) or any(not text.strip() for text in texts):
                raise InvalidInput(f"Pair {i} of `prompts` has a blank prompt: {texts!r}.")
            self._check_length(max(map(len, ids)), f"Pair {i} of `prompts`")
            base, *contrasts = next_parts(corrected, [Row(Span(place, each, [0])) for place, each in enumerate(ids)])
            distances[:, i] = _distances(base, torch.stack(contrasts), torch.from_numpy(self.strengths))
        return distances

    def _check_length(self, length: int, what: str) -> None:
        if self.context is not None and length > self.context:
            raise InvalidInput(
                f"{what} has {length} tokens; the models can read {self.context} together.",
                hint="Shorten it, or use experts with a longer context.",
            )


def _context(model: PreTrainedModel) -> int | None:
    context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return context


def _distances(base: torch.Tensor, contrasts: torch.Tensor, strengths: torch.Tensor) -> Array:
    """√(1 − Σ √(p q)) of two positions at each point, shape (points,)."""
    base, contrasts = base.double(), contrasts.double()
    found = []
    for alphas in strengths.to(base):
        logs = (base + torch.einsum("p,prv->rv", alphas, contrasts)).log_softmax(-1)
        affinity = (logs.sum(0) / 2).logsumexp(-1).exp()
        found.append(float((1 - affinity).clamp(0, 1).sqrt()))
    return np.array(found)


def _grid(names: Sequence[str], alphas: Sequence[float] | Mapping[str, Sequence[float]]) -> Array:
    """All combinations of strengths, and zero, shape (points, pairs), in ascending order."""
    given = dict.fromkeys(names, alphas) if not isinstance(alphas, Mapping) else alphas
    for several in given.values():
        if not isinstance(several, Iterable) or not all(abs(as_number(alpha)) < _LARGEST for alpha in several):
            raise InvalidInput(f"`alphas` has {several!r}; strengths must be lists of finite numbers (of float32).")
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise InvalidInput(f"`alphas` names {unknown[0]!r}; the pairs are: {', '.join(names)}.")
    values = [sorted({0.0, *map(float, given.get(name, ()))}) for name in names]
    return np.array(list(product(*values)))
