"""`write_report`: one file for people, from calibrations and evaluations."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mpf_chains.artifact import Calibration, write_file
from mpf_chains.benchmarks import Benchmark
from mpf_chains.errors import InvalidInput
from mpf_chains.reporting.as_html import html_page
from mpf_chains.reporting.as_markdown import markdown_text
from mpf_chains.reporting.asked import asked_section, model_name, provenance_section, reading_section, warnings_section
from mpf_chains.reporting.content import Block, Cell, Number, Paragraph, Report, Section, Table
from mpf_chains.reporting.examples import examples_section
from mpf_chains.reporting.findings import baseline, by_entity, features_of, outcomes, verdict
from mpf_chains.reporting.held_out import entities_section, held_out_section
from mpf_chains.reporting.measurements import described, evaluation_verdicts, evaluations_section
from mpf_chains.reporting.mixtures import trade_section, weights_section
from mpf_chains.reporting.text import counted, data, harmless, listed, plain
from mpf_chains.runtime import Ledger

Calibrations = Mapping[str, Calibration] | Calibration | None
WRITERS = {".html": html_page, ".htm": html_page, ".md": markdown_text, ".markdown": markdown_text}


def report_content(
    *,
    calibrations: Calibrations = None,
    evaluations: Sequence[Any] = (),
    ledger: Ledger | str | os.PathLike[str] | None = None,
    benchmark: Benchmark | None = None,
    title: str = "",
    examples: int = 4,
) -> Report:
    """What a report says, before it is written in any format; arguments as for `write_report`."""
    given = {"": calibrations} if isinstance(calibrations, Calibration) else dict(calibrations or {})
    measured = described(evaluations)
    if not given and not measured:
        raise InvalidInput("There is nothing to report on: give `calibrations`, `evaluations` or both.")
    if examples < 1:
        raise InvalidInput(f"examples must be at least 1, not {examples}; without a ledger none are shown.")
    named = {"" if len(given) == 1 and not label else str(label): each for label, each in given.items()}
    sections: list[Section | None] = [_in_short(named, measured)]
    if named:
        sections += [asked_section(named, benchmark), held_out_section(named), entities_section(named)]
        sections += [weights_section(named), trade_section(named)]
    sections.append(evaluations_section(measured))
    if ledger is not None and named:
        with ExitStack() as stack:
            sections.append(examples_section(named, _opened(ledger, stack), benchmark, examples))
    sections += [warnings_section(named, measured), reading_section(named, measured)]
    sections.append(provenance_section(named, measured))
    created = sorted([each.created for each in named.values()] + [str(one.get("created", "")) for one in measured])
    makers = [str(each.provenance.get("library", "mpf-chains")) for each in named.values()]
    makers += [str(one.get("library", "mpf-chains")) for one in measured]
    return Report(
        title=data(title or _title(named, measured)),
        subtitle=_subtitle(named, measured),
        sections=tuple(section for section in sections if section is not None),
        foot=f"Made by {listed([data(maker) for maker in dict.fromkeys(makers)])} from results of {data(created[-1])}.",
    )


def report_html(**options: Any) -> str:
    """The report as one self-contained HTML page; arguments as for `write_report`."""
    return html_page(report_content(**options))


def report_markdown(**options: Any) -> str:
    """The report as Markdown; arguments as for `write_report`."""
    return markdown_text(report_content(**options))


def write_report(
    path: str | os.PathLike[str],
    *,
    calibrations: Calibrations = None,
    evaluations: Sequence[Any] = (),
    ledger: Ledger | str | os.PathLike[str] | None = None,
    benchmark: Benchmark | None = None,
    title: str = "",
    examples: int = 4,
) -> Path:
    """Write a report: what was asked, before and after, weights in words, examples, warnings, provenance.

    The same inputs give the same bytes. HTML and Markdown say the same; the HTML page is one file that loads nothing
    and runs nothing, for screens of any width, light or dark, and for paper.

    Args:
        path: Where to: .html or .md decides the format; the folder must exist. An existing file is replaced as a whole.
        calibrations: One, or label → calibration. Default none.
        evaluations: `Evaluation`s, or what their `as_dict` gave; of several on one benchmark the first is the one that
            others are compared with, item by item where `Evaluation`s are given. Default none.
        ledger: The calibrations' ledger, open or a path, for examples of answers. Default none: no examples.
        benchmark: The benchmark calibrated on, for questions and targets beside the answers. Default none.
        title: Heading. Default made from what was measured.
        examples: Questions of each kind that are shown with their answers, one per entity, ≥ 1. Default 4.

    Returns:
        The path.

    Raises:
        InvalidInput: If there is nothing to report on, the suffix is unknown, or the folder or ledger does not exist.
        ArtifactError: If the file cannot be written, or the path is a symbolic link.

    Examples:
        >>> import tempfile
        >>> from mpf_chains import Calibration, PerspectiveSet
        >>> even = {name: 0.2 for name in PerspectiveSet.builtin("mpf").names}
        >>> calibration = Calibration(PerspectiveSet.builtin("mpf"), "sampled", ("sentiment",), {"ETH": even}, even)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(f"{folder}/report.html", calibrations=calibration).name
        'report.html'
    """
    target = Path(path)
    if target.suffix.lower() not in WRITERS:
        raise InvalidInput(f"A report cannot be written to {target.name!r}: its name must end in .html or .md.")
    _require_folder(target.parent)
    report = report_content(
        calibrations=calibrations, evaluations=evaluations, ledger=ledger, benchmark=benchmark, title=title,
        examples=examples,
    )  # fmt: skip
    return write_file(target, WRITERS[target.suffix.lower()](report))


def write_tables(folder: str | os.PathLike[str], **options: Any) -> list[Path]:
    """Write every table of a report as a CSV file that spreadsheets may open: no cell of it is taken for a formula.

    Args:
        folder: An existing folder. Files are named by number and caption; existing ones of that name are replaced.
        options: As for `write_report`.

    Returns:
        The files. Numbers stay numbers; an interval takes two columns of its own.
    """
    place = Path(folder)
    _require_folder(place)
    written = []
    for i, table in enumerate(report_content(**options).tables(), start=1):
        slug = re.sub(r"[^a-z0-9]+", "-", plain(table.caption).lower())[:50].strip("-")
        written.append(place / f"{i:02d}-{slug}.csv")
        write_file(written[-1], table_csv(table))
    return written


def table_csv(table: Table) -> str:
    """A table as CSV (RFC 4180)."""
    wide = [
        any(isinstance(cell, Number) and cell.low is not None for cell in column)
        for column in zip(*table.rows, strict=True)
    ]
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    columns = [harmless(plain(name)) for name in table.columns]
    writer.writerow(
        [
            each
            for name, is_wide in zip(columns, wide, strict=True)
            for each in ([name, f"{name} low", f"{name} high"] if is_wide else [name])
        ]
    )
    for row in table.rows:
        writer.writerow([each for cell, is_wide in zip(row, wide, strict=True) for each in _csv_cells(cell, is_wide)])
    return out.getvalue()


def _csv_cells(cell: Cell, is_wide: bool) -> list[Any]:
    if isinstance(cell, str):
        first: list[Any] = [harmless(plain(cell))]
        return first + ["", ""] * is_wide
    values = [cell.value, cell.low, cell.high] if is_wide else [cell.value]
    return ["" if value is None else value for value in values]


def _in_short(calibrations: Mapping[str, Calibration], evaluations: Sequence[Mapping[str, Any]]) -> Section:
    blocks: list[Block] = []
    said: list[str] = []
    for label, calibration in calibrations.items():
        alone = {label: calibration}
        for outcome in (each for feature in calibration.features for each in outcomes(alone, feature)):
            words = baseline(outcome)
            if words not in said:
                said.append(words)
                blocks.append(Paragraph(words))
            several = [data(outcome.feature)] if len(calibration.features) > 1 else []
            about = ", ".join([data(outcome.label)] * bool(outcome.label) + several)
            blocks.append(verdict(outcome, by_entity(alone, outcome), about))
    if calibrations and not blocks:
        blocks.append(Paragraph("Weights were fitted, but nothing was validated: their effect is not known."))
    if evaluations:
        names = listed([data(one.get("label") or model_name(one.get("model", "a system"))) for one in evaluations])
        metrics = len({str(metric) for one in evaluations for metric in one["measured"]})
        blocks.append(Paragraph(f"Evaluated: {names}, on {counted(metrics, 'metric')}; see “Benchmarks and metrics”."))
        blocks += evaluation_verdicts(evaluations)
    return Section("In short", tuple(blocks))


def _title(calibrations: Mapping[str, Calibration], evaluations: Sequence[Mapping[str, Any]]) -> str:
    benchmarks = [each.provenance.get("benchmark", {}).get("name") for each in calibrations.values()]
    benchmarks += [(one.get("benchmark") or {}).get("name") for one in evaluations]
    names = listed([str(name) for name in dict.fromkeys(benchmarks) if name])
    return f"{'Calibration' if calibrations else 'Evaluation'} report: {names if names != 'none' else 'mpf-chains'}"


def _subtitle(calibrations: Mapping[str, Calibration], evaluations: Sequence[Mapping[str, Any]]) -> str:
    models = [model_name(each.provenance.get("model", "")) for each in calibrations.values()]
    models += [model_name(one.get("model", "")) for one in evaluations]
    days = sorted(
        {str(each.created)[:10] for each in calibrations.values()}
        | {str(one.get("created", ""))[:10] for one in evaluations}
    )
    about = [listed([data(model, 80) for model in dict.fromkeys(models) if model]) if any(models) else ""]
    about += [listed([data(name) for name in features_of(calibrations)]) if calibrations else ""]
    about += [data(" to ".join(dict.fromkeys([days[0], days[-1]])))]
    return " · ".join(part for part in about if part)


def _opened(ledger: Ledger | str | os.PathLike[str], stack: ExitStack) -> Ledger:
    if isinstance(ledger, Ledger):
        return ledger
    if not Path(ledger).is_file():
        raise InvalidInput(f"There is no ledger {os.fspath(ledger)!r}.", hint="Leave `ledger` out for no examples.")
    return stack.enter_context(Ledger(ledger))  # type: ignore[arg-type]


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InvalidInput(f"The folder {str(folder)!r} does not exist.", hint="Make it first.")
