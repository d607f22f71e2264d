"""LangChain-compatible middleware that makes a model's outputs follow a chosen distribution.

Public names are loaded when first used, so that importing the package stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpf_chains.artifact import Calibration, Weights
    from mpf_chains.benchmarks import Benchmark, ItemSet, Row, read_benchmark
    from mpf_chains.builder import BenchmarkBuilder
    from mpf_chains.calibration import MPFCalibrator
    from mpf_chains.core import Fit, Objective, fit_weights
    from mpf_chains.errors import MPFError
    from mpf_chains.evaluation import Evaluation, evaluate
    from mpf_chains.fusion import ChatMPF, PerspectiveFusion, PerspectiveRouter
    from mpf_chains.local import ChatTransformers
    from mpf_chains.perspectives import Perspective, PerspectiveSet

__version__ = "0.1.0"

_HOME = {
    "Benchmark": "benchmarks",
    "BenchmarkBuilder": "builder",
    "Calibration": "artifact",
    "ChatMPF": "fusion",
    "ChatTransformers": "local",
    "Evaluation": "evaluation",
    "Fit": "core",
    "ItemSet": "benchmarks",
    "MPFCalibrator": "calibration",
    "MPFError": "errors",
    "Objective": "core",
    "Perspective": "perspectives",
    "PerspectiveFusion": "fusion",
    "PerspectiveRouter": "fusion",
    "PerspectiveSet": "perspectives",
    "Row": "benchmarks",
    "Weights": "artifact",
    "evaluate": "evaluation",
    "fit_weights": "core",
    "read_benchmark": "benchmarks",
}

__all__ = [
    "Benchmark",
    "BenchmarkBuilder",
    "Calibration",
    "ChatMPF",
    "ChatTransformers",
    "Evaluation",
    "Fit",
    "ItemSet",
    "MPFCalibrator",
    "MPFError",
    "Objective",
    "Perspective",
    "PerspectiveFusion",
    "PerspectiveRouter",
    "PerspectiveSet",
    "Row",
    "Weights",
    "__version__",
    "evaluate",
    "fit_weights",
    "read_benchmark",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mpf_chains' has no attribute {name!r}")
    value = getattr(import_module(f"mpf_chains.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
