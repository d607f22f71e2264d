"""Features: text in, a number in a declared range out."""

from mpf_chains.features.catalogue import get_feature
from mpf_chains.features.classifier import TransformersFeature
from mpf_chains.features.feature import Feature
from mpf_chains.features.function import CallableFeature
from mpf_chains.features.judge import JudgeFeature
from mpf_chains.features.lexicon import GENDERED, LexiconShare
from mpf_chains.features.sentiment import SentimentFeature
from mpf_chains.features.similarity import EmbeddingSimilarity

__all__ = [
    "GENDERED",
    "CallableFeature",
    "EmbeddingSimilarity",
    "Feature",
    "JudgeFeature",
    "LexiconShare",
    "SentimentFeature",
    "TransformersFeature",
    "get_feature",
]
