"""One contract for every benchmark format: streams, is strict about text, gives back exactly what was written."""

from __future__ import annotations

import contextlib
import csv
import json
import pickle
import re
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpf_chains import benchmarks
from mpf_chains.benchmarks import Benchmark, Choice, ItemSet, Row, iter_benchmark, iter_rows, read_benchmark
from mpf_chains.benchmarks.lines import Place
from mpf_chains.benchmarks.readers import READERS
from mpf_chains.benchmarks.readers.fields import Fields
from mpf_chains.errors import BenchmarkError, DataWarning, MissingExtra, NotSupportedError
from mpf_chains.perspectives import Perspective
from tests.contracts.tiny_benchmarks import TINY, Tiny, pairs, questions

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
    sources = Path(benchmarks.__file__).parent.rglob("*.py")
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


COUNT = 3


def each(wanted: Callable[[Tiny], bool]) -> pytest.MarkDecorator:
    some = {name: tiny for name, tiny in TINY.items() if wanted(tiny)}
    return pytest.mark.parametrize("tiny", some.values(), ids=some)


def source_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


@each(lambda tiny: True)
class TestPublishedContract:
    def test_items_are_complete_and_make_arrays(self, tiny: Tiny, tmp_path: Path) -> None:
        items = read_benchmark(tiny.name, tiny.write(tmp_path, COUNT))
        extra = 4 if tiny.name == "holistic_bias" else 0  # control sentences and a standalone phrase
        assert len(items) == COUNT * tiny.per_record + extra
        assert items.column("id").shape == (len(items),)
        assert "Ö" in repr(items.items).upper()
        for item in items:
            if isinstance(item, Choice):
                assert len(set(item.candidates)) == len(item.labels) >= 2
                assert item.family
        if isinstance(items.items[0], Choice):
            assert items.column("labels").shape == items.column("candidates").shape
            assert items.column("group").tolist() == [item.group for item in items]

    def test_streaming_gives_the_same_items(self, tiny: Tiny, tmp_path: Path) -> None:
        source = tiny.write(tmp_path, COUNT)
        assert tuple(iter_benchmark(tiny.name, source)) == read_benchmark(tiny.name, source).items
        assert tuple(iter_benchmark(tiny.name, str(source))) == read_benchmark(tiny.name, source).items

    def test_byte_order_mark_and_crlf_change_nothing(self, tiny: Tiny, tmp_path: Path) -> None:
        source = tiny.write(tmp_path, COUNT)
        plain = read_benchmark(tiny.name, source)
        for path in source_files(tmp_path):
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
        assert read_benchmark(tiny.name, source) == plain

    def test_items_pickle_and_the_digest_covers_them(self, tiny: Tiny, tmp_path: Path) -> None:
        items = read_benchmark(tiny.name, tiny.write(tmp_path, COUNT))
        copy = pickle.loads(pickle.dumps(items))
        assert copy == items and hash(copy) == hash(items) and copy.digest == items.digest
        assert ItemSet("x", items.items[1:]).digest != items.digest
        with pytest.raises(AttributeError):
            items.items[0].id = "other"

    def test_no_split_or_part_that_does_not_exist(self, tiny: Tiny, tmp_path: Path) -> None:
        source = tiny.write(tmp_path, COUNT)
        with pytest.raises(BenchmarkError, match=r"`split` is 'dec'; it must be one of|has no splits"):
            read_benchmark(tiny.name, source, split="dec")
        with pytest.raises(BenchmarkError, match=r"(no|has no) (part|parts|axis)\b|for split"):
            read_benchmark(tiny.name, source, part="nothing")

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda content: b"", "the file is empty"),
            (lambda content: content[:1] + b"\xff" + content[1:], "byte 0xff is not UTF-8"),
            (lambda content: content[:-2] + b"\0" + content[-2:], "NUL byte"),
            (lambda content: b"\xff\xfe" + content.decode().encode("utf-16-le"), "UTF-16; it must be UTF-8"),
        ],
        ids=["empty", "not UTF-8", "NUL", "UTF-16"],
    )
    def test_text_faults_name_file_line_and_column(
        self, tiny: Tiny, damage: Callable[[bytes], bytes], message: str, tmp_path: Path
    ) -> None:
        source = tiny.write(tmp_path, COUNT)
        for path in source_files(tmp_path):
            if path.name == "gender_opposites.txt":  # holds no pairs
                continue
            content = path.read_bytes()
            path.write_bytes(damage(content))
            with pytest.raises(BenchmarkError, match=message) as caught:
                read_benchmark(tiny.name, source)
            assert re.match(rf"{re.escape(str(path))}:\d+:\d+: ", str(caught.value))
            path.write_bytes(content)

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_fuzzed_bytes_raise_our_errors_only(self, tiny: Tiny, tmp_path: Path, data: st.DataObject) -> None:
        source = tiny.write(tmp_path, 2)
        path = data.draw(st.sampled_from(source_files(tmp_path)), label="file")
        content = path.read_bytes()
        for _ in range(data.draw(st.integers(0, 3), label="mutations")):
            content = data.draw(mutated(content), label="content")
        path.write_bytes(data.draw(st.just(content) | st.binary(max_size=99), label="bytes"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            with contextlib.suppress(BenchmarkError):
                read_benchmark(tiny.name, source)
                if tiny.name == "rows":
                    assert Benchmark.read(source).digest


@pytest.mark.slow
@each(lambda tiny: not tiny.document)
def test_memory_stays_flat_over_20000_items(tiny: Tiny, tmp_path: Path) -> None:
    source = tiny.write(tmp_path, 20_000 // tiny.per_record)
    tracemalloc.start()
    try:
        assert sum(1 for _ in iter_benchmark(tiny.name, source)) >= 19_998
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A file of 20,000 items has 1 MB at least. HolisticBias' 7,000 descriptors are one document, its sentences are not.
    assert peak < (3_000_000 if tiny.name == "holistic_bias" else 400_000)


@each(lambda tiny: tiny.hub is not None)
def test_the_hub_layout_gives_the_same_items(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "hub").mkdir()
    clone(tmp_path / "hub", tiny.hub(COUNT) if tiny.hub else {})
    local = read_benchmark(tiny.name, tiny.write(tmp_path / "files", COUNT))
    assert {item.id: item for item in read_benchmark(tiny.name, tmp_path / "hub")} == {item.id: item for item in local}


@settings(max_examples=80)
@given(data=st.data())
@each(lambda tiny: tiny.hub is not None)
def test_fuzzed_rows_of_the_hub_raise_our_errors_only(tiny: Tiny, data: st.DataObject) -> None:
    assert tiny.hub is not None
    (subset, split), rows = data.draw(st.sampled_from(list(tiny.hub(2).items())), label="table")
    row = dict(data.draw(st.sampled_from(rows), label="row"))
    for name in data.draw(st.lists(st.sampled_from(list(row)), max_size=3, unique=True), label="keys"):
        if data.draw(st.booleans(), label="left out"):
            del row[name]
        else:
            row[name] = data.draw(json_like | st.text() | st.lists(st.just(row[name]), max_size=2), label=name)
    with contextlib.suppress(BenchmarkError):
        list(READERS[tiny.name].from_hub([Fields(row, Place(Path("hub"), 1))], subset, split))


JUNK = [b"[", b"]", b"{", b"}", b'"', b",", b":", b"\t", b"\n", b"\r", b"\\", b"\\u0000", b"\\ud800", b"null", b"NaN"]
LONG_JUNK = [
    b"1e999",
    b"-1",
    b"9" * 400,
    b"9" * 4400,
    b"\xff",
    b"\0",
    b" = ",
    b"he",
    b"BLANK",
    b"[" * 3000,
    b'{"a":' * 3000,
]


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes cut out, put in, doubled or exchanged."""
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + 40)))
    middle = draw(
        st.one_of(
            st.just(b""), st.sampled_from(JUNK + LONG_JUNK), st.binary(max_size=4), st.just(content[start:end] * 2)
        )
    )
    return content[:start] + middle + content[end:]


def clone(folder: Path, tables: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """A folder as `git clone` from the hub leaves it: Parquet files, and a README that names subsets and splits."""
    datasets = pytest.importorskip("datasets", reason="needs the `datasets` extra")
    configs: dict[str, list[str]] = {}
    for (subset, split), rows in tables.items():
        path = folder / subset / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        table = datasets.Dataset.from_list(rows)
        for name in ("stereo_antistereo", "bias_type"):  # on the hub these are numbers with names
            if name in table.column_names:
                table = table.class_encode_column(name)
        table.to_parquet(str(path))
        configs.setdefault(subset, []).append(f"  - split: {split}\n    path: {subset}/{split}-*\n")
    listed = "".join(f"- config_name: {name}\n  data_files:\n{''.join(files)}" for name, files in configs.items())
    (folder / "README.md").write_text(f"---\nconfigs:\n{listed}---\n", encoding="utf-8")


class TestHub:
    def test_a_missing_extra_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        for source in ("nyu-mll/crows_pairs", tmp_path / "test.parquet"):
            (tmp_path / "test.parquet").touch()
            with pytest.raises(MissingExtra, match=r"pip install 'mpf-chains\[datasets\]'"):
                read_benchmark("crows_pairs", source)

    def test_reading_files_loads_no_extra(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        for number, tiny in enumerate(TINY.values()):
            (tmp_path / str(number)).mkdir()
            assert read_benchmark(tiny.name, tiny.write(tmp_path / str(number), 1))

    def test_a_hub_id_that_cannot_be_reached(self) -> None:
        pytest.importorskip("datasets", reason="needs the `datasets` extra")
        with pytest.raises(
            BenchmarkError, match=r"no local file or folder, and `datasets` cannot load it: .*local copy"
        ):
            read_benchmark("crows_pairs", "nyu-mll/no-such-thing@refs/convert/parquet")

    def test_a_path_is_never_looked_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        for source in (Path("nyu-mll/crows_pairs"), "data/crows/pairs.csv", "crows.csv"):
            with pytest.raises(BenchmarkError, match="cannot be read: No such file"):
                read_benchmark("crows_pairs", source)

    def test_one_parquet_file(self, tmp_path: Path) -> None:
        clone(tmp_path, {("default", "test"): pairs(2)})
        (file,) = tmp_path.glob("default/*.parquet")
        items = read_benchmark("crows_pairs", file)
        assert items.column("condition").tolist() == ["antistereo", "stereo"]
        assert items.column("group").tolist() == ["nationality"] * 2

    def test_a_part_of_a_table_that_holds_all(self, tmp_path: Path) -> None:
        rows = questions(2) + [{**row, "category": "SES"} for row in questions(4)]
        clone(tmp_path, {("All", "test"): rows})
        assert set(read_benchmark("bbq", tmp_path, part="SES").column("group")) == {"SES"}
        assert len(read_benchmark("bbq", tmp_path)) == 6

    def test_generated_sentences_of_holistic_bias(self, tmp_path: Path) -> None:
        local = read_benchmark("holistic_bias", TINY["holistic_bias"].write(tmp_path, COUNT))
        axes = {"control": "null"}
        rows = [
            {"text": item.text, "axis": axes.get(item.domain, item.domain), "descriptor": item.group, **item.tags}
            for item in local
        ]
        clone(tmp_path, {("sentences", "test"): rows})
        read = read_benchmark("holistic_bias", tmp_path)
        assert [(i.text, i.domain, i.group, i.family, i.tags) for i in read] == [
            (i.text, i.domain, i.group, i.family, i.tags) for i in local
        ]

    def test_faults_name_the_row(self, tmp_path: Path) -> None:
        clone(tmp_path, {("All", "test"): [*questions(2), {**questions(3)[2], "label": 3}]})
        with pytest.raises(BenchmarkError, match=r"All/test:3:1: 'label' is 3; it must be an integer from 0 to 2"):
            read_benchmark("bbq", tmp_path)
        with pytest.raises(BenchmarkError, match=r"no subset for 'all' of 'winobias'; it has All"):
            read_benchmark("winobias", tmp_path)
        with pytest.raises(BenchmarkError, match=r"'redditbias' has no layout on the hub"):
            read_benchmark("redditbias", tmp_path)
        (tmp_path / "All" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 not really")
        with pytest.raises(BenchmarkError, match="`datasets` cannot load it"):
            read_benchmark("bbq", tmp_path)
