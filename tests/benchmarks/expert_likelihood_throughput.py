"""Likelihoods under experts beside plain ones: ``python tests/benchmarks/expert_likelihood_throughput.py [DATA]``.

Scores some of StereoSet's intrasentence sentences with SmolLM2 alone, and with a LoRA pair on SmolLM2 itself (q_proj
and v_proj, rank 8; random ones unless ``--pair`` names a folder with "expert" and "anti_expert"). Three rows go through
the layers in place of one, and one through the head: what that costs at least is printed as the limit. On request the
definition comes third: base, expert and anti-expert as three models, one sentence at a time. Ways take turns; printed
are CPU times, the medians of their ratios, and the largest difference of two scores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpf_chains.local import ChatTransformers, ExpertPair
from mpf_chains.local.experts import ExpertEnsemble
from mpf_chains.local.experts.files.adapter import read_adapter
from mpf_chains.local.experts.models.variants import Variants
from mpf_chains.local.likelihood import log_likelihoods

sys.path.insert(0, str(Path(__file__).parent))
from expert_decoding import save_adapter
from likelihood_throughput import Scores, load, read_sentences, timed


def definition(chat: ChatTransformers, folders: list[Path], alpha: float, sentences: list[str]) -> Scores:
    """One sentence at a time, each model by itself."""
    model, tokenizer, _ = chat._engine.load()
    variants = [Variants(model, [None if folder is None else read_adapter(folder)]) for folder in (None, *folders)]
    one, scores = torch.ones(1), {}
    for index, sentence in enumerate(sentences):
        ids = [tokenizer.bos_token_id, *tokenizer.encode(sentence, add_special_tokens=False)]
        text = torch.tensor([ids[:-1]])
        z, expert, anti = (
            each.logits(each.read(text, None, each.new_cache(), keep=len(ids) - 1), one)[0] for each in variants
        )
        laws = (z + alpha * (expert - anti)).log_softmax(-1)
        scores[index] = laws[range(len(ids) - 1), ids[1:]].double().numpy()
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=Path("../shared/data/stereoset"))
    parser.add_argument("--pair", type=Path, help="folder with the adapters expert and anti_expert")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--sample", type=int, default=60, help="clusters, evenly spread over the file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--definition", action="store_true", help="time the definition, too")
    arguments = parser.parse_args()
    if not arguments.path.exists():
        print(f"skipped: there is no {arguments.path}; give StereoSet's dev.json or its folder")
        return
    torch.set_num_threads(arguments.threads)
    clusters = read_sentences(arguments.path)
    every = max(1, len(clusters) // arguments.sample)
    sentences = [sentence for cluster in clusters[::every][: arguments.sample] for sentence in cluster]
    texts = [("", sentence) for sentence in sentences]
    chat = ChatTransformers(model="smollm2", dtype=arguments.dtype)
    model, tokenizer, _ = chat._engine.load()
    with tempfile.TemporaryDirectory() as folder:
        names = ("expert", "anti_expert")
        folders = [
            arguments.pair / name if arguments.pair else save_adapter(Path(folder) / name, model, seed)
            for seed, name in enumerate(names)
        ]
        ensemble = ExpertEnsemble([ExpertPair("pair", *map(str, folders), model, tokenizer=tokenizer)])
        alphas = [arguments.alpha]
        ways: dict[str, Any] = {
            "plain": lambda: dict(log_likelihoods(chat._engine, texts)),
            "experts": lambda: dict(log_likelihoods(chat._engine, texts, None, ensemble, alphas)),
        }
        if arguments.definition:
            ways["definition"] = lambda: definition(chat, folders, arguments.alpha, sentences)
        head = model.get_output_embeddings().weight.numel()
        body = sum(weight.numel() for name, weight in model.named_parameters() if name.endswith("proj.weight"))
        for way in ways.values():
            way()
        print(f"{arguments.dtype}, {arguments.threads} threads, {len(texts)} sentences, load {load()}", flush=True)
        rounds = []
        for _ in range(arguments.rounds):
            found = {name: timed(way) for name, way in ways.items()}
            rounds.append([seconds[1] for seconds, _ in found.values()])
            print("  ".join(f"{name} {rounds[-1][i]:.2f} s" for i, name in enumerate(ways)), "CPU", flush=True)
    print(f"experts / plain: {np.median([each[1] / each[0] for each in rounds]):.2f}, limit", end=" ")
    print(f"{(3 * body + head) / (body + head):.2f}; load {load()}")
    if arguments.definition:
        (_, scores), (_, expected) = found["experts"], found["definition"]
        print(
            f"definition / experts: {np.median([each[2] / each[1] for each in rounds]):.2f}; largest difference",
            end=" ",
        )
        print(f"{max(np.abs(scores[i] - expected[i]).max() for i in expected):.1e}")


if __name__ == "__main__":
    sys.exit(main())
