"""Steering tokens: a model whose outputs follow target shares over many generations (arXiv 2604.05756).

Importing this package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpf_chains.local.steering.calibration.calibration import Calibrated, calibrate, infer_targets
from mpf_chains.local.steering.calibration.contrasts import GENDER_PROBES, read_contrasts
from mpf_chains.local.steering.calibration.rows import Readings, RowFit, fit_rows
from mpf_chains.local.steering.tokens import SteeringTokens
from mpf_chains.local.steering.training.data import Answer, SteeringData, SteeringRow
from mpf_chains.local.steering.training.written import write_answers
from mpf_chains.targets.templates import Prompt, prompts_about

if TYPE_CHECKING:
    from mpf_chains.local.steering.adapter import SteeringAdapter
    from mpf_chains.local.steering.calibration.states import read_states
    from mpf_chains.local.steering.steered import Steered, refit
    from mpf_chains.local.steering.training.trainer import SteeringTrainer, TrainedSteering

_HOME = {
    "Steered": "steered",
    "SteeringAdapter": "adapter",
    "SteeringTrainer": "training.trainer",
    "TrainedSteering": "training.trainer",
    "read_states": "calibration.states",
    "refit": "steered",
}

__all__ = [
    "GENDER_PROBES",
    "Answer",
    "Calibrated",
    "Prompt",
    "Readings",
    "RowFit",
    "Steered",
    "SteeringAdapter",
    "SteeringData",
    "SteeringRow",
    "SteeringTokens",
    "SteeringTrainer",
    "TrainedSteering",
    "calibrate",
    "fit_rows",
    "infer_targets",
    "prompts_about",
    "read_contrasts",
    "read_states",
    "refit",
    "write_answers",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mpf_chains.local.steering' has no attribute {name!r}")
    return getattr(import_module(f"mpf_chains.local.steering.{_HOME[name]}"), name)
