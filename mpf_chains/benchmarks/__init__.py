"""Benchmarks: files to typed rows and items, published ones by name, and some that ship."""

from mpf_chains.benchmarks.benchmark import Benchmark
from mpf_chains.benchmarks.entities import swap_entity
from mpf_chains.benchmarks.files import iter_rows
from mpf_chains.benchmarks.pairs import pair_prompts, pair_twins
from mpf_chains.benchmarks.readers import Choice, ItemSet, Passage, Prompt, PromptPair, iter_benchmark, read_benchmark
from mpf_chains.benchmarks.rows import Row, Split
from mpf_chains.benchmarks.shares import target_prompts

__all__ = [
    "Benchmark",
    "Choice",
    "ItemSet",
    "Passage",
    "Prompt",
    "PromptPair",
    "Row",
    "Split",
    "iter_benchmark",
    "iter_rows",
    "pair_prompts",
    "pair_twins",
    "read_benchmark",
    "swap_entity",
    "target_prompts",
]
