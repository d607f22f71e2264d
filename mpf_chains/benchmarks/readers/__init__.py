"""Published benchmarks: one reader each, three kinds of item, one contract."""

from mpf_chains.benchmarks.readers.catalogue import READERS, ItemSet, iter_benchmark, read_benchmark
from mpf_chains.benchmarks.readers.items import Choice, Item, Passage, Prompt

__all__ = ["READERS", "Choice", "Item", "ItemSet", "Passage", "Prompt", "iter_benchmark", "read_benchmark"]
