"""Likelihoods of raw texts under a chat model that runs here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mpf_chains.local.engine import Engine
    from mpf_chains.local.experts.ensemble import ExpertEnsemble
    from mpf_chains.local.steering.shared import SharedSteering


class TextScoring:
    """What `ChatTransformers` can do with texts beside answering them."""

    _engine: Engine
    _steering: SharedSteering | None

    def _experts_and(self, alphas: Mapping[str, float] | None) -> tuple[ExpertEnsemble | None, list[float]]:
        raise NotImplementedError

    def log_likelihoods(
        self,
        texts: Sequence[tuple[str, str]],
        *,
        window: int | None = None,
        alphas: Mapping[str, float] | None = None,
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Natural log-probability of each token of a continuation given everything before it.

        Raw text: no chat template, no sampling settings; under the law that experts have corrected, if there are any,
        and with the low-rank changes of a steering adapter. Its tokens take no part: with rows alone, it changes
        nothing here.
        A pair is split into tokens as lm-evaluation-harness 0.4.13
        does it: whitespace at the end of the context moves to the continuation; the continuation's tokens are those
        that ``context + continuation`` has beyond ``context``. An empty context stands for the tokenizer's BOS token,
        or EOS where it has none (if the continuation begins with that token, it is not doubled and has no score). A
        BOS goes before other contexts if the tokenizer puts it there by default; other special tokens are not added.

        Texts that begin alike are computed once where they do, so pass all the texts in one call. The log-softmax is
        taken in float32 at least, whatever the model's dtype. How texts are batched changes results by rounding only:
        of SmolLM2 in float32 by 1e-5, of single tokens by 1e-4; ``dtype="float64"`` gives them to 1e-9. May be called
        while other threads generate: batches run in turn. Closing the iterator ends the work.

        Args:
            texts: (context, continuation) pairs; continuations must not be blank. A pair with a context must fit the
                model's context; without one it may have any length (see ``window``).
            window: Tokens read at once, at most, in texts without a context; at least 2. Default: the model's
                context. A longer text is scored in windows: the first scores all its tokens, each later one those of
                its last half, so that every token has at least ``window // 2`` tokens before it, or all there are.
            alphas: Strengths of experts, in place of the model's ``alphas``. Those of a binding do not arrive here:
                LangChain's ``model.bind(alphas=...)`` hands its arguments to answers only. Give them with the call.

        Returns:
            Iterator of (index, log-probabilities), shape (tokens,), each at most 0, in nats; every index once, in the
            order in which batches finish. ``dict(...)`` gives all.

        Raises:
            InvalidInput: At once, before anything is computed, if a continuation is blank or has no token of its own,
                or a pair with a context is too long. The message names the index.
            GenerationError: While iterating, if the model fails.

        Examples:
            >>> from mpf_chains.local import ChatTransformers
            >>> model = ChatTransformers(model="smollm2")
            >>> texts = [("The sky is", " blue."), ("The sky is", " sad.")]
            >>> scores = dict(model.log_likelihoods(texts))  # doctest: +SKIP
            >>> bool(scores[0].sum() > scores[1].sum())  # doctest: +SKIP
            True
        """
        from mpf_chains.local.likelihood import log_likelihoods

        return log_likelihoods(self._engine, texts, window, *self._experts_and(alphas), self._steering)

    def next_token_log_probabilities(
        self, prompts: Sequence[str], *, alphas: Mapping[str, float] | None = None
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Natural log-probability of every token of the vocabulary right behind each prompt.

        Prompts are read as `log_likelihoods` reads contexts, but whitespace at their end stays. What experts and a
        steering adapter do is as there.

        Args:
            prompts: Texts that fit the model's context. An empty one stands for the BOS token, or EOS.
            alphas: Strengths of experts, in place of the model's ``alphas``. Those of a binding do not arrive here:
                LangChain's ``model.bind(alphas=...)`` hands its arguments to answers only. Give them with the call.

        Returns:
            Iterator of (index, log-probabilities), shape (vocabulary,), each at most 0, in nats; every index once, in
            the order in which batches finish.

        Raises:
            InvalidInput: At once, if a prompt is too long, or empty where nothing stands for it.
            GenerationError: While iterating, if the model fails.

        Examples:
            >>> from mpf_chains.local import ChatTransformers
            >>> model = ChatTransformers(model="smollm2")
            >>> scores = dict(model.next_token_log_probabilities(["The sky is"]))[0]  # doctest: +SKIP
            >>> model.get_token_ids(" blue")[0] in scores.argsort()[-10:]  # doctest: +SKIP
            True
        """
        from mpf_chains.local.likelihood import next_token_log_probabilities

        return next_token_log_probabilities(self._engine, prompts, *self._experts_and(alphas), self._steering)
