import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableLambda

from mpf_chains.errors import BudgetExceeded, InvalidInput
from mpf_chains.runtime import Budget, Call, Executor, Ledger, Price, RetryPolicy

CALLS = [Call((HumanMessage(f"question {index}"),), label=f"row {index}") for index in range(40)]


def model(requests: list[str], *, fail_first: bool = False) -> RunnableLambda:
    async def answer(messages: list[BaseMessage], **arguments: Any) -> AIMessage:
        requests.append(str(messages[-1].content))
        await asyncio.sleep(0)
        if fail_first and requests.count(requests[-1]) == 1:
            raise TimeoutError
        return AIMessage("ok", usage_metadata={"input_tokens": 6, "output_tokens": 4, "total_tokens": 10})

    return RunnableLambda(answer)


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


def executor(runnable: Any, ledger: Ledger, budget: Budget | None, **options: Any) -> Executor:
    return Executor(
        runnable,
        model_id="m",
        ledger=ledger,
        budget=budget,
        progress=False,
        max_concurrency=8,
        sleep=no_sleep,
        **options,
    )


@pytest.mark.parametrize(
    ("budget", "most"),
    [
        (Budget(calls=15), 15),
        (Budget(tokens=155), 15),
        (Budget(cost=155e-6, price=Price(input=1, output=1)), 15),
        (Budget(calls=0), 0),
    ],
)
async def test_it_stops_before_the_limit_and_resumes_when_raised(budget: Budget, most: int) -> None:
    ledger, requests = Ledger(), []
    subject = executor(model(requests), ledger, budget)
    with pytest.raises(BudgetExceeded, match="Raise the budget"):
        await subject.arun(CALLS)
    assert len(requests) == subject.spent.calls == most
    assert ledger.counts().get("ok", 0) == most, "what was paid for is kept"
    answers = await executor(model(requests), ledger, None).arun(CALLS)
    assert len(answers) == len(requests) == 40


async def test_the_models_limit_is_set_aside() -> None:
    requests: list[str] = []
    calls = [Call(call.messages, arguments={"max_tokens": 50}) for call in CALLS]
    limited = model(requests).bind()
    with pytest.raises(BudgetExceeded):
        await executor(limited, Ledger(), Budget(tokens=100)).arun(calls)
    assert len(requests) == 5, "after 50 tokens, another 50 and a prompt no longer fit"


async def test_retries_count_as_calls() -> None:
    requests: list[str] = []
    subject = executor(model(requests, fail_first=True), Ledger(), Budget(calls=9), retry=RetryPolicy(attempts=3))
    with pytest.raises(BudgetExceeded):
        await subject.arun(CALLS)
    assert len(requests) == 9


async def test_answers_from_the_ledger_are_free_and_spending_adds_up() -> None:
    ledger, requests = Ledger(), []
    subject = executor(model(requests), ledger, Budget(calls=20))
    await subject.arun(CALLS[:15])
    await subject.arun(CALLS[:20])
    assert subject.spent.calls == 20
    with pytest.raises(BudgetExceeded):
        await subject.arun(CALLS)


async def test_tokens_are_estimated_where_the_model_reports_none() -> None:
    subject = executor(RunnableLambda(lambda messages: "four" * 4), Ledger(), Budget(tokens=1000))
    await subject.arun(CALLS[:2])
    assert subject.spent.output_tokens == 8


@pytest.mark.parametrize("options", [{"calls": -1}, {"tokens": float("nan")}, {"cost": 1.0}])
def test_impossible_budgets_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Budget(**options)
    with pytest.raises(InvalidInput, match="input price"):
        Price(input=-1, output=0)
