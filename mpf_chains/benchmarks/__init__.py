"""Benchmarks: files to typed rows, and two that ship."""

from mpf_chains.benchmarks.benchmark import Benchmark
from mpf_chains.benchmarks.entities import swap_entity
from mpf_chains.benchmarks.files import iter_rows
from mpf_chains.benchmarks.rows import Row, Split

__all__ = ["Benchmark", "Row", "Split", "iter_rows", "swap_entity"]
