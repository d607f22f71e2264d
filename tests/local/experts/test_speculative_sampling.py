"""What speculative decoding draws has the distribution that the definition says: three tokens, 20,000 draws."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

torch = pytest.importorskip("torch")

from mpf_chains.local.experts import ExpertEnsemble  # noqa: E402
from mpf_chains.local.experts.speculation.decoder import SpeculativeDecoder  # noqa: E402
from mpf_chains.local.experts.speculation.law import Laws  # noqa: E402
from mpf_chains.local.sampling import Sampling, pick  # noqa: E402

DRAWS, EOS, STEPS = 20_000, 2, 3
PROMPTS = {"small": [[1, 3, 5, 4], [1, 6]], "prompt_lookup": [[4, 1, 3, 4], [3, 1, 3]]}
STRENGTHS = [(0.5, -0.3), (-0.4, 0.6)]
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


class Definition:
    """Laws of the next token by their definition: every model over the whole text, no cache."""

    def __init__(self, setting: Any) -> None:
        self.models = {"base": setting.base} | setting.copies
        self.known: dict[tuple[int, ...], dict[str, Any]] = {}

    def logits(self, ids: tuple[int, ...]) -> dict[str, Any]:
        if ids not in self.known:
            with torch.no_grad():
                each = {name: model(torch.tensor([ids])).logits[0, -1] for name, model in self.models.items()}
            self.known[ids] = each
        return self.known[ids]

    def next_token(self, ids: tuple[int, ...], kind: str, pairs: Any) -> Any:
        z = self.logits(ids)
        logits = z["base"] + sum(alpha * (z[expert] - z[anti]) for expert, anti, alpha in pairs)
        if kind == "base_first":
            logits = logits.masked_fill(kept(z["base"], 0.75) == -torch.inf, -torch.inf)
        logits = logits / SAMPLERS[kind].get("temperature", 1)
        if kind == "top_k":
            logits = logits.masked_fill(logits < logits.sort().values[-4], -torch.inf)
        return (kept(logits, 0.75) if kind == "last" else logits).softmax(-1)


def texts(definition: Definition, prompt: list[int], kind: str, pairs: Any) -> dict[tuple[int, ...], float]:
    whole: dict[tuple[int, ...], float] = {}
    open_ones: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(STEPS):
        longer: dict[tuple[int, ...], float] = {}
        for text, mass in open_ones.items():
            for token, share in enumerate(definition.next_token((*prompt, *text), kind, pairs).tolist()):
                (whole if token == EOS else longer)[(*text, token)] = mass * share
        open_ones = longer
    return whole | open_ones


def p_value(drawn: list[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> float:
    """Of a chi-square test; texts that are expected fewer than five times count as one."""
    counts = Counter(drawn)
    if any(law.get(text, 0) == 0 for text in counts):
        return 0.0
    often = [text for text in law if len(drawn) * law[text] >= 5]
    observed = [counts.get(text, 0) for text in often]
    shares = [law[text] for text in often]
    if len(drawn) * (1 - sum(shares)) > 1:
        observed.append(len(drawn) - sum(observed))
        shares.append(1 - sum(shares))
    return float(chisquare(observed, np.array(shares) / sum(shares) * sum(observed)).pvalue)


class Text:
    """A row that counts itself."""

    def __init__(self, prompt: list[int], sampling: Sampling) -> None:
        self.prompt, self.sampling, self.uniforms = prompt, sampling, np.zeros(STEPS, dtype=np.float32)
        self.tokens: tuple[int, ...] = ()

    def push(self, token: int) -> bool:
        self.tokens += (token,)
        return token == EOS

    def cycle(self, **_: Any) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["small", "prompt_lookup"])
def test_draws_follow_the_definition(few_words: Any, draft: Any) -> None:
    """Rows of all filters, and of both signs of the strengths, in one batch, shuffled."""
    pairs = [few_words.pair(), few_words.pair("race", "e2", None)]
    decoder = SpeculativeDecoder(
        few_words.base, ExpertEnsemble(pairs), few_words.tokenizer, draft=draft, draft_length=2
    )
    kinds = SAMPLERS if draft == "small" else ["plain", "plain"]
    cells = [(kind, PROMPTS[draft][i % 2], STRENGTHS[i % 2]) for i, kind in enumerate(kinds)]
    rows = [
        Text(prompt, Sampling(seed=seed, alphas=way, **SAMPLERS[kind]))
        for kind, prompt, way in cells for seed in range(DRAWS)
    ]  # fmt: skip
    done = decoder.decode([rows[i] for i in np.random.default_rng(0).permutation(len(rows))])
    assert done.accepted > len(rows) / 100 and done.rejected > len(rows) / 2
    definition = Definition(few_words)
    for i, (kind, prompt, (one, two)) in enumerate(cells):
        drawn = [row.tokens for row in rows[i * DRAWS : (i + 1) * DRAWS]]
        strengths = [("e1", "a1", one), ("e2", "small", two)]
        assert p_value(drawn, texts(definition, prompt, kind, strengths)) > 1e-3
        assert p_value(drawn, texts(definition, prompt, kind, strengths[:1])) < 1e-6  # the test has power


def test_a_law_is_what_plain_decoding_picks_from() -> None:
    """The same uniform number gives the same token, whatever the row keeps and whichever columns it has."""
    rows = [Sampling(**sampler) for sampler in SAMPLERS.values() if "filter" not in sampler] + [Sampling(temperature=0)]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(rows), 5, 40, generator=generator).masked_fill(torch.arange(40) % 7 == 0, -torch.inf)
    uniforms = torch.rand(len(rows), 5, generator=generator)
    laws = Laws(rows, 37)
    drawn = laws.draw(laws.probabilities(logits, torch.zeros(len(rows), 5, 38)), uniforms)
    for column in range(5):
        assert drawn[:, column].tolist() == pick(logits[:, column, :37], rows, uniforms[:, column]).tolist()


def test_a_draft_from_any_law_becomes_a_draw_from_the_target() -> None:
    """Also one that cannot give what the target wants, or that gives what the target rules out."""
    generator = torch.Generator().manual_seed(0)
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    p = torch.tensor([*shares, 0.0]).float().log()
    laws = [p, torch.tensor([0.0, 0.0, 0.1, 0.5, 0.4]).log(), torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]).log()]
    for q in laws:
        rule, uniforms = Laws([Sampling()] * DRAWS, 5), torch.rand(DRAWS, 1, 3, generator=generator)
        target, law = (scores.exp().expand(DRAWS, 1, 5) for scores in (p, q))
        drafts = rule.draw(law, uniforms[..., 0])
        tokens, accepted = rule.settle(target, law, drafts, uniforms[..., 1:])
        counts = tokens.flatten().bincount(minlength=5).tolist()
        assert counts[4] == 0 and chisquare(counts[:4], DRAWS * shares).pvalue > 1e-3
        assert float(accepted.double().mean()) == pytest.approx(float(torch.minimum(p.exp(), q.exp()).sum()), abs=0.02)
