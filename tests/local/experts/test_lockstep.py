"""What the decode loop draws with experts has the distribution that the definition says."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_expert_sampling import DRAWS, EOS, PAIRS, PROMPTS, SIZE, TEMPERATURE, TOP_P, expected, p_value  # noqa: E402

from mpf_chains.local.decoding import decode  # noqa: E402
from mpf_chains.local.experts import ExpertEnsemble  # noqa: E402
from mpf_chains.local.experts.lockstep import Lockstep  # noqa: E402
from mpf_chains.local.sampling import Sampling  # noqa: E402

SAMPLERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "last": {"temperature": TEMPERATURE, "top_p": TOP_P},
    "base_first": {"temperature": TEMPERATURE, "top_p": TOP_P, "filter": "base_first"},
}


class Draw:
    """A row of two tokens."""

    def __init__(self, prompt: list[int], sampling: Sampling, uniforms: Any) -> None:
        self.prompt, self.sampling, self.uniforms = prompt, sampling, uniforms
        self.tokens: list[int] = []

    def push(self, token: int) -> bool:
        self.tokens.append(token)
        return token == EOS or len(self.tokens) == 2


@pytest.fixture(params=["on a small model", "on the base"])
def setting(few_words: Any, request: pytest.FixtureRequest) -> Any:
    if request.param == "on a small model":
        return few_words
    small = few_words.small
    return type(few_words)(small, small, few_words.tokenizer, few_words.folders, few_words.copies)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_draws_follow_the_definition(setting: Any, kind: str) -> None:
    """Of padded rows, in a batch with a row of each kind."""
    on_base = setting.base is setting.small
    ensemble = ExpertEnsemble([setting.pair(), setting.pair("race", "e2", None)], untuned=on_base)
    generator = np.random.default_rng(0)
    alphas = tuple(alpha for _, _, alpha in PAIRS)
    prompt, longer = PROMPTS[1], PROMPTS[0]
    rows = [
        Draw(prompt, Sampling(**SAMPLERS[kind], alphas=alphas), generator.random(2, dtype=np.float32))
        for _ in range(DRAWS)
    ]
    others = [Draw(longer, Sampling(**each, alphas=alphas), np.zeros(2, np.float32)) for each in SAMPLERS.values()]
    strengths = torch.tensor([alphas] * len(rows) + [[1.0, 0.0]] * len(others))
    decode(setting.base, [*rows, *others], source=Lockstep(setting.base, ensemble, [*rows, *others], strengths, SIZE))
    drawn = Counter((*row.tokens, 0)[:2] for row in rows)
    assert p_value(drawn, expected(setting, prompt, kind)) > 1e-3
    assert p_value(drawn, expected(setting, prompt, kind, PAIRS[:1])) < 1e-6  # the test has power


def test_a_forced_opening_is_chosen_by_the_corrected_law(setting: Any) -> None:
    """Where the base's nucleus comes first, it is the nucleus of what openings allow."""
    ensemble = ExpertEnsemble([setting.pair()], untuned=setting.base is setting.small)
    openings = ((3, 5), (4, 6))
    for prompt, alpha in product(([1, 3, 5, 4], [1, 6], [5, 5], [2]), (2.0, -2.0)):
        rows = [
            Draw(prompt, Sampling(temperature=0, alphas=(alpha,), openings=openings, **more), np.zeros(2, np.float32))
            for more in ({}, {"filter": "base_first", "top_p": 1e-6})
        ]
        strengths = torch.tensor([[alpha]] * 2)
        decode(setting.base, rows, source=Lockstep(setting.base, ensemble, rows, strengths, SIZE))
        laws = [setting.definition(prompt, pairs) for pairs in ([("e1", "a1", alpha)], [])]
        assert [tuple(row.tokens) for row in rows] == [openings[int(law[4] > law[3])] for law in laws]
