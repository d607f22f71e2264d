"""FAULTS.md 1 and 3 to 13: crashes, providers and money, as far as the runtime answers for them."""

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda
from pydantic import Field

from mpf_chains.errors import DataWarning, GenerationError, LedgerError, NotSupportedError
from mpf_chains.runtime import Call, Completion, Executor, Ledger, RetryPolicy

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}


class Echo(BaseChatModel):
    """Answers the question; `script` may raise or wait first, and the number of the answer can be part of it."""

    script: Any = None
    asked: list[str] = Field(default_factory=list)
    numbered: bool = False

    @property
    def _llm_type(self) -> str:
        return "echo"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs: Any) -> ChatResult:
        question = str(messages[-1].content)
        self.asked.append(question)
        number = len(self.asked)
        if self.script is not None:
            await self.script(question)
        text = f"answer {number} to {question}" if self.numbered else f"answer to {question}"
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])


def ask(count: int, **options: Any) -> list[Call]:
    return [Call((HumanMessage(f"question {index}"),), label=f"row {index}", **options) for index in range(count)]


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


def executor(model: Any, ledger: Ledger | None = None, **options: Any) -> Executor:
    return Executor(model, model_id="m", ledger=ledger, progress=False, **{"sleep": no_sleep, **options})


def start(ledger: Path, requests: Path, calls: int, kill_at: int = 0) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, str(HERE / "draw_answers.py"), str(ledger), str(requests), str(calls), str(kill_at)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_1_killed_again_and_again_nothing_finished_is_asked_twice(tmp_path: Path) -> None:
    ledger, requests = tmp_path / "run.sqlite", tmp_path / "requests"
    kills = random.Random(7).sample(range(5, 40), 3)
    for kill_at in kills:
        with start(ledger, requests, 100, kill_at) as process:
            process.communicate("go\n")
        assert process.returncode == -9
    with start(ledger, requests, 100) as process:
        assert process.communicate("go\n")[0] == "100\n"
    asked = Counter(requests.read_text().splitlines())
    assert len(asked) == 100
    assert asked.total() <= 100 + 4 * len(kills)
    assert list(tmp_path.glob("run.sqlite-*")) == []


def test_8_two_processes_share_one_ledger(tmp_path: Path) -> None:
    ledger, requests = tmp_path / "run.sqlite", tmp_path / "requests"
    with start(ledger, requests, 300) as first, start(ledger, requests, 300) as second:
        for process in (first, second):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.communicate()[0] for process in (first, second)] == ["300\n", "300\n"]
    assert max(Counter(requests.read_text().splitlines()).values()) == 1


async def test_8_two_runs_of_one_process_share_one_ledger(tmp_path: Path) -> None:
    model = Echo(script=no_sleep_for)
    with Ledger(tmp_path / "run.sqlite") as one, Ledger(tmp_path / "run.sqlite") as other:
        both = await asyncio.gather(executor(model, one).arun(ask(50)), executor(model, other).arun(ask(50)))
    assert both[0] == both[1]
    assert max(Counter(model.asked).values()) == 1


async def no_sleep_for(question: str) -> None:
    await asyncio.sleep(0)


async def test_3_random_failures_change_nothing() -> None:
    dice = random.Random(3)

    class StatusError(Exception):
        def __init__(self, status_code: int) -> None:
            self.status_code = status_code

    async def script(question: str) -> None:
        if dice.random() < 0.3:
            raise dice.choice([StatusError(429), StatusError(500), TimeoutError(), ConnectionResetError()])

    shaky = await executor(Echo(script=script), retry=RetryPolicy(attempts=20)).arun(ask(200))
    assert shaky == await executor(Echo()).arun(ask(200))


class Server(ThreadingHTTPServer):
    """Answers POSTs as an OpenAI-compatible server, after the (status, headers) in `script`, 0 being a reset."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[tuple[int, dict[str, str]]] = []
        self.requests = 0


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Server = self.server  # type: ignore[assignment]
        self.rfile.read(int(self.headers["Content-Length"]))
        server.requests += 1
        status, headers = server.script.pop(0) if server.script else (200, {})
        if status == 0:
            self.connection.close()
            return
        message = {"role": "assistant", "content": "hello"}
        body: dict[str, Any] = {
            "id": "1", "object": "chat.completion", "created": 0, "model": "tiny",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 4, "completion_tokens": 1, "total_tokens": 5},
        }  # fmt: skip
        if status != 200:
            body = {"error": {"message": f"status {status}, key {self.headers['Authorization']}", "code": None}}
        self.send_response(status)
        raw = json.dumps(body).encode()
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def openai_model(server: Server) -> Any:
    openai = pytest.importorskip("langchain_openai")
    address = f"http://127.0.0.1:{server.server_port}/v1"
    return openai.ChatOpenAI(model="tiny", base_url=address, api_key="canary-0001", max_retries=0, timeout=10)


def test_4_passing_errors_of_a_real_client_are_retried_and_retry_after_is_honoured(server: Server) -> None:
    now = 1_000_000.0
    date = formatdate(now + 40, usegmt=True)
    server.script = [
        (429, {"Retry-After": "7"}),
        (429, {"Retry-After": date}),
        (429, {"Retry-After": "9999"}),
        (500, {}),
        (0, {}),
    ]
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    (answer,) = executor(openai_model(server), sleep=sleep, clock=lambda: now).run(ask(1))
    assert (answer.status, answer.text, answer.usage["total_tokens"]) == ("ok", "hello", 5)
    assert waits[:3] == [7.0, 40.0, 120.0]
    assert server.requests == 6


@pytest.mark.parametrize(
    ("status", "hint"), [(400, "arguments"), (401, "API key"), (403, "permissions"), (404, "model's name")]
)
def test_4_refusals_stop_the_run_at_once(server: Server, status: int, hint: str) -> None:
    server.script = [(200, {}), *[(status, {})] * 50]
    ledger = Ledger()
    with pytest.raises(GenerationError, match=hint) as caught:
        Executor(openai_model(server), ledger=ledger, max_concurrency=1, progress=False).run(ask(50))
    assert '"model_name":"tiny"' in str(caught.value)
    assert "row 1" in str(caught.value)
    assert "canary" not in str(caught.value)
    assert server.requests == 2
    assert ledger.counts() == {"ok": 1}, "progress is kept"


async def test_5_one_call_that_fails_for_good_is_missing_and_asked_again_later() -> None:
    async def script(question: str) -> None:
        if question == "question 3":
            raise TimeoutError("too slow")

    ledger = Ledger()
    answers = await executor(Echo(script=script), ledger).arun(ask(6))
    assert [answer.status for answer in answers].count("ok") == 5
    assert answers[3].text is None
    assert answers[3].status == "failed"
    assert "too slow" in str(answers[3].error)
    assert executor(Echo(), ledger).pending(ask(6)) == 1
    assert (await executor(Echo(), ledger).arun(ask(6)))[3].text == "answer to question 3"


@pytest.fixture
def global_cache() -> Iterator[None]:
    set_llm_cache(InMemoryCache())
    yield
    set_llm_cache(None)


@pytest.mark.usefixtures("global_cache")
@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        lambda model: model.bind(stop=["x"]),
        lambda model: model.with_config(tags=["x"]) | StrOutputParser(),
        lambda model: model.with_fallbacks([Echo()]),
        lambda model: model.with_retry(),
    ],
)
async def test_7_draws_stay_separate_calls_under_a_global_cache(wrap: Any) -> None:
    model = Echo(numbered=True, cache=True, asked=[])
    calls = [Call((HumanMessage("same"),), draw=draw) for draw in range(20)]
    answers = await executor(wrap(model)).arun(calls)
    assert len({answer.text for answer in answers}) == len(model.asked) == 20
    assert model.cache is True, "the caller's model is left as it was"


@pytest.mark.usefixtures("global_cache")
async def test_7_a_model_out_of_reach_is_refused_under_a_global_cache() -> None:
    model = Echo()
    for hidden in (
        RunnableLambda(lambda messages: model.invoke(messages).text),
        RunnableLambda(str) | StrOutputParser(),
    ):
        with pytest.raises(NotSupportedError, match="set_llm_cache"):
            await executor(hidden).arun(ask(1))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that root cannot write to either")
def test_10_a_directory_that_cannot_be_written_is_named() -> None:
    for path in ("/proc/run.sqlite", "/proc/none/run.sqlite"):
        with pytest.raises(LedgerError, match=r"/proc.*(choose another path|Check its disk)"):
            Ledger(path)


def test_10_a_full_disk_is_noticed_before_the_first_call_and_the_ledger_survives(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"

    def run(max_bytes: int) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, str(HERE / "fill_disk.py"), str(path), str(max_bytes)],
            capture_output=True,
            text=True,
            check=True,
            env=ENVIRONMENT,
        )
        requests, _, message = done.stdout.partition(" ")
        return int(requests), message

    requests, message = run(60_000)
    assert requests == 0
    assert "cannot be used" in message
    requests, message = run(300_000)
    assert requests > 0
    with Ledger(path) as ledger:
        assert requests - 8 <= len(ledger) <= requests
        ledger.check_writable()


def filled(path: Path, rows: int = 400) -> bytes:
    with Ledger(path) as ledger:
        for index, call in enumerate(ask(rows)):
            completion = Completion(call.key("m"), "ok", f"answer {index} " * 30)
            ledger.record(completion, call, {"length": float(index)})
    return path.read_bytes()


def reopened(path: Path, damaged: bytes) -> tuple[set[int], str]:
    """Open a damaged ledger; check that each row it still has is right; return their numbers and the warning."""
    path.write_bytes(damaged)
    with pytest.warns(DataWarning) as caught:
        ledger = Ledger(path)
    with ledger:
        kept = set()
        for row in ledger.rows():
            index = int(row.label.removeprefix("row "))
            assert row.completion.text == f"answer {index} " * 30
            assert dict(row.completion.scores) in ({"length": float(index)}, {})
            kept.add(index)
    with Ledger(path) as ledger:
        assert len(ledger) == len(kept), "once repaired it opens without a word"
    assert len(list(path.parent.glob("run.sqlite.damaged-1"))) == 1
    assert next(path.parent.glob("run.sqlite.damaged-1")).read_bytes() == damaged
    return kept, str(caught[0].message)


def test_11_a_flipped_byte_in_an_answer_costs_that_answer_only(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    data = bytearray(filled(path))
    data[data.index(b"answer 123 ")] ^= 1
    kept, warning = reopened(path, bytes(data))
    assert kept == set(range(400)) - {123}
    assert "row 123" in warning


def test_11_a_truncated_ledger_keeps_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    data = filled(path)
    kept, warning = reopened(path, data[: len(data) // 2])
    assert 150 < len(kept) < 250
    assert "too short" in warning


@pytest.mark.parametrize("seed", range(4))
def test_11_random_damage_never_alters_an_answer(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "run.sqlite"
    data, dice = bytearray(filled(path)), random.Random(seed)
    for _ in range(20):
        data[dice.randrange(100, len(data))] ^= 1 << dice.randrange(8)
    page = 4096 * dice.randrange(2, len(data) // 4096)
    data[page : page + 4096] = bytes(4096)
    kept, _ = reopened(path, bytes(data))
    assert len(kept) > 350


@pytest.mark.parametrize("content", [b"", b"id,question\n1,Why?\n" * 300, b"SQLite format 3\0"])
def test_11_what_cannot_be_read_is_never_started_over(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.sqlite"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=r"mv '.*run.sqlite'"):
        Ledger(path)
    assert path.read_bytes() == content
    assert [item.name for item in tmp_path.iterdir()] == ["run.sqlite"]


def test_11_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE mine (x)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="another program"):
        Ledger(path)
    assert path.read_bytes() == before


async def test_12_cancelling_keeps_what_is_finished_and_frees_the_rest(tmp_path: Path) -> None:
    waiting, cancelled = asyncio.Event(), []

    async def script(question: str) -> None:
        if int(question.split()[1]) >= 5:
            waiting.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(question)
                raise

    with Ledger(tmp_path / "run.sqlite") as ledger:
        task = asyncio.create_task(executor(Echo(script=script), ledger, max_concurrency=3).arun(ask(20)))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert 1 <= len(cancelled) <= 3
        done = len(ledger)
        model = Echo(asked=[])
        await executor(model, ledger).arun(ask(20))
        assert len(model.asked) == 20 - done


def test_12_ctrl_c_keeps_what_is_finished() -> None:
    async def script(question: str) -> None:
        if question == "question 5":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            await asyncio.Event().wait()

    ledger = Ledger()
    with pytest.raises(KeyboardInterrupt):
        executor(Echo(script=script), ledger, max_concurrency=1).run(ask(20))
    assert ledger.counts() == {"ok": 5}
    assert len(executor(Echo(), ledger).run(ask(20))) == 20


async def test_13_another_model_is_asked_anew() -> None:
    ledger, model = Ledger(), Echo(asked=[])
    for identity in ("small", "large"):
        await Executor(model, model_id=identity, ledger=ledger, progress=False).arun(ask(3))
    assert len(model.asked) == 6
