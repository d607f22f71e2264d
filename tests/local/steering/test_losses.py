"""The losses agree with TRL's on fixed tensors, and stay finite at their edges (fault 35)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from mpf_chains.errors import InvalidInput  # noqa: E402
from mpf_chains.local.steering.training.losses import IGNORE, dpo, kl_to_target, kto, log_probabilities_of  # noqa: E402

TRL = json.loads(Path(__file__).with_name("trl.json").read_text("utf-8"))


def exact(values: Any) -> Any:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("case", TRL["kto"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_kto_is_that_of_trl(case: str, dtype: str) -> None:
    given = TRL["kto"][case]
    names = ("policy", "reference", "mismatched", "mismatched_reference")
    policy, reference, other, other_reference = (exact(given[name]).to(getattr(torch, dtype)) for name in names)
    policy.requires_grad_()
    desirable = torch.tensor(given["desirable"], dtype=torch.bool)
    found = kto(policy, reference, desirable, other, other_reference, beta=given["beta"], weights=given["weights"])
    found.loss.backward()
    near = 1e-12 if dtype == "float64" else 1e-6
    assert found.loss.item() == pytest.approx(given["loss"], abs=near)
    assert found.z_ref.item() == pytest.approx(given["z_ref"], rel=near, abs=1e-4 if dtype == "float32" else 1e-12)
    assert policy.grad.tolist() == pytest.approx(given["gradient"], abs=near)
    assert not found.z_ref.requires_grad


def test_dpo_is_that_of_trl() -> None:
    given = TRL["dpo"]
    policy = [exact(each).requires_grad_() for each in given["policy"]]
    loss = dpo(*policy, *map(exact, given["reference"]), beta=given["beta"])
    loss.backward()
    assert loss.item() == pytest.approx(given["loss"], abs=1e-12)
    for each, wanted in zip(policy, given["gradient"], strict=True):
        assert each.grad.tolist() == pytest.approx(wanted, abs=1e-12)


def test_log_probabilities_of_responses_are_those_of_trl() -> None:
    given = TRL["summed"]
    logits, labels = exact(given["logits"]), torch.tensor(given["labels"])
    found = log_probabilities_of(logits[:, :-1], labels[:, 1:])
    assert found.tolist() == pytest.approx(given["log_probabilities"], abs=1e-12)
    assert log_probabilities_of(logits, torch.full((3, 6), IGNORE)).tolist() == [0, 0, 0]


def test_35_kto_of_one_row_is_refused() -> None:
    one = torch.zeros(1)
    with pytest.raises(InvalidInput, match=r"1 rows.*micro-batch of at least 2"):
        kto(one, one, torch.tensor([True]), one, one)
    with pytest.raises(InvalidInput, match="0 mismatched pairs"):
        kto(torch.zeros(2), torch.zeros(2), torch.tensor([True, False]), torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize("desirable", [[True] * 3, [False] * 3, [True, False, True]])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_35_odd_and_one_sided_batches_are_finite(desirable: list[bool], size: float) -> None:
    policy = (torch.tensor([-3.0, -1.0, -2.0]) * size).requires_grad_()
    scores = torch.randn(3, 2, requires_grad=True)
    wanted = torch.tensor(desirable)
    loss = kto(policy, torch.tensor([-2.0, -2.0, -2.0]), wanted, policy.roll(1), torch.zeros(3)).loss
    kl = kl_to_target(scores.log_softmax(-1), torch.tensor([[1.0, 0.0]] * 3), wanted)
    (loss + kl).backward()
    assert loss.isfinite() and policy.grad.isfinite().all()
    assert kl.isfinite() and scores.grad.isfinite().all()
    assert (scores.grad.abs().sum(1) > 0).tolist() == desirable


def test_the_kl_part_is_its_definition_over_the_whole_vocabulary() -> None:
    logits = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    target = exact([[0.7, 0.3], [0.5, 0.5], [1.0, 0.0], [0.2, 0.8]])
    desirable = torch.tensor([True, True, True, False])
    loss = kl_to_target(logits.log_softmax(-1)[:, [3, 5]], target, desirable)
    shares = logits.detach().softmax(-1)
    by_hand = [sum(p * (p / q).log() for p, q in zip(target[i], shares[i, [3, 5]], strict=True) if p) for i in range(3)]
    assert loss.item() == pytest.approx(float(sum(by_hand)) / 3, abs=1e-12)
    loss.backward()
    assert (logits.grad[:3, [0, 1, 2, 4, 6, 7, 8]] > 0).all()  # mass elsewhere is punished
    never = torch.tensor([[0.0, float("-inf")]], requires_grad=True)
    kl_to_target(never, torch.tensor([[1.0, 0.0]]), torch.tensor([True])).backward()
    assert never.grad.isfinite().all()
