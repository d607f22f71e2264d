"""`mpf resume`: go on with the run that a ledger belongs to."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from mpf_chains.cli import options
from mpf_chains.cli.record import RunRecord
from mpf_chains.cli.session import Session, say


def resume(
    context: typer.Context,
    ledger: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The ledger of the run.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="SPEC", help="Where the same model is to be found now.")
    ] = None,
    max_concurrency: Annotated[int | None, typer.Option(min=1, help="Most calls in flight.")] = None,
    max_calls: options.MaxCalls = None,
    max_tokens: options.MaxTokens = None,
    max_cost: options.MaxCost = None,
    price_in: options.PriceIn = None,
    price_out: options.PriceOut = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Go on with the last run that used a ledger: only what is missing is asked.

    Its command, as it was typed, is in LEDGER.run.json; what is given here goes before it. Limits count anew. It is
    refused if the benchmark, the perspectives, the features or the model are no longer the same.
    """
    session: Session = context.obj
    record = RunRecord.load(ledger)
    given = {
        "--model": model, "--max-concurrency": max_concurrency, "--max-calls": max_calls, "--max-tokens": max_tokens,
        "--max-cost": max_cost, "--price-in": price_in, "--price-out": price_out,
    }  # fmt: skip
    folder = record.place(ledger)
    given["--ledger"] = os.path.relpath(ledger, folder)
    argv = list(record.argv)
    for name, value in given.items():
        if value is not None:
            argv = [*_without(argv, name), name, str(value)]
    say(f"In {folder}: mpf {shlex.join(argv)}")
    os.chdir(folder)
    argv += ["--dry-run"] * dry_run + ["--json"] * as_json
    command = context.find_root().command
    nested = Session(argv, debug=session.debug, resumed=record)
    with command.make_context("mpf", argv, obj=nested) as run:
        command.invoke(run)


def _without(argv: list[str], option: str) -> list[str]:
    """Arguments without an option and its value, which may be joined to it by "="."""
    return [
        word
        for before, word in zip(["", *argv], argv, strict=False)
        if option not in {before, word, word.partition("=")[0]}
    ]
