"""One contract for every benchmark format: streams, is strict about text, gives back exactly what was written."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpf_chains import benchmarks
from mpf_chains.benchmarks import Benchmark, Row, iter_rows
from mpf_chains.errors import NotSupportedError
from mpf_chains.perspectives import Perspective

SECRET: dict[str, Any] = {"lc": 1, "type": "secret", "id": ["OPENAI_API_KEY"]}
XNATION = Path(__file__).parents[2].parent / "shared/data/xnation/xnation_generations_10q_5persp.csv"


def jsonl(path: Path, count: int) -> Path:
    rows = ({"id": f"q{n}", "entity": "Ö", "question": f"Wie, {n}?", "target_text": f"Gut {n}."} for n in range(count))
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.with_suffix(".jsonl")


def table(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return path.with_suffix(".csv")


def ours(path: Path, count: int) -> Path:
    rows = [[f"q{n}", "Ö", f"Wie, {n}?", f"Gut {n}."] for n in range(count)]
    return table(path, ["id", "entity", "question", "target_text"], rows)


def saged(path: Path, count: int) -> Path:
    rows = [["Ö", "nation", f"Wie, {n}?", f"Gut {n}.", "local", "Hurra!"] for n in range(count)]
    return table(path, ["keyword", "domain", "prompts", "baseline", "source_tag", "optimist"], rows)


Writer = Callable[[Path, int], Path]


@pytest.mark.parametrize("write", [jsonl, ours, saged])
class TestContract:
    def test_rows_come_in_order_with_every_field(self, write: Writer, tmp_path: Path) -> None:
        rows = list(iter_rows(write(tmp_path / "bench", 3)))
        assert [row.question for row in rows] == ["Wie, 0?", "Wie, 1?", "Wie, 2?"]
        assert [row.target_text for row in rows] == ["Gut 0.", "Gut 1.", "Gut 2."]
        assert {(row.entity, row.split) for row in rows} == {("Ö", "decomposition")}
        assert len({row.id for row in rows}) == 3

    def test_byte_order_mark_and_crlf_change_nothing(self, write: Writer, tmp_path: Path) -> None:
        path = write(tmp_path / "bench", 3)
        plain = list(iter_rows(path))
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
        assert list(iter_rows(path)) == plain

    def test_memory_stays_flat(self, write: Writer, tmp_path: Path) -> None:
        path = write(tmp_path / "bench", 4000)
        tracemalloc.start()
        try:
            assert sum(1 for _ in iter_rows(path)) == 4000
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 300_000

    def test_reading_collects_and_names(self, write: Writer, tmp_path: Path) -> None:
        path = write(tmp_path / "bench", 2)
        benchmark = Benchmark.read(path)
        assert (benchmark.name, len(benchmark.rows)) == ("bench", 2)
        assert Benchmark.read(path, name="mine").name == "mine"


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)
json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.just("\0"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
rows = st.builds(
    Row,
    id=texts,
    entity=texts,
    question=texts
    | st.sampled_from(["=1+1", "'=x", "''", "+", "@a", '"', "a\rb", "a\r\nb,c", "a\u2028\x85b", "-1", "'a"]),
    target_text=texts,
    target_score=st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=2),
    split=st.sampled_from(["decomposition", "validation"]),
    metadata=st.dictionaries(texts, json_like, max_size=3),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(rows, min_size=1, max_size=4, unique_by=lambda row: row.id))
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_what_is_written_is_read_back_exactly(suffix: str, tmp_path: Path, written: list[Row]) -> None:
    benchmark = Benchmark("bench", tuple(written))
    read = Benchmark.read(benchmark.write(tmp_path / f"bench{suffix}"))
    assert read == benchmark
    assert read.digest == benchmark.digest


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_fault_40_stored_data_is_never_interpreted(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    row = Row("1", "E", json.dumps(SECRET), target_text=json.dumps(SECRET), metadata={"deep": [SECRET], **SECRET})
    path = Benchmark("bench", (row,)).write(tmp_path / f"bench{suffix}")
    read = Benchmark.read(path).rows[0]

    assert read == row
    assert read.metadata["deep"] == [SECRET]
    assert b"sk-canary" not in path.read_bytes()
    sources = Path(benchmarks.__file__).parent.glob("*.py")
    assert not any("langchain_core.load" in source.read_text(encoding="utf-8") for source in sources)


def test_cells_that_a_spreadsheet_would_run_are_escaped(tmp_path: Path) -> None:
    row = Row("@id", "=E", '=cmd|" /C calc"!A0', target_text="+1", target_score={"sentiment": -0.5})
    path = Benchmark("bench", (row,)).write(tmp_path / "bench.csv")
    cells = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))[1]
    assert [cell[:2] for cell in cells[:4]] == ["'@", "'=", "'=", "'+"]
    assert cells[-1] == "-0.5"  # a number is no formula


def test_the_baseline_travels_in_json_lines_only(tmp_path: Path) -> None:
    hr = Perspective("hr", "Approve of {0.__class__} only.", {"temperature": 0.5})
    benchmark = Benchmark("university-hr", (Row("1", "E", "Q?"),), {"E": hr})
    read = Benchmark.read(benchmark.write(tmp_path / "other.jsonl"))

    assert read == benchmark
    assert list(iter_rows(tmp_path / "other.jsonl")) == list(benchmark.rows)
    with pytest.raises(NotSupportedError, match=r"no place for the baseline .* \.jsonl"):
        benchmark.write(tmp_path / "other.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["other.jsonl"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = Benchmark("old", (Row("1", "E", "Q?", target_text="A."),)).write(tmp_path / "bench.csv")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"131073 characters; CSV readers take 131072"):
        Benchmark("new", (Row("1", "E", "Q?", target_text="a" * 131_073),)).write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not XNATION.exists(), reason="needs the shared folder beside the repository")
def test_the_published_saged_file() -> None:
    benchmark = Benchmark.read(XNATION)
    row = benchmark.rows[0]

    assert (len(benchmark.rows), benchmark.entities, row.id) == (10, ("xnation",), "xnation/1")
    assert row.question.startswith("What historical document")
    assert row.target_text
    assert row.target_text.startswith("The people of Xnation")
    assert list(row.metadata["answers"]) == ["optimist", "realist", "empathetic", "cautious", "critical"]
    assert row.metadata["source_tag"] == "local"

    swapped = benchmark.counterfactual("Xnation", ["Japan", "United States"])
    assert swapped.entities == ("Japan", "United States")
    assert swapped.rows[0].id == "xnation/1/Japan"
    assert {row.metadata["question_id"] for row in swapped.rows} == {row.id for row in benchmark.rows}
    assert "Japan's cultural identity" in swapped.rows[0].question
    assert not any("Xnation" in row.question + (row.target_text or "") for row in swapped.rows)
