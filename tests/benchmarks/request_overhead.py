"""What a request costs on top of the model: ``python tests/benchmarks/request_overhead.py [--rounds 7]``.

1. Per request, with a model that answers at once: the bare model, LCEL's own parts doing the same work (a
   `RunnableLambda` that picks a system prompt by weight, `| model`), `PerspectiveRouter` and `ChatMPF`, each called
   one after the other by `invoke` and by `ainvoke`. Medians of alternating rounds, and ratios within each round.
2. 10,000 requests in one `abatch` with ``max_concurrency`` 256, beside the bare model's own `abatch` and a bare
   semaphore around its `ainvoke`; memory after the first and after the last thousand.
3. Aggregated mode, n = 5, against a real HTTP server on loopback that takes a fixed time: wall time beside the slowest
   draw plus the merging call, and the calls that arrived beside those planned.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import resource
import statistics
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda

from mpf_chains import ChatMPF, PerspectiveRouter, PerspectiveSet

MPF = PerspectiveSet.builtin("mpf")
WEIGHTS = dict.fromkeys(MPF.names, 1 / len(MPF))
QUESTION = [HumanMessage("How is it?")]


class Instant(BaseChatModel):
    """Answers at once."""

    delay: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "instant"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("ok"))])

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        if self.delay:
            await asyncio.sleep(self.delay)
        return ChatResult(generations=[ChatGeneration(message=AIMessage("ok"))])


def by_hand(messages: list[BaseMessage]) -> list[BaseMessage]:
    """What one writes without us."""
    (name,) = random.choices(list(WEIGHTS), list(WEIGHTS.values()))
    return [SystemMessage(MPF[name].instruction), *messages]


def contestants(model: BaseChatModel) -> dict[str, Any]:
    settings = {"model": model, "perspectives": MPF, "weights": WEIGHTS}
    return {
        "bare model": model,
        "lambda | model": RunnableLambda(by_hand) | model,
        "PerspectiveRouter": PerspectiveRouter(**settings),
        "ChatMPF": ChatMPF(**settings),
    }


def one_by_one(runnable: Any, requests: int) -> float:
    start = time.perf_counter()
    for _ in range(requests):
        runnable.invoke(QUESTION)
    return (time.perf_counter() - start) / requests


async def aone_by_one(runnable: Any, requests: int) -> float:
    start = time.perf_counter()
    for _ in range(requests):
        await runnable.ainvoke(QUESTION)
    return (time.perf_counter() - start) / requests


def report(title: str, times: dict[str, list[float]], unit: float, suffix: str) -> None:
    print(f"\n{title}")
    for name, taken in times.items():
        ratios = {
            other: statistics.median(a / b for a, b in zip(taken, times[other], strict=True))
            for other in list(times)[:2]
        }
        beside = ", ".join(f"{ratio:.2f} x {other}" for other, ratio in ratios.items() if other != name)
        print(f"  {name:22} {statistics.median(taken) * unit:8.1f} {suffix}   {beside}")


def per_request(rounds: int, requests: int) -> None:
    runnables = contestants(Instant())
    ways: dict[str, Callable[[Any], float]] = {
        "invoke": lambda runnable: one_by_one(runnable, requests),
        "ainvoke": lambda runnable: asyncio.run(aone_by_one(runnable, requests)),
    }
    for way, measure in ways.items():
        times: dict[str, list[float]] = {name: [] for name in runnables}
        for number in range(rounds + 1):
            for name, runnable in runnables.items():
                gc.collect()
                taken = measure(runnable)
                if number:  # the first round warms up
                    times[name].append(taken)
        report(f"{way}, one after the other, an instant model", times, 1e6, "µs")


async def semaphore(model: BaseChatModel, requests: int, limit: int) -> None:
    gate = asyncio.Semaphore(limit)

    async def ask() -> Any:
        async with gate:
            return await model.ainvoke(QUESTION)

    await asyncio.gather(*(ask() for _ in range(requests)))


def memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def concurrent(rounds: int, requests: int, limit: int) -> None:
    config = {"max_concurrency": limit}
    for delay in (0.0, 0.05):
        model = Instant(delay=delay)
        runnables = contestants(model)
        names = ("bare model", "bare semaphore", "PerspectiveRouter", "ChatMPF")
        times: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds + 1):
            for name in names:
                gc.collect()
                start = time.perf_counter()
                if name == "bare semaphore":
                    asyncio.run(semaphore(model, requests, limit))
                else:
                    answers = asyncio.run(runnables[name].abatch([QUESTION] * requests, config))
                    assert len(answers) == requests
                if number:
                    times[name].append(time.perf_counter() - start)
        report(f"abatch of {requests:,} at limit {limit}, a model of {delay * 1000:.0f} ms", times, 1, "s")


def steady(requests: int, limit: int) -> None:
    chat = contestants(Instant())["ChatMPF"]
    marks = []
    for _ in range(requests // 1000):
        asyncio.run(chat.abatch([QUESTION] * 1000, {"max_concurrency": limit}))
        gc.collect()
        marks.append(memory())
    print(f"\nPeak memory after 1,000 requests {marks[0]:.0f} MiB, after {requests:,} {marks[-1]:.0f} MiB")


class Slow(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that answers after a fixed time."""

    latency = 0.2
    calls: list[float] = []  # noqa: RUF012
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.latency)
        self.calls.append(time.perf_counter())
        body = json.dumps({
            "id": "1", "object": "chat.completion", "created": 0, "model": "slow",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "ok"}}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }).encode()  # fmt: skip
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


def aggregated(rounds: int) -> None:
    from langchain_openai import ChatOpenAI

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    model = ChatOpenAI(base_url=url, api_key="none", model="slow", max_retries=0)
    chat = ChatMPF(model=model, perspectives=MPF, weights=WEIGHTS, mode="aggregated", n=5, sampler="quota")
    model.invoke(QUESTION)
    bare, fused = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        model.invoke(QUESTION)
        bare.append(time.perf_counter() - start)
        plan = chat.plan(QUESTION)
        Slow.calls.clear()
        start = time.perf_counter()
        chat.invoke(QUESTION, plan.config)
        fused.append(time.perf_counter() - start)
        assert len(Slow.calls) == plan.calls, (len(Slow.calls), plan)
    server.shutdown()
    one, whole = statistics.median(bare), statistics.median(fused)
    print(f"\nAggregated, n = 5, a server of {Slow.latency * 1000:.0f} ms: calls as planned in all {rounds} requests")
    print(f"  one call {one * 1000:.0f} ms, fused {whole * 1000:.0f} ms: {whole / (2 * one):.2f} x draw + merge")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=10_000)
    options = parser.parse_args()
    per_request(options.rounds, 1000)
    concurrent(max(3, options.rounds // 2), options.requests, 256)
    steady(options.requests, 256)
    aggregated(options.rounds)
