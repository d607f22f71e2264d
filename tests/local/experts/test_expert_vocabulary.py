"""Fault 30: experts that mean something else by a token id are refused; padding behind the vocabulary is cut."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from mpf_chains.errors import InvalidInput, VocabularyMismatch  # noqa: E402
from mpf_chains.local.experts import ExpertLogitsProcessor, ExpertPair  # noqa: E402


def words(llama: Any) -> list[str]:
    vocabulary = llama.tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.get)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: [*w[:8], "Q", *w[9:]], r"Token id 8 is 'f' in .* base.*'Q' in"),
        (lambda w: [*w[:8], w[9], w[8], *w[10:]], r"Token id 8 is 'f' .*'g' in"),
        (lambda w: [*w, "extra"], r"Token id 29 is no token in .* base.* \(29 tokens\) and 'extra'"),
        (lambda w: w[:-1], r"Token id 28 is 'z' in .* base.* and no token"),
    ],
)
def test_the_first_id_that_differs_is_named(llama: Any, make_tokenizer: Any, change: Any, message: str) -> None:
    pair = llama.pair(tokenizer=make_tokenizer(change(words(llama))))
    with pytest.raises(VocabularyMismatch, match=message) as raised:
        ExpertLogitsProcessor(pair, llama.tokenizer)
    assert "'gender'" in str(raised.value) and raised.value.hint


def test_a_model_without_logits_for_some_ids_is_refused(llama: Any, make_model: Any) -> None:
    pair = ExpertPair("g", make_model("gpt2", 3, vocabulary=20), llama.small, tokenizer=llama.tokenizer)
    with pytest.raises(VocabularyMismatch, match=r"Token id 20 is 'r'.*ids below 20"):
        ExpertLogitsProcessor(pair, llama.tokenizer)
    processor = ExpertLogitsProcessor(llama.pair(), llama.tokenizer)
    with pytest.raises(VocabularyMismatch, match="Token id 20"):
        processor(torch.tensor([[1, 5]]), torch.zeros(1, 20))


@pytest.mark.parametrize(("base", "expert"), [(32, 29), (29, 40), (32, 40)])
def test_padding_behind_the_vocabulary_is_cut(llama: Any, make_model: Any, base: int, expert: int) -> None:
    wide = make_model("gpt2", 6, vocabulary=expert)
    pair = ExpertPair("g", wide, None, llama.small, alpha=0.5, tokenizer=llama.tokenizer)
    scores, ids = torch.randn(1, base), torch.tensor([[1, 7]])
    moved = ExpertLogitsProcessor(pair, llama.tokenizer)(ids, scores)
    with torch.no_grad():
        contrast = wide(ids).logits[:, -1, :29] - llama.small(ids).logits[:, -1]
    torch.testing.assert_close(moved[:, :29], scores[:, :29] + 0.5 * contrast, atol=2e-5, rtol=1e-5)
    assert moved.shape == scores.shape and bool((moved[:, 29:] == -torch.inf).all())


def test_a_loaded_model_needs_its_tokenizer(llama: Any) -> None:
    with pytest.raises(InvalidInput, match="tokenizer="):
        ExpertLogitsProcessor(llama.pair(tokenizer=None), llama.tokenizer)
