"""What a calibration did, for people: a table and a figure."""

from mpf_chains.reporting.figure import plot_calibrations
from mpf_chains.reporting.table import validation_table

__all__ = ["plot_calibrations", "validation_table"]
