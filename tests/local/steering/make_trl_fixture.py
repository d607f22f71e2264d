"""Makes trl.json: losses of TRL's KTO and DPO trainers, and their gradients, on fixed log-probabilities.

In an environment of its own, from the root of the repository (seconds, once it is installed):

    python3 -m venv /tmp/trl
    /tmp/trl/bin/pip install torch==2.13.0 trl==0.19.1 transformers==4.53.3
    /tmp/trl/bin/python tests/local/steering/make_trl_fixture.py

Only the trainers' functions on tensors are called: no model is trained. Everything is float64.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from trl.trainer.dpo_config import FDivergenceType
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

ACCELERATOR = SimpleNamespace(device="cpu", gather_for_metrics=lambda tensor: tensor)
CASES = {  # rows that are desirable, β, weights, and what the mismatched pairs' policy adds to their reference
    "mixed": ([1, 0, 1, 0, 1, 1, 0, 0], 0.1, (1.0, 1.0), 2.0),
    "odd": ([1, 0, 0, 1, 1], 0.1, (1.0, 1.0), 2.0),
    "all desirable": ([1, 1, 1, 1], 0.1, (1.0, 1.0), 2.0),
    "all undesirable": ([0, 0, 0], 0.1, (1.0, 1.0), 2.0),
    "no divergence": ([1, 0, 1], 0.1, (1.0, 1.0), -4.0),
    "far": ([1, 0, 1, 0], 0.5, (1.0, 1.33), 300.0),
}


def numbers(generator: torch.Generator, *shape: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift
    return torch.tensor(json.loads(json.dumps(drawn.tolist())), dtype=torch.float64)


def kto(
    generator: torch.Generator, desirable: list[int], beta: float, weights: tuple[float, float], apart: float
) -> Any:
    n = len(desirable)
    reference = numbers(generator, n, scale=20, shift=-60)
    policy = (reference + numbers(generator, n, scale=8)).requires_grad_()
    other_reference = numbers(generator, n, scale=20, shift=-90)
    other = other_reference + numbers(generator, n, shift=apart)
    trainer = SimpleNamespace(
        calculate_KL=True, loss_type="kto", beta=beta, accelerator=ACCELERATOR,
        desirable_weight=weights[0], undesirable_weight=weights[1],
    )  # fmt: skip
    chosen = torch.tensor([bool(each) for each in desirable])
    losses, _, _, kl = KTOTrainer.kto_loss(
        trainer, policy[chosen], policy[~chosen], other, reference[chosen], reference[~chosen], other_reference
    )
    loss = losses.nanmean()
    loss.backward()
    return {
        "desirable": desirable, "beta": beta, "weights": weights, "policy": policy.tolist(),
        "reference": reference.tolist(), "mismatched": other.tolist(), "mismatched_reference": other_reference.tolist(),
        "loss": loss.item(), "z_ref": kl.item(), "gradient": policy.grad.tolist(),
    }  # fmt: skip


def dpo(generator: torch.Generator, beta: float) -> Any:
    reference = [numbers(generator, 5, scale=20, shift=-60) for _ in range(2)]
    policy = [(each + numbers(generator, 5, scale=8)).requires_grad_() for each in reference]
    trainer = SimpleNamespace(
        accelerator=ACCELERATOR, reference_free=False, beta=beta, loss_type="sigmoid", label_smoothing=0,
        f_divergence_type=FDivergenceType.REVERSE_KL.value,
    )  # fmt: skip
    loss = DPOTrainer.dpo_loss(trainer, *policy, *reference)[0].mean()
    loss.backward()
    return {
        "beta": beta, "policy": [each.tolist() for each in policy], "reference": [each.tolist() for each in reference],
        "loss": loss.item(), "gradient": [each.grad.tolist() for each in policy],
    }  # fmt: skip


def summed(generator: torch.Generator) -> Any:
    logits = numbers(generator, 3, 6, 11, scale=4)
    labels = torch.randint(0, 11, (3, 6), generator=generator)
    labels[0, :3] = labels[1, :4] = labels[2, :2] = -100
    labels[2, 5:] = -100
    summed = KTOTrainer.get_batch_logps(logits, labels)
    return {"logits": logits.tolist(), "labels": labels.tolist(), "log_probabilities": summed.tolist()}


def main() -> None:
    """Call TRL and write the file."""
    generator = torch.Generator().manual_seed(0)
    made = {
        "versions": {name: importlib.metadata.version(name) for name in ("trl", "transformers", "torch")},
        "kto": {name: kto(generator, *case) for name, case in CASES.items()},
        "dpo": dpo(generator, 0.1),
        "summed": summed(generator),
    }
    file = Path(__file__).with_name("trl.json")
    file.write_text(json.dumps(made, separators=(",", ":")) + "\n", "utf-8")


if __name__ == "__main__":
    main()
