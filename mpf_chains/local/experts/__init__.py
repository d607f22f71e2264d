"""Expert / anti-expert decoding: small models that correct a base model's next-token distribution.

Importing this package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpf_chains.local.experts.pair import ExpertPair

if TYPE_CHECKING:
    from mpf_chains.local.experts.adapter import record_base
    from mpf_chains.local.experts.ensemble import ExpertEnsemble
    from mpf_chains.local.experts.explanation import ExplainedToken, explain
    from mpf_chains.local.experts.logits_processor import ExpertLogitsProcessor

_HOME = {
    "ExpertEnsemble": "ensemble",
    "ExpertLogitsProcessor": "logits_processor",
    "ExplainedToken": "explanation",
    "explain": "explanation",
    "record_base": "adapter",
}

__all__ = ["ExpertEnsemble", "ExpertLogitsProcessor", "ExpertPair", "ExplainedToken", "explain", "record_base"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mpf_chains.local.experts' has no attribute {name!r}")
    return getattr(import_module(f"mpf_chains.local.experts.{_HOME[name]}"), name)
