"""What an evaluation asks of the model, before it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig

from mpf_chains.fusion import ChatMPF, merge_messages
from mpf_chains.runtime import Call
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
            model: The model to be measured; a `ChatMPF` counts with the model inside it.

        Returns:
            The estimate; its calls are those of the innermost model, of which a fused answer takes several.

        Examples:
            >>> from mpf_chains import Benchmark
            >>> from mpf_chains.evaluation import Evaluator
            >>> from mpf_chains.testing import BiasedChatModel
            >>> model = BiasedChatModel().bind(max_tokens=100)
            >>> Evaluator(model).plan(Benchmark.builtin("university")).estimate(model).output_tokens
            16000
        """
        return TokenCounter(model.model if isinstance(model, ChatMPF) else model).estimate(self.requests)


def planned(model: Any, calls: Mapping[str, Call], answered: Mapping[str, Any]) -> EvaluationPlan:
    """The plan of calls by key, of which some are answered.

    Args:
        model: What they are asked of.
        calls: Key to call.
        answered: Those that are in the ledger, by key.
    """
    requests = [each for key, call in calls.items() if key not in answered for each in _requests(model, call)]
    return EvaluationPlan(len(calls), 0, len(answered), requests)


def _requests(model: Any, call: Call) -> list[Request]:
    """What one call takes: itself, or the calls of drawn perspectives and their merge."""
    if not isinstance(model, ChatMPF):
        return [Request((call,))]
    config: RunnableConfig = {"configurable": dict(call.configurable)}
    inner = model.plan(list(call.messages), config, **call.arguments)
    requests = [Request((Call(tuple(prompt), call.arguments),)) for prompt in inner.prompts]
    if inner.merge:
        drafts = [str(number) for number in range(len(requests))]
        merge = merge_messages(list(call.messages), drafts, model.merge_instruction, "0" * 32)
        requests.append(Request((Call(tuple(merge), call.arguments),), drafts=len(drafts)))
    return requests
