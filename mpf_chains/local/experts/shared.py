"""`SharedExperts`: expert pairs beside an engine's model, loaded once for all chat models that name them."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mpf_chains.errors import InvalidInput
from mpf_chains.local.experts.explanation.records import check_explainable
from mpf_chains.local.experts.pair import ExpertPair
from mpf_chains.local.fingerprint import weights_of
from mpf_chains.local.sampling import Sampling, as_number

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mpf_chains.local.decoding import Alone
    from mpf_chains.local.engine import Engine, Source
    from mpf_chains.local.experts.ensemble import ExpertEnsemble
    from mpf_chains.local.experts.files.loading import LoadedPair
    from mpf_chains.local.generation import Generation

_PARTS = ("expert", "anti_expert", "base")
_OFF = "`speculative` is off."
_EXPLAINED = "`explain` is on, for which every token is looked at by itself."
_STEERED = "A steering token stands before the text, which what drafts has not read."
_ON_BASE = "The experts are adapters on the model itself and read in its own passes; nothing smaller could draft."


class SharedExperts:
    """Expert pairs beside an engine's model: loaded by the first call, on its device and in its dtype.

    Use `SharedExperts.of`, which gives all who name the same pairs, whatever their strengths, the same ones. What a
    pair names that is the engine's own model is not loaded again: adapters on it are rows of its own passes.

    Args:
        engine: The base model's.
        pairs: With unique names.
    """

    _sharing: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, engine: Engine, pairs: Sequence[ExpertPair]) -> None:
        self.pairs = tuple(pairs)
        self._files = [{part: _files(getattr(pair, part)) for part in _PARTS} for pair in self.pairs]
        self._engine, self._loading = engine, threading.Lock()
        self._loaded: _Loaded | None = None

    @classmethod
    def of(cls, engine: Engine, pairs: Sequence[ExpertPair]) -> SharedExperts:
        """The same pairs beside this engine, if somebody holds them, else new ones. Loads nothing.

        Raises:
            InvalidInput: If two pairs share a name.
        """
        names = [pair.name for pair in pairs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InvalidInput(f"Several expert pairs are named {', '.join(map(repr, twice))}.")
        key = tuple(
            (pair.name, *(_identity(getattr(pair, part)) for part in _PARTS), id(pair.tokenizer)) for pair in pairs
        )
        with cls._sharing:
            shared = engine.experts.get(key)
            if shared is None:
                shared = engine.experts[key] = cls(engine, pairs)
            return shared

    @property
    def contents(self) -> list[dict[str, Any]]:
        """What the pairs are, by the contents of their files and weights, not by their places; of a hub id its name.

        Of files as they were when this was made: what is written there later is not what is loaded.
        """
        return [
            {"name": pair.name, **{part: _contents(getattr(pair, part), files[part]) for part in _PARTS}}
            for pair, files in zip(self.pairs, self._files, strict=True)
        ]

    @property
    def loaded(self) -> bool:
        """Whether their weights are in memory."""
        return self._loaded is not None

    def load(self) -> ExpertEnsemble:
        """The pairs with their models; loads them the first time. Not to be called by the engine's worker.

        Raises:
            InvalidInput: If something cannot be loaded.
            VocabularyMismatch: If a small model has another vocabulary than the base model.
        """
        return self._load().ensemble

    def _load(self) -> _Loaded:
        with self._loading:
            if self._loaded is None:
                from mpf_chains.local.experts.files.loading import load_pairs

                model, tokenizer, _ = self._engine.load()
                pairs = [self._beside(pair, model, tokenizer) for pair in self.pairs]
                dtype = str(model.dtype).removeprefix("torch.")
                loaded = load_pairs(pairs, device=str(model.device), dtype=dtype)
                # in the worker, as the model must not be running while modules of it get hooks
                self._loaded = self._engine.submit(lambda model: _Loaded(model, tokenizer, loaded)).result()
            return self._loaded

    def _beside(self, pair: ExpertPair, model: Any, tokenizer: Any) -> ExpertPair:
        """The pair, with the engine's loaded model in place of its name."""
        parts = {part: getattr(pair, part) for part in _PARTS}
        parts = {part: model if _is_model_of(self._engine.source, what) else what for part, what in parts.items()}
        others = [what for what in parts.values() if not (what is None or isinstance(what, str) or what is model)]
        return replace(pair, **parts, tokenizer=pair.tokenizer or (None if others else tokenizer))

    @property
    def context(self) -> int | None:
        """Positions that all of them can read. None: no limit. Loads them the first time."""
        return self._load().context

    def effective(self, sampling: Sampling) -> Sampling:
        """The same with the strengths of pairs that cannot move anything at 0; no strengths at all if none does.

        Raises:
            InvalidInput: If it is to be explained what more than 12 pairs do.
        """
        pairs = self.load().loaded
        alphas = tuple(0.0 if pair.idle else alpha for pair, alpha in zip(pairs, sampling.alphas, strict=True))
        if sampling.explain:
            check_explainable(sum(map(bool, alphas)))
        return replace(sampling, alphas=alphas if any(alphas) else ())

    def decode(self, rows: Sequence[Generation], pad: int, *, speculative: bool, alone: Alone | None = None) -> None:
        """Generate until every row is finished; called by the engine's worker, with rows that some pair moves.

        Says in each row's ``decoding`` how: "way" is "speculative", with who drafts ("small" or "prompt_lookup"),
        "cycles" (passes of the base model), "drafted", "accepted", "acceptance" (their ratio), and as "reason" why the
        last cycle without drafts had none, if there was one; or "lockstep", with the "reason" for it.

        Rows of one batch that experts do not move, that drafts may be used for, and that they may not be used for are
        generated one group after another, each to its end: a text waits for the groups before its own.

        Args:
            rows: What to generate.
            pad: Any valid token id.
            speculative: Whether drafts may be used.
            alone: What reads the rows for the base model, where that is steered: then nothing is drafted. Experts read
                what is written without steering tokens. None (default): the base model as it is.
        """
        if self._loaded is None:
            raise RuntimeError("The experts are not loaded.")
        self._loaded.decode(rows, pad, speculative=speculative, alone=alone)


class _Loaded:
    """Pairs beside a model, ready to decode."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[LoadedPair]) -> None:
        from mpf_chains.local.experts.ensemble import ExpertEnsemble
        from mpf_chains.local.experts.speculation.decoder import SpeculativeDecoder
        from mpf_chains.local.experts.vocabulary import vocabulary_size

        self._on_base = all(pair.untuned is not None and pair.untuned.small.model is model for pair in pairs)
        self.ensemble = ExpertEnsemble(pairs, untuned=self._on_base)
        self.ensemble.check_vocabulary(tokenizer)
        self._decoder = None if self._on_base else SpeculativeDecoder(model, self.ensemble, tokenizer)
        self.context = self.ensemble.context if self._decoder is None else self._decoder.context
        self._model, self._size = model, vocabulary_size(tokenizer)

    def decode(self, rows: Sequence[Generation], pad: int, *, speculative: bool, alone: Alone | None) -> None:
        """See `SharedExperts.decode`."""
        if speculative and self._decoder is not None and alone is None:
            for row in rows:
                row.decoding = {"way": "speculative", "draft": self._decoder.draft}
            self._decoder.decode(rows)
            return
        for row in rows:
            row.decoding = {"way": "lockstep", "reason": self._why(row)}
        self._lockstep(rows, pad, alone)

    def _why(self, row: Generation) -> str:
        if self._decoder is None:
            return _ON_BASE
        if row.sampling.explain:
            return _EXPLAINED
        return _STEERED if row.steering is not None and row.group.speculative else _OFF

    def _lockstep(self, rows: Sequence[Generation], pad: int, alone: Alone | None) -> None:
        """In lockstep, with those pairs that move some row."""
        import torch

        from mpf_chains.local.decoding import decode
        from mpf_chains.local.experts.lockstep import Lockstep

        alphas = torch.tensor([row.sampling.alphas for row in rows])
        moving = alphas.any(0).nonzero()[:, 0].tolist()
        names = [self.ensemble.pairs[i].name for i in moving]
        some = self.ensemble.only(names, untuned=self._on_base and alone is None)
        source = Lockstep(self._model, some, rows, alphas[:, moving], self._size, pad, alone)
        decode(self._model, rows, pad, source)


def strengths(pairs: Sequence[ExpertPair], alphas: Mapping[str, float] | None) -> dict[str, float]:
    """α of each pair by name, in order: the pair's own, or the given one.

    Raises:
        InvalidInput: If it is no mapping, a name is unknown or a strength is no finite number.

    Examples:
        >>> strengths([ExpertPair("gender", "e", "a"), ExpertPair("race", "e", "a", alpha=0.5)], {"gender": 2})
        {'gender': 2.0, 'race': 0.5}
    """
    if not isinstance(alphas, Mapping | None):
        raise InvalidInput(f"`alphas` is {alphas!r}; it must map names of expert pairs to numbers.")
    found = {pair.name: float(pair.alpha) for pair in pairs}
    for name, alpha in dict(alphas or {}).items():
        if name not in found:
            known = f"the pairs are: {', '.join(map(repr, found))}" if found else "there are no experts"
            raise InvalidInput(f"`alphas` names {name!r}; {known}.", hint="Give `experts=` a pair of that name.")
        found[name] = as_number(alpha)
        if not math.isfinite(found[name]):
            raise InvalidInput(f"The alpha of {name!r} is {str(alpha)[:40]}; it must be a finite number.")
    return found


def _identity(what: Any) -> Any:
    return (what, _files(what)) if isinstance(what, str) else id(what)


def _files(what: Any) -> str | None:
    return weights_of(what) if isinstance(what, str) else None


def _contents(what: Any, files: str | None) -> str | None:
    if what is None or files is not None:
        return files
    return str(what) if isinstance(what, str) else weights_of(what) or str(what)


def _is_model_of(source: Source, what: Any) -> bool:
    """Whether a part of a pair is the very model that an engine has loaded, by object, name or place."""
    if not isinstance(what, str) or not isinstance(source.model, str):
        return what is source.model
    if source.gguf_file:
        return False
    if Path(what).exists() and Path(source.model).exists():
        return Path(what).resolve() == Path(source.model).resolve()
    return what == source.model and source.revision is None
