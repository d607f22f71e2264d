"""The command `mpf`: build benchmarks, calibrate, train experts, evaluate and report from a shell (the `cli` extra).

::

    mpf benchmark build | show     benchmarks from texts, and what is in one
    mpf train experts              small models that correct a larger one
    mpf train steering             tokens that make answers follow target shares
    mpf choose-alpha               how strongly experts should correct, by measurement
    mpf explain                    what experts changed about an answer, token by token
    mpf calibrate                  fit perspective weights to a benchmark
    mpf resume                     go on with an interrupted run
    mpf evaluate                   measure a model on a published benchmark
    mpf report                     one HTML or Markdown file about it all

Results go to stdout, as JSON with ``--json``; progress, warnings and errors to stderr. Exit codes: 0 done; 1 an error,
told in a sentence; 2 wrong usage; 3 stopped before the end (a budget is used up, or answers are missing), with the
command that goes on; 130 interrupted, likewise.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["main"]


def main() -> None:
    """Run `mpf` with the arguments of this process."""
    if find_spec("typer") is None:
        sys.stderr.write("mpf needs 'typer'. Install it with: pip install 'mpf-chains[cli]'\n")
        sys.exit(1)
    from mpf_chains.cli.app import app

    app(prog_name="mpf")
