"""Throughput of `ChatTransformers` with SmolLM2: ``python tests/benchmarks/local_throughput.py [--answers 64]``.

Prints, for each dtype and batch size, the time to read the prompts (about 80 tokens each), the time per step, and
tokens and answers of 60 tokens per second. Every row gets all its tokens: end tokens are ignored. The last lines
measure the whole path: concurrent `ainvoke`s with sampling, answers ending where they end.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from mpf_chains.local import ChatTransformers
from mpf_chains.local.decoding import decode
from mpf_chains.local.engine import Engine, Source
from mpf_chains.local.sampling import Sampling

SYSTEM = (
    "You are an optimist. Answer by stressing what is going well, what has been achieved and what good may still "
    "come of it. Be warm and enthusiastic, in a few sentences."
)
QUESTION = "How is student life at ETH Zurich, and how would you describe the quality of its teaching? Variant {}."
SAMPLING = Sampling(temperature=0.8, top_k=50, seed=0)


def conversation(i: int) -> list[tuple[str, str]]:
    return [("system", SYSTEM), ("user", QUESTION.format(i))]


class FixedLength:
    """A row that takes exactly ``tokens`` tokens and notes when they came."""

    def __init__(self, prompt: Sequence[int], tokens: int) -> None:
        self.prompt, self.sampling, self.tokens = prompt, SAMPLING, tokens
        self.uniforms = SAMPLING.uniforms(prompt, tokens)
        self.times: list[float] = []

    def push(self, token: int) -> bool:
        self.times.append(time.perf_counter())
        return len(self.times) >= self.tokens


def measure(dtype: str, batch: int, tokens: int) -> None:
    model, tokenizer, _ = Engine.of(Source("smollm2", dtype=dtype)).load()
    prompts = []
    for i in range(batch):
        turns = [{"role": role, "content": text} for role, text in conversation(i)]
        prompts.append(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"])
    best: tuple[float, float] | None = None
    for _ in range(2):  # the first warms up
        rows = [FixedLength(prompt, tokens) for prompt in prompts]
        start = time.perf_counter()
        decode(model, rows)
        first, last = rows[0].times[0] - start, rows[0].times[-1] - start
        best = min(best or (first, last), (first, last), key=lambda pair: pair[1])
    assert best is not None
    first, last = best
    step = (last - first) / (tokens - 1)
    whole = first + 59 * step
    print(
        f"{dtype:>9} {batch:>5} {first:>9.2f} {step * 1e3:>8.1f} {60 * batch / whole:>9.0f} {batch / whole:>10.2f}",
        flush=True,
    )


async def concurrent(chat: ChatTransformers, answers: int, workers: int) -> list[Any]:
    limit = asyncio.Semaphore(workers)

    async def ask(i: int) -> Any:
        async with limit:
            return await chat.ainvoke(conversation(i), seed=i)

    return await asyncio.gather(*(ask(i) for i in range(answers)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 16, 32, 64])
    parser.add_argument("--tokens", type=int, default=60, help="steps to time; figures are scaled to 60")
    parser.add_argument("--answers", type=int, default=64, help="for the concurrent run; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("    dtype batch  first, s step, ms  tokens/s  answers/s")
    for dtype in arguments.dtypes:
        for batch in arguments.batches:
            measure(dtype, batch, arguments.tokens)
        if arguments.answers:
            chat = ChatTransformers(model="smollm2", dtype=dtype, temperature=0.8, top_k=50, max_tokens=60)
            asyncio.run(concurrent(chat, 2, 2))
            chat._engine.batches.clear()
            start = time.perf_counter()
            done = asyncio.run(concurrent(chat, arguments.answers, 32))
            seconds = time.perf_counter() - start
            length = sum(answer.usage_metadata["output_tokens"] for answer in done) / len(done)
            print(
                f"{dtype:>9} ainvoke, 32 workers: {len(done) / seconds:.2f} answers/s of {length:.0f} tokens on "
                f"average, batches {list(chat._engine.batches)}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
