"""A process that calibrates a planted model through a ledger; the tests beside it kill it or run two of it at once.

Usage, FOLDER being where ledger, request log and artefacts go:
    calibrate.py FOLDER kill N...   for each N a process that is SIGKILLed after N more requests, then one that may
                                    finish; prints what was in the ledger after each kill and how long the log was
    calibrate.py FOLDER rename      calibrates on half of the rows, and dies where the new artefact would replace the
                                    old one
    calibrate.py FOLDER pair        two processes at once
"""

import asyncio
import hashlib
import json
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field

from mpf_chains.benchmarks import Benchmark, Row
from mpf_chains.calibration import MPFCalibrator
from mpf_chains.features import CallableFeature
from mpf_chains.perspectives import Perspective, PerspectiveSet
from mpf_chains.runtime import Ledger

TONES = {"Be low.": (0.0, 0.3), "Be middling.": (0.3, 0.7), "Be high.": (0.7, 1.0)}
PERSPECTIVES = PerspectiveSet([Perspective(text[3:-1], text) for text in TONES])
CONCURRENCY = 4


class Planted(BaseChatModel):
    """Answers "=score name-of-the-request"; merges drafts by averaging their scores.

    `before` sees the prompt, and may wait, raise, or give another answer.
    """

    before: Any = None
    log: str = ""
    notify: int = 0
    temperature: float | None = None
    asked: list[str] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "planted"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs: Any) -> ChatResult:
        prompt = "\n".join([f"{message.type}: {message.text}" for message in messages] + [f"seed {kwargs.get('seed')}"])
        digest = hashlib.sha256(prompt.encode())
        name = digest.hexdigest()[:16]
        self.asked.append(prompt)
        if self.log:
            file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(file, f"{name}\n".encode())
            os.close(file)
        if self.notify:
            os.write(self.notify, b".")
        message = await self.before(prompt) if self.before else None
        if message is None:
            low, high = TONES.get(str(messages[0].text), (0.8, 1.0))
            drafts = [float(draft) for draft in re.findall(r"=(\d\.\d+)", prompt)]
            score = sum(drafts) / len(drafts) if drafts else low + (high - low) * digest.digest()[0] / 256
            usage = {"input_tokens": len(prompt), "output_tokens": 3, "total_tokens": len(prompt) + 3}
            message = AIMessage(f"={score:.4f} {name}", usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])


def stated(texts: Sequence[str]) -> list[float]:
    return [float(re.findall(r"=(\S+)", text)[0]) for text in texts]


def benchmark(questions: int = 12, held_out: int = 4) -> Benchmark:
    def row(index: int, split: Any) -> Row:
        score = {"stated": (0.1, 0.5, 0.9)[index % 3]}
        return Row(f"{split}{index}", "E", f"Question {split} {index}?", target_score=score, split=split)

    rows = [row(index, "decomposition") for index in range(questions)]
    return Benchmark("planted", (*rows, *(row(index, "validation") for index in range(held_out))))


def calibrator(model: Any, ledger: Any = None, **options: Any) -> MPFCalibrator:
    settings: dict[str, Any] = {
        "perspectives": PERSPECTIVES, "feature": CallableFeature(stated, version="1"), "draws": 2, "n": 3, "bins": 3,
        "resamples": 20, "validate": ("normal", "sampled", "aggregated"), "bind_seed": True,
        "max_concurrency": CONCURRENCY, "progress": False,
    }  # fmt: skip
    return MPFCalibrator(model=model, ledger=ledger, **settings | options)


async def briefly(prompt: str) -> None:
    await asyncio.sleep(0.001 * (1 + len(prompt) % 3))


def calibrate(folder: Path, artefact: str, notify: int = 0) -> None:
    model = Planted(before=briefly, log=str(folder / "requests"), notify=notify)
    with Ledger(folder / "run.sqlite") as ledger:
        calibrator(model, ledger).invoke(benchmark()).save(folder / artefact)


def forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def kill_again_and_again(folder: Path, counts: list[int]) -> None:
    done, lengths = [], []
    for count in counts:
        reading, writing = os.pipe()
        child = forked(lambda writing=writing: calibrate(folder, "artefact", writing))  # type: ignore[misc]
        os.close(writing)
        for _ in range(count):
            os.read(reading, 1)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        with Ledger(folder / "run.sqlite") as ledger:
            done.append([str(row.completion.text).split()[1] for row in ledger.rows()])
        lengths.append(len((folder / "requests").read_text().splitlines()))
    calibrate(folder, "artefact")
    sys.stdout.write(json.dumps({"done": done, "lengths": lengths}))


def die_at_the_rename(folder: Path) -> None:
    def die(*args: object) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    calibration = calibrator(Planted()).invoke(benchmark(6))
    os.replace = pathlib.Path.replace = die  # type: ignore[assignment]
    calibration.save(folder / "artefact")


def pair(folder: Path) -> None:
    children = [forked(lambda name=name: calibrate(folder, name)) for name in ("first", "second")]  # type: ignore[misc]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]


if __name__ == "__main__":
    place, what = Path(sys.argv[1]), sys.argv[2]
    if what == "kill":
        kill_again_and_again(place, [int(count) for count in sys.argv[3:]])
    else:
        {"rename": die_at_the_rename, "pair": pair}[what](place)
