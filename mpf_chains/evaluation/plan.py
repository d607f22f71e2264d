"""What an evaluation asks of the model, before it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig

from mpf_chains.fusion import ChatMPF, PerspectiveFusion, merge_messages
from mpf_chains.fusion.base import PerspectiveRunnable
from mpf_chains.runtime import Call
from mpf_chains.runtime.identity import parts_of
from mpf_chains.runtime.tokens import Estimate, Request, TokenCounter


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation asks of the model, counted before it is asked; retries aside.

    Attributes:
        calls: Distinct calls for answers; 0 where likelihoods are scored.
        texts: Distinct texts whose likelihood is scored; 0 where answers are asked for.
        done: Those of either kind that are in the ledger already.
        requests: What is still to be asked of the innermost model, for `estimate`.
    """

    calls: int
    texts: int
    done: int
    requests: Sequence[Request] = field(default=(), repr=False, compare=False)

    @property
    def remaining(self) -> int:
        """Calls or texts that are still to be made."""
        return self.calls + self.texts - self.done

    def estimate(self, model: Runnable[Any, Any]) -> Estimate:
        """Most tokens that the remaining calls take, and with a `Price` what they cost.

        Args:
            model: The model to be measured; what draws perspectives counts with the model inside it.

        Returns:
            The estimate; its calls are those of the innermost model, of which a fused answer takes several. A model
            hidden in a function of a chain is not seen: an answer counts as one call there.

        Examples:
            >>> from mpf_chains import Benchmark
            >>> from mpf_chains.evaluation import Evaluator
            >>> from mpf_chains.testing import BiasedChatModel
            >>> model = BiasedChatModel().bind(max_tokens=100)
            >>> Evaluator(model).plan(Benchmark.builtin("university")).estimate(model).output_tokens
            16000
        """
        while (fused := drawing(model)) is not None:
            model = fused.model
        return TokenCounter(model).estimate(self.requests)


def planned(model: Any, calls: Mapping[str, Call], answered: Mapping[str, Any]) -> EvaluationPlan:
    """The plan of calls by key, of which some are answered.

    Args:
        model: What they are asked of.
        calls: Key to call.
        answered: Those that are in the ledger, by key.
    """
    fused = drawing(model)
    requests = [each for key, call in calls.items() if key not in answered for each in requests_of(fused, call)]
    return EvaluationPlan(len(calls), 0, len(answered), requests)


def drawing(model: Any) -> ChatMPF | PerspectiveRunnable | None:
    """What draws perspectives in a model, binding or chain; the outermost such part."""
    if not isinstance(model, Runnable):
        return None
    return next((part for part in parts_of(model) if isinstance(part, ChatMPF | PerspectiveRunnable)), None)


def requests_of(fused: ChatMPF | PerspectiveRunnable | None, call: Call) -> list[Request]:
    """What one call takes: itself, or the calls of drawn perspectives and their merge.

    Args:
        fused: What draws perspectives, if anything does.
        call: The call.
    """
    if fused is None:
        return [Request((call,))]
    config: RunnableConfig = {"configurable": dict(call.configurable)}
    inner = fused.plan(list(call.messages), config, **call.arguments)
    requests = [Request((Call(tuple(prompt), call.arguments),)) for prompt in inner.prompts]
    if inner.merge and isinstance(fused, ChatMPF | PerspectiveFusion):
        drafts = [str(number) for number in range(len(requests))]
        merge = merge_messages(list(call.messages), drafts, fused.merge_instruction, "0" * 32)
        requests.append(Request((Call(tuple(merge), call.arguments),), drafts=len(drafts)))
    return requests
