"""Expert / anti-expert decoding: small models that correct a base model's next-token distribution.

Importing this package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpf_chains.local.experts.pair import ExpertPair

if TYPE_CHECKING:
    from mpf_chains.local.experts.ensemble import ExpertEnsemble
    from mpf_chains.local.experts.explanation.explain import explain
    from mpf_chains.local.experts.explanation.records import ExplainedToken
    from mpf_chains.local.experts.explanation.view import ExplanationView
    from mpf_chains.local.experts.files.adapter import record_base
    from mpf_chains.local.experts.logits_processor import ExpertLogitsProcessor
    from mpf_chains.local.experts.speculation.decoder import SpeculativeDecoder
    from mpf_chains.local.experts.speculation.speculated import Speculated
    from mpf_chains.local.experts.strength.choice import ChosenAlpha, choose_alpha
    from mpf_chains.local.experts.strength.curve import AlphaCurve
    from mpf_chains.local.experts.strength.measuring import Association, alpha_curve
    from mpf_chains.local.experts.training.texts import texts_of_redditbias
    from mpf_chains.local.experts.training.trainer import ExpertTrainer, TrainedPair

_HOME = {
    "AlphaCurve": "strength.curve",
    "Association": "strength.measuring",
    "ChosenAlpha": "strength.choice",
    "ExpertEnsemble": "ensemble",
    "ExpertLogitsProcessor": "logits_processor",
    "ExpertTrainer": "training.trainer",
    "ExplainedToken": "explanation.records",
    "ExplanationView": "explanation.view",
    "Speculated": "speculation.speculated",
    "SpeculativeDecoder": "speculation.decoder",
    "TrainedPair": "training.trainer",
    "alpha_curve": "strength.measuring",
    "choose_alpha": "strength.choice",
    "explain": "explanation.explain",
    "record_base": "files.adapter",
    "texts_of_redditbias": "training.texts",
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
    "texts_of_redditbias",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mpf_chains.local.experts' has no attribute {name!r}")
    return getattr(import_module(f"mpf_chains.local.experts.{_HOME[name]}"), name)
