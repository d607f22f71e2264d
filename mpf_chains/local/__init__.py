"""Models that run on this machine, through torch (extra: local). Importing this package loads no torch."""

from mpf_chains.local.chat_model import ChatTransformers
from mpf_chains.local.masked import MaskedLanguageModel
from mpf_chains.local.smollm2 import load_smollm2, smollm2_path

__all__ = ["ChatTransformers", "MaskedLanguageModel", "load_smollm2", "smollm2_path"]
