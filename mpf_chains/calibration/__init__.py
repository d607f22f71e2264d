"""Calibration: from a benchmark and a model to weights, how sure they are, and whether they hold on held-out data."""

from mpf_chains.calibration.calibrator import MPFCalibrator
from mpf_chains.calibration.plan import Plan

__all__ = ["MPFCalibrator", "Plan"]
