"""Time of debiased decoding beside plain decoding: ``python tests/benchmarks/expert_decoding.py [--quick]``.

1. The pair on the base itself: plain ``generate`` of the small model, with a LoRA pair as two more rows of its batch,
   and, at several lengths, with experts that read the whole text again for each token, as other toolkits let them
   (here at least both in one batched pass).
2. The pair on a small model beside a base of ten times its cost: lockstep, and speculative decoding. The base is the
   small model with copies of its layers appended that change nothing (their output projections are zero), so it agrees
   with it and costs as much as any model of that depth.
3. The same with output projections that are scaled down, but not to zero, so that fewer drafts are accepted.

Adapters are random. All ways write the same number of tokens (end tokens are ignored). Ways take turns; ratios are
medians of those of each turn, with their range. On a shared machine take ``--threads 1``, OMP_WAIT_POLICY=PASSIVE and
the ratios of CPU time; on a quiet one, and on a GPU, those of time. "as lockstep" is how many tokens of greedy text are
the same before the first other one: all in float32; in bfloat16 passes over several tokens round otherwise.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mpf_chains.local import load_smollm2
from mpf_chains.local.experts import ExpertEnsemble, ExpertLogitsProcessor, ExpertPair
from mpf_chains.local.experts.combine import combine
from mpf_chains.local.experts.speculation.decoder import Speculated, SpeculativeDecoder

NO_END = 10**9
TARGETS = {
    "q, v": ("q_proj", "v_proj"),
    "all linear": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}


def random_model(width: int, vocabulary: int) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=2048, initializer_range=0.1,
    )  # fmt: skip
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    return LlamaForCausalLM(config), PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w1")


def deeper(small: Any, times: float, share: float) -> Any:
    """The small model with copies of its layers appended until it has so many times its weights without embeddings.

    Of what the copies would add to the text's hidden states only a share is added; 0: they change nothing.
    """
    base = copy.deepcopy(small)
    layers, head = base.model.layers, base.lm_head.weight.numel()
    one, own = sum(weight.numel() for weight in layers[0].parameters()), len(layers)
    for i in range(own, own + round((times - 1) * (own * one + head) / one)):
        layer = copy.deepcopy(small.model.layers[i % own])
        layer.self_attn.layer_idx = i
        for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
            module.weight.data.mul_(share)
        layers.append(layer)
    base.config.num_hidden_layers = len(layers)
    return base


def save_adapter(folder: Path, model: Any, seed: int, targets: tuple[str, ...], size: float, rank: int = 8) -> Path:
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, module in model.named_modules():
        if name.endswith(targets):
            for letter, shape in (("A", (rank, module.in_features)), ("B", (module.out_features, rank))):
                key = f"base_model.model.{name}.lora_{letter}.weight"
                tensors[key] = torch.randn(shape, generator=generator) * size
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(targets)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def ensemble_of(small: Any, tokenizer: Any, targets: str, alpha: float) -> ExpertEnsemble:
    size = 0.03 if targets == "q, v" else 0.01
    with tempfile.TemporaryDirectory() as name:
        halves = [save_adapter(Path(name) / str(i), small, i, TARGETS[targets], size) for i in range(2)]
        return ExpertEnsemble([ExpertPair("pair", *halves, base=small, alpha=alpha, tokenizer=tokenizer)])


class ReRun:
    """Experts that read the whole text again for each token."""

    def __init__(self, ensemble: ExpertEnsemble) -> None:
        self.ensemble, self.alphas = ensemble, torch.tensor([ensemble.pairs[0].alpha])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        states = self.ensemble.reader().read(input_ids)
        return combine(scores, self.ensemble.logits(states, self.alphas)[:, 0], scores.shape[-1])


@dataclass
class Table:
    """Ways to write the same number of tokens, timed in turns beside the first one."""

    title: str
    tokens: int
    rows: int
    ways: dict[str, Callable[[], Any]] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def run(self, repeats: int, device: str) -> None:
        self.seconds = {name: [] for name in self.ways}
        for _ in range(repeats):
            for name, way in self.ways.items():
                start, started = time.perf_counter(), time.process_time()
                self.told[name] = way()
                if device != "cpu":
                    torch.cuda.synchronize()
                self.seconds[name].append((time.perf_counter() - start, time.process_time() - started))

    def over(self, name: str, other: str, clock: int) -> list[float]:
        """Ratios, turn by turn: the median, the lowest, the highest."""
        ratios = [mine[clock] / its[clock] for mine, its in zip(self.seconds[name], self.seconds[other], strict=True)]
        return [median(ratios), min(ratios), max(ratios)]

    def show(self) -> None:
        print(f"\n{self.title}; {self.tokens} tokens x {self.rows} rows; load {os.getloadavg()[0]:.1f}")
        titles = ("ms/token", "time / plain", "CPU time / plain", "per cycle", "accepted", "as lockstep")
        print("{:<36}{:>9}  {:<18}  {:<18}{:>10}{:>10}{:>13}".format("", *titles))
        first, lockstep = next(iter(self.ways)), self.told.get("lockstep")
        for name, told in self.told.items():
            ratios = ["{:.2f} ({:.2f}-{:.2f})".format(*self.over(name, first, clock)) for clock in (0, 1)]
            step = 1000 * median(wall for wall, _ in self.seconds[name]) / self.tokens
            line = f"{name:<36}{step:>9.1f}  {ratios[0]:<18}  {ratios[1]:<18}"
            if isinstance(told, Speculated):
                line += f"{told.tokens_per_cycle:>10.2f}{told.acceptance:>10.2f}"
                if lockstep is not None and "greedy" in name:
                    both = [zip(*rows, strict=True) for rows in zip(told.tokens, lockstep, strict=True)]
                    line += f"{min(len(list(takewhile(lambda pair: pair[0] == pair[1], each))) for each in both):>13}"
            print(line)
            if isinstance(told, Speculated) and told.fallback:
                print(f"    lockstep in {told.lockstep} of {told.cycles} cycles: {told.fallback}")


def generate(model: Any, ids: torch.Tensor, tokens: int, processor: Callable[[], Any] | None = None) -> Any:
    model.generation_config.eos_token_id = None
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=1,
        logits_processor=[processor()] if processor else [],
    )  # fmt: skip
    return [row[ids.shape[1] :] for row in out.tolist()]


def speculate(decoder: SpeculativeDecoder, ids: torch.Tensor, tokens: int, temperature: float) -> Speculated:
    return decoder.generate(ids, max_new_tokens=tokens, temperature=temperature, seed=0, eos_token_id=NO_END)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a random small model, few tokens, one turn")
    parser.add_argument("--dtype", help="default: bfloat16, or float32 if quick")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, help="turns; default 3, or 1")
    parser.add_argument("--tokens", type=int, help="default 128, or 48")
    parser.add_argument("--lengths", type=int, nargs="*", help="of texts for the re-run; default 32 128 256, or 16 48")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--times", type=float, help="weights of the base over those of the small model")
    parser.add_argument("--share", type=float, help="of their weights that the second base's appended layers keep")
    parser.add_argument("--fixed", type=int, nargs="*", default=[], help="draft lengths beside the adaptive one")
    parser.add_argument("--parts", type=int, nargs="*", default=[1, 2, 3])
    told = parser.parse_args()
    quick = {"dtype": "float32", "repeats": 1, "tokens": 48, "lengths": [16, 48], "times": 11, "share": 0.008}
    full = {"dtype": "bfloat16", "repeats": 3, "tokens": 128, "lengths": [32, 128, 256], "times": 9, "share": 0.008}
    for name, value in (quick if told.quick else full).items():
        if getattr(told, name) is None:
            setattr(told, name, value)
    torch.set_num_threads(told.threads)
    if told.quick:
        small, tokenizer = random_model(256, 8192)
        small = small.to(told.device, getattr(torch, told.dtype)).eval()
    else:
        small, tokenizer = load_smollm2(dtype=told.dtype, device=told.device)
    ids = torch.randint(5, 8000, (told.rows, 32), generator=torch.Generator().manual_seed(2)).to(told.device)
    print(f"{'random model' if told.quick else 'SmolLM2-135M'}, {told.dtype} on {told.device}, {told.threads} threads")
    if 1 in told.parts:
        on_base(told, small, tokenizer, ids)
    for part, share in ((2, 0.0), (3, told.share)):
        if part in told.parts:
            beside_base(told, small, tokenizer, ids, share)


def on_base(told: Any, small: Any, tokenizer: Any, ids: torch.Tensor) -> None:
    pairs = {name: ensemble_of(small, tokenizer, name, 0.5) for name in TARGETS}
    decoders = {name: SpeculativeDecoder(small, pair, tokenizer, draft_length=0) for name, pair in pairs.items()}
    table = Table("1. The pair on the base itself", told.tokens, told.rows)
    table.ways["plain"] = partial(generate, small, ids, told.tokens)
    for name, decoder in decoders.items():
        table.ways[f"pair on the base, {name}"] = partial(speculate, decoder, ids, told.tokens, 0.0)
    table.run(told.repeats, told.device)
    table.show()
    decoder, ours, theirs = decoders["q, v"], "pair on the base, q, v", "full-prefix re-run"
    for length in told.lengths:
        table = Table("   Experts that read all again", length, told.rows)
        table.ways["plain"] = partial(generate, small, ids, length)
        table.ways[ours] = partial(speculate, decoder, ids, length, 0.0)
        table.ways[theirs] = partial(generate, small, ids, length, partial(ReRun, decoder.ensemble))
        table.run(1, told.device)
        table.show()
        print(f"    the re-run takes {table.over(theirs, ours, 0)[0]:.1f} times as long as ours")


def beside_base(told: Any, small: Any, tokenizer: Any, ids: torch.Tensor, share: float) -> None:
    base, ensemble = deeper(small, told.times, share), ensemble_of(small, tokenizer, "q, v", 0.5)
    added = f"appended ones scaled by {share:g}" if share else "appended ones do nothing"
    title = f"{3 if share else 2}. A small pair beside a base of {len(base.model.layers)} layers, {added}"
    table = Table(title, told.tokens, told.rows)
    table.ways["plain"] = partial(generate, base, ids, told.tokens)
    table.ways["small model alone"] = partial(generate, small, ids, told.tokens)
    experts = partial(ExpertLogitsProcessor, ensemble, tokenizer)
    table.ways["lockstep"] = partial(generate, base, ids, told.tokens, experts)
    for length in (None, *told.fixed):
        for temperature, how in ((0.0, "greedy"), (1.0, "sampled")):
            decoder = SpeculativeDecoder(base, ensemble, tokenizer, draft_length=length)
            name = f"speculative, {how}" + ("" if length is None else f", {length} drafts")
            table.ways[name] = partial(speculate, decoder, ids, told.tokens, temperature)
    table.run(told.repeats, told.device)
    table.show()
    step = table.over("small model alone", "plain", 1 if told.device == "cpu" else 0)[0]
    print(
        f"    a base step costs {1 / step:.1f} small ones; 1 + 1.2 x small / base = {1 + 1.2 * step:.2f} for lockstep"
    )


if __name__ == "__main__":
    sys.exit(main())
