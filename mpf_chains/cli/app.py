"""The application: every command, in the order of their use."""

from __future__ import annotations

from typing import Annotated

import typer

import mpf_chains
from mpf_chains.cli.benchmark import commands as benchmark_commands
from mpf_chains.cli.calibrate import calibrate
from mpf_chains.cli.choose_alpha import choose_alpha
from mpf_chains.cli.evaluate import evaluate
from mpf_chains.cli.explain import explain
from mpf_chains.cli.report import report
from mpf_chains.cli.resume import resume
from mpf_chains.cli.session import Commands, Session
from mpf_chains.cli.train import commands as train_commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(benchmark_commands, name="benchmark")
app.add_typer(train_commands, name="train")
for command in (choose_alpha, explain, calibrate, resume, evaluate, report):
    app.command()(command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"mpf {mpf_chains.__version__}")
        raise typer.Exit


@app.callback()
def mpf(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
) -> None:
    """Make a language model's answers follow a chosen distribution, and measure whether they do."""
    del version
    session: Session = context.obj
    session.debug = debug or session.debug
