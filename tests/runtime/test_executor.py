import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models import BaseChatModel, FakeListLLM
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda

from mpf_chains.errors import FeatureError, GenerationError, InvalidInput, NotSupportedError
from mpf_chains.runtime import Call, Completion, Executor, Ledger, RetryPolicy


class Scripted(BaseChatModel):
    """Answers "echo: " and the question, after whatever `before` does."""

    before: Callable[[str, dict[str, Any]], Any] = lambda question, arguments: None
    reply: Callable[[str], AIMessage] = lambda question: AIMessage(
        f"echo: {question}", usage_metadata={"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    )

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    async def _agenerate(self, messages: list[BaseMessage], stop=None, run_manager=None, **kwargs: Any) -> ChatResult:
        await asyncio.sleep(0)
        question = str(messages[-1].content)
        self.before(question, kwargs)
        return ChatResult(generations=[ChatGeneration(message=self.reply(question))])


def ask(*questions: str) -> list[Call]:
    return [Call((HumanMessage(question),), label=question) for question in questions]


def executor(model: Any, ledger: Ledger | None = None, **options: Any) -> Executor:
    async def no_sleep(seconds: float) -> None:
        await asyncio.sleep(0)

    return Executor(model, model_id="m", ledger=ledger, progress=False, **{"sleep": no_sleep, **options})


async def test_answers_come_in_order_and_a_second_run_asks_nothing() -> None:
    asked: list[str] = []
    model = Scripted(before=lambda question, arguments: asked.append(question))
    subject = executor(model)
    calls = ask("a", "b", "c", "a")
    assert subject.pending(calls) == 3
    for _ in range(2):
        answers = await subject.arun(calls)
        assert [answer.text for answer in answers] == ["echo: a", "echo: b", "echo: c", "echo: a"]
    assert sorted(asked) == ["a", "b", "c"]
    assert subject.spent.calls == 3
    assert subject.spent.tokens == 15
    assert subject.pending(calls) == 0
    assert await subject.arun([]) == []


def test_run_is_the_same_from_synchronous_code() -> None:
    subject = executor(Scripted())
    assert [answer.text for answer in subject.run(ask("a"))] == ["echo: a"]
    assert [answer.text for answer in subject.run(ask("b"))] == ["echo: b"]


async def test_run_works_inside_a_running_loop() -> None:
    assert executor(Scripted()).run(ask("a"))[0].text == "echo: a"


def test_run_inside_run_says_what_to_do() -> None:
    subject = executor(Scripted())
    with pytest.raises(NotSupportedError, match="arun"):
        subject.run(ask("a"), on_completion=lambda completion, call: subject.run(ask("b")))


@given(
    failures=st.lists(
        st.lists(st.sampled_from(["429", "500", "timeout", "reset"]), max_size=4), min_size=1, max_size=12
    ),
    limit=st.integers(1, 5),
)
@settings(max_examples=25, deadline=None)
def test_each_item_gets_its_own_text_under_any_failures(failures: list[list[str]], limit: int) -> None:
    class FailureError(Exception):
        def __init__(self, status: int) -> None:
            self.status_code = status

    left = {str(index): list(script) for index, script in enumerate(failures)}

    def before(question: str, arguments: dict[str, Any]) -> None:
        if left[question]:
            kind = left[question].pop()
            raise {"timeout": TimeoutError(), "reset": ConnectionResetError()}.get(kind) or FailureError(int(kind))

    subject = executor(Scripted(before=before), max_concurrency=limit, retry=RetryPolicy(attempts=4))
    answers = asyncio.run(subject.arun(ask(*left)))
    for index, (script, answer) in enumerate(zip(failures, answers, strict=True)):
        if len(script) < 4:
            assert (answer.status, answer.text) == ("ok", f"echo: {index}")
        else:
            assert (answer.status, answer.text) == ("failed", None)
            assert answer.error


async def test_arguments_reach_the_model_and_the_draw_does_not() -> None:
    seen: list[dict[str, Any]] = []
    model = Scripted(before=lambda question, arguments: seen.append(arguments))
    messages = (HumanMessage("a"),)
    calls = [Call(messages, arguments={"temperature": 0.5}, draw=draw) for draw in range(2)]
    await executor(model).arun(calls)
    chain = ChatPromptTemplate([("placeholder", "{messages}")]) | model | StrOutputParser()
    await executor((lambda messages: {"messages": messages}) | chain).arun(calls[:1])
    assert seen == [{"temperature": 0.5}] * 3


async def test_usage_and_finish_reason_survive_a_chain_that_ends_in_a_string() -> None:
    cut = AIMessage(
        "half an ans",
        usage_metadata={"input_tokens": 7, "output_tokens": 3, "total_tokens": 10},
        response_metadata={"finish_reason": "length"},
    )
    subject = executor(Scripted(reply=lambda question: cut) | StrOutputParser())
    (answer,) = await subject.arun(ask("a"))
    assert (answer.status, answer.text, answer.usage["total_tokens"]) == ("length", "half an ans", 10)
    assert subject.spent.tokens == 10


async def test_llms_that_return_strings_work() -> None:
    (answer,) = await executor(FakeListLLM(responses=["plain"])).arun(ask("a"))
    assert answer.text == "plain"


async def test_other_outputs_are_refused_with_advice() -> None:
    with pytest.raises(NotSupportedError, match="StrOutputParser"):
        await executor(RunnableLambda(lambda messages: {"a": 1})).arun(ask("a"))


class Counting(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.starts: list[tuple[Any, ...]] = []

    async def on_chat_model_start(self, serialized, messages, *, tags=None, metadata=None, **kwargs: Any) -> None:
        self.starts.append((tags, metadata.get("job")))


@pytest.mark.parametrize("chain", [False, True])
async def test_config_reaches_each_model_call_exactly_once(chain: bool) -> None:
    handler = Counting()
    model = Scripted()
    subject = executor(model | StrOutputParser() if chain else model)
    config = {"callbacks": [handler], "tags": ["mine"], "metadata": {"job": 7}}
    await subject.arun(ask("a", "b"), config=config)
    assert len(handler.starts) == 2
    assert all("mine" in tags and job == 7 for tags, job in handler.starts)


async def test_callbacks_of_an_enclosing_chain_are_kept() -> None:
    handler = Counting()
    subject = executor(Scripted() | StrOutputParser())

    async def inner(text: str) -> str:
        return str((await subject.arun(ask(text)))[0].text)

    assert await RunnableLambda(inner).ainvoke("a", {"callbacks": [handler]}) == "echo: a"
    assert len(handler.starts) == 1


async def test_scores_are_kept_without_the_text_and_resume() -> None:
    ledger = Ledger(store_text=False)
    asked: list[str] = []
    model = Scripted(before=lambda question, arguments: asked.append(question))

    def length(completion: Completion, call: Call) -> dict[str, float]:
        return {"length": float(len(completion.text or ""))}

    calls = ask("a", "bb")
    for _ in range(2):
        answers = await executor(model, ledger).arun(calls, score=length, features=["length"])
        assert [answer.scores for answer in answers] == [{"length": 7.0}, {"length": 8.0}]
    assert len(asked) == 2
    assert [answer.text for answer in answers] == [None, None]
    await executor(model, ledger).arun(calls, score=lambda completion, call: {"new": 1.0}, features=["new"])
    assert len(asked) == 4, "a text that was not kept has to be asked for again when a new score is wanted"


async def test_kept_text_is_scored_again_and_not_asked_again() -> None:
    ledger = Ledger()
    await executor(Scripted(), ledger).arun(ask("a"))
    subject = executor(Scripted(before=lambda question, arguments: pytest.fail("asked")), ledger)
    (answer,) = await subject.arun(ask("a"), score=lambda completion, call: {"new": 1.0}, features=["new"])
    assert answer.scores == {"new": 1.0}
    assert ledger.lookup([answer.key])[answer.key].scores == {"new": 1.0}


async def test_an_answer_that_is_paid_for_outlives_a_failing_scorer() -> None:
    def broken(completion: Completion, call: Call) -> dict[str, float]:
        raise FeatureError("NaN")

    subject = executor(Scripted())
    with pytest.raises(FeatureError):
        await subject.arun(ask("a"), score=broken)
    assert subject.pending(ask("a")) == 0


async def test_programming_errors_propagate_at_once() -> None:
    tries = itertools.count()

    def before(question: str, arguments: dict[str, Any]) -> None:
        next(tries)
        raise TypeError("unexpected keyword argument")

    with pytest.raises(TypeError, match="unexpected keyword"):
        await executor(Scripted(before=before)).arun(ask("a"))
    assert next(tries) == 1


async def test_a_provider_that_is_down_stops_the_run() -> None:
    def before(question: str, arguments: dict[str, Any]) -> None:
        raise ConnectionError("refused")

    subject = executor(Scripted(before=before), retry=RetryPolicy(attempts=2, give_up_after=5))
    with pytest.raises(GenerationError, match="last 5 calls all failed"):
        await subject.arun(ask(*map(str, range(30))))


async def test_on_completion_sees_each_distinct_call_once() -> None:
    seen: list[str] = []
    subject = executor(Scripted())
    for _ in range(2):
        await subject.arun(ask("a", "a", "b"), on_completion=lambda completion, call: seen.append(call.label))
    assert sorted(seen) == ["a", "a", "b", "b"]


async def test_progress_goes_to_stderr_and_can_be_silenced(capfd: pytest.CaptureFixture[str]) -> None:
    await Executor(Scripted(), model_id="m", progress=False).arun(ask("a"))
    assert capfd.readouterr() == ("", "")
    await Executor(Scripted(), model_id="m").arun(ask("a"), description="Asking")
    out, err = capfd.readouterr()
    assert out == ""
    assert "Asking" in err


def test_max_concurrency_must_be_positive() -> None:
    with pytest.raises(InvalidInput, match="max_concurrency"):
        executor(Scripted(), max_concurrency=0)


@pytest.mark.slow
async def test_ten_thousand_calls_stay_within_the_limit() -> None:
    now = peak = 0

    async def slow(messages: list[BaseMessage]) -> AIMessage:
        nonlocal now, peak
        now += 1
        peak = max(peak, now)
        for _ in range(3):
            await asyncio.sleep(0)
        now -= 1
        return AIMessage(f"echo: {messages[-1].content}")

    questions = [str(index) for index in range(10_000)]
    answers = await executor(RunnableLambda(slow), max_concurrency=256).arun(ask(*questions))
    assert [answer.text for answer in answers] == [f"echo: {question}" for question in questions]
    assert peak == 256
