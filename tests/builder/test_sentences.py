"""Splitting text into sentences: what ends one, what does not, and where each stands."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpf_chains.builder.sentences import is_complete, sentences


def texts(text):
    return [one.text for one in sentences(text)]


@pytest.mark.parametrize(
    "expected",
    [
        ["It was built.", "It fell!", "Why?", "Nobody knows…", "Still."],
        ["Dr. Ada Hill met Prof. B. C. Wood of St. Mary's.", "They spoke."],
        ["See Fig. 3 and No. 7, e.g. the U.S. Army, vs. others.", "It ends at 3.5 million."],
        ["It moved to the U.S.", "The law changed.", "Fees, rents, etc.", "They rose at 5 p.m.", "It rained."],
        ["He works for Acme Inc. Berlin hired him.", "So am I.", "Then came plan B.", "The end."],
        ["She said: “Stop. Go away.”", "He left.", 'He said "No. Never."', "Then (it is told. Really.) he came."],
        ["“It works.”", "The rest (see v1.2 at example.com/a.b) does not.", "Really?!", "Yes..."],
        ["It waited... and waited.", "He asked “why?” and left.", "In 1999.", "2000 came."],
        ["清华大学很好。", "学生“喜欢”它！", "是吗？", "对。"],
        ["彼は「はい。行く。」と言った。", "Köln ist alt.", "Ça va ?", "Oui !"],
        ["Москва велика.", "Она стара.", "¿Es así?", "¡Sí!"],
        ['A quote " left open.', "Another (bracket.", "The end."],
    ],
)
def test_what_ends_a_sentence(expected):
    assert texts(" ".join(expected)) == expected


def test_markdown_is_prose_without_its_scaffolding():
    text = (
        "# Title. One\n\nFirst line\r\ncontinues here. Next\nsentence.\n\n- item one. And two\n* item\n  goes on.\n"
        "2. Second item.\n\n> Quoted words.\n\n```python\ncode. Code.\n```\n| A. | B. |\n|----|----|\n---\nLast one.\n"
    )
    assert texts(text) == [
        "First line continues here.", "Next sentence.", "item one.", "And two", "item goes on.", "Second item.",
        "Quoted words.", "Last one.",
    ]  # fmt: skip


def test_complete_sentences_end_as_such():
    assert all(map(is_complete, ["It works.", "It “works.”", "(Really!)", "好。", "*Yes.*"]))
    assert not any(map(is_complete, ["Contents", "3.5 million", "Dr. Hill", "As follows:", ""]))


@given(st.text(alphabet=st.sampled_from('aB. \n\t!?"“”()。「」#-`|1…\r\u2028'), max_size=60))
def test_sentences_are_pieces_of_the_text_in_order(text):
    end = 0
    for one in sentences(text):
        assert end <= one.start < one.end <= len(text)
        assert one.text == " ".join(text[one.start : one.end].split()) != ""
        end = one.end


def test_hostile_lengths_take_linear_time():
    started = time.process_time()
    for text in ("a. " * 50_000, '"' + "A. " * 50_001, "(" * 50_000 + "A. " * 50_000 + ")" * 50_000, "." * 200_000):
        sentences(text)
    assert time.process_time() - started < 10
