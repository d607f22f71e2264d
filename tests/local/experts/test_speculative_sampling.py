"""What speculative decoding draws has the distribution that the definition says: three tokens, 20,000 draws."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

torch = pytest.importorskip("torch")

from mpf_chains.local.experts import ExpertEnsemble  # noqa: E402
from mpf_chains.local.experts.law import Law  # noqa: E402
from mpf_chains.local.experts.speculative import SpeculativeDecoder  # noqa: E402

DRAWS, PAD, EOS, SIZE, STEPS = 20_000, 0, 2, 7, 3
PROMPTS = {"small": [[1, 3, 5, 4], [1, 6]], "prompt_lookup": [[4, 1, 3, 4], [3, 1, 3]]}
PAIRS = [("e1", "a1", 0.5), ("e2", "small", -0.3)]
SAMPLERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "last": {"temperature": 0.8, "top_p": 0.75},
    "base_first": {"temperature": 0.8, "top_p": 0.75, "filter": "base_first"},
    "top_k": {"temperature": 1.3, "top_k": 4},
}


def kept(logits: Any, top_p: float) -> Any:
    """Logits of the most probable tokens whose probability reaches ``top_p``; the others are −inf."""
    values, order = logits.softmax(-1).sort(descending=True)
    count = int((values.cumsum(-1) < top_p).sum()) + 1
    return torch.full_like(logits, -torch.inf).scatter(0, order[:count], logits[order[:count]])


def next_token(setting: Any, ids: list[int], kind: str, pairs: Any) -> Any:
    """Probabilities by the definition: every model over the whole text, no cache."""
    logits = setting.definition(ids, pairs)
    if kind == "base_first":
        logits = logits.masked_fill(kept(setting.definition(ids, []), 0.75) == -torch.inf, -torch.inf)
    logits = logits / SAMPLERS[kind].get("temperature", 1)
    if kind == "top_k":
        logits = logits.masked_fill(logits < logits.sort().values[-4], -torch.inf)
    return (kept(logits, 0.75) if kind == "last" else logits).softmax(-1)


def texts(setting: Any, prompt: list[int], kind: str, pairs: Any) -> dict[tuple[int, ...], float]:
    whole: dict[tuple[int, ...], float] = {}
    open_ones: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(STEPS):
        longer: dict[tuple[int, ...], float] = {}
        for text, mass in open_ones.items():
            for token, share in enumerate(next_token(setting, [*prompt, *text], kind, pairs).tolist()):
                (whole if token == EOS else longer)[(*text, token)] = mass * share
        open_ones = longer
    return whole | open_ones


def p_value(drawn: list[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> float:
    """Of a chi-square test; texts that are expected fewer than five times count as one."""
    counts = {text: drawn.count(text) for text in set(drawn)}
    if any(law.get(text, 0) == 0 for text in counts):
        return 0.0
    often = [text for text in law if len(drawn) * law[text] >= 5]
    observed = [counts.get(text, 0) for text in often]
    shares = [law[text] for text in often]
    if len(drawn) * (1 - sum(shares)) > 1:
        observed.append(len(drawn) - sum(observed))
        shares.append(1 - sum(shares))
    return float(chisquare(observed, np.array(shares) / sum(shares) * sum(observed)).pvalue)


@pytest.mark.parametrize(("kind", "draft"), [*product(SAMPLERS, ["small"]), ("plain", "prompt_lookup")])
def test_draws_follow_the_definition(few_words: Any, kind: str, draft: Any) -> None:
    pairs = [few_words.pair(alpha=0.5), few_words.pair("race", "e2", None, alpha=-0.3)]
    decoder = SpeculativeDecoder(
        few_words.base, ExpertEnsemble(pairs), few_words.tokenizer, draft=draft, draft_length=2
    )
    prompts = PROMPTS[draft]
    rows = [[PAD] * (4 - len(prompt)) + prompt for prompt in prompts]
    ids = torch.tensor(rows).repeat_interleave(DRAWS, dim=0)
    done = decoder.generate(ids, (ids != PAD).long(), max_new_tokens=STEPS, seed=0, **SAMPLERS[kind])
    assert done.accepted > DRAWS / 20 and done.rejected > DRAWS
    for i, prompt in enumerate(prompts):
        drawn = [tuple(row) for row in done.tokens[i * DRAWS : (i + 1) * DRAWS]]
        assert p_value(drawn, texts(few_words, prompt, kind, PAIRS)) > 1e-3
        assert p_value(drawn, texts(few_words, prompt, kind, PAIRS[:1])) < 1e-6  # the test has power


def test_a_draft_from_any_law_becomes_a_draw_from_the_target() -> None:
    """Also one that cannot give what the target wants, or that gives what the target rules out."""
    generator = torch.Generator().manual_seed(0)
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    p = torch.tensor([*shares, 0.0]).float().log()
    laws = [p, torch.tensor([0.0, 0.0, 0.1, 0.5, 0.4]).log(), torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]).log()]
    for q in laws:
        law, uniforms = Law(5), torch.rand(DRAWS, 1, 3, generator=generator, dtype=torch.float64)
        scores = q.expand(DRAWS, 1, 5)
        drafts = law.draw(scores, uniforms[..., 0])
        tokens, accepted = law.settle(p.expand(DRAWS, 1, 5), scores, drafts, uniforms[..., 1:])
        counts = tokens.flatten().bincount(minlength=5).tolist()
        assert counts[4] == 0 and chisquare(counts[:4], DRAWS * shares).pvalue > 1e-3
        assert float(accepted.double().mean()) == pytest.approx(float(torch.minimum(p.exp(), q.exp()).sum()), abs=0.02)
