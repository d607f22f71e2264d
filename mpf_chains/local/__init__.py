"""Models that run on this machine, through torch (extra: local). Importing this package loads no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpf_chains.local.chat_model import ChatTransformers
from mpf_chains.local.experts.pair import ExpertPair
from mpf_chains.local.masked import MaskedLanguageModel
from mpf_chains.local.smollm2 import load_smollm2, smollm2_path
from mpf_chains.local.steering.adapter import SteeringAdapter
from mpf_chains.local.steering.tokens import SteeringTokens

if TYPE_CHECKING:
    from mpf_chains.local.experts import ExpertLogitsProcessor
    from mpf_chains.local.steering.training.trainer import SteeringTrainer

__all__ = [
    "ChatTransformers",
    "ExpertLogitsProcessor",
    "ExpertPair",
    "MaskedLanguageModel",
    "SteeringAdapter",
    "SteeringTokens",
    "SteeringTrainer",
    "load_smollm2",
    "smollm2_path",
]


_HOME = {"ExpertLogitsProcessor": "experts", "SteeringTrainer": "steering"}
"""What needs torch or transformers to exist."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mpf_chains.local' has no attribute {name!r}")
    return getattr(import_module(f"mpf_chains.local.{_HOME[name]}"), name)
