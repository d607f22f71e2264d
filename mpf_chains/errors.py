"""Every error and warning that mpf_chains raises on purpose.

::

    MPFError                      base; has `.hint` (what to do) and `.retryable`
    ├── InvalidInput              (also ValueError) an argument is wrong
    │   ├── WeightsError          weights that are no distribution over the perspectives
    │   ├── BenchmarkError        a benchmark file or row; names file:line:column
    │   ├── FeatureError          a score that is not finite or outside its declared range
    │   ├── VocabularyMismatch    two models give a token id different meanings; names the first such id
    │   └── NotSupportedError     a combination that would silently lose something
    ├── ArtifactError             a calibration file that is damaged, altered or too new
    ├── LedgerError               a ledger that cannot be opened, written or trusted
    ├── GenerationError           a model call that failed for good
    ├── BudgetExceeded            the next call would pass the budget; resume after raising it
    ├── IncompleteCalibration     too many cells are missing to fit
    ├── IncompleteEvaluation      too many answers are missing to judge a system
    ├── NotConverged              the solver missed its tolerance, in strict mode
    └── MissingExtra              (also ImportError) a feature needs an extra that is not installed

    MPFWarning                    base of the warnings
    ├── ConvergenceWarning        the solver stopped above its tolerance
    ├── IdentifiabilityWarning    several weights explain the data equally well
    └── DataWarning               data were excluded, too few, or outside what perspectives cover
"""

from __future__ import annotations


class MPFError(Exception):
    """Base of every error raised on purpose.

    Args:
        message: What was wrong, the value, and what is allowed.
        hint: What to do about it; appended to the message.
        retryable: Whether trying the same thing again can succeed. Default False.
    """

    def __init__(self, message: str, *, hint: str = "", retryable: bool = False) -> None:
        super().__init__(f"{message} {hint}".strip())
        self.hint = hint
        self.retryable = retryable


class InvalidInput(MPFError, ValueError):
    """An argument is wrong."""


class WeightsError(InvalidInput):
    """Weights that are not a distribution over the known perspectives."""


class BenchmarkError(InvalidInput):
    """A benchmark file or row that cannot be used; the message names file:line:column."""


class FeatureError(InvalidInput):
    """A score that is not finite or lies outside the feature's declared range."""


class VocabularyMismatch(InvalidInput):
    """Two models that must share a vocabulary do not; the message names the first id that differs."""


class NotSupportedError(InvalidInput):
    """A combination of options that would silently lose something."""


class ArtifactError(MPFError):
    """A calibration file that is damaged, altered, or written by a newer version."""


class LedgerError(MPFError):
    """A ledger that cannot be opened, written or trusted."""


class GenerationError(MPFError):
    """A model call that failed for good."""


class BudgetExceeded(MPFError):
    """The next call would pass the budget; what is done is kept."""


class IncompleteCalibration(MPFError):
    """Too many cells of the calibration are missing to fit weights."""


class IncompleteEvaluation(MPFError):
    """Too many answers are missing to judge a system."""


class NotConverged(MPFError):
    """The solver missed its tolerance and strict mode was asked for."""


class MissingExtra(MPFError, ImportError):
    """A feature needs an optional dependency.

    Args:
        package: The package that could not be imported.
        extra: The extra of mpf-chains that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package!r} is not installed.", hint=f"Install it with: pip install 'mpf-chains[{extra}]'")
        self.package = package
        self.extra = extra


class MPFWarning(UserWarning):
    """Base of every warning."""


class ConvergenceWarning(MPFWarning):
    """The solver stopped above its tolerance."""


class IdentifiabilityWarning(MPFWarning):
    """Several weight vectors explain the data equally well."""


class DataWarning(MPFWarning):
    """Data were excluded, are too few, or lie outside what the perspectives cover."""
