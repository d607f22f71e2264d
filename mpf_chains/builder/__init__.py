"""Building benchmarks: from a text and names to questions with targets."""

from mpf_chains.builder.builder import BenchmarkBuilder
from mpf_chains.builder.built import BuildPlan, Built, Dropped
from mpf_chains.builder.corpus import Corpus, Source, read_corpus
from mpf_chains.builder.keywords import contains, rank_keywords
from mpf_chains.builder.roles import role_play
from mpf_chains.builder.selection import Passage, assign_splits, by_embeddings, by_words, passages, select
from mpf_chains.builder.sentences import Sentence, sentences

__all__ = [
    "BenchmarkBuilder",
    "BuildPlan",
    "Built",
    "Corpus",
    "Dropped",
    "Passage",
    "Sentence",
    "Source",
    "assign_splits",
    "by_embeddings",
    "by_words",
    "contains",
    "passages",
    "rank_keywords",
    "read_corpus",
    "role_play",
    "select",
    "sentences",
]
