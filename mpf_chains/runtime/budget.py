"""What a run may spend at most, and the meter that stops it before it spends more."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from mpf_chains.errors import BudgetExceeded, InvalidInput
from mpf_chains.runtime.calls import Call, Completion

_BYTES_PER_TOKEN = 4.0  # of English text; only until the model has reported a real count


@dataclass(frozen=True)
class Price:
    """What a model charges, in any one currency.

    Args:
        input: Per million input tokens, 0 or more.
        output: Per million output tokens, 0 or more.

    Raises:
        InvalidInput: If a price is negative or not finite.
    """

    input: float
    output: float

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InvalidInput(
                    f"The {name} price is {getattr(self, name)}; it must be 0 or more per million tokens."
                )

    def of(self, input_tokens: float, output_tokens: float) -> float:
        """Cost of so many tokens."""
        return (self.input * input_tokens + self.output * output_tokens) / 1e6


@dataclass(frozen=True)
class Budget:
    """Limits on what one executor spends; answers taken from the ledger are free.

    Calls are counted as they are sent, so a retry is a call. Tokens and cost cannot be known before a call is made, so
    the most it can take is set aside: its prompt, and the model's `max_tokens`. Where no `max_tokens` is set, the
    longest answer so far is set aside instead: then an answer longer than all before can pass the limit by the rest.

    Args:
        calls: Most requests to send, 0 or more. Default None: no limit.
        tokens: Most input and output tokens together. Default None: no limit.
        cost: Most money, in the currency of the price. Default None: no limit. Needs a price.
        price: What the model charges. Default None.

    Raises:
        InvalidInput: If a limit is negative or not finite, or a cost is limited without a price.
    """

    calls: int | None = None
    tokens: int | None = None
    cost: float | None = None
    price: Price | None = None

    def __post_init__(self) -> None:
        for name in ("calls", "tokens", "cost"):
            limit = getattr(self, name)
            if limit is not None and not 0 <= limit < float("inf"):
                raise InvalidInput(f"The budget's `{name}` is {limit}; it must be 0 or more, or None for no limit.")
        if self.cost is not None and self.price is None:
            raise InvalidInput(
                "A budget limits `cost` without a price.", hint="Add price=Price(input=..., output=...)."
            )


@dataclass(frozen=True)
class Spent:
    """What has been spent: requests sent, tokens, and cost (0 without a price)."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens


class Meter:
    """Lets a call start only when everything in flight, at its worst, still fits the budget.

    Made inside a running event loop, for one run.

    Args:
        budget: The limits.
        spent: What has been spent before. Default nothing.
        max_tokens: Output limit of the model where a call sets none. Default None: unknown.
    """

    def __init__(self, budget: Budget, spent: Spent | None = None, max_tokens: int | None = None) -> None:
        self.budget = budget
        self.spent = spent or Spent()
        self._max_tokens = max_tokens
        self._reserved: dict[int, tuple[int, float, float]] = {}  # requests and tokens by the identity of the call
        self._inputs_per_byte = 0.0  # highest ratio reported so far
        self._longest = 0  # output tokens of the longest answer so far
        self._settled = asyncio.Event()

    async def reserve(self, call: Call) -> None:
        """Wait until the call fits beside those in flight, and set aside the most it can take.

        Args:
            call: What is about to be sent.

        Raises:
            BudgetExceeded: If it does not fit although nothing is in flight.
        """
        while (obstacle := self._obstacle(call, need := self._worst(call))) is not None:
            if not self._reserved:
                raise self._exceeded(call, obstacle)
            self._settled.clear()
            await self._settled.wait()
        self._reserved[id(call)] = (call.requests, *(need or (0.0, 0.0)))

    def settle(self, call: Call, completion: Completion | None) -> None:
        """Replace what was set aside by what the call took.

        Args:
            call: A call that `reserve` has let through.
            completion: What came back; None if it failed, which counts as a call that took no tokens.
        """
        del self._reserved[id(call)]
        inputs, outputs = self._taken(call, completion) if completion is not None else (0, 0)
        price, spent = self.budget.price, self.spent
        self.spent = Spent(
            spent.calls + call.requests,
            spent.input_tokens + inputs,
            spent.output_tokens + outputs,
            spent.cost + (price.of(inputs, outputs) if price is not None else 0.0),
        )
        self._settled.set()

    def _worst(self, call: Call) -> tuple[float, float] | None:
        """Most input and output tokens the call can take; None while nothing is known about answers' length."""
        stated = call.arguments.get("max_completion_tokens", call.arguments.get("max_tokens", self._max_tokens))
        output = stated if isinstance(stated, int) else self._longest
        if not output:
            return None
        inputs = _size(call) * (self._inputs_per_byte or 1 / _BYTES_PER_TOKEN)
        return inputs * call.requests, float(output * call.requests)

    def _obstacle(self, call: Call, need: tuple[float, float] | None) -> str | None:
        """The limit that the call would pass, in words; None if it fits."""
        limit, spent = self.budget, self.spent
        flying = sum(requests for requests, _, _ in self._reserved.values())
        if limit.calls is not None and spent.calls + flying + call.requests > limit.calls:
            return f"{limit.calls} calls ({spent.calls} sent)"
        if limit.tokens is None and limit.cost is None:
            return None
        if need is None and flying:  # nothing known yet: let one answer show how long they are
            return "unknown"
        inputs, outputs = need or (0.0, 0.0)
        inputs += sum(item[1] for item in self._reserved.values())
        outputs += sum(item[2] for item in self._reserved.values())
        tokens = spent.tokens + inputs + outputs
        if limit.tokens is not None and (tokens > limit.tokens or (need is None and spent.tokens >= limit.tokens)):
            return f"{limit.tokens} tokens ({spent.tokens} used, {inputs + outputs:.0f} set aside for the next call)"
        if limit.cost is not None and limit.price is not None:
            next_cost = limit.price.of(inputs, outputs)
            if spent.cost + next_cost > limit.cost or (need is None and spent.cost >= limit.cost):
                return f"a cost of {limit.cost:g} ({spent.cost:.6g} spent, {next_cost:.6g} set aside for the next call)"
        return None

    def _taken(self, call: Call, completion: Completion) -> tuple[int, int]:
        usage: Mapping[str, int] = completion.usage
        text = len((completion.text or "").encode())
        inputs = usage.get("input_tokens", round(_size(call) / _BYTES_PER_TOKEN))
        outputs = usage.get("output_tokens", round(text / _BYTES_PER_TOKEN))
        self._inputs_per_byte = max(self._inputs_per_byte, inputs / _size(call) / call.requests)
        self._longest = max(self._longest, -(-outputs // call.requests))
        return inputs, outputs

    def _exceeded(self, call: Call, obstacle: str) -> BudgetExceeded:
        return BudgetExceeded(
            f"The next call ({call.name}) would pass the budget of {obstacle}. Everything finished is in the ledger.",
            hint="Raise the budget and run again with the same ledger: only what is missing is asked.",
        )


def _size(call: Call) -> int:
    """Bytes of the prompt, at least 1."""
    return max(1, sum(len(str(message.content).encode("utf-8", "replace")) for message in call.messages))
