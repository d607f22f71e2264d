"""Values that the shell offers while a command is typed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from glob import glob
from pathlib import Path
from typing import Final

BUILTIN_BENCHMARKS: Final = ("university", "university-hr")
AXES: Final = ("gender", "race", "religion")
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
    from mpf_chains.evaluation.tasks.shares import EXPRESSED

    return (*METRICS, EXPRESSED.name)


def _readers() -> Iterable[str]:
    from mpf_chains.benchmarks.readers import READERS

    return READERS


def experts(incomplete: str) -> list[str]:
    """The name of a pair, then folders; the shell takes up after the "=" where it splits words there."""
    name, equals, folder = incomplete.rpartition("=")
    if not equals:
        return [f"{axis}=" for axis in AXES if axis.startswith(incomplete)]
    found = sorted(place for place in glob(f"{folder}*") if Path(place).is_dir())  # noqa: PTH207  # keeps what was typed
    return [f"{name}={place}" for place in found]


features = _offered(_features)
perspectives = _offered(_perspectives, ".json")
metrics = _offered(_metrics)
readers = _offered(_readers)
benchmarks = _offered(lambda: BUILTIN_BENCHMARKS, "")
systems = _offered(lambda: ("normal", "sampled", "aggregated"))
models = _offered(lambda: MODELS)
local_models = _offered(lambda: (model for model in MODELS if model.startswith("transformers")))
