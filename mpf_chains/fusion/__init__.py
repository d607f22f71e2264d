"""Inference: answer under one drawn perspective, or merge the answers of several."""

from mpf_chains.fusion.aggregate import PerspectiveFusion
from mpf_chains.fusion.merge import MERGE_INSTRUCTION, merge_messages
from mpf_chains.fusion.router import PerspectiveRouter

__all__ = ["MERGE_INSTRUCTION", "PerspectiveFusion", "PerspectiveRouter", "merge_messages"]
