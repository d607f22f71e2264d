"""Rows that choose differently in one batch of speculative decoding: each gets what it would get alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mpf_chains.errors import GenerationError, InvalidInput  # noqa: E402
from mpf_chains.local.experts import ExpertEnsemble, ExpertPair  # noqa: E402
from mpf_chains.local.experts.speculation.decoder import SpeculativeDecoder  # noqa: E402
from mpf_chains.local.sampling import Sampling  # noqa: E402

EOS, STEPS = 2, 14
GREEDY = Sampling(temperature=0)
WAYS = [
    replace(GREEDY, alphas=(0.6, 0.0)),
    Sampling(seed=1, alphas=(0.0, -0.5)),
    Sampling(seed=1, alphas=(0.0, 0.5)),
    Sampling(temperature=0.7, top_k=6, top_p=0.8, seed=2, alphas=(0.4, 0.4)),
    Sampling(temperature=1.2, top_p=0.7, seed=3, filter="base_first", alphas=(0.6, 0.2)),
    Sampling(top_p=0.9, seed=4),
    replace(GREEDY, alphas=(-0.3, 0.3), top_p=0.5, filter="base_first"),
]
PROMPTS = [[1, 7, 9, 4, 20, 11], [1, 5], [1, 5], [1, 25, 8, 13], [1, 3], [1, 25, 8, 13], [1, 18, 6]]


class Text:
    """A row that ends with an end token, or when it has had enough."""

    def __init__(self, prompt: Sequence[int], sampling: Sampling, most: int = STEPS, enough: int = 99) -> None:
        self.prompt, self.sampling, self.enough = prompt, sampling, enough
        self.uniforms = np.zeros(most, dtype=np.float32)
        self.tokens: list[int] = []
        self.noted: list[tuple[float, list[tuple[int, float]]]] = []
        self.cycles: list[tuple[int, int, int]] = []
        self.failure: BaseException | None = None

    def push(self, token: int) -> bool:
        self.tokens.append(token)
        return self.failure is not None or token == EOS or len(self.tokens) >= min(self.enough, len(self.uniforms))

    def note(self, logprob: float, top: list[tuple[int, float]]) -> None:
        assert len(self.noted) == len(self.tokens)
        self.noted.append((logprob, top))

    def cycle(self, *, drafted: int, accepted: int, fallback: str | None) -> None:
        self.cycles.append((len(self.tokens), drafted, accepted))

    def fail(self, error: BaseException) -> None:
        self.failure = error


def mixed() -> list[Text]:
    return [Text(prompt, way, most=STEPS - i) for i, (prompt, way) in enumerate(zip(PROMPTS, WAYS, strict=True))]


def decoder_of(setting: Any, draft: Any, length: int | None = 3) -> SpeculativeDecoder:
    """A base that often agrees with the small model, and two pairs."""
    base = copy.deepcopy(setting.small)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in base.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05 * float(weight.std()))
    pairs = [setting.pair(), setting.pair("race", "e2", None)]
    return SpeculativeDecoder(base, ExpertEnsemble(pairs), setting.tokenizer, draft=draft, draft_length=length)


@pytest.mark.parametrize("draft", ["small", "prompt_lookup"])
def test_each_row_gets_what_it_gets_alone_whatever_is_drafted(setting: Any, draft: Any) -> None:
    alone = mixed()
    one_by_one = decoder_of(setting, draft, 0)
    for row in alone:
        assert one_by_one.decode([row]).tokens == [row.tokens]
    for length in (0, 2, 5, None):
        rows = mixed()
        done = decoder_of(setting, draft, length).decode(rows)
        assert [row.tokens for row in rows] == done.tokens == [row.tokens for row in alone]
        assert not length or done.accepted > 0 < done.rejected
    assert alone[1].tokens != alone[2].tokens  # one prompt, one seed, two strengths


def test_greedy_rows_of_unlike_strengths_are_the_definition(setting: Any) -> None:
    decoder = decoder_of(setting, None)
    true = type(setting)(decoder.base.model, setting.small, setting.tokenizer, setting.folders, setting.copies)
    strengths = [(0.6, 0.0), (0.0, 0.0), (-0.3, 0.8), (0.6, 0.0)]
    rows = [Text(PROMPTS[i], replace(GREEDY, alphas=each)) for i, each in enumerate(strengths)]
    decoder.decode(rows)
    for row, (one, two) in zip(rows, strengths, strict=True):
        assert row.tokens == true.greedy(row.prompt, [("e1", "a1", one), ("e2", "small", two)], STEPS)


def test_pairs_without_strength_are_not_read(llama: Any, shapes: Any) -> None:
    """All rows at 0: the untuned small model drafts alone, and texts are the base model's."""
    decoder = decoder_of(llama, None)
    decoder.decode([Text(PROMPTS[0], GREEDY)])  # whether its head is linear has been tried then
    read = shapes(llama.small.get_input_embeddings())
    for alphas, variants in (((), 1), ((0.0, 0.0), 1), ((0.5, 0.0), 3), ((0.0, 0.5), 2), ((0.5, 0.5), 4)):
        row = Text(PROMPTS[0], replace(GREEDY, alphas=alphas))
        done = decoder.decode([row])
        assert {rows for rows, _ in read} == {variants}
        read.clear()
        if not any(alphas):
            ids = torch.tensor([row.prompt])
            base = decoder.base.model.generate(ids, do_sample=False, max_new_tokens=STEPS, pad_token_id=0)
            assert base[0, ids.shape[1] :].tolist() == row.tokens
            assert done.accepted > 0


def test_a_row_ends_where_it_says_so_and_nothing_behind_counts(llama: Any) -> None:
    decoder = SpeculativeDecoder(
        llama.small, ExpertEnsemble([llama.pair()]), llama.tokenizer, draft="small", draft_length=4
    )
    sampling = Sampling(seed=0, alphas=(0.3,))
    whole = Text(PROMPTS[0], sampling, most=11)
    decoder.decode([whole])
    assert len(whole.tokens) == 11 and EOS not in whole.tokens
    first, second = Text(PROMPTS[0], sampling, most=11, enough=7), Text(PROMPTS[0], sampling, most=2)
    done = decoder.decode([first, second])
    assert first.tokens == whole.tokens[:7] and second.tokens == whole.tokens[:2]
    assert first.cycles == [(0, 4, 4), (5, 4, 4)] and second.cycles == [(0, 4, 4)]
    assert done.accepted == 4 + 2 + 2 and done.tokens == [first.tokens, second.tokens]


def test_what_a_token_was_worth_is_told_before_it_comes(setting: Any) -> None:
    """Of the law before temperature and filters, also inside drafts; rows that do not ask hear nothing."""
    decoder = decoder_of(setting, None)
    true = type(setting)(decoder.base.model, setting.small, setting.tokenizer, setting.folders, setting.copies)
    way = Sampling(temperature=0.7, top_k=5, seed=1, top_logprobs=2, alphas=(0.5, 0.0))
    asking, silent = Text(PROMPTS[0], way), Text(PROMPTS[1], replace(way, top_logprobs=None))
    assert decoder.decode([silent, asking]).accepted > 0
    assert not silent.noted and len(asking.noted) == len(asking.tokens)
    for i, (logprob, top) in enumerate(asking.noted):
        law = true.definition([*asking.prompt, *asking.tokens[:i]], [("e1", "a1", 0.5)]).log_softmax(-1)
        assert logprob == pytest.approx(float(law[asking.tokens[i]]), abs=1e-3)
        assert [token for token, _ in top] == law.topk(2).indices.tolist()


def test_texts_begin_as_they_must(setting: Any) -> None:
    way = Sampling(seed=1, alphas=(0.5, 0.0), openings=((9, 4, 7), (9, 5)))
    rows = [Text(PROMPTS[0], way), Text(PROMPTS[1], replace(way, top_p=0.5, filter="base_first")), Text([1], GREEDY)]
    for draft in ("small", "prompt_lookup"):
        decoder_of(setting, draft).decode(rows)
        assert all(tuple(row.tokens[:3]) == (9, 4, 7) or tuple(row.tokens[:2]) == (9, 5) for row in rows[:2])
        assert len(rows[2].tokens) > 3
        rows = [Text(row.prompt, row.sampling) for row in rows]


@pytest.mark.parametrize("draft", ["small", "prompt_lookup"])
def test_strengths_out_of_bounds_end_their_row_alone(setting: Any, draft: Any) -> None:
    bad = Text(PROMPTS[1], replace(GREEDY, alphas=(3e38, 0.0)))
    good, same = (Text(PROMPTS[0], WAYS[0]) for _ in range(2))
    decoder_of(setting, draft).decode([bad, good])
    decoder_of(setting, draft).decode([same])
    assert isinstance(bad.failure, GenerationError) and "alpha" in str(bad.failure) and len(bad.tokens) == 1
    assert good.failure is None and good.tokens == same.tokens


@pytest.mark.parametrize("draft", ["small", "prompt_lookup"])
def test_a_pair_that_is_not_finite_at_any_strength_is_named(setting: Any, draft: Any) -> None:
    broken = copy.deepcopy(setting.small)
    broken.lm_head.weight.data[3] = float("nan")
    pairs = [
        setting.pair("race", "e2", None),
        ExpertPair("gender", broken, base=setting.small, tokenizer=setting.tokenizer),
    ]
    row = Text(PROMPTS[1], replace(GREEDY, alphas=(0.5, 1e-6)))
    SpeculativeDecoder(setting.base, ExpertEnsemble(pairs), setting.tokenizer, draft=draft).decode([row])
    assert str(row.failure).startswith(
        "The experts' logits are not all finite, whatever alpha is: those of pair 'gender'."
    )


def test_a_short_prompt_may_be_padded_beyond_the_context(setting: Any, make_model: Any) -> None:
    """What counts is the text: 3 + 29 tokens beside a prompt of 30, in a context of 32."""
    base = make_model("gpt2", 1, width=48, context=32)
    decoder = SpeculativeDecoder(base, ExpertEnsemble([setting.pair()]), setting.tokenizer, draft_length=3)
    assert decoder.context == 32
    way = replace(GREEDY, alphas=(0.5,))
    rows = [Text(PROMPTS[1] + [4], way, most=29), Text([1, *range(3, 26), 4, 5, 6, 7, 8, 9], way, most=2)]
    decoder.decode(rows)
    alone = Text(rows[0].prompt, way, most=29)
    decoder.decode([alone])
    assert alone.tokens == rows[0].tokens and (rows[0].tokens[-1] == EOS or len(rows[0].tokens) == 29)
    with pytest.raises(InvalidInput, match="33 tokens"):
        decoder.decode([Text([5] * 33, way, most=2)])


def test_rows_have_prompts_and_strengths_that_fit_the_pairs(llama: Any) -> None:
    decoder, three = decoder_of(llama, None), replace(GREEDY, alphas=(1.0, 1.0, 1.0))
    for rows, message in (([Text([1], three)], "3 strengths.*2 pairs"), ([], "row"), ([Text([], GREEDY)], "prompt")):
        with pytest.raises(InvalidInput, match=message):
            decoder.decode(rows)
