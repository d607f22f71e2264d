"""Target tables: which share of the outputs about each context should have which class; read, checked and fitted."""

from mpf_chains.targets.files import read_targets, read_winogender_targets
from mpf_chains.targets.marginals import JointFit, fit_joint
from mpf_chains.targets.table import TargetTable

__all__ = ["JointFit", "TargetTable", "fit_joint", "read_targets", "read_winogender_targets"]
