"""Features: text in, a number in a declared range out."""

from mpf_chains.features.attribute_words import FIRST_NAMES
from mpf_chains.features.attributes import (
    ClassFeature,
    DirectAnswer,
    SentimentClass,
    WordMajority,
    attribute_feature,
)
from mpf_chains.features.catalogue import get_feature
from mpf_chains.features.classifier import TransformersFeature
from mpf_chains.features.feature import Feature
from mpf_chains.features.function import CallableFeature
from mpf_chains.features.judge import JudgeFeature
from mpf_chains.features.lexicon import GENDERED, LexiconShare
from mpf_chains.features.sentiment import SentimentFeature
from mpf_chains.features.similarity import EmbeddingSimilarity

__all__ = [
    "FIRST_NAMES",
    "GENDERED",
    "CallableFeature",
    "ClassFeature",
    "DirectAnswer",
    "EmbeddingSimilarity",
    "Feature",
    "JudgeFeature",
    "LexiconShare",
    "SentimentClass",
    "SentimentFeature",
    "TransformersFeature",
    "WordMajority",
    "attribute_feature",
    "get_feature",
]
