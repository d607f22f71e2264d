"""What calibrations and evaluations found, for people: reports, tables and a figure."""

from mpf_chains.reporting.figure import plot_calibrations
from mpf_chains.reporting.report import report_html, report_markdown, write_report, write_tables
from mpf_chains.reporting.table import validation_table

__all__ = [
    "plot_calibrations",
    "report_html",
    "report_markdown",
    "validation_table",
    "write_report",
    "write_tables",
]
