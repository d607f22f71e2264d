"""Throughput of `ChatTransformers.log_likelihoods`: ``python tests/benchmarks/likelihood_throughput.py``.

Scores StereoSet's intrasentence sentences with SmolLM2. On a sample of the clusters, one plain forward per sentence and
ours take turns; printed are seconds of wall clock and of CPU time (all threads), the medians, their ratios, and the
largest difference of two scores. Then ours scores the whole set, once: it shares more there, because more sentences
begin alike. Other programs disturb both sides, so ratios are what counts, on a busy machine those of CPU time with
``--threads 1``; the load is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpf_chains.local import ChatTransformers

Scores = dict[int, Any]


def read_sentences(path: Path) -> list[list[str]]:
    """Three sentences for each cluster."""
    file = path if path.is_file() else next(path.glob("dev*.json"))
    clusters = json.loads(file.read_text("utf-8"))["data"]["intrasentence"]
    return [[sentence["sentence"] for sentence in cluster["sentences"]] for cluster in clusters]


def one_at_a_time(chat: ChatTransformers, sentences: Sequence[str]) -> Scores:
    model, tokenizer, _ = chat._engine.load()
    scores: Scores = {}
    with torch.inference_mode():
        for index, sentence in enumerate(sentences):
            ids = [tokenizer.bos_token_id, *tokenizer.encode(sentence, add_special_tokens=False)]
            logits = model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0].float()
            scores[index] = logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]].double().numpy()
    return scores


def ours(chat: ChatTransformers, sentences: Sequence[str]) -> Scores:
    return dict(chat.log_likelihoods([("", sentence) for sentence in sentences]))


def timed(way: Callable[..., Scores], *arguments: Any) -> tuple[NDArray[np.float64], Scores]:
    """Seconds of wall clock and of CPU time, and what came out."""
    start = np.array([time.perf_counter(), time.process_time()])
    scores = way(*arguments)
    return np.array([time.perf_counter(), time.process_time()]) - start, scores


def load() -> str:
    return "/".join(f"{value:.1f}" for value in os.getloadavg())


def line(name: str, *figures: NDArray[np.float64]) -> str:
    return f"{name:<8}" + "".join(f"  {wall:>7.2f} {cpu:>7.2f}" for wall, cpu in figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", type=Path, default=Path("../shared/data/stereoset"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--sample", type=int, default=100, help="clusters, evenly spread over the file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if not arguments.path.exists():
        print(f"skipped: there is no {arguments.path}; give StereoSet's dev.json or its folder")
        return
    torch.set_num_threads(arguments.threads)
    clusters = read_sentences(arguments.path)
    every = max(1, len(clusters) // arguments.sample)
    sample = [sentence for cluster in clusters[::every][: arguments.sample] for sentence in cluster]
    chat = ChatTransformers(model="smollm2", dtype=arguments.dtype)
    for way in (one_at_a_time, ours):
        way(chat, sample[:9])
    print(f"{arguments.dtype}, {arguments.threads} threads, {len(sample)} sentences, load {load()}", flush=True)
    print("          one at a time, s          ours, s            ratio", flush=True)
    print("             wall     CPU     wall     CPU     wall     CPU", flush=True)
    rounds = []
    for number in range(arguments.rounds):
        (slow, expected), (fast, found) = (timed(way, chat, sample) for way in (one_at_a_time, ours))
        rounds.append((slow, fast, slow / fast))
        print(line(f"round {number}", *rounds[-1]), flush=True)
    slow, fast, ratio = np.median(rounds, axis=0)
    print(line("median", slow, fast, ratio), flush=True)
    print(
        f"largest difference of scores: {max(np.abs(expected[i] - found[i]).max() for i in expected):.1e}", flush=True
    )
    whole = [sentence for cluster in clusters for sentence in cluster]
    seconds, scores = timed(ours, chat, whole)
    gain = slow / len(sample) * len(scores) / seconds
    print(
        f"all {len(scores)} sentences: {seconds[0]:.0f} s wall, {seconds[1]:.0f} s CPU; "
        f"{len(scores) / seconds[0]:.1f} sentences/s, {gain[0]:.2f} times one at a time (CPU time: {gain[1]:.2f}); "
        f"load {load()}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
