"""Keywords, the sentences chosen for them, and the sides of the split: pure functions."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.embeddings import Embeddings

from mpf_chains.builder import (
    Source,
    assign_splits,
    by_embeddings,
    by_words,
    contains,
    passages,
    rank_keywords,
    read_corpus,
    select,
)
from mpf_chains.builder.keywords import keyword_messages, read_keywords
from mpf_chains.errors import BenchmarkError

SUBJECT = ("Xaviria University", "Xaviria")


def found(*texts, others=("Yale",), named=True):
    sources = [Source(f"text {n}", text) for n, text in enumerate(texts, 1)]
    kept, left = passages(sources, [SUBJECT], others, named=named)
    return [one.sentence.text for one in kept], dict(left)


def test_sentences_about_the_entity_and_nobody_else_are_kept():
    text = (
        "Xaviria\n\nXaviria has many old halls. They are cold in winter too. XAVIRIA UNIVERSITY'S FEES ROSE AGAIN. "
        "Xaviria is as old as Yale is. Xaviria is old. Is Xaviria any good at all? Xaviriana are a people of old."
    )
    kept, left = found(text)
    assert kept == ["Xaviria has many old halls.", "XAVIRIA UNIVERSITY'S FEES ROSE AGAIN."]
    assert left == {
        "no complete sentence (a title, an item)": 1,
        "does not name the entity": 2,
        "names more than one entity": 1,
        "not 5 to 60 words long": 1,
        "a question": 1,
    }
    kept, left = found(text, "Nobody is named in this one.", named=False)
    assert "They are cold in winter too." in kept and "Xaviriana are a people of old." in kept
    assert left["does not name the entity"] == 1


def test_keywords_are_whole_words_and_stand_out():
    assert contains("First-year\nstudents pay.", "first-year students") and not contains("Overpaid.", "paid")
    text = "The fees of Xaviria rose. The fees were paid. Fees and rents differ. The library is open."
    ranked = rank_keywords(text.split(". "), exclude=["Xaviria University"])
    assert ranked[0] == "fees" and "rents" in ranked
    assert not {"the", "xaviria", "and", "is"} & set(ranked)


def test_the_model_chooses_among_the_words_offered():
    messages = keyword_messages(["fees", "rents", "{x}"], 2, "money")
    assert messages[1].text == "fees\nrents\n{x}" and "money" in messages[0].text
    assert read_keywords("Rents, hacking; FEES\nfees, libraries", ["fees", "rents", "libraries"], 2) == [
        "rents",
        "fees",
    ]
    assert read_keywords("None of them.", ["fees"], 2) == []


def corpus(count, words=("fees", "rents", "halls")):
    rng = random.Random(7)
    lines = [
        f"Xaviria has {words[n % len(words)]} that {' '.join(rng.sample(FILLER, 6))} in year {n}." for n in range(count)
    ]
    return [one for text in lines for one in passages([Source("t", text)], [SUBJECT])[0]]


FILLER = [
    "grow",
    "shrink",
    "shine",
    "differ",
    "matter",
    "amaze",
    "surprise",
    "annoy",
    "please",
    "bore",
    "delight",
    "confuse",
    "divide",
    "unite",
    "follow",
    "lead",
]


def test_each_keyword_gets_its_best_sentences_once():
    candidates = corpus(30)
    chosen, _ = select(candidates, ["halls", "fees", "has"], 4, by_words(["amaze", "bore"]))
    assert [one.keyword for one in chosen].count("halls") == [one.keyword for one in chosen].count("has") == 4
    assert len({one.sentence.text for one in chosen}) == 12
    best = {one.sentence.text for one in chosen if one.keyword == "halls"}
    scores = {one.sentence.text: sum(word in one.sentence.text for word in ("amaze", "bore")) for one in candidates}
    others = [text for text in scores if "halls" in text and text not in best]
    assert min(scores[text] for text in best) >= max(scores[text] for text in others)


def test_sentences_that_say_the_same_are_taken_once():
    text = (
        "Xaviria raised its fees twice last year. XAVIRIA RAISED ITS FEES TWICE LAST YEAR. "
        "Xaviria raised its fees twice last week."
    )
    kept, _ = passages([Source("t", text)], [SUBJECT])
    chosen, left = select(kept, ["fees"], 9, by_words([]))
    assert len(chosen) == 2 and left == {"says the same as another sentence": 1}


class Counting(Embeddings):
    """One dimension per letter."""

    def embed_documents(self, texts):
        return [[float(text.lower().count(letter)) + 0.01 for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts]

    def embed_query(self, text):
        return self.embed_documents([text])[0]


def test_embeddings_rank_by_similarity():
    rank = by_embeddings(Counting(), "zoo")
    near, far = rank(["A zoo of fees.", "Nothing like it at all."], "fees")
    assert near > far


@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 5))
def test_splits_depend_on_the_sentences_not_on_their_order(count, share, seed):
    chosen, _ = select(corpus(count), ["fees", "rents", "halls"], 99, by_words([]))
    split = {one.sentence.text: one.split for one in assign_splits(chosen, share, seed=seed)}
    turned = {one.sentence.text: one.split for one in assign_splits(chosen[::-1], share, seed=seed)}
    assert split == turned
    held = [text for text, side in split.items() if side == "validation"]
    assert len(held) == min(max(1, round(len(chosen) * share)), len(chosen) - 1)
    for keyword in ("fees", "rents", "halls"):
        group = [one for one in chosen if one.keyword == keyword]
        exact = len(group) * len(held) / len(chosen)
        assert abs(sum(split[one.sentence.text] == "validation" for one in group) - exact) <= 1


def test_splits_follow_the_seed_and_need_two_sentences():
    chosen, _ = select(corpus(30), ["fees"], 99, by_words([]))
    assert len({tuple(one.split for one in assign_splits(chosen, 0.3, seed=seed)) for seed in range(5)}) > 1
    assert {one.split for one in assign_splits(chosen, 0)} == {"decomposition"}
    with pytest.raises(BenchmarkError, match=r"1 sentence cannot be split.*validation=0"):
        assign_splits(chosen[:1], 0.3)


def test_files_are_read_strictly(tmp_path):
    def written(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    good = written("a.md", b"\xef\xbb\xbfXaviria is old.\r\nVery old.")
    assert read_corpus([good, "Xaviria.", good]) == [
        Source("a.md", "Xaviria is old.\r\nVery old."),
        Source("text 2", "Xaviria."),
    ]
    for part, message in [
        (written("latin.txt", b"Line one.\nUniversit\xe9."), r"latin.txt:2:10: byte 0xe9 is not UTF-8"),
        (written("nul.txt", b"a\0b"), r"nul.txt:1:2: .*NUL"),
        (written("empty.txt", b""), r"empty.txt:1:1: the file is empty"),
        (written("a.pdf", b"%PDF"), r"suffix '.pdf'; a corpus is made of .txt and .md"),
        (tmp_path / "absent.txt", "absent.txt cannot be read"),
        (tmp_path, r"is a folder. Pass its files"),
        ("a\0b", "text 1 holds a NUL character at 2"),
        ("a\ud800", "half of a surrogate pair at character 2"),
        ("notes.md", r"is the text 'notes.md'. For the file, pass Path\('notes.md'\)"),
        (["  ", "\n"], "The corpus is empty: 2 texts"),
        ([], "The corpus is empty: 0 texts"),
        ([b"bytes"], "Part 1 of the corpus is a bytes"),
    ]:
        with pytest.raises(BenchmarkError, match=message):
            read_corpus(part)
