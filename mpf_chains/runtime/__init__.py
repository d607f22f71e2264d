"""Making model calls: what is asked, within which limits, and the ledger that keeps every answer."""

from mpf_chains.runtime.budget import Budget, Price, Spent
from mpf_chains.runtime.calls import Call, Completion, Status
from mpf_chains.runtime.executor import Executor
from mpf_chains.runtime.identity import model_identity
from mpf_chains.runtime.ledger import Ledger, LedgerRow
from mpf_chains.runtime.retry import RetryPolicy, Verdict, classify

__all__ = [
    "Budget",
    "Call",
    "Completion",
    "Executor",
    "Ledger",
    "LedgerRow",
    "Price",
    "RetryPolicy",
    "Spent",
    "Status",
    "Verdict",
    "classify",
    "model_identity",
]
