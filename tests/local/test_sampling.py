from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from mpf_chains.errors import InvalidInput
from mpf_chains.local.sampling import Sampling, pick

torch = pytest.importorskip("torch")


def frequencies(logits: list[float], sampling: Sampling, n: int = 2000) -> list[float]:
    """Share of each token over an even grid of the random number: exact up to 1/n."""
    grid = (torch.arange(n) + 0.5) / n
    tokens = pick(torch.tensor([logits]).expand(n, -1), [sampling] * n, grid)
    return (torch.bincount(tokens, minlength=len(logits)) / n).tolist()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.1, 0.5, 0.15, 0.25]),
        (Sampling(temperature=0), [0, 1, 0, 0]),
        (Sampling(top_k=2), [0, 2 / 3, 0, 1 / 3]),
        (Sampling(top_p=0.6), [0, 2 / 3, 0, 1 / 3]),
        (Sampling(top_p=0.5), [0, 1, 0, 0]),
        (Sampling(top_k=3, top_p=0.8), [0, 2 / 3, 0, 1 / 3]),
        (Sampling(temperature=0.5), [0.1**2 / 0.345, 0.5**2 / 0.345, 0.15**2 / 0.345, 0.25**2 / 0.345]),
    ],
)
def test_tokens_come_with_their_probabilities(sampling: Sampling, expected: list[float]) -> None:
    logits = np.log([0.1, 0.5, 0.15, 0.25]).tolist()
    assert frequencies(logits, sampling) == pytest.approx(expected, abs=1.1e-3)


def test_a_nucleus_wider_than_the_first_candidates_is_exact() -> None:
    shares = frequencies([0.0] * 3000, Sampling(top_p=0.5), n=3000)
    assert sum(share > 0 for share in shares) == pytest.approx(1500, abs=2)  # ties, and rounding of the cumulative sum


def test_rows_do_not_see_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, uniforms = torch.randn(5, 900, generator=generator), torch.rand(5, generator=generator)
    rows = [Sampling(), Sampling(temperature=0), Sampling(top_k=7), Sampling(top_p=0.9), Sampling(0.3, 50, 0.5)]
    alone = [pick(logits[i : i + 1], rows[i : i + 1], uniforms[i : i + 1]).item() for i in range(5)]
    assert pick(logits, rows, uniforms).tolist() == alone


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf")]] * 2)
    edges = torch.tensor([0.0, 1 - 2**-24])
    for row in (Sampling(), Sampling(top_k=3), Sampling(top_p=0.99)):
        assert pick(logits, [row] * 2, edges).tolist() == [1, 1]


def test_a_stream_depends_on_seed_and_prompt_only() -> None:
    stream = Sampling(seed=3).uniforms([1, 2], 8)
    assert stream[:4].tolist() == Sampling(temperature=0.2, seed=3).uniforms([1, 2], 4).tolist()
    assert stream.tolist() != Sampling(seed=4).uniforms([1, 2], 8).tolist()
    assert stream.tolist() != Sampling(seed=3).uniforms([1, 3], 8).tolist()
    assert Sampling().uniforms([1, 2], 8).tolist() != Sampling().uniforms([1, 2], 8).tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": "1"}, {"temperature": 10**400}, {"top_k": 2.5}, {"top_k": True}, {"top_p": None},
        {"seed": "x"}, {"top_logprobs": "3"}, {"top_logprobs": 2.5}, {"filter": ["last"]}, {"alphas": 1.0},
        {"alphas": (10**400,)}, {"alphas": ("1",)},
    ],
)  # fmt: skip
def test_values_of_another_type_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=f"`{next(iter(wrong))}`"):
        Sampling(**wrong)


def test_every_kind_of_number_is_taken() -> None:
    given = Sampling(
        np.float32(0.5), np.int64(3), Fraction(1, 2), np.int64(7), alphas=(np.float32(0.5), Fraction(1, 4))
    )
    assert given == Sampling(0.5, 3, 0.5, 7, alphas=(0.5, 0.25))
    assert pick(torch.zeros(1, 5), [given], torch.zeros(1)).shape == (1,)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0}])
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        Sampling(**wrong)
