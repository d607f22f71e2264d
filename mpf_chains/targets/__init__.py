"""Target tables: which share of the outputs about each context should have which class; read, checked and fitted."""

from mpf_chains.targets.files import read_target_file, read_targets, read_winogender_targets
from mpf_chains.targets.marginals import JointFit, fit_joint
from mpf_chains.targets.perspectives import attribute_perspectives
from mpf_chains.targets.phrasings import phrasings
from mpf_chains.targets.table import TargetTable
from mpf_chains.targets.templates import Prompt, fill, prompts_about

__all__ = [
    "JointFit",
    "Prompt",
    "TargetTable",
    "attribute_perspectives",
    "fill",
    "fit_joint",
    "phrasings",
    "prompts_about",
    "read_target_file",
    "read_targets",
    "read_winogender_targets",
]
