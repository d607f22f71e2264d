"""Expert / anti-expert decoding: small models that correct a base model's next-token distribution.

Importing this package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpf_chains.local.experts.pair import ExpertPair

if TYPE_CHECKING:
    from mpf_chains.local.experts.adapter import record_base
    from mpf_chains.local.experts.curve import AlphaCurve, ChosenAlpha, choose_alpha
    from mpf_chains.local.experts.ensemble import ExpertEnsemble
    from mpf_chains.local.experts.explained import ExplainedToken
    from mpf_chains.local.experts.explanation import explain
    from mpf_chains.local.experts.logits_processor import ExpertLogitsProcessor
    from mpf_chains.local.experts.speculated import Speculated
    from mpf_chains.local.experts.speculative import SpeculativeDecoder, speculative_generate
    from mpf_chains.local.experts.strength import Association, alpha_curve
    from mpf_chains.local.experts.texts import texts_of_redditbias
    from mpf_chains.local.experts.training import ExpertTrainer, TrainedPair
    from mpf_chains.local.experts.view import ExplanationView

_HOME = {
    "AlphaCurve": "curve",
    "Association": "strength",
    "ChosenAlpha": "curve",
    "ExpertEnsemble": "ensemble",
    "ExpertLogitsProcessor": "logits_processor",
    "ExpertTrainer": "training",
    "ExplainedToken": "explained",
    "ExplanationView": "view",
    "Speculated": "speculated",
    "SpeculativeDecoder": "speculative",
    "TrainedPair": "training",
    "alpha_curve": "strength",
    "choose_alpha": "curve",
    "explain": "explanation",
    "record_base": "adapter",
    "speculative_generate": "speculative",
    "texts_of_redditbias": "texts",
}

__all__ = [
    "AlphaCurve",
    "Association",
    "ChosenAlpha",
    "ExpertEnsemble",
    "ExpertLogitsProcessor",
    "ExpertPair",
    "ExpertTrainer",
    "ExplainedToken",
    "ExplanationView",
    "Speculated",
    "SpeculativeDecoder",
    "TrainedPair",
    "alpha_curve",
    "choose_alpha",
    "explain",
    "record_base",
    "speculative_generate",
    "texts_of_redditbias",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mpf_chains.local.experts' has no attribute {name!r}")
    return getattr(import_module(f"mpf_chains.local.experts.{_HOME[name]}"), name)
