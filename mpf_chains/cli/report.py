"""`mpf report`: calibrations and evaluations as one file for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpf_chains.cli import completion, options
from mpf_chains.cli.session import show


def report(
    out: Annotated[Path, typer.Argument(dir_okay=False, help="The report: a .html or .md file.")],
    calibration: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="A calibration; repeatable.")
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="A result of mpf evaluate --out; repeatable."),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The ledger of the calibrations, for examples of answers."),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="The benchmark calibrated on, for questions and targets beside answers: a file, or one that ships.",
            autocompletion=completion.benchmarks,
        ),
    ] = None,
    title: Annotated[str, typer.Option(help="Put above.")] = "",
    as_json: options.AsJson = False,
) -> None:
    """Write a report on calibrations and evaluations.

    One self-contained file: target against before and after, weights in words, examples of answers, warnings, and what
    it was made from.
    """
    if not calibration and not evaluation:
        raise typer.BadParameter("Give at least one --calibration or --evaluation.")
    from mpf_chains.artifact import Calibration
    from mpf_chains.evaluation import Evaluation
    from mpf_chains.reporting import write_report

    files = calibration or []
    stems = [file.name.removesuffix(".json").removesuffix(".mpf") for file in files]
    labels = stems if len(set(stems)) == len(stems) else [str(file) for file in files]
    write_report(
        out,
        calibrations={label: Calibration.load(file) for label, file in zip(labels, files, strict=True)},
        evaluations=[Evaluation.load(file) for file in evaluation or []],
        ledger=ledger,
        benchmark=None if benchmark is None else options.benchmark(benchmark, None),
        title=title,
    )
    show({"report": str(out)}, f"report       {out}", as_json=as_json)
