"""Fault 36: a steering token that is no single token of its own is found before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from mpf_chains.errors import InvalidInput  # noqa: E402
from mpf_chains.local.steering.tokens import SteeringTokens  # noqa: E402

CLASSES = ("female", "male")


def test_existing_tokens_have_their_ids(tiny: Any) -> None:
    model, tokenizer = tiny
    assert SteeringTokens("gender", CLASSES, ("x", "y")).ids(model, tokenizer) == tuple(
        tokenizer.convert_tokens_to_ids(["x", "y"])
    )


def test_new_tokens_follow_the_vocabulary(tiny: Any) -> None:
    model, tokenizer = tiny
    tokens = SteeringTokens("gender", CLASSES)
    assert tokens.new and tokens.ids(model, tokenizer) == (len(tokenizer), len(tokenizer) + 1)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("ab", "c"), r"'ab' of class 'female' is 2 tokens to this tokenizer: 'a' \(5\), 'b' \(6\)"),
        (("c", ""), "'' of class 'male' is 0 tokens to this tokenizer: none"),
        (("ä", "c"), "'ä' of class 'female' is unknown"),
        (("c", "<e>"), r"'<e>' of class 'male' \(id 1\) ends an answer"),
    ],
)
def test_36_what_is_no_token_is_refused_by_name(tiny: Any, tokens: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        SteeringTokens("gender", CLASSES, tokens).ids(*tiny)


def test_36_texts_that_become_one_token_are_refused(tiny: Any) -> None:
    from tokenizers import normalizers

    model, tokenizer = tiny
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<e>", unk_token="<unk>")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(InvalidInput, match=r"'female' and 'male' share the token 'A' \(id 5\)"):
        SteeringTokens("gender", CLASSES, ("a", "A")).ids(model, tokenizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gender", ("female",)), "at least two"),
        (("gender", ("female", " ")), "none blank"),
        (("gender", ("female", "female")), "Classes of 'gender' are given more than once: 'female'"),
        (("gender", CLASSES, ("0", "0")), "Tokens of 'gender' are given more than once: '0'"),
        (("gender", CLASSES, ("0",)), "1 tokens for the 2 classes"),
        (("gender", CLASSES, (1, 2)), "tokens of 'gender' are 1, 2; they must be texts"),
        (("gender", (1, 2)), "at least two texts"),
    ],
)
def test_wrong_names_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        SteeringTokens(*arguments)


def test_classes_are_perspectives() -> None:
    perspectives = SteeringTokens("gender", CLASSES).perspectives
    assert perspectives.names == CLASSES and dict(perspectives["male"].arguments) == {"steer": "male"}
