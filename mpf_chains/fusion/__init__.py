"""Answering under drawn perspectives: one per request, or several merged into one answer."""

from mpf_chains.fusion.aggregate import PerspectiveFusion
from mpf_chains.fusion.chat_model import ChatMPF
from mpf_chains.fusion.merge import MERGE_INSTRUCTION, merge_messages
from mpf_chains.fusion.policy import MentionedEntity
from mpf_chains.fusion.request import RequestPlan
from mpf_chains.fusion.router import PerspectiveRouter

__all__ = [
    "MERGE_INSTRUCTION",
    "ChatMPF",
    "MentionedEntity",
    "PerspectiveFusion",
    "PerspectiveRouter",
    "RequestPlan",
    "merge_messages",
]
