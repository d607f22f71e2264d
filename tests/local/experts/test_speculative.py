"""Speculative decoding against lockstep decoding, which is `ExpertLogitsProcessor` in ``generate``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from mpf_chains.errors import InvalidInput  # noqa: E402
from mpf_chains.local.experts import ExpertEnsemble, ExpertLogitsProcessor, ExpertPair  # noqa: E402
from mpf_chains.local.experts.speculation.decoder import SpeculativeDecoder  # noqa: E402
from mpf_chains.local.experts.speculation.drafting import DraftLength, PromptLookup  # noqa: E402

PAD, EOS, STEPS = 0, 2, 20
PROMPTS = [[1, 7, 9, 4, 20, 11], [1, 5], [1, 25, 8, 13], [1, 5]]
ALPHA = 0.6


def batch(prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    longest = max(map(len, prompts))
    ids = [[PAD] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def speculate(model: Any, ensemble: Any, tokenizer: Any, **settings: Any) -> Any:
    own = {name: settings.pop(name) for name in ("alphas", "draft", "draft_length") if name in settings}
    return SpeculativeDecoder(model, ensemble, tokenizer, **own).generate(**settings)


def lockstep(model: Any, pairs: Any, tokenizer: Any, prompts: Any, *, filtering: Any = None, **more: Any) -> Any:
    inputs = batch(prompts)
    processor = ExpertLogitsProcessor(pairs, tokenizer, attention_mask=inputs["attention_mask"], **(filtering or {}))
    arguments = dict(max_new_tokens=STEPS, do_sample=False, pad_token_id=PAD) | more
    out = model.generate(**inputs, logits_processor=[processor], **arguments)
    rows = out[:, inputs["input_ids"].shape[1] :].tolist()
    ends = more.get("eos_token_id", [EOS])
    return [row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))] for row in rows]


def like(base: Any, noise: float) -> Any:
    """A model that mostly agrees with another one."""
    model = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=noise * float(weight.std()))
    return model


@pytest.fixture
def agreeing(setting: Any) -> Any:
    """The small model, with its adapters, and a base that is nearly the same."""
    return type(setting)(like(setting.small, 0.05), setting.small, setting.tokenizer, setting.folders, setting.copies)


@pytest.mark.parametrize("length", [0, 1, 3, 8, None])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_greedy_is_lockstep(agreeing: Any, length: int | None, prompts: Any) -> None:
    pair = agreeing.pair(alpha=ALPHA)
    decoder = SpeculativeDecoder(agreeing.base, ExpertEnsemble([pair]), agreeing.tokenizer, draft_length=length)
    expected = lockstep(agreeing.base, pair, agreeing.tokenizer, prompts)
    for _ in range(2):  # the second call knows the times
        done = decoder.generate(**batch(prompts), max_new_tokens=STEPS, temperature=0)
        assert done.tokens == expected
        assert done.draft == (None if length == 0 else "small") and done.row_cycles >= done.cycles
        if length:
            assert done.accepted and (done.rejected or len(prompts) == 1) and done.tokens_per_cycle > 1
        if length == 0:
            assert done.cycles == max(map(len, expected)) and done.drafted == 0


@pytest.mark.parametrize("kind", ["last", "base_first"])
def test_greedy_rows_with_unlike_acceptance_are_lockstep(setting: Any, kind: Any) -> None:
    """A base that seldom agrees, several pairs, and an end token that some drafts run over."""
    pairs = [setting.pair(alpha=ALPHA), setting.pair("race", "e2", None, alpha=-0.4)]
    first = {"filter": kind, "top_p": 0.8} if kind == "base_first" else {}
    plain = lockstep(setting.base, pairs, setting.tokenizer, PROMPTS, filtering=first)
    ends = [EOS, plain[0][4], plain[2][9]]
    expected = lockstep(setting.base, pairs, setting.tokenizer, PROMPTS, filtering=first, eos_token_id=ends)
    for length in (2, 5):
        done = speculate(
            setting.base, ExpertEnsemble(pairs, untuned=True), setting.tokenizer, **batch(PROMPTS),
            max_new_tokens=STEPS, temperature=0, draft_length=length, eos_token_id=ends, **first,
        )  # fmt: skip
        assert done.tokens == expected
        assert len({len(row) for row in done.tokens}) > 1


def test_all_drafts_accepted(llama: Any) -> None:
    """The base is the small model: p = q, so no draft is rejected, greedy or not; each cycle gives k + 1 tokens."""
    pair = llama.pair(alpha=ALPHA)
    decoder = SpeculativeDecoder(llama.small, ExpertEnsemble([pair]), llama.tokenizer, draft="small", draft_length=4)
    for temperature in (0.0, 1.0):
        done = decoder.generate(
            **batch(PROMPTS[:1]), max_new_tokens=STEPS, temperature=temperature, seed=1, eos_token_id=[99]
        )
        assert done.rejected == 0 and done.lengths == (4,) * 4 and done.tokens_per_cycle == 5
        assert done.accepted == done.drafted == 16 and done.acceptance == 1 and done.fallback is None


def test_all_drafts_rejected(llama: Any) -> None:
    """What the base holds most likely the small model holds least likely."""
    base, pair = copy.deepcopy(llama.small), llama.pair(alpha=0.001)
    with torch.no_grad():
        base.lm_head.weight.neg_()
    expected = lockstep(base, pair, llama.tokenizer, PROMPTS)
    decoder = SpeculativeDecoder(base, ExpertEnsemble([pair]), llama.tokenizer, draft_length=3)
    done = decoder.generate(**batch(PROMPTS), max_new_tokens=STEPS, temperature=0)
    assert done.tokens == expected
    assert done.accepted == 0 and done.acceptance == 0 and done.tokens_per_cycle == 1
    assert done.rejected == sum(map(len, expected)) - len(expected)  # the last token of a row is not drafted for


def test_each_position_is_read_once_and_rejected_ones_again(agreeing: Any, shapes: Any) -> None:
    read = shapes(agreeing.base.get_input_embeddings())
    prompt = PROMPTS[2]
    pair = agreeing.pair(alpha=ALPHA)
    decoder = SpeculativeDecoder(agreeing.base, ExpertEnsemble([pair]), agreeing.tokenizer, draft_length=3)
    read.clear()
    done = decoder.generate(**batch([prompt]), max_new_tokens=STEPS, temperature=0, eos_token_id=[99])
    assert done.rejected
    assert [columns for _, columns in read[1:]] == [length + 1 for length in done.lengths[1:]]
    text = len(prompt) + STEPS - 1  # the last token is not read
    assert sum(columns for _, columns in read) == text + done.drafted - done.accepted


@pytest.mark.parametrize("on_base", [True, False])
def test_prompt_lookup_is_lockstep(setting: Any, on_base: bool) -> None:
    """Pairs on the base itself, read in one pass with it; and full experts without a small model in common."""
    if on_base:
        base, pair = setting.small, setting.pair(alpha=ALPHA)
    else:
        base = setting.base
        pair = ExpertPair("g", setting.copies["e1"], setting.copies["a1"], alpha=ALPHA, tokenizer=setting.tokenizer)
    ensemble = ExpertEnsemble([pair])
    for prompts in (PROMPTS[:1], PROMPTS):
        expected = lockstep(base, pair, setting.tokenizer, prompts, max_new_tokens=40, eos_token_id=[99])
        for length in (4, None):
            done = speculate(
                base, ensemble, setting.tokenizer, **batch(prompts), max_new_tokens=40, temperature=0,
                draft_length=length, eos_token_id=[99],
            )  # fmt: skip
            assert done.tokens == expected and done.draft == "prompt_lookup"
            assert length is None or done.accepted > 0  # greedy texts of random models repeat themselves


def test_without_strength_the_text_is_the_base_models(agreeing: Any) -> None:
    plain = agreeing.base.generate(
        **batch(PROMPTS[:1]), do_sample=False, max_new_tokens=STEPS, pad_token_id=PAD, eos_token_id=99
    )[0, 6:].tolist()
    ensemble = ExpertEnsemble([agreeing.pair()])
    for draft in ("small", "prompt_lookup"):
        done = speculate(
            agreeing.base, ensemble, agreeing.tokenizer, **batch(PROMPTS[:1]), max_new_tokens=STEPS, temperature=0,
            alphas={"gender": 0}, draft=draft, draft_length=3, eos_token_id=[99],
        )  # fmt: skip
        assert done.tokens == [plain]


def test_a_seed_gives_the_same_text_for_every_draft_length(agreeing: Any) -> None:
    ensemble = ExpertEnsemble([agreeing.pair(alpha=0.1)])
    sampler = {"max_new_tokens": STEPS, "temperature": 0.7, "top_k": 9, "top_p": 0.9, "seed": 3}
    for draft in ("small", "prompt_lookup"):
        texts = [
            speculate(
                agreeing.base, ensemble, agreeing.tokenizer, **batch(PROMPTS), draft=draft, draft_length=k, **sampler
            ).tokens
            for k in (0, 2, 5, None)
        ]
        assert texts[0] == texts[1] == texts[2] == texts[3]
        assert texts[0][1] != texts[0][3]  # equal prompts, drawn independently


def test_an_end_token_inside_a_draft_ends_the_text(llama: Any) -> None:
    """Whatever follows it in the draft; the small model drafts nothing behind it."""
    pair = llama.pair(alpha=ALPHA)
    decoder = SpeculativeDecoder(llama.small, ExpertEnsemble([pair]), llama.tokenizer, draft="small", draft_length=8)
    (text,) = decoder.generate(
        **batch(PROMPTS[:1]), max_new_tokens=STEPS, temperature=1, seed=5, eos_token_id=[99]
    ).tokens
    place = next(i for i in range(2, 7) if text.index(text[i]) == i)
    done = decoder.generate(**batch(PROMPTS[:1]), max_new_tokens=STEPS, temperature=1, seed=5, eos_token_id=text[place])
    assert done.tokens == [text[: place + 1]] and done.lengths == (place + 1,) and done.accepted == place + 1


def test_hidden_columns_go_when_the_context_is_full(setting: Any, make_model: Any) -> None:
    """Rejected drafts must not use up the context: lockstep decoding has exactly as much as it needs."""
    steps = 40
    base = make_model("gpt2", 1, width=48, context=len(PROMPTS[0]) + steps - 1)
    pair = setting.pair(alpha=ALPHA)
    expected = lockstep(base, pair, setting.tokenizer, PROMPTS, max_new_tokens=steps, eos_token_id=[99])
    done = speculate(
        base, ExpertEnsemble([pair]), setting.tokenizer, **batch(PROMPTS), max_new_tokens=steps, temperature=0,
        draft_length=4, eos_token_id=[99],
    )  # fmt: skip
    assert done.tokens == expected and done.rejected
    more = speculate(
        base, ExpertEnsemble([pair]), setting.tokenizer, **batch(PROMPTS), max_new_tokens=steps + 2, temperature=0,
        eos_token_id=[99],
    ).tokens  # fmt: skip
    assert [row[:steps] for row in more] == expected and [len(row) - steps for row in more] == [0, 2, 2, 2]


def test_windows_mean_lockstep_and_it_is_said(llama: Any) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    base = MistralForCausalLM(MistralConfig(
        vocab_size=29, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=6, initializer_range=0.3, bos_token_id=1, eos_token_id=EOS,
    )).eval()  # fmt: skip
    pair = llama.pair(alpha=ALPHA)
    for length in (3, None):
        done = speculate(
            base, ExpertEnsemble([pair]), llama.tokenizer, **batch(PROMPTS), max_new_tokens=STEPS, temperature=0,
            draft_length=length,
        )  # fmt: skip
        assert done.tokens == lockstep(base, pair, llama.tokenizer, PROMPTS)
        assert done.lockstep == done.cycles and "cannot be cropped" in done.fallback


@pytest.mark.parametrize("pays", [True, False])
def test_drafts_that_do_not_pay_end_in_lockstep_and_it_is_said(llama: Any, monkeypatch: Any, pays: bool) -> None:
    """A base whose passes cost the same whatever they verify, or as much as reading token by token."""
    pair = llama.pair(alpha=ALPHA)
    decoder = SpeculativeDecoder(llama.base, ExpertEnsemble([pair]), llama.tokenizer)
    monkeypatch.setattr(decoder.pace.small, "seconds", lambda _: 1.0)
    monkeypatch.setattr(decoder.pace.base, "seconds", lambda positions: 4.0 * (1 if pays else positions))
    done = decoder.generate(**batch(PROMPTS[:1]), max_new_tokens=STEPS, temperature=0, eos_token_id=[99])
    assert done.tokens == lockstep(llama.base, pair, llama.tokenizer, PROMPTS[:1], eos_token_id=[99])
    assert done.lengths[:2] == (2, 2)  # nothing is timed yet: reading a prompt does not count
    if pays:
        assert all(done.lengths[:-1]) and done.fallback is None
    else:
        assert not any(done.lengths[2:]) and "one takes 0.25 of a step" in done.fallback


@pytest.mark.parametrize("acceptance", [0.3, 0.6, 0.86, 0.97])
def test_on_a_disturbed_machine_the_draft_length_comes_near_the_best(acceptance: float) -> None:
    """Passes of 1 + 0.03 (n − 1), small steps of 0.12; a third of all takes up to twice as long."""
    random = Random(0)

    def disturbed() -> float:
        return random.choice([1, 1, 1, 1, 1.5, 2]) + abs(random.gauss(0, 0.08))

    def spent(tokens: int, length: int | None, pace: DraftLength) -> float:
        """Undisturbed seconds per token."""
        done, seconds = 0, 0.0
        while done < tokens:
            k = min(pace.choose(1) if length is None else length, tokens - done - 1)
            kept = next((i for i in range(k) if random.random() > acceptance), k)
            steps, verifying = k + (kept == k), 1 + 0.03 * k
            pace.note(
                rows=1, columns=k + 1, verifying=verifying * disturbed(), accepted=kept, drafted=min(kept + 1, k),
                drafting=[0.12 * disturbed() for _ in range(steps)],
            )  # fmt: skip
            done, seconds = done + kept + 1, seconds + steps * 0.12 + verifying
        return seconds / done

    best = min(spent(3000, length, DraftLength(12)) for length in range(13))
    pace = DraftLength(12)
    first = sum(spent(128, None, DraftLength(12)) for _ in range(20)) / 20
    assert first < 1.15 * best and spent(3000, None, pace) < 1.06 * best


def test_tokens_hidden_later_are_read_again_only_if_others_have_seen_them(setting: Any) -> None:
    ensemble, alphas = ExpertEnsemble([setting.pair()]), torch.ones(1)
    reader = ensemble.reader()

    def check(rows: list[list[int]], positions: int) -> None:
        ids = torch.tensor(rows)
        ours = ensemble.logits(reader.read(ids.clamp(min=0), (ids >= 0).long()), alphas)
        for row, logits in zip(rows, ours, strict=True):
            text = torch.tensor([[token for token in row if token >= 0]])
            alone = ensemble.logits(ensemble.reader().read(text), alphas)[0]
            torch.testing.assert_close(logits, alone, atol=2e-5, rtol=1e-5)
        assert reader.positions == positions

    check([[1, 7, 9, 4, 5], [-1, 8, 3, 6, 5]], 5)
    check([[1, 7, 9, 4, 5, 6], [-1, 8, 3, -1, -1, 7]], 6)
    check([[-1, 8, 3, -1, -1, 7, 9], [1, 7, 9, 4, -1, -1, 3], [1, 7, 9, 4, 5, 6, 3]], 7)  # rows move, and split
    check([[-1, 8, -1, -1, -1, 7, 9], [1, 7, 9, 4, -1, -1, 3]], 7 + 2)  # 7 and 9 have seen the 3


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 29), st.integers(1, 4), st.integers(1, 4))
def test_lookups_in_a_growing_text_are_those_in_the_whole(text: list[int], cut: int, count: int, longest: int) -> None:
    lookup = PromptLookup(text[:cut], longest=longest)
    lookup.extend(text[cut:])
    last = len(text) - 1

    def shared(end: int) -> int:
        """How many tokens up to this one are the text's last."""
        lengths = range(min(longest, end + 1), 0, -1)
        return next((n for n in lengths if text[end + 1 - n : end + 1] == text[last + 1 - n :]), 0)

    longest_and_latest = max(((shared(end), end) for end in range(last)), default=(0, 0))
    start = longest_and_latest[1] + 1 if longest_and_latest[0] else len(text)
    assert lookup.draft(count) == text[start : start + count]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"draft": "big"}, "draft"), ({"draft_length": -1}, "draft_length"),
     ({"draft_length": 2.5}, "draft_length.*2.5"), ({"draft": ["small"]}, "draft"), ({"alphas": "age"}, "map names"),
     ({"temperature": -1}, "temperature"),
     ({"top_p": 0}, "top_p"), ({"top_k": 0}, "top_k"), ({"filter": "first"}, "filter"),
     ({"max_new_tokens": 0}, "max_new_tokens"), ({"max_new_tokens": 2.5}, "max_new_tokens.*2.5"),
     ({"alphas": {"age": 1}}, "age"), ({"attention_mask": torch.ones(3, 6)}, "shape"),
     ({"attention_mask": [[1] * 6]}, "attention_mask.*list"), ({"input_ids": torch.ones(0, 3).long()}, "input_ids"),
     ({"input_ids": [[3, 4]]}, "input_ids.*list.*tensor"), ({"eos_token_id": "x"}, "eos_token_id.*'x'"),
     ({"input_ids": torch.tensor([[1, 5, 6, 29, 8, 9]])}, "`input_ids` has 29 at place 3; .*from 0 to 28"),
     ({"input_ids": torch.tensor([[1, 5, 6, -1, 8, 9]])}, "`input_ids` has -1 at place 3"),
     ({"input_ids": torch.ones(1, 6)}, "`input_ids` has 1.0")],
)  # fmt: skip
def test_arguments_are_checked(llama: Any, wrong: dict[str, Any], message: str) -> None:
    ensemble = ExpertEnsemble([llama.pair()])
    with pytest.raises(InvalidInput, match=message):
        speculate(llama.base, ensemble, llama.tokenizer, **({"max_new_tokens": 4} | batch(PROMPTS[:1]) | wrong))


def test_small_drafts_need_a_small_model_in_common(llama: Any) -> None:
    pair = ExpertPair("g", llama.copies["e1"], llama.copies["a1"], tokenizer=llama.tokenizer)
    with pytest.raises(InvalidInput, match="same `base`"):
        SpeculativeDecoder(llama.base, ExpertEnsemble([pair]), llama.tokenizer, draft="small")
