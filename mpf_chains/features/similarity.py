"""Similarity of answers to a reference text, by any LangChain embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from langchain_core.embeddings import Embeddings
from numpy.typing import NDArray

from mpf_chains.errors import FeatureError
from mpf_chains.features.digests import scalars_of
from mpf_chains.features.feature import Feature


class EmbeddingSimilarity(Feature):
    """Cosine similarity to a reference, mapped to [0, 1] by (cos + 1) / 2.

    Args:
        embeddings: Any LangChain embeddings.
        reference: "target" (default) compares each answer with its row's target text; any other text is the one
            reference of all answers.
        name: Name of the feature. Default "similarity".
        version: Pins the embeddings in `digest` instead of their class and plain settings. Default none.

    Raises:
        FeatureError: If `reference` is blank; at scoring, if an answer has no target text or a vector is zero.

    Examples:
        >>> from langchain_core.embeddings import DeterministicFakeEmbedding
        >>> similarity = EmbeddingSimilarity(DeterministicFakeEmbedding(size=8))
        >>> similarity(["Same text."], references=["Same text."])
        array([1.])
    """

    bounds = (0.0, 1.0)
    libraries = ("langchain-core",)

    def __init__(
        self,
        embeddings: Embeddings,
        reference: str = "target",
        *,
        name: str = "similarity",
        version: str | None = None,
    ) -> None:
        if not isinstance(embeddings, Embeddings):
            raise FeatureError(f"`embeddings` must be LangChain Embeddings, not {type(embeddings).__qualname__}.")
        if not reference.strip():
            raise FeatureError('`reference` is blank; it must be "target" or a text to compare with.')
        self.embeddings = embeddings
        self.reference = reference
        self.name = name
        self.version = version

    def _score(
        self,
        answers: Sequence[str],
        *,
        questions: Sequence[str] | None = None,
        references: Sequence[str | None] | None = None,
    ) -> NDArray[np.float64]:
        del questions
        targets = self._targets(len(answers), references)
        texts = list(dict.fromkeys([*answers, *targets]))
        vectors = np.array(self.embeddings.embed_documents(texts), dtype=np.float64)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if vectors.shape[:1] != (len(texts),) or not (lengths > 0).all():
            raise FeatureError(
                f"The embeddings of feature {self.name!r} must give every text a vector that is not zero; "
                f"{int((~(lengths > 0)).sum())} of {len(texts)} have none."
            )
        row = {text: index for index, text in enumerate(texts)}
        unit = vectors / lengths
        cosine = np.einsum("nd,nd->n", unit[[row[text] for text in answers]], unit[[row[text] for text in targets]])
        # A cosine stays within [-1, 1]; rounding must not take it out.
        similarity: NDArray[np.float64] = (np.clip(cosine, -1.0, 1.0) + 1.0) / 2.0
        return similarity

    def _targets(self, count: int, references: Sequence[str | None] | None) -> list[str]:
        if self.reference != "target":
            return [self.reference] * count
        given = list(references) if references is not None else [None] * count
        missing = [index for index, text in enumerate(given) if text is None]
        if missing:
            raise FeatureError(
                f"Feature {self.name!r} compares answers with their row's target text; answer {missing[0]} has none.",
                hint="Pass references=, give the benchmark's rows a target_text, or set reference= to a fixed text.",
            )
        return [text for text in given if text is not None]

    def _configuration(self) -> Mapping[str, Any]:
        pinned = self.version if self.version is not None else scalars_of(self.embeddings)
        return {"embeddings": pinned, "reference": self.reference}
