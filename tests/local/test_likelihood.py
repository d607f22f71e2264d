"""Scores of the packed, shared, windowed computation against one plain forward per text."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpf_chains.errors import GenerationError, InvalidInput
from mpf_chains.local import ChatTransformers
from mpf_chains.local.likelihood import Limits, Span, batches, encode, pack, windows
from tests.local.conftest import build_tokenizer

EXACT = 3e-5
END = 1  # id of "<e>": the tiny tokenizer has no BOS, so this stands for an empty context
ALL = ("llama", "gpt2", "gemma2", "windowed", "alibi", "recurrent")


def build_model(name: str) -> Any:
    import torch
    import transformers as hf

    size = len(build_tokenizer())
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    small = {"vocab_size": size, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.4}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if name == "llama":
            model: Any = hf.LlamaForCausalLM(hf.LlamaConfig(**small, **heads, intermediate_size=64))
        elif name == "gpt2":
            config = hf.GPT2Config(
                vocab_size=size, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.4
            )
            model = hf.GPT2LMHeadModel(config)
        elif name == "gemma2":
            more = {"head_dim": 8, "sliding_window": 16, "final_logit_softcapping": 3.0}
            model = hf.Gemma2ForCausalLM(hf.Gemma2Config(**small, **heads, **more, intermediate_size=64))
        elif name == "windowed":
            more = {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 0}
            model = hf.Qwen2ForCausalLM(hf.Qwen2Config(**small, **heads, **more, intermediate_size=64))
        elif name == "alibi":
            model = hf.BloomForCausalLM(
                hf.BloomConfig(vocab_size=size, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.4)
            )
        else:
            model = hf.MambaForCausalLM(hf.MambaConfig(**small, state_size=4))
    return model.eval()


@pytest.fixture(scope="session")
def build() -> Callable[[str], ChatTransformers]:
    made: dict[str, ChatTransformers] = {}

    def get(name: str) -> ChatTransformers:
        if name not in made:
            made[name] = ChatTransformers(model=build_model(name), tokenizer=build_tokenizer(), temperature=0)
        return made[name]

    return get


def plain(model: Any, before: Sequence[int], targets: Sequence[int]) -> Any:
    """Scores by the definition: one forward of one text, log-softmax of everything."""
    import torch

    ids = [*before, *targets]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids[:-1]])).logits[0]
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return scores[range(len(before) - 1, len(ids) - 1), targets].double().numpy()


def direct(chat: ChatTransformers, context: str, continuation: str) -> Any:
    """The same for a tokenizer whose tokens are characters."""
    model, tokenizer, _ = chat._engine.load()
    text = context.rstrip()
    before = tokenizer.encode(text) or [END]
    return plain(model, before, tokenizer.encode((context + continuation)[len(text) :]))


def assert_same(chat: ChatTransformers, texts: Sequence[tuple[str, str]], tolerance: float = EXACT) -> None:
    scores = dict(chat.log_likelihoods(texts))
    assert sorted(scores) == list(range(len(texts)))
    for index, text in enumerate(texts):
        np.testing.assert_allclose(scores[index], direct(chat, *text), rtol=0, atol=tolerance, err_msg=str(text))
        assert scores[index].dtype == np.float64


BRANCHES = [
    ("", "the cat sat"), ("", "the cat ran off."), ("", "the dog"), ("", "the cat sat"), ("the cat ", "sat"),
    ("the", " cat"), ("", "x"), ("A b c d e f g h i j k l m n o p", " q"), ("A b c d e f g h i j k l m n o p", " r s"),
    ("   ", "the cat sat"), ("\n", " deep"), ("", "naïve 🙂 日本"), ("naïve 🙂", " 日本"),
]  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_scores_are_those_of_one_forward_per_text(build: Callable[[str], ChatTransformers], name: str) -> None:
    assert_same(build(name), BRANCHES)


@pytest.mark.parametrize("name", ALL)
def test_models_share_prefixes_where_that_is_exact(build: Callable[[str], ChatTransformers], name: str) -> None:
    from mpf_chains.local.packed import PlainModel
    from mpf_chains.local.scoring import limits

    found = limits(PlainModel(build(name).model))
    assert found.share == (name not in {"alibi", "recurrent"})
    assert found.reach == {"gpt2": 64, "gemma2": 16, "windowed": 12, "llama": 2048}.get(name)


def test_other_attention_kernels_share_nothing(build: Callable[[str], ChatTransformers]) -> None:
    from mpf_chains.local.scoring import takes_trees

    model = copy.deepcopy(build("llama").model)
    model.set_attn_implementation("eager")
    assert takes_trees(model)
    model.config._attn_implementation = "flash_attention_2"
    assert not takes_trees(model)


def test_a_model_with_a_very_short_context_is_tried_within_it() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from mpf_chains.local.scoring import takes_trees

    config = GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, n_positions=7, bos_token_id=1, eos_token_id=2)
    assert takes_trees(GPT2LMHeadModel(config).eval())


words = st.text(alphabet=st.sampled_from("ab .é\n"), max_size=30)
stems = st.sampled_from(["", "a", "ab a", "the same long beginning of many a text, on and on", " "])
pairs = st.tuples(st.builds(str.__add__, stems, words), st.builds(str.__add__, words, st.sampled_from("ab.é")))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(pairs, max_size=12))
def test_any_texts_in_any_order(build: Callable[[str], ChatTransformers], texts: list[tuple[str, str]]) -> None:
    assert_same(build("llama"), texts)


def test_lengths_far_apart_and_rows_of_many_texts(build: Callable[[str], ChatTransformers]) -> None:
    rng = random.Random(0)
    stem = "".join(rng.choices("abcde ", k=700))
    texts = [("", stem[: rng.randrange(1, 700)] + rng.choice("xyz")) for _ in range(30)]
    texts += [(stem, " yes"), (stem, " no"), (stem, " maybe"), ("", "b")]
    assert_same(build("llama"), texts, tolerance=5e-5)


def test_the_tokenizers_padding_side_does_not_matter(build: Callable[[str], ChatTransformers]) -> None:
    chat = build("llama")
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.padding_side, tokenizer.pad_token = "left", "<u>"
    other = dict(ChatTransformers(model=chat.model, tokenizer=tokenizer).log_likelihoods(BRANCHES))
    for index, scores in chat.log_likelihoods(BRANCHES):
        np.testing.assert_array_equal(scores, other[index])


def test_a_bfloat16_model_is_scored_in_float32(build: Callable[[str], ChatTransformers]) -> None:
    import torch

    chat = build("llama")
    half = ChatTransformers(model=copy.deepcopy(chat.model).to(torch.bfloat16), tokenizer=chat.tokenizer)
    for index, scores in half.log_likelihoods(BRANCHES):
        assert np.abs(scores - direct(half, *BRANCHES[index])).max() < 0.5
        assert len(set(np.exp(scores))) == len(scores) or len(scores) > 8  # not rounded to bfloat16's 8 bits


# ---- windows


def windowed(chat: ChatTransformers, text: str, size: int) -> Any:
    """The rule as it is stated, token by token."""
    model, tokenizer, _ = chat._engine.load()
    tokens = [END, *tokenizer.encode(text)]
    scores = []
    for place in range(1, len(tokens)):
        half = size // 2
        end = size if place <= size else min(size + -(-(place - size) // half) * half, len(tokens) - 1)
        scores.append(plain(model, tokens[max(0, end - size) : place], tokens[place : place + 1])[0])
    return scores


@pytest.mark.parametrize(("name", "size"), [("gpt2", 64), ("llama", 33), ("llama", 2), ("recurrent", 20)])
def test_long_texts_are_scored_in_windows(build: Callable[[str], ChatTransformers], name: str, size: int) -> None:
    chat = build(name)
    texts = ["".join(random.Random(length).choices("abc ", k=length)) + "." for length in (5, size - 1, size, 150)]
    scores = dict(chat.log_likelihoods([("", text) for text in texts], window=None if name == "gpt2" else size))
    for index, text in enumerate(texts):
        np.testing.assert_allclose(scores[index], windowed(chat, text, size), rtol=0, atol=EXACT)


@pytest.mark.parametrize("longest", [2, 3, 8, 9, 100])
def test_windows_score_every_token_once_with_half_a_window_before_it(longest: int) -> None:
    tokens = list(range(40))
    spans = list(windows(0, tokens[:1], tokens[1:], longest))
    assert [target for span in spans for target in span.targets] == tokens[1:]
    for span in spans:
        assert len(span.ids) <= longest
        for target in span.targets:
            assert sum(token < target for token in span.ids) >= min(target, longest // 2)


def test_long_texts_are_read_in_pieces(build: Callable[[str], ChatTransformers], monkeypatch: Any) -> None:
    from mpf_chains.local import scoring

    texts = [("", "abc " * 60 + "."), ("ab " * 50, "c" * 70), ("a", "b")]
    for name in ("llama", "gemma2", "recurrent"):
        chat = build(name)
        monkeypatch.setattr(scoring, "_LOGITS", 70 * len(chat.tokenizer))
        assert_same(chat, texts, tolerance=5e-5)


# ---- tokens


def test_tokens_are_split_as_the_harness_splits_them() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<s>", "a", "b", "ab", " ", " b"])}
    model = models.BPE(vocabulary, [("a", "b"), (" ", "b")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), bos_token="<s>")
    assert encode(tokenizer, [("a", " b"), ("a ", "b"), ("", "ab"), ("", "<s>ab"), (" ", "b"), ("aa", "bb")]) == [
        ([1], [5]), ([1], [5]), ([0], [3]), ([0], [3]), ([0], [5]), ([1, 1], [2]),
    ]  # fmt: skip
    with pytest.raises(InvalidInput, match="text 1, 'b', has no token of its own"):
        encode(tokenizer, [("a", "a"), ("a", "b")])


def test_a_bos_goes_before_contexts_only_where_the_tokenizer_puts_it() -> None:
    from tokenizers import processors

    tokenizer = build_tokenizer()
    tokenizer.bos_token = "<s>"
    (start,) = tokenizer.encode("<s>", add_special_tokens=False)
    a, b = tokenizer.encode("ab", add_special_tokens=False)
    assert encode(tokenizer, [("a", "b"), ("", "b")]) == [([a], [b]), ([start], [b])]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <e>", special_tokens=[("<s>", start), ("<e>", END)]
    )
    assert encode(tokenizer, [("a", "b"), ("", "b"), ("<s>a", "b")]) == [
        ([start, a], [b]),
        ([start], [b]),
        ([start, a], [b]),
    ]
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(InvalidInput, match="Text 0 has no context"):
        encode(tokenizer, [("", "b")])


@pytest.mark.parametrize(
    ("texts", "arguments", "words"),
    [
        ([("a", "b"), ("a", "")], {}, "continuation of text 1 is ''"),
        ([("a", " \n")], {}, r"continuation of text 0 is ' \\n'"),
        ([("", "b"), ("a" * 60, "b" * 6)], {}, "Text 1 has 60 tokens of context and 6 of continuation.*at most 64"),
        ([("", "b")], {"window": 1}, "`window` is 1"),
    ],
)
def test_errors_come_at_once(
    build: Callable[[str], ChatTransformers], texts: Any, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        build("gpt2").log_likelihoods(texts, **arguments)


def test_the_last_token_needs_no_room(build: Callable[[str], ChatTransformers]) -> None:
    assert_same(build("gpt2"), [("a" * 60, "b" * 5)])


# ---- packing


@given(
    texts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), max_size=20),
    room=st.integers(1, 40),
    size=st.integers(1, 80),
    reach=st.none() | st.integers(1, 30),
)
def test_rows_hold_every_span_and_batches_every_row(
    texts: list[list[int]], room: int, size: int, reach: int | None
) -> None:
    bounds = Limits(row=room, tree=50, reach=reach, batch=size)
    spans = [Span(i, ids, ids[-(1 + i % len(ids)) :]) for i, ids in enumerate(texts)]
    made = list(batches(pack(spans, bounds), bounds))
    rows = [row for batch in made for row in batch]
    assert sorted(span.text for row in rows for span in row.spans) == list(range(len(texts)))
    for row in rows:
        assert row.is_chain or max(len(span.ids) for span in row.spans) <= (reach or 50)
        for span, places in zip(row.spans, row.places, strict=True):
            path = [places[-1]]
            while row.parents[path[-1]] >= 0:
                path.append(row.parents[path[-1]])
            assert [row.tokens[node] for node in reversed(path)] == list(span.ids)
            assert list(reversed(path))[-len(span.targets) :] == places
    for batch in made:
        assert len({row.is_chain for row in batch}) == 1
        assert len(batch) == 1 or len(batch) * max(len(row.tokens) for row in batch) <= size


def test_a_shared_beginning_is_read_once() -> None:
    spans = [Span(i, [0, *range(500), 1000 + i], [7]) for i in range(50)]
    (row,) = pack(spans, Limits())
    assert len(row.tokens) == 501 + 50


# ---- beside other work


@pytest.fixture
def passes(build: Callable[[str], ChatTransformers]) -> Iterator[list[int]]:
    seen: list[int] = []
    handle = build("llama").model.register_forward_hook(lambda *_: seen.append(1))
    yield seen
    handle.remove()


def test_an_abandoned_iterator_stops_working(build: Callable[[str], ChatTransformers], passes: list[int]) -> None:
    chat = build("llama")
    letters = random.Random(3)
    scores = chat.log_likelihoods([("", "".join(letters.choices("abcdefg", k=200))) for _ in range(100)])
    assert not passes
    next(scores)
    scores.close()  # type: ignore[attr-defined]
    chat.invoke("Hi", max_tokens=1)  # runs after what was queued
    assert len(passes) < 10


def test_scores_and_answers_at_the_same_time(build: Callable[[str], ChatTransformers]) -> None:
    chat = build("llama").bind(max_tokens=40)
    expected = chat.invoke("Why?").content
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(chat.invoke("Why?").content)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        assert_same(build("llama"), BRANCHES)
    for thread in threads:
        thread.join()
    assert answers == [expected] * 4


def test_a_failing_model_fails_the_scores_and_not_the_next(build: Callable[[str], ChatTransformers]) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    chat = build("llama")
    chat._engine.submit(lambda _: None).result()
    handle = chat.model.register_forward_pre_hook(fail)
    with pytest.raises(GenerationError, match="out of memory"):
        dict(chat.log_likelihoods(BRANCHES))
    handle.remove()
    assert_same(chat, BRANCHES[:2])


def test_nothing_to_score(build: Callable[[str], ChatTransformers]) -> None:
    assert dict(build("llama").log_likelihoods([])) == {}


@pytest.mark.real_model
def test_smollm2_scores_real_text() -> None:
    chat = ChatTransformers(model="smollm2", dtype="float64")
    model, tokenizer, _ = chat._engine.load()
    texts = [
        ("", f"My {a} is {b}, and so is the {c}.") for a in ("aunt", "boss") for b in ("kind", "late") for c in "xy"
    ]
    texts += [
        ("The capital of France is", " Paris."),
        ("The capital of France is ", "Rome."),
        ("", "naïve 🙂 日本 text"),
    ]
    for index, scores in chat.log_likelihoods(texts):
        context, continuation = texts[index]
        before = tokenizer.encode(context.rstrip())
        after = tokenizer.encode(context + continuation)[len(before) :]
        expected = plain(model, before or [tokenizer.bos_token_id], after)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9)
