"""Time of debiased decoding beside plain decoding: ``python tests/benchmarks/expert_decoding.py [--model smollm2]``.

The base is the small model with layers appended that change nothing (their output projections are zero), or, with
``--noise``, a little, so that fewer drafts are accepted. So it costs as much as a model of that depth, and agrees with
the small one. The pair is two random LoRA adapters on the small model. All ways write the same number of tokens (end
tokens are ignored); each is timed several times in turn, and the fastest time counts. On a shared machine take
``--threads 1`` and the ratios of CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mpf_chains.local import load_smollm2
from mpf_chains.local.experts import ExpertEnsemble, ExpertLogitsProcessor, ExpertPair
from mpf_chains.local.experts.combine import combine
from mpf_chains.local.experts.speculative import Speculated, SpeculativeDecoder

NO_END = 10**9


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


def deeper(small: Any, times: float, noise: float) -> Any:
    """The small model with layers appended until it has so many times its weights outside the embeddings."""
    layers, head = small.config.num_hidden_layers, small.lm_head.weight.numel()
    one = sum(weight.numel() for weight in small.model.layers[0].parameters())
    config = type(small.config)(**small.config.to_dict())
    config.num_hidden_layers = layers + round((times - 1) * (layers * one + head) / one)
    base = type(small)(config).to(small.dtype)
    weights = small.state_dict()
    base.load_state_dict(weights, strict=False)
    torch.manual_seed(1)
    for layer in base.model.layers[layers:]:
        for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
            torch.nn.init.normal_(module.weight, std=noise) if noise else torch.nn.init.zeros_(module.weight)
    return base.eval()


def save_adapter(folder: Path, model: Any, seed: int, size: float = 0.03, rank: int = 8) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            for letter, shape in (("A", (rank, module.in_features)), ("B", (module.out_features, rank))):
                key = f"base_model.model.{name}.lora_{letter}.weight"
                tensors[key] = torch.randn(shape, generator=generator) * size
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


class ReRun:
    """Experts that read the whole text again for each token."""

    def __init__(self, ensemble: ExpertEnsemble, alpha: float) -> None:
        self.ensemble, self.alphas = ensemble, torch.tensor([alpha])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        states = self.ensemble.reader().read(input_ids)
        return combine(scores, self.ensemble.logits(states, self.alphas)[:, 0], scores.shape[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["random", "smollm2"], default="random")
    parser.add_argument("--width", type=int, default=256, help="of the random model")
    parser.add_argument("--times", type=float, default=11, help="weights of the base over those of the small model")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation in the appended layers' outputs")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--lengths", type=int, nargs="*", default=[4], help="draft lengths beside the adaptive one")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-rerun", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    if arguments.model == "smollm2":
        small, tokenizer = load_smollm2(dtype=arguments.dtype, device=arguments.device)
    else:
        small, tokenizer = random_model(arguments.width, 8192)
        small = small.to(arguments.device, dtype).eval()
    base = deeper(small, arguments.times, arguments.noise).to(arguments.device)
    with tempfile.TemporaryDirectory() as name:
        halves = [save_adapter(Path(name) / str(i), small, i) for i in range(2)]
        pair = ExpertPair("pair", *halves, base=small, alpha=arguments.alpha, tokenizer=tokenizer)
        ensemble = ExpertEnsemble([pair])
    torch.manual_seed(2)
    shape = (arguments.rows, arguments.prompt)
    ids = torch.randint(5, 8000, shape, device=arguments.device)
    report(arguments, base, tokenizer, ensemble, ids)


def report(arguments: Any, base: Any, tokenizer: Any, ensemble: ExpertEnsemble, ids: torch.Tensor) -> None:
    steps = arguments.tokens
    told: dict[str, Speculated] = {}

    def generate(processor: Callable[[], Any] | None) -> list[list[int]]:
        base.generation_config.eos_token_id = None
        out = base.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=False, pad_token_id=1,
            logits_processor=[processor()] if processor else [],
        )  # fmt: skip
        return [row[ids.shape[1] :] for row in out.tolist()]

    def speculate(name: str, decoder: SpeculativeDecoder, temperature: float) -> list[list[int]]:
        told[name] = decoder.generate(ids, max_new_tokens=steps, temperature=temperature, seed=0, eos_token_id=NO_END)
        return told[name].tokens

    ways: dict[str, Callable[[], list[list[int]]]] = {
        "plain": lambda: generate(None),
        "lockstep": lambda: generate(lambda: ExpertLogitsProcessor(ensemble, tokenizer)),
    }
    if not arguments.no_rerun:
        ways["full-prefix re-run"] = lambda: generate(lambda: ReRun(ensemble, arguments.alpha))
    decoders = {k: SpeculativeDecoder(base, ensemble, tokenizer, draft_length=k) for k in (None, *arguments.lengths)}
    for k, decoder in decoders.items():
        for temperature in (0.0, 1.0):
            name = f"speculative, {'adaptive' if k is None else f'k = {k}'}, {'sampled' if temperature else 'greedy'}"
            ways[name] = lambda name=name, decoder=decoder, temperature=temperature: speculate(  # type: ignore[misc]
                name, decoder, temperature
            )
    texts: dict[str, list[list[int]]] = {}
    seconds: dict[str, float] = {}
    work: dict[str, float] = {}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            start, started = time.perf_counter(), time.process_time()
            texts[name] = way()
            work[name] = min(work.get(name, float("inf")), time.process_time() - started)
            seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - start)
    pace = decoders[None].pace
    print(f"{arguments.model}, {arguments.dtype} on {arguments.device}, {arguments.rows} rows of {arguments.prompt} + "
          f"{steps} tokens, {base.config.num_hidden_layers} layers, noise {arguments.noise:g}; "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    print(f"one small step with its pair (3 rows, 2 heads): {pace._small / pace._base(1):.3f} base steps")
    print(f"{'way':<32} {'s':>7} {'/ plain':>8} {'CPU s':>7} {'/ plain':>8}  {'per cycle':>9} {'accepted':>8}  exact")
    for name, taken in seconds.items():
        line = f"{name:<32} {taken:>7.2f} {taken / seconds['plain']:>8.2f}"
        line += f" {work[name]:>7.2f} {work[name] / work['plain']:>8.2f}"
        if name in told:
            line += f"  {told[name].tokens_per_cycle:>9.2f} {told[name].acceptance:>8.2f}"
        if "sampled" not in name and name not in {"plain", "lockstep"}:
            line = f"{line:<87}" + ("yes" if texts[name] == texts["lockstep"] else "NO")
        print(line)
        if name in told and told[name].fallback:
            print(f"  lockstep in {told[name].lockstep} of {told[name].cycles} cycles: {told[name].fallback}")


if __name__ == "__main__":
    sys.exit(main())
