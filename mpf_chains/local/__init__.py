"""Models that run on this machine, through torch (extra: local). Importing this package loads no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpf_chains.local.chat_model import ChatTransformers
from mpf_chains.local.experts.pair import ExpertPair
from mpf_chains.local.masked import MaskedLanguageModel
from mpf_chains.local.smollm2 import load_smollm2, smollm2_path

if TYPE_CHECKING:
    from mpf_chains.local.experts import ExpertLogitsProcessor

__all__ = [
    "ChatTransformers",
    "ExpertLogitsProcessor",
    "ExpertPair",
    "MaskedLanguageModel",
    "load_smollm2",
    "smollm2_path",
]


def __getattr__(name: str) -> Any:
    if name == "ExpertLogitsProcessor":  # a transformers.LogitsProcessor, so it needs transformers to exist
        return import_module("mpf_chains.local.experts").ExpertLogitsProcessor
    raise AttributeError(f"module 'mpf_chains.local' has no attribute {name!r}")
