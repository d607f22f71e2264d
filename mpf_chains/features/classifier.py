"""Scores from any transformers text classifier: expected value of its labels."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpf_chains.errors import FeatureError, MissingExtra
from mpf_chains.features.feature import Feature

_UNLIMITED = 1_000_000  # tokenizers without a limit declare a huge one
_RESERVED = 2  # positions some models keep for padding


class TransformersFeature(Feature):
    """Expected value of a text classifier's labels.

    With `score="signed"` this is the score of the MPF paper, (P(positive) - P(negative) + 1) / 2; with a mapping it is
    the sum of P(label) · value(label). Probabilities are the softmax of the logits. A model given by name is loaded at
    the first score, from safetensors or the hub, never with remote code.

    Args:
        model: Model id or folder, or a ready `transformers` text-classification pipeline.
        score: "signed" (default), or a mapping that gives every label of the model a value.
        name: Name of the feature. Default "classifier".
        positive: Label of the positive class for "signed", any case. Default "positive".
        negative: Label of the negative class for "signed", any case. Default "negative".
        batch_size: Texts per forward pass, at least 1. Default 16.
        max_length: Tokens read of each text, the rest is cut off. Default: what the model can take.
        revision: Commit of the model on the hub. Default the newest: give one to pin it.
        device: Torch device such as "cpu" or "cuda:0". Default: transformers' choice.
        version: Pins the weights in `digest` for a pipeline whose model was never saved. Default none.

    Raises:
        FeatureError: If an argument is wrong, or (at the first score) the labels do not fit the model's.
        MissingExtra: At the first score, if transformers or torch is not installed.

    References:
        arXiv 2507.02595, section on features.
    """

    libraries = ("transformers", "torch")

    def __init__(
        self,
        model: Any,
        score: Literal["signed"] | Mapping[str, float] = "signed",
        *,
        name: str = "classifier",
        positive: str = "positive",
        negative: str = "negative",
        batch_size: int = 16,
        max_length: int | None = None,
        revision: str | None = None,
        device: str | None = None,
        version: str | None = None,
    ) -> None:
        if not (score == "signed" or isinstance(score, Mapping)):
            raise FeatureError(f'`score` is {score!r}; it must be "signed" or a mapping from label to value.')
        if batch_size < 1 or (max_length is not None and max_length < 1):
            raise FeatureError(f"`batch_size` ({batch_size}) and `max_length` ({max_length}) must be at least 1.")
        values = {positive: 1.0, negative: 0.0} if isinstance(score, str) else score
        self.name = name
        self.score = score
        self.values = {label.casefold(): float(value) for label, value in values.items()}
        self.bounds = (min(self.values.values(), default=0.0), max(self.values.values(), default=0.0))
        if not (len(self.values) == len(values) and np.isfinite(self.bounds).all() and self.bounds[0] < self.bounds[1]):
            raise FeatureError(
                f"The values of the labels are {dict(values)}; there must be two different finite values at least, and "
                "labels that differ in more than case."
            )
        self.model = str(model) if isinstance(model, (str, Path)) else model
        self.batch_size = batch_size
        self.max_length = max_length
        self.revision_of_model = revision
        self.device = device
        self.version = version
        self._pipeline: Any = None if isinstance(self.model, str) else self.model

    def __getstate__(self) -> dict[str, Any]:
        loaded = self._pipeline if not isinstance(self.model, str) else None
        return {**vars(self), "_pipeline": loaded}

    def _score(
        self,
        answers: Sequence[str],
        *,
        questions: Sequence[str] | None = None,
        references: Sequence[str | None] | None = None,
    ) -> NDArray[np.float64]:
        del questions, references
        pipeline = self._loaded()
        values = self._values_by_label(list(pipeline.model.config.id2label.values()))
        outputs = pipeline(
            list(answers),
            top_k=None,
            function_to_apply="softmax",
            batch_size=self.batch_size,
            padding=True,
            truncation=True,
            max_length=self.max_length or _limit(pipeline),
        )
        shares = np.array([[output["score"] for output in sorted(row, key=_label)] for row in outputs])
        weights = np.array([values[label] for label in sorted(values)])
        # A mean of values stays within their range; float32 shares that add up to 1.0000001 must not take it out.
        means: NDArray[np.float64] = np.clip(shares @ weights / shares.sum(axis=1), *self.bounds)
        return means

    def _loaded(self) -> Any:
        if self._pipeline is None:
            try:
                transformers, _ = (importlib.import_module(name) for name in self.libraries)
            except ImportError as error:
                raise MissingExtra(error.name or "transformers", "local") from error
            self._pipeline = transformers.pipeline(
                "text-classification",
                model=self.model,
                revision=self.revision_of_model,
                device=self.device,
                trust_remote_code=False,
            )
        return self._pipeline

    def _values_by_label(self, labels: list[str]) -> dict[str, float]:
        known = {label.casefold() for label in labels}
        rest = known - self.values.keys()
        missing = sorted(self.values.keys() - known)
        if missing or (rest and self.score != "signed"):
            problem = f"has no label {missing}" if missing else f"has labels without a value: {sorted(rest)}"
            raise FeatureError(
                f"The model of feature {self.name!r} {problem}; its labels are {labels}.",
                hint="Name its labels with `positive=` and `negative=`, or pass `score={label: value, ...}` with all.",
            )
        return {label: self.values.get(label.casefold(), 0.5) for label in labels}

    def _configuration(self) -> Mapping[str, Any]:
        return {
            "model": self.version if self.version is not None else self._identity(),
            "revision": self.revision_of_model,
            "signed": self.score == "signed",
            "values": self.values,
            "max_length": self.max_length,
        }

    def _identity(self) -> list[str]:
        """Name of the model; for a folder, a hash of its content, so that moving it changes nothing."""
        source = self.model if isinstance(self.model, str) else self.model.model.config.name_or_path
        if not source:
            raise FeatureError(
                f"The model of feature {self.name!r} was never saved, so its weights have no name to pin.",
                hint="Pass `version=` and change it whenever the weights change.",
            )
        folder = Path(source)
        return ["folder", _folder_digest(folder)] if folder.is_dir() else ["name", source]


def _limit(pipeline: Any) -> int | None:
    declared = pipeline.tokenizer.model_max_length
    if declared < _UNLIMITED:
        return int(declared)
    positions = getattr(pipeline.model.config, "max_position_embeddings", None)
    return None if positions is None else max(1, positions - _RESERVED)


def _label(output: Mapping[str, Any]) -> str:
    return str(output["label"])


def _folder_digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in {".json", ".safetensors", ".txt", ".model"}):
        with path.open("rb") as file:
            content = hashlib.sha256()
            while block := file.read(1 << 20):
                content.update(block)
        total.update(f"{path.name}\0{content.hexdigest()}\n".encode())
    return total.hexdigest()
