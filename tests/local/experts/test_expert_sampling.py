"""What is drawn has the distribution that the definition says: all texts of two tokens, 20,000 draws per prompt."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

torch = pytest.importorskip("torch")

from mpf_chains.local.experts import ExpertLogitsProcessor  # noqa: E402

DRAWS, PAD, EOS, SIZE = 20_000, 0, 2, 7
PROMPTS = [[1, 3, 5, 4], [1, 6]]
PAIRS = [("e1", "a1", 0.5), ("e2", "small", -0.3)]
TOP_P, TEMPERATURE = 0.75, 0.8


def kept(logits: Any, top_p: float) -> Any:
    """Logits of the most probable tokens whose probability reaches ``top_p``; the others are −inf."""
    values, order = logits.softmax(-1).sort(descending=True)
    count = int((values.cumsum(-1) < top_p).sum()) + 1
    return torch.full_like(logits, -torch.inf).scatter(0, order[:count], logits[order[:count]])


def law(setting: Any, ids: list[int], kind: str, pairs: Any = PAIRS) -> Any:
    """Probabilities of the next token by the definition; the sampler has temperature, and top-p for "last"."""
    logits = setting.definition(ids, pairs)
    if kind == "base_first":
        base = kept(setting.definition(ids, []), TOP_P)
        return (logits.masked_fill(base == -torch.inf, -torch.inf) / TEMPERATURE).softmax(-1)
    return (kept(logits / TEMPERATURE, TOP_P) if kind == "last" else logits).softmax(-1)


def expected(setting: Any, prompt: list[int], kind: str, pairs: Any = PAIRS) -> dict[tuple[int, int], float]:
    first = law(setting, prompt, kind, pairs)
    second = [law(setting, [*prompt, token], kind, pairs) for token in range(SIZE)]
    texts = {(a, b): float(first[a] * second[a][b]) for a, b in product(range(SIZE), repeat=2) if a != EOS}
    return texts | {(EOS, PAD): float(first[EOS])}


def p_value(counts: dict[tuple[int, int], int], law: dict[tuple[int, int], float]) -> float:
    """Of a chi-square test; texts that are expected fewer than five times count as one."""
    if any(law.get(text, 0) == 0 for text in counts):
        return 0.0
    often = [text for text in law if DRAWS * law[text] >= 5]
    observed = [counts.get(text, 0) for text in often]
    shares = [law[text] for text in often]
    if DRAWS * (1 - sum(shares)) > 1:
        observed.append(DRAWS - sum(observed))
        shares.append(1 - sum(shares))
    return float(chisquare(observed, np.array(shares) / sum(shares) * sum(observed)).pvalue)


@pytest.mark.parametrize("kind", ["plain", "last", "base_first"])
def test_draws_follow_the_definition(few_words: Any, kind: str) -> None:
    pairs = [few_words.pair(alpha=0.5), few_words.pair("race", "e2", None, alpha=-0.3)]
    ids = torch.tensor([PROMPTS[0], [PAD, PAD, *PROMPTS[1]]])
    mask = (ids != PAD).long()
    first = {"filter": "base_first", "top_p": TOP_P} if kind == "base_first" else {}
    processor = ExpertLogitsProcessor(pairs, few_words.tokenizer, attention_mask=mask, **first)
    sampler = {"temperature": 1.0 if kind == "plain" else TEMPERATURE, "top_p": TOP_P if kind == "last" else 1.0}
    torch.manual_seed(0)
    out = few_words.base.generate(
        input_ids=ids, attention_mask=mask, logits_processor=[processor], do_sample=True, max_new_tokens=2,
        num_return_sequences=DRAWS, pad_token_id=PAD, top_k=0, **sampler,
    )[:, 4:].tolist()  # fmt: skip
    for i, prompt in enumerate(PROMPTS):
        texts, counts = np.unique(out[i * DRAWS : (i + 1) * DRAWS], axis=0, return_counts=True)
        drawn = {(int(a), int(b)): int(n) for (a, b), n in zip(texts, counts, strict=True)}
        assert p_value(drawn, expected(few_words, prompt, kind)) > 1e-3
        assert p_value(drawn, expected(few_words, prompt, kind, PAIRS[:1])) < 1e-6  # the test has power
