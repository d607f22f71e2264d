"""`ExpertLogitsProcessor` in ``generate`` against the definition: three full passes over the whole prefix, no cache."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from mpf_chains.errors import GenerationError, InvalidInput  # noqa: E402
from mpf_chains.local.experts import ExpertEnsemble, ExpertLogitsProcessor, ExpertPair  # noqa: E402

PAD, EOS, STEPS = 0, 2, 14
PAIRS = [("e1", "a1", 0.6)]
PROMPTS = [[1, 7, 9, 4, 20, 11], [1, 5], [1, 25, 8, 13]]


def batch(prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    longest = max(map(len, prompts))
    ids = [[PAD] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def generate(model: Any, inputs: dict[str, Any], processor: Any = None, **more: Any) -> list[list[int]]:
    arguments = dict(max_new_tokens=STEPS, do_sample=False, pad_token_id=PAD) | more
    out = model.generate(**inputs, logits_processor=[processor] if processor else [], **arguments)
    return [row[inputs["input_ids"].shape[1] :].tolist() for row in out]


def without_padding(row: list[int]) -> list[int]:
    return row[: row.index(EOS) + 1] if EOS in row else row


def test_greedy_is_the_definition(setting: Any) -> None:
    processor = ExpertLogitsProcessor(setting.pair(alpha=0.6), setting.tokenizer)
    for prompt in PROMPTS:
        (row,) = generate(setting.base, batch([prompt]), processor)  # another prompt resets it
        assert row == setting.greedy(prompt, PAIRS, STEPS)
        assert row != generate(setting.base, batch([prompt]))[0]


def test_a_left_padded_batch_is_its_rows_alone(setting: Any) -> None:
    """Fault 32."""
    inputs = batch(PROMPTS)
    processor = ExpertLogitsProcessor(
        setting.pair(alpha=0.6), setting.tokenizer, attention_mask=inputs["attention_mask"]
    )
    rows = generate(setting.base, inputs, processor)
    assert [without_padding(row) for row in rows] == [setting.greedy(prompt, PAIRS, STEPS) for prompt in PROMPTS]


def test_rows_end_at_different_steps(llama: Any) -> None:
    """Fault 32. Tokens that rows often reach are made EOS, so that some end early and are filled with padding."""
    inputs = batch(PROMPTS)
    alone = [llama.greedy(prompt, PAIRS, STEPS) for prompt in PROMPTS]
    ends = [alone[0][2], alone[1][5]]
    processor = ExpertLogitsProcessor(llama.pair(alpha=0.6), llama.tokenizer, attention_mask=inputs["attention_mask"])
    rows = generate(llama.base, inputs, processor, eos_token_id=ends)
    lengths = set()
    for row, expected in zip(rows, alone, strict=True):
        stop = next((i + 1 for i, token in enumerate(expected) if token in ends), len(expected))
        assert row[:stop] == expected[:stop] and set(row[stop:]) <= {PAD}
        lengths.add(stop)
    assert len(lengths) > 1


@pytest.mark.parametrize("beams", [2, 4])
def test_beams_are_those_of_the_definition(setting: Any, beams: int) -> None:
    """Fault 32."""
    inputs = batch(PROMPTS)
    processor = ExpertLogitsProcessor(
        setting.pair(alpha=0.6), setting.tokenizer, attention_mask=inputs["attention_mask"]
    )
    more = {"num_beams": beams, "num_return_sequences": beams, "return_dict_in_generate": True, "output_scores": True}
    arguments = dict(max_new_tokens=STEPS, do_sample=False, pad_token_id=PAD) | more
    ours = setting.base.generate(**inputs, logits_processor=[processor], **arguments)
    definition = setting.processor(PAIRS, inputs["attention_mask"])
    theirs = setting.base.generate(**inputs, logits_processor=[definition], **arguments)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, atol=1e-4, rtol=1e-4)
    assert processor.positions == inputs["input_ids"].shape[1] + STEPS - 1


def test_several_pairs_add_up_and_a_missing_half_is_the_untuned_small_model(setting: Any) -> None:
    pairs = [setting.pair(alpha=0.6), setting.pair("race", "e2", None, alpha=-0.4), setting.pair("age", None, "a2")]
    processor = ExpertLogitsProcessor(pairs, setting.tokenizer, alphas={"age": 0.2})
    (row,) = generate(setting.base, batch(PROMPTS[:1]), processor)
    three = [("e1", "a1", 0.6), ("e2", "small", -0.4), ("small", "a2", 0.2)]
    assert row == setting.greedy(PROMPTS[0], three, STEPS)


def test_each_position_is_read_once(setting: Any, shapes: Any) -> None:
    """Fault 33."""
    read = shapes(setting.small.get_input_embeddings())
    processor = ExpertLogitsProcessor(setting.pair(alpha=0.6), setting.tokenizer)
    read.clear()  # what loading tries out
    out = generate(setting.base, batch(PROMPTS[:1]), processor, min_new_tokens=STEPS)
    assert sum(rows * columns for rows, columns in read) == 2 * processor.positions  # expert and anti-expert
    assert processor.positions == len(PROMPTS[0]) + len(out[0]) - 1  # the last new token is not read


def test_equal_rows_are_read_once(llama: Any, shapes: Any) -> None:
    read = shapes(llama.small.get_input_embeddings())
    processor = ExpertLogitsProcessor(llama.pair(), llama.tokenizer)
    read.clear()
    torch.manual_seed(0)
    generate(llama.base, batch(PROMPTS[:1]), processor, do_sample=True, num_return_sequences=8, top_k=0)
    assert read[0] == (2, len(PROMPTS[0])) and 2 < read[-1][0] <= 16
    read.clear()
    processor(torch.tensor(PROMPTS[:1]), torch.zeros(1, 29))
    assert read == [(2, 1)]  # the columns before it are remembered


def test_buffers_grow(llama: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("mpf_chains.local.experts.models.cache._BLOCK", 3)
    inputs = batch(PROMPTS)
    processor = ExpertLogitsProcessor(llama.pair(alpha=0.6), llama.tokenizer)
    rows = generate(llama.base, inputs, processor, num_beams=3)
    definition = llama.processor(PAIRS, inputs["attention_mask"])
    assert rows == generate(llama.base, inputs, definition, num_beams=3)


def test_a_pair_on_the_base_itself(setting: Any) -> None:
    """The base's own passes are not changed by the adapters on it."""
    on_base = type(setting)(setting.small, setting.small, setting.tokenizer, setting.folders, setting.copies)
    processor = ExpertLogitsProcessor(on_base.pair(alpha=0.6), on_base.tokenizer)
    (row,) = generate(on_base.base, batch(PROMPTS[:1]), processor)
    assert row == on_base.greedy(PROMPTS[0], PAIRS, STEPS)


def test_threads_may_share_an_ensemble(llama: Any) -> None:
    ensemble = ExpertEnsemble([llama.pair(alpha=0.6)])
    expected = [llama.greedy(prompt, PAIRS, STEPS) for prompt in PROMPTS]

    def run(prompt: list[int]) -> list[int]:
        return generate(llama.base, batch([prompt]), ExpertLogitsProcessor(ensemble, llama.tokenizer))[0]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, PROMPTS * 4)) == expected * 4


def test_tokens_taken_back_are_not_remembered(llama: Any) -> None:
    """As assisted generation does: some drafts, of which the last ones are rejected."""
    processor = ExpertLogitsProcessor(llama.pair(alpha=0.6), llama.tokenizer)
    sequences = [[1, 7, 9], [1, 7, 9, 4], [1, 7, 9, 4, 5], [1, 7, 9, 4, 5, 6], [1, 7, 9, 8], [1, 7, 9, 8, 3], [1, 3]]
    for ids in sequences:
        with torch.no_grad():
            z = llama.base(torch.tensor([ids])).logits[:, -1]
        torch.testing.assert_close(
            processor(torch.tensor([ids]), z)[0], llama.definition(ids, PAIRS), atol=2e-5, rtol=1e-5
        )
    assert processor.positions == 3 + 3 + 2 + 1


@pytest.mark.filterwarnings("ignore")  # of transformers' own
def test_assisted_generation_gives_the_same_text(llama: Any) -> None:
    """Transformers calls the processor for drafts and for their verification, back and forth."""
    for assistant in ({"assistant_model": llama.small}, {"prompt_lookup_num_tokens": 3}):
        processor = ExpertLogitsProcessor(llama.pair(alpha=0.6), llama.tokenizer)
        (row,) = generate(llama.base, batch(PROMPTS[:1]), processor, **assistant)
        assert row == llama.greedy(PROMPTS[0], PAIRS, STEPS)


class Addition:
    """What the processor adds, read anew at every step, after whatever came before it."""

    def __init__(self, setting: Any) -> None:
        self.setting = setting

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        rows = [self.setting.definition(ids.tolist(), PAIRS) for ids in input_ids]
        with torch.no_grad():
            base = torch.stack([self.setting.base(ids[None]).logits[0, -1] for ids in input_ids])
        moved = scores + torch.stack(rows) - base
        return moved - moved.logsumexp(-1, keepdim=True) + scores.logsumexp(-1, keepdim=True)


def by_hand(model: Any, input_ids: Any, logits_processor: Any = None, **_: Any) -> Any:
    for _ in range(STEPS):
        with torch.no_grad():
            scores = logits_processor(input_ids, model(input_ids).logits[:, -1])
        input_ids = torch.cat([input_ids, scores.argmax(-1, keepdim=True)], 1)
    return input_ids


MODES: dict[str, dict[str, Any]] = {
    "beams that are sampled": {"num_beams": 3, "do_sample": True},
    "several sequences": {"do_sample": True, "num_return_sequences": 4, "temperature": 0.7, "top_p": 0.9},
    "repetition penalty": {"repetition_penalty": 1.4},
    "forbidden repetitions": {"no_repeat_ngram_size": 2, "num_beams": 2},
    "classifier-free guidance": {"guidance_scale": 1.5},
    "prompt in chunks": {"prefill_chunk_size": 2},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "a loop of one's own": {"custom_generate": by_hand},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore")  # of transformers' own
def test_other_ways_to_generate_give_what_the_definition_gives(llama: Any, mode: str) -> None:
    rows = []
    for processor in (ExpertLogitsProcessor(llama.pair(alpha=0.6), llama.tokenizer), Addition(llama)):
        torch.manual_seed(1)
        rows.append(generate(llama.base, batch(PROMPTS[:1]), processor, **MODES[mode]))
    assert rows[0] == rows[1] and any(rows[0])


@pytest.mark.parametrize("kind", ["zero", "same file", "same weights", "untrained"])
def test_a_pair_that_does_nothing_gives_the_base_bit_for_bit(llama: Any, kind: str, tmp_path: Any) -> None:
    """Fault 31."""
    from safetensors.torch import load_file, save_file

    twin = shutil.copytree(llama.folders["e1"], tmp_path / "twin")
    pair = {
        "zero": llama.pair(alpha=0),
        "same file": llama.pair("g", "e1", "e1"),
        "same weights": ExpertPair("g", llama.folders["e1"], twin, llama.small, tokenizer=llama.tokenizer),
        "untrained": ExpertPair("g", twin, None, llama.small, tokenizer=llama.tokenizer),
    }[kind]
    if kind == "untrained":  # B = 0
        file = twin / "adapter_model.safetensors"
        save_file({name: tensor * ("lora_A" in name) for name, tensor in load_file(file).items()}, file)
    processor = ExpertLogitsProcessor(pair, llama.tokenizer)
    scores = torch.randn(1, 29)
    assert torch.equal(processor(torch.tensor([[1, 5]]), scores), scores)
    for more in ({}, {"do_sample": True, "top_p": 0.9, "temperature": 0.8}, {"num_beams": 3}):
        torch.manual_seed(5)
        expected = generate(llama.base, batch(PROMPTS), **more)
        torch.manual_seed(5)
        assert generate(llama.base, batch(PROMPTS), processor, **more) == expected
    assert processor.positions == 0


def test_two_full_models_with_the_same_weights_cancel(llama: Any) -> None:
    pair = ExpertPair("g", copy.deepcopy(llama.small), copy.deepcopy(llama.small), alpha=3, tokenizer=llama.tokenizer)
    scores = torch.randn(1, 29)
    assert torch.equal(ExpertLogitsProcessor(pair, llama.tokenizer)(torch.tensor([[1, 5]]), scores), scores)


@pytest.mark.parametrize("kind", ["last", "base_first"])
def test_what_is_ruled_out_stays_so_and_nothing_becomes_nan(llama: Any, kind: Any) -> None:
    """Fault 31."""
    processor = ExpertLogitsProcessor(llama.pair(alpha=50), llama.tokenizer, filter=kind)
    scores = torch.randn(2, 29)
    scores[0, 3:20] = scores[1, :28] = -torch.inf
    moved = processor(torch.tensor([[1, 5], [1, 6]]), scores)
    assert torch.equal(moved == -torch.inf, scores == -torch.inf) and not moved.isnan().any()


def test_logits_that_are_not_finite_are_an_error(llama: Any) -> None:
    processor = ExpertLogitsProcessor(llama.pair(alpha=1e38), llama.tokenizer)
    with pytest.raises(GenerationError, match="Lower alpha"):
        processor(torch.tensor([[1, 5]]), torch.zeros(1, 29))
    broken = copy.deepcopy(llama.small)
    broken.lm_head.weight.data[3] = float("nan")
    processor = ExpertLogitsProcessor(llama.pair("race", base=broken, alpha=0.1), llama.tokenizer)
    with pytest.raises(GenerationError, match="whatever alpha is: those of pair 'race'"):
        processor(torch.tensor([[1, 5]]), torch.zeros(1, 29))


def test_padding_does_not_count_as_context(llama: Any, make_model: Any) -> None:
    pair = ExpertPair("g", make_model("gpt2", 4, context=8), llama.small, alpha=0.5, tokenizer=llama.tokenizer)
    ids, scores = [PAD] * 9 + [1, 7, 9], torch.randn(1, 29)
    mask = torch.tensor([[0] * 9 + [1] * 3])
    moved = ExpertLogitsProcessor(pair, llama.tokenizer, attention_mask=mask)(torch.tensor([ids]), scores)
    alone = ExpertLogitsProcessor(pair, llama.tokenizer)(torch.tensor([[1, 7, 9]]), scores)
    torch.testing.assert_close(moved, alone, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("grown", [False, True])
def test_experts_with_a_shorter_context_stop_before_they_fail(llama: Any, make_model: Any, grown: bool) -> None:
    """Fault 32."""
    short = make_model("gpt2", 4, context=8)
    pair = ExpertPair("g", short, llama.folders["a1"], llama.small, tokenizer=llama.tokenizer)
    prompt = list(range(3, 10)) if grown else list(range(3, 12))
    with pytest.raises(InvalidInput, match=r"has 9 tokens; an expert .* reads at most 8"):
        generate(llama.base, batch([prompt]), ExpertLogitsProcessor(pair, llama.tokenizer))


def test_padding_that_tokens_do_not_show_has_to_be_said(llama: Any, make_tokenizer: Any) -> None:
    """A tokenizer whose padding token also begins texts, as GPT-2's does."""
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.pad_token = tokenizer.bos_token
    pair = llama.pair(alpha=0.6, tokenizer=tokenizer)
    scores = torch.zeros(2, 29)
    padded = torch.tensor([[1, 1, 5], [1, 7, 9]])
    with pytest.raises(InvalidInput, match="attention_mask"):
        ExpertLogitsProcessor(pair, tokenizer)(padded, scores)
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    moved = ExpertLogitsProcessor(pair, tokenizer, attention_mask=mask)(padded, scores)
    alone = ExpertLogitsProcessor(pair, tokenizer)(torch.tensor([[1, 5]]), scores[:1])  # one prompt: no padding
    torch.testing.assert_close(moved[:1], alone, atol=2e-5, rtol=1e-5)


def test_padding_is_inferred_where_the_token_means_nothing_else(setting: Any) -> None:
    rows = generate(setting.base, batch(PROMPTS), ExpertLogitsProcessor(setting.pair(alpha=0.6), setting.tokenizer))
    assert [without_padding(row) for row in rows] == [setting.greedy(prompt, PAIRS, STEPS) for prompt in PROMPTS]


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[0, 5, 7]], [[1, 1]], "shape"),
        ([[5, 7]], torch.ones(0, 2).tolist(), "shape"),
        ([[5, 7], [5, 8], [5, 9]], [[1, 1], [1, 1]], "3 rows"),
        ([[5, 7, 0]], [[1, 1, 0]], "Pad on the left"),
        ([[5, 0, 7], [0, 5, 7]], None, "behind text"),
        ([[]], None, "inputs_embeds"),
    ],
)
def test_masks_are_checked(llama: Any, ids: Any, mask: Any, message: str) -> None:
    given = None if mask is None else torch.tensor(mask)
    processor = ExpertLogitsProcessor(llama.pair(), llama.tokenizer, attention_mask=given)
    with pytest.raises(InvalidInput, match=message):
        processor(torch.tensor(ids, dtype=torch.long), torch.zeros(len(ids), 29))


def test_a_mask_serves_one_prompt(llama: Any) -> None:
    first, second = batch(PROMPTS), batch(PROMPTS[::-1])
    processor = ExpertLogitsProcessor(llama.pair(alpha=0.6), llama.tokenizer, attention_mask=first["attention_mask"])
    generate(llama.base, first, processor)
    with pytest.raises(InvalidInput, match="reset"):
        generate(llama.base, second, processor)
    processor.reset(second["attention_mask"])
    rows = generate(llama.base, second, processor)
    assert [without_padding(row) for row in rows] == [llama.greedy(prompt, PAIRS, STEPS) for prompt in PROMPTS[::-1]]


def test_base_first_keeps_to_the_nucleus_and_reads_nothing_where_it_is_one_token(llama: Any) -> None:
    processor = ExpertLogitsProcessor(
        ensemble := ExpertEnsemble([llama.pair(alpha=0.6)]), llama.tokenizer, filter="base_first", top_p=0.7
    )
    ids, sure = [1, 7, 9], torch.full((1, 29), -9.0)
    sure[0, 4] = 9.0
    assert processor(torch.tensor([ids]), sure).argmax() == 4 and processor.positions == 0
    ids.append(4)
    with torch.no_grad():
        z = llama.base(torch.tensor([ids])).logits[:, -1]
    order = z[0].softmax(-1).sort(descending=True)
    inside = order.indices[: int((order.values.cumsum(0) < 0.7).sum()) + 1]
    moved = processor(torch.tensor([ids]), z)[0]
    assert set(moved.isfinite().nonzero()[:, 0].tolist()) == set(inside.tolist()) and 1 < len(inside) < 29
    torch.testing.assert_close(moved[inside], llama.definition(ids, PAIRS)[inside], atol=2e-5, rtol=1e-5)
    assert processor.positions == 4 and len(ensemble.pairs) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"filter": "first"}, {"filter": "base_first", "top_p": 0}, {"top_p": 0.9}, {"alphas": {"age": 1}},
     {"alphas": {"gender": float("nan")}}],
)  # fmt: skip
def test_arguments_are_checked(llama: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"filter|top_p|alpha"):
        ExpertLogitsProcessor(llama.pair(), llama.tokenizer, **wrong)
