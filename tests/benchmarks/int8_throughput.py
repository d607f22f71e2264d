"""int8 weights against unrounded ones: ``python tests/benchmarks/int8_throughput.py TEXT_FILE [--model smollm2]``.

Prints, for each dtype with and without ``quantization="int8"``: memory of the weights, time per token at batch 1, 4 and
16 (the median step of 40 after a prompt of 64 tokens, all of them interleaved, so that a busy machine slows all alike),
time to read 512 tokens, and the perplexity per token of the beginning of the file (WikiText-2's test text).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from mpf_chains.local import ChatTransformers

PROMPT, STEPS, READ, WINDOW = 64, 40, 512, 512


class Decoder:
    """One model and batch size, decoding greedily, a step at a time."""

    def __init__(self, model: Any, batch: int) -> None:
        self.model, self.cache = model, DynamicCache(config=model.config)
        self.tokens = torch.arange(batch * PROMPT).reshape(batch, PROMPT) % 1000 + 100
        self.seconds: list[float] = []

    def step(self) -> None:
        start = time.perf_counter()
        with torch.inference_mode():
            output = self.model(input_ids=self.tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.tokens = output.logits[:, -1:].argmax(-1)
        self.seconds.append(time.perf_counter() - start)


def megabytes(model: Any) -> float:
    tensors = {tensor.data_ptr(): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e6


def reading(model: Any) -> float:
    ids = torch.arange(READ)[None] % 1000 + 100
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.inference_mode():
            model(input_ids=ids, logits_to_keep=1)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="?", type=Path, default=Path("../shared/data/wikitext2/test.txt"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--characters", type=int, default=20_000)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if not arguments.text.exists():
        print(f"skipped: there is no {arguments.text}; give a text file")
        return
    torch.set_num_threads(arguments.threads)
    chats = {
        (dtype, quantization): ChatTransformers(model=arguments.model, dtype=dtype, quantization=quantization)
        for dtype in arguments.dtypes
        for quantization in (None, "int8")
    }
    models = {key: chat._engine.load()[0] for key, chat in chats.items()}
    times: dict[tuple[Any, int], float] = {}
    for batch in arguments.batches:
        decoders = {key: Decoder(model, batch) for key, model in models.items()}
        for _ in range(STEPS + 1):
            for decoder in decoders.values():
                decoder.step()
        times |= {(key, batch): median(decoder.seconds[1:]) for key, decoder in decoders.items()}
    text = arguments.text.read_text("utf-8")[: arguments.characters]
    print(
        f"{'weights':>14} {'MB':>6}" + "".join(f" {f'ms, {b}':>8}" for b in arguments.batches) + "  read, s  perplexity"
    )
    for key, chat in chats.items():
        scores = dict(chat.log_likelihoods([("", text)], window=WINDOW))[0]
        print(
            f"{' '.join(filter(None, key)):>14} {megabytes(models[key]):>6.0f}"
            + "".join(f" {times[key, batch] * 1e3:>8.1f}" for batch in arguments.batches)
            + f" {reading(models[key]):>8.2f} {np.exp(-scores.mean()):>11.3f}  ({len(scores)} tokens)",
            flush=True,
        )


if __name__ == "__main__":
    main()
