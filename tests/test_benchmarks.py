"""Benchmarks as a user meets them: the ones that ship, selections, names swapped, digests."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpf_chains.benchmarks import Benchmark, Row, swap_entity
from mpf_chains.benchmarks.entities import fill_entity, mentioned
from mpf_chains.errors import BenchmarkError, InvalidInput
from mpf_chains.perspectives import Perspective

ROW = Row("1", "E", "Q?", target_text="A.")


class TestUniversity:
    def test_every_entity_has_the_same_questions_and_targets(self) -> None:
        benchmark = Benchmark.builtin("university")
        assert len(benchmark.entities) == 4
        assert Counter(row.split for row in benchmark.rows) == {"decomposition": 400, "validation": 160}

        def masked(entity: str) -> list[tuple[str, ...]]:
            rows = benchmark.select(entities=[entity]).rows
            return [tuple(text.replace(entity, "*") for text in (r.question, r.target_text or "")) for r in rows]

        first, *others = [masked(entity) for entity in benchmark.entities]
        assert all(other == first for other in others)
        assert all("*" in question and "*" in target for question, target in first)
        assert not any("{" in row.question + (row.target_text or "") for row in benchmark.rows)

    def test_any_entity_may_be_named(self) -> None:
        name = "Université {0.__class__} d'Été"
        rows = Benchmark.builtin("university", entities=[name]).rows
        assert len(rows) == 140
        assert all(name in row.question and name in (row.target_text or "") for row in rows)
        assert rows[0].id == f"u001/{name}"

    def test_hr_has_a_role_play_per_entity_instead_of_targets(self) -> None:
        benchmark = Benchmark.builtin("university-hr")
        assert benchmark.entities == Benchmark.builtin("university").entities
        assert all(row.target_text is None and not row.target_score for row in benchmark.rows)
        assert set(benchmark.baseline) == set(benchmark.entities)
        assert all(one.name == "hr" and entity in one.instruction for entity, one in benchmark.baseline.items())
        assert len({one.digest for one in benchmark.baseline.values()}) == 4

    def test_hr_for_another_entity_needs_its_standing(self) -> None:
        with pytest.raises(BenchmarkError, match=r"No standing is shipped for 'My Uni'.*entities=\{"):
            Benchmark.builtin("university-hr", entities=["My Uni"])
        benchmark = Benchmark.builtin("university-hr", entities={"My Uni": "Known to few {outside} its town."})
        assert "Known to few {outside} its town." in benchmark.baseline["My Uni"].instruction

    def test_wrong_arguments(self) -> None:
        for name, entities, message in [
            ("college", None, 'choose "university" or "university-hr"'),
            ("university", "ETH Zurich", "must be a list of names"),
            ("university", {"ETH Zurich": "high"}, '"university-hr" only'),
            ("university", [], "at least one"),
            ("university", ["A", "A"], "each once"),
            ("university", [" "], "`entity` is blank"),
            ("university-hr", {"A": " "}, "standing of 'A' is blank"),
        ]:
            with pytest.raises(BenchmarkError, match=message):
                Benchmark.builtin(name, entities=entities)  # type: ignore[arg-type]


class TestSelect:
    def test_a_part_is_spread_evenly_within_entity_and_split(self) -> None:
        benchmark = Benchmark.builtin("university")
        part = benchmark.select(per_entity=20)
        assert set(Counter((row.entity, row.split) for row in part.rows).values()) == {20}
        assert part.select(per_entity=20) == part
        numbers = [int(row.id[1:4]) for row in part.select(entities=["ETH Zurich"], split="decomposition").rows]
        assert numbers == list(range(3, 101, 5))
        assert len({row.metadata["topic"] for row in part.rows}) >= 10

    def test_more_than_there_are_gives_all(self) -> None:
        benchmark = Benchmark.builtin("university", entities=["A"])
        assert Counter(row.split for row in benchmark.select(per_entity=60).rows) == {
            "decomposition": 60,
            "validation": 40,
        }
        assert benchmark.select(per_entity=1000) == benchmark

    def test_the_baseline_follows(self) -> None:
        benchmark = Benchmark.builtin("university-hr").select(entities=["ETH Zurich"], per_entity=1)
        assert list(benchmark.baseline) == ["ETH Zurich"]

    def test_wrong_arguments(self) -> None:
        benchmark = Benchmark("mine", (ROW,))
        for arguments, message in [
            ({"entities": ["F"]}, "No rows about 'F'; there are rows about E"),
            ({"entities": "E"}, "list of names"),
            ({"split": "test"}, "one of decomposition, validation"),
            ({"split": "validation"}, "no validation rows"),
            ({"per_entity": 0}, "at least 1"),
        ]:
            with pytest.raises(BenchmarkError, match=message):
                benchmark.select(**arguments)  # type: ignore[arg-type]


class TestBenchmark:
    def test_wrong_benchmarks_are_refused(self) -> None:
        bare, hr = Row("2", "F", "Q?"), Perspective("hr", "Approve.")
        for rows, baseline, message in [
            ((), {}, "no rows"),
            ((ROW, ROW), {}, "'1' comes more than once"),
            (({"id": "1"},), {}, "Row objects only"),
            ((ROW, bare), {"E": hr}, "neither target_text nor target_score"),
            ((ROW, bare), {"F": "Approve."}, "must be a Perspective"),
            ((ROW,), {"G": hr}, "names 'G', but no row"),
        ]:
            with pytest.raises(BenchmarkError, match=message):
                Benchmark("mine", rows, baseline)  # type: ignore[arg-type]
        assert Benchmark("mine", (ROW, bare), {"F": hr}).entities == ("E", "F")

    def test_the_digest_covers_rows_and_baseline_but_not_the_name(self) -> None:
        hr = {"E": Perspective("hr", "Approve.")}
        changed = [
            Benchmark("mine", (replace(ROW, **change),))  # type: ignore[arg-type]
            for change in (
                {},
                {"id": "2"},
                {"entity": "F"},
                {"question": "Why?"},
                {"target_text": "B."},
                {"target_score": {"x": 0.1}},
                {"target_score": {"x": 0.2}},
                {"split": "validation"},
                {"metadata": {"a": 1}},
            )
        ] + [Benchmark("mine", (ROW,), hr), Benchmark("mine", (ROW,), {"E": Perspective("hr", "Reject.")})]
        assert len({benchmark.digest for benchmark in changed}) == len(changed)
        assert Benchmark("other", (ROW,)).digest == changed[0].digest

    def test_benchmarks_pickle_and_cannot_be_changed(self) -> None:
        benchmark = Benchmark.builtin("university-hr").select(per_entity=1)
        copy = pickle.loads(pickle.dumps(benchmark))
        assert copy == benchmark
        assert {copy: 1}[benchmark] == 1
        with pytest.raises(TypeError):
            copy.rows[0].metadata["topic"] = "x"

    def test_counterfactual_needs_the_name_in_every_question(self) -> None:
        with pytest.raises(BenchmarkError, match="1 questions do not name 'X'; the first has id '1'"):
            Benchmark("mine", (ROW,)).counterfactual("X", ["A"])


@pytest.mark.parametrize(
    ("text", "old", "new", "expected"),
    [
        (
            "Xaviria is old; Xaviria's halls, Xaviria’s town.",
            "Xaviria",
            "Yale",
            "Yale is old; Yale's halls, Yale’s town.",
        ),
        ("XAVIRIA UNIVERSITY'S HALLS", "Xaviria University", "Yale", "YALE'S HALLS"),
        ("Xaviria\nUniversity, Xaviria  University", "Xaviria University", "Yale", "Yale, Yale"),
        ("Xaviriana preXaviria Xaviria-based xaviria", "Xaviria", "Yale", "Xaviriana preXaviria Yale-based xaviria"),
        ("Atlas' halls", "Atlas", "Yale", "Yale's halls"),
        ("Atlas' halls, ATLAS' HALLS", "Atlas", "St Andrews", "St Andrews' halls, ST ANDREWS' HALLS"),
        ("ATLAS' HALLS", "Atlas", "Yale", "YALE'S HALLS"),
        ("It is called 'Atlas' by some.", "Atlas", "Yale", "It is called 'Yale' by some."),
        ("He said 'I love Xaviria' twice.", "Xaviria", "Yale", "He said 'I love Yale' twice."),
        ("Xaviria's best", "Xaviria", "St Andrews", "St Andrews's best"),
        ("ETH leads; ETH's labs", "ETH", "Yale", "Yale leads; Yale's labs"),
        ("A (B) C", "(B)", r"\1{x}", r"A \1{x} C"),
        ("Yale and Xaviria", "Xaviria", "Xaviria Yale", "Yale and Xaviria Yale"),
        ("Universität Köln", "Köln", "Zürich", "Universität Zürich"),
        ("Zu\u0308rich Zu", "Zu", "Yale", "Zu\u0308rich Yale"),
        ("an Atlas, An Atlas; AN ATLAS", "Atlas", "Yale", "a Yale, A Yale; A YALE"),
        ("a Yale man, a  Yale dean", "Yale", "MIT", "an MIT man, an  MIT dean"),
        ("A Yale. a NASA", "Yale", "École X", "An École X. a NASA"),
        ("an Atlas", "Atlas", "University of X", "a University of X"),
        ("a Atlas, data Yale, plan-a Yale", "Atlas", "ETH", "a ETH, data Yale, plan-a Yale"),
        ("Xaviria’s halls; XAVIRIA", ["Xaviria University", "Xaviria"], "Yale", "Yale’s halls; YALE"),
        ("Xaviria University, Xaviria", ["Xaviria", "Xaviria University"], "Xaviria X", "Xaviria X, Xaviria X"),
        ("我在清华大学学习。清华Yale大学", "清华大学", "Yale", "我在Yale学习。清华Yale大学"),
        ("清华Yale大学, 서울대는 ETH는", "ETH", "서울대", "清华Yale大学, 서울대는 서울대는"),
    ],
)
def test_names_are_swapped_as_whole_words(text: str, old: str | list[str], new: str, expected: str) -> None:
    assert swap_entity(text, old, new) == expected


def test_swapping_blank_names_is_refused() -> None:
    for old, new in ((" ", "y"), ("x", ""), ([], "y"), (["x", ""], "y")):
        with pytest.raises(InvalidInput, match="must not be blank"):
            swap_entity("x", old, new)


def test_articles_are_left_alone_in_other_languages() -> None:
    assert swap_entity("Va a Yale.", "Yale", "ETH", articles=False) == "Va a ETH."


NAMES = ["Atlan College", "Xaviria", "Yale", "University of Nowhere", "Hill", "École Verte"]
WORDS = [
    "{}",
    "{}'s",
    "{}’s",
    "{}-based",
    "pre{}",
    "{}ana",
    "_{}",
    "{}2",
    "the {}.",
    "({})",
    '"{}",',
    "halls",
    "'quoted'",
]


@given(st.lists(st.sampled_from(WORDS), max_size=8), st.permutations(NAMES), st.booleans())
def test_swapping_there_and_back_changes_nothing(words: list[str], names: list[str], upper: bool) -> None:
    old, new, *_ = names
    text = " ".join(word.format(old) for word in words)
    text = text.upper() if upper else text
    there = swap_entity(text, old, new)
    assert swap_entity(there, new, old) == text
    assert not mentioned(there, [old]) and bool(mentioned(there, [new])) == bool(mentioned(text, [old]))
    untouched = [word.format(old) for word in ("pre{}", "{}ana", "_{}", "{}2")]
    assert swap_entity(" ".join(untouched), old, new) == " ".join(untouched)


def test_a_name_inside_a_longer_one_is_not_mentioned() -> None:
    assert mentioned("ETH Zurich's and\nYALE", ["Yale", "ETH", "ETH Zurich", "Zurich"]) == ("Yale", "ETH Zurich")
    assert mentioned("ETHs", ["ETH"]) == mentioned("x", []) == ()


def test_fault_23_only_the_literal_placeholder_is_filled() -> None:
    text = "{entity.__class__} {0} {{entity}} {entity!r} {entity}"
    assert fill_entity(text, "{entity}{x}") == "{entity.__class__} {0} {{entity}{x}} {entity!r} {entity}{x}"
