"""Items of published benchmarks as evaluation meets them: selected, as arrays, with what files beside them add."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpf_chains.benchmarks import Choice, ItemSet, Prompt, read_benchmark
from mpf_chains.errors import BenchmarkError
from tests.contracts.tiny_benchmarks import TINY, table, text_file


class TestItemSet:
    def test_what_is_selected(self, tmp_path: Path) -> None:
        items = read_benchmark("bbq", TINY["bbq"].write(tmp_path, 8))
        some = items.select(condition="ambiguous", polarity="negative")
        assert [item.id for item in some] == ["Age/0", "Age/4"]
        assert some.column("correct").tolist() == [2, 2]
        with pytest.raises(BenchmarkError, match=r"no items with condition='sunny'"):
            items.select(condition="sunny")
        with pytest.raises(BenchmarkError, match=r"'Age/0' .* has no 'colour'; it has id, group, .*, polarity"):
            items.column("colour")

    def test_several_values_are_selected(self, tmp_path: Path) -> None:
        items = read_benchmark("bbq", TINY["bbq"].write(tmp_path, 8))
        some = items.select(id=["Age/0", "Age/3", "Age/99"], condition={"ambiguous", "disambiguated"})
        assert [item.id for item in some] == ["Age/0", "Age/3"]

    @given(
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), min_size=2, max_size=60),
        st.floats(0.1, 0.9),
        st.integers(),
    )
    def test_no_value_is_in_both_parts_of_a_split(self, values: list[tuple[str, int]], share: float, seed: int) -> None:
        """Every item is in one part; a group with several values is in both, with about its share of them."""
        items = ItemSet(
            "mine",
            tuple(
                Prompt(str(n), group, f"{n}", tags={"term": f"{group}{value}"})
                for n, (group, value) in enumerate(values)
            ),
        )
        terms = {group: {f"{group}{value}" for one, value in values if one == group} for group in "ab"}
        if len(terms["a"]) < 2 and len(terms["b"]) < 2:
            return
        first, second = items.split("term", share, seed)
        assert sorted(item.id for part in (first, second) for item in part) == sorted(item.id for item in items)
        chosen, others = (set(part.column("term").tolist()) for part in (first, second))
        assert not chosen & others
        for one in terms.values():
            assert abs(len(one & chosen) - share * len(one)) <= 1
            assert len(one) < 2 or (one & chosen and one & others)
        again = ItemSet("mine", items.items[::-1]).split("term", share, seed)[0]
        assert set(again.column("term").tolist()) == chosen  # whatever the order

    def test_what_makes_no_two_parts_is_refused(self) -> None:
        items = ItemSet("mine", (Prompt("1", "a", "x", tags={"term": "t"}), Prompt("2", "a", "y", tags={"term": "t"})))
        for share in (0.0, 1.0, float("nan")):
            with pytest.raises(BenchmarkError, match="between 0 and 1"):
                items.split("term", share)
        with pytest.raises(BenchmarkError, match="1 values of 'term' in 'mine' do not make two parts"):
            items.split("term")
        with pytest.raises(BenchmarkError, match="has no 'target'"):
            items.split("target")
        terms = ItemSet("mine", tuple(Prompt(str(n), "a", "x", tags={"term": str(n)}) for n in range(20)))
        assert len({terms.split("term", seed=seed)[0].digest for seed in range(5)}) == 5

    def test_wrong_items_are_refused(self) -> None:
        for arguments, message in [
            ({"candidates": ("a",), "labels": ("x",)}, "1 candidates and 1 labels"),
            ({"labels": ("x",)}, "2 candidates and 1 labels"),
            ({"candidates": ("a", " ")}, "`candidates` is blank"),
            ({"correct": 2}, "`correct` is 2; it must be from 0 to 1"),
            ({"group": ""}, "`group` is blank"),
            ({"tags": {"a": "\0"}}, "NUL"),
            ({"tags": {"a": float("nan")}}, "a text or a finite number"),
            ({"candidates": "ab"}, "1 candidates and 2 labels"),
        ]:
            with pytest.raises(BenchmarkError, match=message):
                Choice(**{"id": "1", "group": "g", "candidates": ("a", "b"), "labels": ("x", "y"), **arguments})
        good = Choice("1", "g", ("a", "b"), ("x", "x"))
        with pytest.raises(BenchmarkError, match="not one 'x'"):
            good.index("x")
        for items, message in [((), "no items"), ((good, good), "more than once")]:
            with pytest.raises(BenchmarkError, match=message):
                ItemSet("mine", items)
        with pytest.raises(BenchmarkError, match=r"no reader for 'mmlu'; there is stereoset, crows_pairs"):
            read_benchmark("mmlu", ".")


class TestReaders:
    def test_the_stereotype_follows_the_polarity_of_the_question(self, tmp_path: Path) -> None:
        items = read_benchmark("bbq", TINY["bbq"].write(tmp_path, 4))
        assert items.column("polarity").tolist() == ["negative", "negative", "non-negative", "non-negative"]
        assert [item.index("stereotype") for item in items] == [0, 0, 1, 1]
        assert [item.index("unknown") for item in items] == [2] * 4
        assert items.column("correct").tolist() == [2, 0, 2, 0]

    def test_where_the_authors_say_which_answer_is_the_stereotype_it_is(self, tmp_path: Path) -> None:
        source = TINY["bbq"].write(tmp_path, 3)
        (tmp_path / "supplemental").mkdir()
        rows = [["Age", "0", "1"], ["Age", "1", "NA"], ["SES", "2", "0"]]
        path = table(tmp_path / "supplemental/additional_metadata.csv", ["category", "example_id", "target_loc"], rows)
        assert [item.index("stereotype") for item in read_benchmark("bbq", source)] == [1, 0, 1]
        path.write_text(path.read_text("utf-8").replace("0,1", "0,3"), "utf-8")
        with pytest.raises(BenchmarkError, match=r"additional_metadata.csv:2:3: 'target_loc' is 3; .* from 0 to 2"):
            read_benchmark("bbq", source)

    @pytest.mark.parametrize(
        ("marks", "groups", "named"),
        [
            (["Ayanna", "F-Black"], ["Black"], True),
            (["Ayanna", "F-Black"], ["Asian"], False),
            (["woman", "woman"], ["F"], True),
            (["woman", "woman"], ["M"], False),
            (["poor", "lowSES"], ["low SES"], True),
            (["Hispanic", "highSES-Hispanic"], ["hispanic"], True),
            (["Karen", "trans_F"], ["trans"], True),
            (["Karen", "nonTrans_F"], ["trans"], False),
            (["", ""], ["old"], True),
        ],
    )
    def test_groups_in_the_marks_of_answers(
        self, marks: list[str], groups: list[str], named: bool, tmp_path: Path
    ) -> None:
        source = TINY["bbq"].write(tmp_path, 1)
        path = tmp_path / "Age.jsonl"
        text = (
            path.read_text("utf-8")
            .replace('["Ö", "old"]', json.dumps(marks))
            .replace('"ans0": "Ö"', '"ans0": "The old man"')
        )
        path.write_text(
            text.replace('"stereotyped_groups": ["old"]', f'"stereotyped_groups": {json.dumps(groups)}'), "utf-8"
        )
        assert (read_benchmark("bbq", source).items[0].labels[0] == "stereotype") == named

    def test_statistics_of_occupations_join_their_schemas(self, tmp_path: Path) -> None:
        source = TINY["winogender"].write(tmp_path, 1)
        header = "occupation\tbergsma_pct_female\tbls_pct_female\tbls_year"
        text_file(tmp_path / "occupations-stats.tsv", [header, "cook\t9.5\t40.25\t2015"])
        items = read_benchmark("winogender", source)
        assert items.column("percent_female").tolist() == [40.25] * 3
        assert items.column("percent_female_text").tolist() == [9.5] * 3
        text_file(tmp_path / "occupations-stats.tsv", [header, "cook\t9.5\tmany\t2015"])
        with pytest.raises(BenchmarkError, match=r"occupations-stats.tsv:2:3: 'bls_pct_female' is 'many'; .* 0 to 100"):
            read_benchmark("winogender", source)

    def test_references_of_prompts(self, tmp_path: Path) -> None:
        source = TINY["bold"].write(tmp_path, 1)
        text_file(tmp_path / "gender_wiki.json", ['{"actors": {"Ö_0": ["Ö 0 is an actor who sings."]}}'])
        items = read_benchmark("bold", source)
        assert [item.reference for item in items] == ["Ö 0 is an actor who sings.", ""]
        assert [item.text for item in items] == ["Ö 0 is an actor who", "In 190, Ö 0"]
        assert items.column("name").tolist() == ["Ö 0"] * 2

    def test_sentences_of_holistic_bias(self, tmp_path: Path) -> None:
        items = read_benchmark("holistic_bias", TINY["holistic_bias"].write(tmp_path, 1))
        assert [item.text for item in items] == [
            "I'm a person.", "I like people.", "I'm ötic0.", "I'm a ötic0 person.", "I like ötic0 people.",
            "I'm a person of age.", "I like people of age.",
        ]  # fmt: skip
        families = items.column("family").tolist()
        assert families[0] == families[3] == families[5] != families[1] == families[4] == families[6]

    def test_pairs_that_ship_and_pairs_of_a_file(self, tmp_path: Path) -> None:
        items = read_benchmark("hellinger", "openings")
        assert len(items) == 432
        for item in items:
            assert all(text.count("  ") == 0 and "{" not in text and text == text.strip() for text in item.prompts)
        openings = set(items.column("family"))
        assert len(openings) == 24
        assert read_benchmark("hellinger", "openings", part="race") == items.select(domain="race")
        with pytest.raises(BenchmarkError, match="no part 'age'; there is gender, race, religion"):
            read_benchmark("hellinger", "openings", part="age")
        text_file(tmp_path / "own.csv", ["first,second", "The cook,The chef", "Ö,Ä"])
        one, other = read_benchmark("hellinger", tmp_path / "own.csv")
        assert (one.id, one.groups, one.domain, one.family) == ("1", ("first", "second"), "", "1")
        assert other.prompts == ("Ö", "Ä")
        text_file(tmp_path / "own.jsonl", ['{"first": "The cook", "second": "The cook"}'])
        with pytest.raises(BenchmarkError, match=r"own.jsonl:1:1: `prompts` is .*two different texts"):
            read_benchmark("hellinger", tmp_path / "own.jsonl")
        with pytest.raises(BenchmarkError, match=r"suffix '.txt'.*\"openings\""):
            read_benchmark("hellinger", tmp_path / "own.txt")

    def test_splits_are_kept_apart(self, tmp_path: Path) -> None:
        source = TINY["winobias"].write(tmp_path, 2)
        for path in tmp_path.glob("*.test"):
            path.with_suffix(".dev").write_bytes(path.read_bytes())
        assert len(read_benchmark("winobias", source)) == len(read_benchmark("winobias", source, split="dev")) == 8
        assert len(read_benchmark("winobias", source, split="all", part="type2")) == 8
        pair = read_benchmark("winobias", source).select(family="type1/test/2")
        assert pair.column("condition").tolist() == ["anti", "pro"]
        assert pair.column("pronoun").tolist() == ["he", "she"]
        assert pair.items[0].candidates == ("the nurse", "the chief") and pair.items[0].correct == 0
