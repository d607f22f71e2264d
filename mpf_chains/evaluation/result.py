"""What an evaluation found: metrics with intervals, what each item came to, and what it was made with."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mpf_chains.artifact import write_file
from mpf_chains.errors import ArtifactError, InvalidInput, MissingExtra
from mpf_chains.evaluation.intervals import Resampling
from mpf_chains.evaluation.metrics import METRICS, Comparison, Measured, NoiseFloor, compare
from mpf_chains.evaluation.stored import StoredEvaluation, StoredMeasured, checked
from mpf_chains.evaluation.tasks import Measures, Method, Record, measures_of
from mpf_chains.evaluation.tasks.shares import EXPRESSED
from mpf_chains.evaluation.tasks.texts import TARGET_ERROR

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

SCHEMA = 1
KNOWN_METRICS = {**METRICS, **{metric.name: metric for metric in (TARGET_ERROR, EXPRESSED)}}


@dataclass(frozen=True)
class Evaluation:
    """How one system did on one benchmark.

    Attributes:
        label: What the system is called in tables.
        model: What names the model and its parameters; no secrets.
        method: "likelihood" or "generate".
        benchmark: "name", "kind" (whose metrics it has), "digest", "items", "source".
        measured: Key → value with interval. A key is the metric's name; where features score answers
            "feature/metric"; where the benchmark has several parts (StereoSet's conditions, BOLD's domains) the
            part's name and "/" come first.
        records: What each item came to, plain data; texts of answers are in the ledger, not here.
        bounds: Feature → its declared range. Empty where no features score.
        missing: Items (times draws) without a usable answer; they are in no metric.
        notes: What should be known when reading the figures.
        usage: Tokens that the answers cost, as far as reported.
        settings: Everything else that decides the figures.
        library: The version of mpf-chains.
        created: ISO time; the only thing in which two identical runs may differ.
    """

    label: str
    model: str
    method: Method
    benchmark: Mapping[str, Any]
    measured: Mapping[str, Measured]
    records: tuple[Record, ...] = field(repr=False)
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    missing: int = 0
    notes: tuple[str, ...] = ()
    usage: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    library: str = ""
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def __getitem__(self, key: str) -> Measured:
        if key not in self.measured:
            raise InvalidInput(f"There is no metric {key!r} here; there is {', '.join(self.measured)}.")
        return self.measured[key]

    @property
    def resampling(self) -> Resampling:
        """How its intervals were simulated."""
        return Resampling(**self.settings["resampling"])

    def compare(self, after: Evaluation, *, runs: int = 1999) -> dict[str, Comparison]:
        """This system against another on the same items: differences with intervals, and whether chance explains them.

        Items that either system has no answer to are left out for both.

        Args:
            after: The other system, such as the same model debiased.
            runs: Random swaps behind each p-value. Default 1999.

        Returns:
            Key → comparison, for the metrics that both have; those with an ideal compare distances from it.

        Raises:
            InvalidInput: If benchmark, method or features differ, or no item is common.
        """
        self.check_comparable(after.benchmark, after.settings)
        common = {_place(record) for record in self.records} & {_place(record) for record in after.records}
        if not common:
            raise InvalidInput("There is no item to which both systems gave a usable answer.")
        try:
            first, second = (self._measures(each.records, common).by_key for each in (self, after))
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"The records are not those of {self.benchmark['kind']!r}: {type(error).__name__}: {error}."
            ) from error
        found = {}
        for key in self.measured:
            if key in after.measured and key in first and key in second:
                before, then = first[key](self.resampling), second[key](self.resampling)
                on = "value" if before.metric.ideal is None else "distance"
                found[key] = compare(before, then, on=on, runs=runs, resampling=self.resampling)  # type: ignore[arg-type]
        return found

    def check_comparable(self, benchmark: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Refuse what cannot be compared with this.

        Args:
            benchmark: That of another evaluation.
            settings: Its settings.

        Raises:
            InvalidInput: If items, features, draws or the way of measuring differ.
        """
        if any(self.benchmark[name] != benchmark[name] for name in ("kind", "digest")):
            places = [f"{one['items']} of {one['name']} ({one['digest'][:12]})" for one in (self.benchmark, benchmark)]
            raise InvalidInput(
                f"The systems were evaluated on different items: {' and '.join(places)}.",
                hint="Use the same benchmark, split, part and limit.",
            )
        for name in ("task", "features", "draws", "raw"):
            one, other = self.settings.get(name), settings.get(name)
            if one != other:
                raise InvalidInput(
                    f"The systems were measured in different ways: {name} {one} and {other}.",
                    hint="Measure both in the same way.",
                )

    def _measures(self, records: Sequence[Record], common: set[tuple[str, int]]) -> Measures:
        kept = sorted((record for record in records if _place(record) in common), key=_place)
        return measures_of(self.benchmark["kind"], self.settings["task"], kept, self.bounds)

    def as_dict(self) -> dict[str, Any]:
        """Plain data: everything but the records."""
        return {
            "schema": SCHEMA,
            "label": self.label,
            "model": self.model,
            "method": self.method,
            "benchmark": dict(self.benchmark),
            "settings": dict(self.settings),
            "measured": {key: _described(measured) for key, measured in self.measured.items()},
            "bounds": {name: list(bounds) for name, bounds in self.bounds.items()},
            "missing": self.missing,
            "notes": list(self.notes),
            "usage": dict(self.usage),
            "library": self.library,
            "created": self.created,
        }

    def to_json(self) -> str:
        """Everything, records included, as one JSON document."""
        whole = {**self.as_dict(), "records": list(self.records)}
        return json.dumps(whole, ensure_ascii=False, allow_nan=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Read what `to_json` wrote. Values and intervals are as written; what compares systems is computed anew.

        Raises:
            ArtifactError: If it is something else, or from a newer version.
        """
        try:
            plain = json.loads(text, parse_constant=_no_constant)
            if not isinstance(plain, dict) or not isinstance(plain.get("schema"), int):
                raise ArtifactError("This is no evaluation: it has no 'schema'.")
            if plain["schema"] > SCHEMA:
                raise ArtifactError(
                    f"The evaluation has schema {plain['schema']}; this version reads up to {SCHEMA}.",
                    hint="Upgrade with: pip install -U mpf-chains",
                )
            return cls._from(checked(plain), plain)
        except (ValueError, KeyError, RecursionError) as error:
            raise ArtifactError(f"This is no valid evaluation: {_in_one_line(error)}.") from error

    @classmethod
    def _from(cls, stored: StoredEvaluation, plain: Mapping[str, Any]) -> Evaluation:
        return cls(
            label=stored.label,
            model=stored.model,
            method=stored.method,
            benchmark=plain["benchmark"],
            measured={key: _measured(each) for key, each in stored.measured.items()},
            records=tuple(plain["records"]),
            bounds={name: (float(low), float(high)) for name, (low, high) in stored.bounds.items()},
            missing=stored.missing,
            notes=tuple(stored.notes),
            usage=stored.usage,
            settings=plain["settings"],
            library=stored.library,
            created=stored.created,
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_json` to a file; a kill leaves the old file or the new one, whole.

        Raises:
            ArtifactError: If it cannot be written, or the path is a symbolic link.
        """
        return write_file(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Evaluation:
        """Read a file that `save` wrote.

        Raises:
            ArtifactError: If it cannot be read or is no evaluation.
        """
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path} could not be read: {error}.") from error
        try:
            return cls.from_json(text)
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from error

    def frame(self, of: str = "metrics") -> DataFrame:
        """A pandas table.

        Args:
            of: "metrics" (default): a row per metric and part, with value, interval, floor, ideal and number of items;
                "items": a row per record.

        Raises:
            MissingExtra: If pandas is not installed.
            InvalidInput: If `of` is something else.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtra("pandas", "frames") from error
        if of == "items":
            return pd.json_normalize([dict(record) for record in self.records])
        if of != "metrics":
            raise InvalidInput(f'frame(of={of!r}): it must be "metrics" or "items".')
        return pd.DataFrame(list(self._rows()))

    def plot(self, *others: Evaluation, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw every metric with its interval, ideal and floor; other systems' beside it.

        Args:
            *others: Evaluations of other systems on the same benchmark.
            path: Where to write the figure; the suffix decides the format. Default nowhere.

        Raises:
            MissingExtra: If matplotlib is not installed.
        """
        from mpf_chains.evaluation.figure import plot_evaluations

        return plot_evaluations((self, *others), path)

    def summary(self) -> str:
        """A table in plain text: metric, value with interval, ideal, floor."""
        lines = [f"{self.label}: {self.benchmark['name']}, {self.benchmark['items']} items, {self.method}"]
        width = max((len(key) for key in self.measured), default=0)
        for key, one in self.measured.items():
            ideal = "" if one.metric.ideal is None else f"  ideal {one.metric.ideal:g}"
            floor = "" if one.floor is None else f"  floor {one.floor.mean:.3f} (95 %: {one.floor.limit:.3f})"
            if one.floor is not None and one.floor.quota is not None:
                floor += f", quota {one.floor.quota:.3f}"
            lines.append(f"  {key:<{width}}  {one.value:.4g} [{one.low:.4g}, {one.high:.4g}]{ideal}{floor}")
        if self.missing:
            lines.append(f"  {self.missing} without a usable answer")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def _rows(self) -> Any:
        for key, whole in self.measured.items():
            for part, one in {"": whole, **whole.parts}.items():
                floor = one.floor or NoiseFloor(float("nan"), float("nan"))
                yield {
                    "system": self.label, "metric": key, "part": part, "value": one.value, "low": one.low,
                    "high": one.high, "level": one.level, "ideal": one.metric.ideal, "floor": floor.mean,
                    "floor_limit": floor.limit, "n": one.n, "unit": one.metric.unit, "better": one.metric.better,
                }  # fmt: skip


def _place(record: Record) -> tuple[str, int]:
    return str(record["id"]), int(record.get("draw", 0))


def _described(measured: Measured) -> dict[str, Any]:
    metric = measured.metric
    plain = measured.as_dict() | {
        "title": metric.title,
        "ideal": metric.ideal,
        "range": [None if math.isinf(end) else end for end in (metric.low, metric.high)],
        "unit": metric.unit,
        "better": metric.better,
    }
    if measured.parts:
        plain["parts"] = {label: _described(part) for label, part in measured.parts.items()}
    return plain


def _measured(stored: StoredMeasured) -> Measured:
    lowest, low, high, highest = stored.ends
    if stored.metric not in KNOWN_METRICS:
        raise ValueError(f"there is no metric {stored.metric!r}")
    return Measured(
        replace(KNOWN_METRICS[stored.metric], low=lowest, high=highest),
        stored.value,
        low,
        high,
        stored.level,
        stored.n,
        stored.method,
        None if stored.floor is None else NoiseFloor(stored.floor.mean, stored.floor.limit, stored.floor.quota),
        {label: _measured(part) for label, part in stored.parts.items()},
    )


def _in_one_line(error: Exception) -> str:
    """Where and what, without pydantic's address for more."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{type(error).__name__}: {error}"


def _no_constant(name: str) -> Any:
    raise ArtifactError(f"The file holds {name}, which is no number.")
