"""Published benchmarks: one reader each, four kinds of item, one contract."""

from mpf_chains.benchmarks.readers.catalogue import READERS, ItemSet, iter_benchmark, read_benchmark
from mpf_chains.benchmarks.readers.items import Choice, Item, Passage, Prompt, PromptPair

__all__ = [
    "READERS",
    "Choice",
    "Item",
    "ItemSet",
    "Passage",
    "Prompt",
    "PromptPair",
    "iter_benchmark",
    "read_benchmark",
]
