"""Values that the shell offers while a command is typed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from glob import glob
from typing import Final

BUILTIN_BENCHMARKS: Final = ("university", "university-hr")
MODELS: Final = ("openai:", "transformers:", "transformers:smollm2", "http://")


def _offered(values: Callable[[], Iterable[str]], files: str | None = None) -> Callable[[str], list[str]]:
    """Values, and files that match a pattern, which begin with what has been typed."""

    def complete(incomplete: str) -> list[str]:
        found = [value for value in values() if value.startswith(incomplete)]
        return found + (sorted(glob(f"{incomplete}*{files}")) if files is not None else [])  # noqa: PTH207  # keeps what was typed

    return complete


def _features() -> Iterable[str]:
    from mpf_chains.features.catalogue import _BUILTIN

    return _BUILTIN


def _perspectives() -> Iterable[str]:
    from mpf_chains.perspectives import _BUILTIN

    return _BUILTIN


def _metrics() -> Iterable[str]:
    from mpf_chains.evaluation.metrics import METRICS

    return METRICS


def _readers() -> Iterable[str]:
    from mpf_chains.benchmarks.readers import READERS

    return READERS


features = _offered(_features)
perspectives = _offered(_perspectives, ".json")
metrics = _offered(_metrics)
readers = _offered(_readers)
benchmarks = _offered(lambda: BUILTIN_BENCHMARKS, "")
systems = _offered(lambda: ("normal", "sampled", "aggregated"))
models = _offered(lambda: MODELS)
