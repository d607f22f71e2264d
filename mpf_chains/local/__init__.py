"""Models that run on this machine, through torch (extra: local). Importing this package loads no torch."""

from mpf_chains.local.chat_model import ChatTransformers
from mpf_chains.local.smollm2 import load_smollm2, smollm2_path

__all__ = ["ChatTransformers", "load_smollm2", "smollm2_path"]
