"""Pseudo-log-likelihoods of a tiny BERT against the definition, one forward per masked token."""

from __future__ import annotations

import copy
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import pytest

from mpf_chains.errors import GenerationError, InvalidInput
from mpf_chains.local import MaskedLanguageModel

WORDS = ["the", "a", "he", "she", "is", "was", "nurse", "doctor", "kind", "late", "very", "and", "so", "."]
PAIRS = [
    ("he is a nurse .", "she is a nurse ."),
    ("the nurse is kind and so is the doctor .", "the doctor is kind and so is the nurse ."),
    ("he was late", "the doctor and the nurse was very late and so was he"),
    ("she", "she"),
]


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=40,
    )  # fmt: skip
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.4,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForMaskedLM(config).eval(), tokenizer


def by_definition(parts: tuple[Any, Any], pair: tuple[str, str]) -> tuple[list[float], list[float]]:
    import torch

    model, tokenizer = parts
    ids = [tokenizer.encode(sentence) for sentence in pair]
    scores: tuple[list[float], list[float]] = ([], [])
    for tag, *ends in SequenceMatcher(None, *ids).get_opcodes():
        if tag != "equal":
            continue
        for side in (0, 1):
            for place in range(ends[2 * side], ends[2 * side + 1]):
                if place in {0, len(ids[side]) - 1}:
                    continue
                masked = torch.tensor([ids[side]])
                masked[0, place] = tokenizer.mask_token_id
                with torch.inference_mode():
                    logits = model(input_ids=masked).logits[0, place]
                scores[side].append(float(logits.log_softmax(-1)[ids[side][place]]))
    return scores


@pytest.mark.parametrize("batch", [1, 20, 2048])
def test_scores_are_the_definitions(parts: tuple[Any, Any], batch: int) -> None:
    scores = dict(MaskedLanguageModel(*parts, batch=batch).pseudo_log_likelihoods(PAIRS))
    assert sorted(scores) == list(range(len(PAIRS)))
    for index, pair in enumerate(PAIRS):
        for found, expected in zip(scores[index], by_definition(parts, pair), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert [len(scores[index][0]) for index in (0, 3)] == [4, 1]


def test_batches_are_bounded_and_end_with_the_iterator(parts: tuple[Any, Any]) -> None:
    sizes: list[int] = []
    handle = parts[0].register_forward_pre_hook(
        lambda _, __, arguments: sizes.append(arguments["input_ids"].numel()), with_kwargs=True
    )
    try:
        model = MaskedLanguageModel(*parts, batch=30)
        scores = model.pseudo_log_likelihoods(PAIRS * 20)
        assert not sizes
        next(scores)
        scores.close()  # type: ignore[attr-defined]
        assert len(sizes) < 15
        assert max(sizes) <= 30
    finally:
        handle.remove()


def test_a_model_is_found_in_a_folder(parts: tuple[Any, Any], tmp_path: Any) -> None:
    for part in parts:
        part.save_pretrained(tmp_path)
    stored, given = (
        dict(MaskedLanguageModel(*arguments).pseudo_log_likelihoods(PAIRS)) for arguments in ([str(tmp_path)], parts)
    )
    for index in stored:
        np.testing.assert_array_equal(stored[index], given[index])
    with pytest.raises(InvalidInput, match=r"nothing.*does not exist"):
        MaskedLanguageModel(str(tmp_path / "nothing")).pseudo_log_likelihoods(PAIRS)


@pytest.mark.parametrize(
    ("pair", "words"),
    [(("he is", "she was"), "pair 1 share no token"), (("he " * 39, "he"), "pair 1 has 41 tokens; the model reads 40")],
)
def test_pairs_that_cannot_be_scored_are_named(parts: tuple[Any, Any], pair: tuple[str, str], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        MaskedLanguageModel(*parts).pseudo_log_likelihoods([PAIRS[0], pair])


def test_what_is_no_masked_model_is_refused(parts: tuple[Any, Any]) -> None:
    tokenizer = copy.deepcopy(parts[1])
    tokenizer.mask_token = None
    with pytest.raises(InvalidInput, match="no mask token"):
        MaskedLanguageModel(parts[0], tokenizer).pseudo_log_likelihoods(PAIRS)
    with pytest.raises(InvalidInput, match="tokenizer="):
        MaskedLanguageModel(parts[0]).pseudo_log_likelihoods(PAIRS)


def test_a_failing_model_says_so(parts: tuple[Any, Any]) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = parts[0].register_forward_pre_hook(fail)
    with pytest.raises(GenerationError, match="out of memory"):
        dict(MaskedLanguageModel(*parts).pseudo_log_likelihoods(PAIRS))
    handle.remove()
    assert dict(MaskedLanguageModel(*parts).pseudo_log_likelihoods([])) == {}
