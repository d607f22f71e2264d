"""What commands share while one runs: where they speak, how they fail, and how they can be gone on with."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import typer
from typer.core import TyperGroup

from mpf_chains.cli.record import RunRecord
from mpf_chains.errors import BudgetExceeded, IncompleteCalibration, IncompleteEvaluation, MPFError, MPFWarning

FAILED: Final = 1
UNFINISHED: Final = 3
INTERRUPTED: Final = 130

_PASSED_ON: Final[tuple[Any, ...]] = (typer.Exit, typer.Abort, *typer.BadParameter.__mro__[1:3], BrokenPipeError)
"""What typer itself turns into an exit code: wrong usage among it (the bases of BadParameter)."""


@dataclass
class Session:
    """One invocation of `mpf`.

    Args:
        argv: Its arguments.
        debug: Whether errors show where they were raised. Default False.
        resumed: What was recorded of the run that is gone on with. Default None: a new run.

    Attributes:
        to_resume: The command that goes on with it; empty while nothing is lost by starting anew.
        kept: What it need not do again.
    """

    argv: Sequence[str]
    debug: bool = False
    resumed: RunRecord | None = None
    to_resume: str = field(default="", init=False)
    kept: str = field(default="Every finished answer is kept.", init=False)

    def begin(self, ledger: Path, pins: Mapping[str, Any]) -> None:
        """Record a run beside its ledger, before its first call; from here on it can be resumed.

        Args:
            ledger: The run's ledger.
            pins: What must be the same when it is resumed, by name.

        Raises:
            InvalidInput: If this is a resumed run and something of that has changed.
        """
        if self.resumed is not None:
            self.resumed.check(pins)
        RunRecord.of(ledger, self.argv, pins).save(ledger)
        place = ledger if self.resumed is None else ledger.absolute()  # a resumed run has left the user's folder
        self.to_resume = f"mpf resume {shlex.quote(str(place))}"


class Commands(TyperGroup):
    """The commands, with errors told in a sentence and turned into exit codes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the arguments as they were given, for the record of the run."""
        ctx.obj = Session(list(args)) if ctx.obj is None else ctx.obj
        ctx.obj.argv = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command.

        Raises:
            Exit: With the exit code, if it fails or is interrupted.
        """
        session: Session = ctx.obj
        try:
            with _warnings_told():
                return super().invoke(ctx)
        except _PASSED_ON:
            raise
        except KeyboardInterrupt as interrupt:
            say("\nInterrupted.")
            _tell_how_to_go_on(session, "Go on with")
            raise typer.Exit(INTERRUPTED) from interrupt
        except Exception as error:
            _tell(error, debug=session.debug)
            code = _exit_code(error)
            _tell_how_to_go_on(session, "Go on with" if code == UNFINISHED else "Once that is put right")
            raise typer.Exit(code) from error


def say(text: str) -> None:
    """Write a message to stderr, without secrets."""
    typer.echo(_without_secrets(text), err=True)


def show(result: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Write a result to stdout, as JSON or for people."""
    typer.echo(json_text(result) if as_json else text)


def json_text(result: Mapping[str, Any]) -> str:
    """A result as strict JSON, which has no NaN and no infinity: they become null.

    Examples:
        >>> print(json_text({"value": 0.5, "low": float("nan")}))
        {
          "value": 0.5,
          "low": null
        }
    """
    return json.dumps(_finite(result), indent=2, ensure_ascii=False, allow_nan=False)


def at_a_terminal() -> bool:
    """Whether somebody looks at stderr: then progress bars are shown."""
    return sys.stderr.isatty()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tell(error: Exception, *, debug: bool) -> None:
    if debug:
        say(traceback.format_exc())
    expected = isinstance(error, (MPFError, OSError))
    words = str(error) if expected else f"{type(error).__name__}: {error}"
    colour = at_a_terminal() and not os.environ.get("NO_COLOR")
    say(f"{typer.style('error:', fg='red', bold=True) if colour else 'error:'} {words}")
    if not expected and not debug:
        say("This is not an error that mpf foresees; mpf --debug ... shows where it comes from.")


def _tell_how_to_go_on(session: Session, when: str) -> None:
    if session.to_resume:
        say(f"{session.kept} {when}: {session.to_resume}")


def _exit_code(error: Exception) -> int:
    stopped = isinstance(error, (BudgetExceeded, IncompleteCalibration, IncompleteEvaluation)) or getattr(
        error, "retryable", False
    )
    return UNFINISHED if stopped else FAILED


@contextmanager
def _warnings_told() -> Iterator[None]:
    def tell(message: Warning | str, *_: Any, **__: Any) -> None:
        say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", MPFWarning)
        warnings.showwarning = tell
        yield


def _without_secrets(text: str) -> str:
    """Strike out whatever the environment holds under the name of a secret, and what is shaped like one."""
    from mpf_chains.runtime.identity import _is_secret, redact

    held = {value for name, value in os.environ.items() if len(value) >= 8 and _is_secret(name, value)}
    return redact(text, frozenset(held))
