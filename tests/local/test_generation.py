"""Text from tokens, piece by piece: always the decoding of all of them, at a bounded cost for each."""

from __future__ import annotations

import string
from random import Random
from typing import Any

import pytest

from mpf_chains.local import smollm2
from mpf_chains.local.generation import Generation, Piece
from mpf_chains.local.sampling import Sampling

SPECIAL = ["<unk>", "<e>", "<a>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def fast(model: Any, decoder: Any, **arguments: Any) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<e>", additional_special_tokens=["<a>"], **arguments
    )


def build(kind: str) -> Any:
    from tokenizers import decoders, models, pre_tokenizers

    if kind == "byte-level":
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = [
            *SPECIAL,
            *letters,
            *(f"\u0120{a}{b}" for a in "abc" for b in "xyz"),
            "\u00f0\u0141",
            "\u013a\u0122",
        ]
        return fast(models.BPE({token: i for i, token in enumerate(vocabulary)}, []), decoders.ByteLevel())
    if kind == "sentencepiece":
        words = [
            "\u2581",
            "\u2581the",
            "\u2581a",
            "ing",
            "s",
            ".",
            "\u2581\u2581",
            "\u00e9",
            "\U0001f600",
            "\ufffd",
            *string.ascii_lowercase,
        ]
        vocabulary = list(dict.fromkeys([*SPECIAL, *words, *BYTES]))
        steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        return fast(
            models.BPE({token: i for i, token in enumerate(vocabulary)}, [], byte_fallback=True),
            decoders.Sequence(steps),
        )
    if kind == "metaspace":
        words = ["\u2581", "\u2581the", "\u2581a", "ing", "s", ".", "\U0001f600"]
        return fast(models.Unigram([(word, 0.0) for word in [*SPECIAL, *words]], 0), decoders.Metaspace())
    words = [
        "don",
        "a",
        "'",
        "s",
        "n",
        "t",
        ".",
        ",",
        "!",
        "re",
        "ve",
        "word",
        " ",
        "##'",
        "##ing",
        "##n't",
        " '",
        "\u00e9",
    ]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *words])}
    if kind == "wordpiece":
        return fast(models.WordPiece(vocabulary, unk_token="<unk>"), decoders.WordPiece())
    assert kind == "clean-up"
    return fast(
        models.WordPiece(vocabulary, unk_token="<unk>"), decoders.WordPiece(cleanup=False),
        clean_up_tokenization_spaces=True,
    )  # fmt: skip


KINDS = ["byte-level", "sentencepiece", "metaspace", "wordpiece", "clean-up"]


def decoded(tokenizer: Any, tokens: list[int], hidden: frozenset[int] | None = None) -> str:
    if hidden is None:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))
    return str(tokenizer.decode([token for token in tokens if token not in hidden]))


def generate(
    tokenizer: Any, tokens: list[int], stop: list[str], hidden: frozenset[int] | None = None
) -> tuple[Generation, list[Piece]]:
    pieces: list[Piece] = []
    generation = Generation(
        [1], Sampling(temperature=0, top_logprobs=0), max_tokens=len(tokens), stop=stop,
        tokenizer=tokenizer, ends=frozenset(), on_piece=pieces.append, hidden=hidden,
    )  # fmt: skip
    for place, token in enumerate(tokens):
        generation.note(-1.0, [])
        if generation.push(token):
            break
        assert generation.text == decoded(tokenizer, tokens[: place + 1], hidden)
    assert generation.future.result(timeout=0) is generation
    return generation, pieces


def some(tokenizer: Any, random: Random, length: int) -> list[int]:
    """Tokens of all kinds; whole characters out of bytes, stray bytes and special tokens among them."""
    few = random.sample(range(len(tokenizer)), min(len(tokenizer), random.choice([5, 30, len(tokenizer)])))
    tokens: list[int] = []
    while len(tokens) < length:
        if random.random() < 0.1:
            text = random.choice(["\u00e9", "\U0001f468\u200d\U0001f469", "a's .", "\u65e5\u672c", " the word"])
            tokens += tokenizer.encode(text, add_special_tokens=False)
        else:
            tokens.append(random.choice(few))
    return tokens[:length]


def check(tokenizer: Any, seed: int) -> None:
    random = Random(seed)
    tokens = some(tokenizer, random, random.choice([1, 30, 150]))
    special = tokenizer.all_special_ids
    hidden = random.choice([None, None, frozenset(random.sample(special, min(2, len(special))))])
    full = decoded(tokenizer, tokens, hidden)
    generation, pieces = generate(tokenizer, tokens, [], hidden)
    assert "".join(piece.text for piece in pieces) == generation.text == full

    at = random.randrange(max(1, len(full)))
    stops = [
        stop for stop in (full[at : at + random.choice([1, 3, 12, 90])], full[-3:], "\u00e9a", "not there") if stop
    ]
    generation, pieces = generate(tokenizer, tokens, stops, hidden)
    text = decoded(tokenizer, generation.tokens, hidden)
    cut = min((place for place in map(text.find, stops) if place >= 0), default=len(text))
    assert generation.text == text[:cut]
    assert generation.finish_reason == ("stop" if cut < len(text) else "length")
    if len(generation.tokens) > 1:  # and none of them was there before
        before = decoded(tokenizer, generation.tokens[:-1], hidden)
        assert not any(stop in before for stop in stops)
    assert "".join(piece.text for piece in pieces) == text[:cut]
    starts = [each.start for each in generation.whole.scored]
    wholes = [len(decoded(tokenizer, tokens[:n], hidden).rstrip("\ufffd")) for n in range(len(generation.tokens))]
    assert starts == [start for start in wholes if start < cut]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_add_up_and_stops_cut_as_in_the_decoding_of_all_tokens(kind: str) -> None:
    tokenizer = build(kind)
    for seed in range(30):
        check(tokenizer, seed)


def test_so_do_those_of_characters(tiny: tuple[Any, Any]) -> None:
    for seed in range(15):
        check(tiny[1], seed)


@pytest.mark.real_model
@pytest.mark.skipif(not any((root / smollm2._FOLDER).is_dir() for root in smollm2._roots()), reason="not converted")
def test_so_do_those_of_smollm2() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2.smollm2_path())
    for seed in range(30):
        check(tokenizer, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_costs_the_same_wherever_it_stands(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, handed = build(kind), [0]
    original = type(tokenizer).decode

    def counting(self: Any, tokens: list[int], **arguments: Any) -> Any:
        handed[0] += len(tokens)
        return original(self, tokens, **arguments)

    random = Random(0)
    text = [token for token in range(len(tokenizer)) if len(tokenizer.decode([token]).strip("\ufffd .,'")) > 0]
    tokens = [random.choice(text) for _ in range(2_000)]
    monkeypatch.setattr(type(tokenizer), "decode", counting)
    generation, _ = generate_quietly(tokenizer, tokens)
    assert len(generation.tokens) == 2_000
    assert handed[0] < 50 * 2_000


def generate_quietly(tokenizer: Any, tokens: list[int]) -> tuple[Generation, list[Piece]]:
    pieces: list[Piece] = []
    generation = Generation(
        [1], Sampling(temperature=0), max_tokens=len(tokens), stop=["not there"], tokenizer=tokenizer,
        ends=frozenset(), on_piece=pieces.append,
    )  # fmt: skip
    for token in tokens:
        generation.push(token)
    return generation, pieces


class Backwards:
    """A tokenizer whose text is not one that grows at its end."""

    all_special_ids = ()

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(string.ascii_lowercase[token] for token in reversed(tokens))

    def convert_ids_to_tokens(self, token: int) -> str:
        return string.ascii_lowercase[token]


def test_a_text_that_does_not_grow_at_its_end_is_right_in_the_end() -> None:
    tokens = [Random(1).randrange(26) for _ in range(100)]
    generation, _ = generate_quietly(Backwards(), tokens)
    assert generation.text == Backwards().decode(tokens)
