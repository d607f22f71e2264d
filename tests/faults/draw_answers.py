"""A process that answers calls through a ledger; the tests beside it kill it or run two of it at once.

Usage: draw_answers.py LEDGER REQUESTS CALLS KILL_AT. Each request is written to REQUESTS before it is answered; at
request number KILL_AT of this process it kills itself (0: never). It waits for a line on stdin before it starts.
"""

import asyncio
import os
import signal
import sys
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field

from mpf_chains.runtime import Call, Executor, Ledger


class Slow(BaseChatModel):
    requests: str
    kill_at: int = 0
    sent: list[str] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "slow"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs: Any) -> ChatResult:
        question = str(messages[-1].content)
        self.sent.append(question)
        file = os.open(self.requests, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, f"{question}\n".encode())
        os.close(file)
        if len(self.sent) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(0.001 * (1 + len(self.sent) % 3))
        return ChatResult(generations=[ChatGeneration(message=AIMessage(f"answer to {question}"))])


def answer(ledger: str, requests: str, calls: int, kill_at: int = 0) -> list[str | None]:
    model = Slow(requests=requests, kill_at=kill_at, sent=[])
    with Ledger(ledger) as book:
        executor = Executor(model, model_id="slow", ledger=book, max_concurrency=4, progress=False)
        answers = executor.run([Call((HumanMessage(f"question {index}"),)) for index in range(calls)])
    return [completion.text for completion in answers]


if __name__ == "__main__":
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    texts = answer(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    right = sum(text == f"answer to question {index}" for index, text in enumerate(texts))
    sys.stdout.write(f"{right}\n")
