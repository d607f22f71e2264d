"""What a calibration produces: checked weights, and one readable JSON file with everything that went into them.

A file is data, never code: it is parsed with a size and a nesting limit, checked against its own SHA-256, and every
weight is validated again. Text in it (entity names, answers) is never used as a path, a template or a class name.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import numbers
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn, TypeAlias, cast

from mpf_chains.errors import ArtifactError, InvalidInput, WeightsError
from mpf_chains.perspectives import Perspective, PerspectiveSet

Fallback: TypeAlias = Literal["error", "pooled", "uniform"]
Mode: TypeAlias = Literal["sampled", "aggregated"]
Interval: TypeAlias = tuple[float, float]

SCHEMA = 1
MAX_BYTES = 64 * 2**20
MAX_DEPTH = 32
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Weights:
    """Checked weights over perspectives: per entity, for any entity ("pooled"), or both. Immutable; pickles.

    Make them with :meth:`of`, which takes everything that a ``weights=`` argument takes.

    Args:
        names: The perspectives' names; weights are kept in this order.
        by_entity: Entity → perspective → weight in [0, 1]. Default none.
        pooled: Perspective → weight, for any entity. Default none. Without ``by_entity`` every entity gets these.
        version: Short hash that ends up in response metadata. Default: of the content.

    Raises:
        WeightsError: If any weight is not a number in [0, 1], a row does not sum to 1 (tolerance 1e-9), or a
            perspective is unknown or left out (one without weight is written as 0.0).

    Examples:
        >>> weights = Weights.of({"optimist": 0.25, "critic": 0.75}, ["optimist", "critic"])
        >>> weights.lookup("any entity")["critic"]
        0.75
    """

    names: tuple[str, ...]
    by_entity: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    pooled: Mapping[str, float] | None = None
    version: str = ""

    def __post_init__(self) -> None:
        if not self.by_entity and self.pooled is None:
            raise WeightsError(
                "`weights` are empty.", hint="Give perspective → weight, or entity → perspective → weight."
            )
        rows = {}
        for entity, row in self.by_entity.items():
            if not isinstance(entity, str):
                raise WeightsError(f"`weights` have the entity {entity!r}; entities must be strings.")
            rows[entity] = MappingProxyType(_checked(row, self.names, f" for entity {entity!r}"))
        pooled = None if self.pooled is None else MappingProxyType(_checked(self.pooled, self.names, ""))
        object.__setattr__(self, "by_entity", MappingProxyType(rows))
        object.__setattr__(self, "pooled", pooled)
        if not self.version:
            content = {"by_entity": _thawed(rows), "pooled": None if pooled is None else dict(pooled)}
            object.__setattr__(self, "version", _sha256(content)[:12])

    def __hash__(self) -> int:
        return hash(self.version)

    def __reduce__(self) -> tuple[type[Weights], tuple[Any, ...]]:
        pooled = None if self.pooled is None else dict(self.pooled)
        return Weights, (self.names, _thawed(self.by_entity), pooled, self.version)

    @classmethod
    def of(cls, value: WeightsLike, perspectives: PerspectiveSet | Iterable[str]) -> Weights:
        """Check whatever was given as ``weights=``.

        Args:
            value: Weights, a Calibration, perspective → weight, or entity → perspective → weight.
            perspectives: The perspectives to draw from (or their names).

        Returns:
            The weights in the perspectives' order. Those of a Calibration carry its version.

        Raises:
            WeightsError: See the class. Also if a calibration was made with other instructions or arguments.
        """
        members = perspectives if isinstance(perspectives, PerspectiveSet) else None
        names = members.names if members is not None else tuple(str(name) for name in perspectives)
        if isinstance(value, Weights):
            return value if value.names == names else cls(names, value.by_entity, value.pooled, value.version)
        if isinstance(value, Calibration):
            if members is not None:
                _require_same(value.perspectives, members)
            return cls(names, value.weights, value.pooled, value.version)
        if not isinstance(value, Mapping):
            raise WeightsError(
                f"`weights` are a {type(value).__name__}; give a Calibration, a mapping perspective → weight, "
                f"or a mapping entity → perspective → weight."
            )
        if value and all(isinstance(row, Mapping) for row in value.values()):
            return cls(names, by_entity=cast("Mapping[str, Mapping[str, float]]", value))
        return cls(names, pooled=cast("Mapping[str, float]", value) or None)

    @staticmethod
    def normalised(value: Mapping[str, Any]) -> dict[str, Any]:
        """Scale weights so that each row sums to 1.

        Args:
            value: Perspective → weight, or entity → perspective → weight; finite and not negative.

        Returns:
            A new mapping of the same shape.

        Raises:
            WeightsError: If a row has a negative or non-finite weight, or only zeros.

        Examples:
            >>> Weights.normalised({"optimist": 2, "critic": 6})
            {'optimist': 0.25, 'critic': 0.75}
        """
        if value and all(isinstance(row, Mapping) for row in value.values()):
            return {entity: Weights.normalised(row) for entity, row in value.items()}
        row = {name: _number(weight, name, "") for name, weight in value.items()}
        total = math.fsum(row.values())
        if total <= 0 or min(row.values()) < 0:
            raise WeightsError(f"`weights` {row} cannot be normalised; they must be at least 0 and not all 0.")
        return {name: weight / total for name, weight in row.items()}

    def lookup(self, entity: str | None, fallback: Fallback = "error") -> Mapping[str, float]:
        """The weights of one entity.

        Args:
            entity: The entity, or None if there is none.
            fallback: For an entity that has no weights of its own: "error" (default), "pooled" or "uniform".

        Returns:
            Perspective → weight.

        Raises:
            WeightsError: If the entity is unknown and the fallback is "error", or "pooled" where none are known.
        """
        if entity is not None and entity in self.by_entity:
            return self.by_entity[entity]
        if self.pooled is not None and (fallback == "pooled" or not self.by_entity):
            return self.pooled
        if fallback == "uniform":
            return MappingProxyType({name: 1.0 / len(self.names) for name in self.names})
        known = ", ".join(repr(name) for name in list(self.by_entity)[:8])
        if fallback == "pooled":
            raise WeightsError(f"`weights` have no pooled row for entity {entity!r}; they know: {known}.")
        raise WeightsError(
            f"There are no weights for entity {entity!r}; `weights` know: {known}.",
            hint="Name the entity (entity=..., or config['configurable']['mpf_entity']), or set "
            'fallback="pooled" or "uniform".',
        )


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration: weights, how sure they are, how well they do, and what they came from.

    Args:
        perspectives: The perspectives, with instructions and arguments, that the weights belong to.
        mode: "sampled" (one perspective answers) or "aggregated" (several, merged): what the weights were fitted for.
        features: Names of the calibrated features.
        weights: Entity → perspective → weight.
        pooled: Perspective → weight over all entities, for entities not seen.
        intervals: Entity → perspective → (low, high). Default none.
        pooled_intervals: Perspective → (low, high). Default none.
        level: Coverage the intervals aim at, in (0, 1). Default 0.95.
        fits: Entity → what the fit reached: objective, gap, kl, calibration, status, floor, ... (JSON).
        validation: Metrics on held-out questions, per system and entity (JSON).
        diagnostics: Pareto front, missing perspectives, warnings, ... (JSON).
        provenance: Model, features, benchmark, library version, calls, usage, seed, ... (JSON).
        created: ISO time; the only thing in which two identical runs may differ. Default now (UTC).

    Raises:
        WeightsError: If the weights are no distributions over the perspectives.
        InvalidInput: If anything else is out of range or is not JSON.
    """

    perspectives: PerspectiveSet
    mode: Mode
    features: tuple[str, ...]
    weights: dict[str, dict[str, float]]
    pooled: dict[str, float]
    intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)
    pooled_intervals: dict[str, Interval] = field(default_factory=dict)
    level: float = 0.95
    fits: dict[str, dict[str, Any]] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        if self.mode not in ("sampled", "aggregated"):
            raise InvalidInput(f'`mode` is {self.mode!r}; it must be "sampled" or "aggregated".')
        if not 0 < self.level < 1:
            raise InvalidInput(f"`level` is {self.level!r}; it must lie strictly between 0 and 1.")
        checked = Weights(self.perspectives.names, self.weights, self.pooled)
        intervals = {entity: self._interval_row(row, entity) for entity, row in self.intervals.items()}
        strangers = sorted((set(intervals) | set(self.fits)) - set(checked.by_entity))
        if strangers:
            raise InvalidInput(f"`intervals` or `fits` name the entity {strangers[0]!r}, which has no weights.")
        values = {
            "features": tuple(self.features),
            "weights": _thawed(checked.by_entity),
            "pooled": dict(checked.pooled or {}),
            "intervals": intervals,
            "pooled_intervals": self._interval_row(self.pooled_intervals, "pooled"),
        }
        for name in ("fits", "validation", "diagnostics", "provenance"):
            values[name] = _plain(getattr(self, name), name)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __hash__(self) -> int:
        return hash(self.version)

    @property
    def version(self) -> str:
        """12 hex digits over what changes answers: perspectives, mode and weights. Not the time."""
        body = self._body()
        return _sha256({key: body[key] for key in ("perspectives", "mode", "weights", "pooled")})[:12]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one JSON file. A kill at any moment leaves the old file or the new one, whole.

        Args:
            path: Where to; its folder must exist. By custom it ends in ``.mpf.json``.

        Raises:
            ArtifactError: If it cannot be written, or the path is a symbolic link.
            WeightsError: If the weights were changed into something else than distributions.
        """
        Weights(self.perspectives.names, self.weights, self.pooled)  # the dicts may have been changed since
        body = self._body()
        document = {"schema": SCHEMA, "created": self.created, "sha256": _sha256(body), "body": body}
        text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        _limit_depth(text, Path(path))
        write_file(path, text)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a file that :meth:`save` wrote.

        Args:
            path: The file, at most 64 MiB.

        Returns:
            The calibration, equal to the one saved.

        Raises:
            ArtifactError: If the file is missing, damaged, altered, too large, too deep, or from a newer version.
        """
        source = Path(path)
        document = _parse(_read(source), source)
        schema = document.get("schema")
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise ArtifactError(f"{source} is no calibration: its `schema` is {schema!r}.")
        if schema > SCHEMA:
            raise ArtifactError(
                f"{source} has schema {schema}; this version of mpf-chains reads up to {SCHEMA}.",
                hint="Upgrade with: pip install -U mpf-chains",
            )
        body = document.get("body")
        if body is None:
            raise ArtifactError(f"{source} is no calibration: it has no `body`.")
        if not isinstance(body, dict) or document.get("sha256") != _sha256(body):
            raise ArtifactError(
                f"{source} was altered or damaged: its content does not match its SHA-256.",
                hint="Fetch it again, or calibrate again; to use hand-made weights pass them as a mapping.",
            )
        try:
            return cls._from_body(body, document.get("created"))
        except (InvalidInput, TypeError, ValueError, KeyError, AttributeError) as error:
            raise ArtifactError(f"{source} is no valid calibration: {error}") from error

    def summary(self) -> str:
        """A short text for people: one line per entity with each weight and its interval."""
        lines = [f"Calibration {self.version} ({self.mode}; {', '.join(self.features)}; {self.created})"]
        rows = [*self.weights.items(), ("(pooled)", self.pooled)]
        spans = {**self.intervals, "(pooled)": self.pooled_intervals}
        width = max(len(entity) for entity, _ in rows)
        for entity, row in rows:
            cells = []
            for name, weight in row.items():
                span = spans.get(entity, {}).get(name)
                cells.append(f"{name} {weight:.3f}" + (f" [{span[0]:.3f}, {span[1]:.3f}]" if span else ""))
            lines.append(f"  {entity:<{width}}  {'  '.join(cells)}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.summary())}</pre>"

    def _interval_row(self, row: Mapping[str, Iterable[float]], entity: str) -> dict[str, Interval]:
        checked = {}
        for name, span in row.items():
            where = f"`intervals` of {name!r} for {entity!r}"
            if name not in self.perspectives.names:
                raise InvalidInput(f"{where} belong to no perspective; known: {', '.join(self.perspectives.names)}.")
            bounds = tuple(float(bound) for bound in span)
            if len(bounds) != 2 or not all(map(math.isfinite, bounds)) or bounds[0] > bounds[1]:
                raise InvalidInput(f"{where} are {bounds}; they must be two finite numbers (low, high).")
            checked[name] = (bounds[0], bounds[1])
        return checked

    def _body(self) -> dict[str, Any]:
        body = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "created"}
        body["perspectives"] = [
            {"name": member.name, "instruction": member.instruction, "arguments": dict(member.arguments)}
            for member in self.perspectives
        ]
        plain: dict[str, Any] = _plain(body, "calibration")
        return plain

    @classmethod
    def _from_body(cls, body: dict[str, Any], created: object) -> Calibration:
        known = {entry.name for entry in fields(cls)} - {"created"}
        if set(body) != known:
            odd = sorted(set(body) ^ known)
            raise InvalidInput(f"the field {odd[0]!r} is missing or unknown.")
        if not isinstance(created, str):
            raise InvalidInput(f"`created` is {created!r}; it must be an ISO time.")
        if not all(isinstance(name, str) for name in body["features"]):
            raise InvalidInput("`features` must be names.")
        perspectives = PerspectiveSet([Perspective(**member) for member in body["perspectives"]])
        return cls(**{**body, "perspectives": perspectives}, created=created)


WeightsLike: TypeAlias = Weights | Calibration | Mapping[str, float] | Mapping[str, Mapping[str, float]]


def _number(value: object, name: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise WeightsError(f"`weights`{where} give {name!r} the weight {value!r}; it must be a finite number.")
    return float(value) + 0.0  # -0.0 becomes 0.0


def _checked(row: object, names: tuple[str, ...], where: str) -> dict[str, float]:
    """The row in the perspectives' order, or a WeightsError that says what is wrong with it."""
    if not isinstance(row, Mapping):
        raise WeightsError(f"`weights`{where} are a {type(row).__name__}; they must be a mapping perspective → weight.")
    unknown = [name for name in row if name not in names]
    if unknown:
        raise WeightsError(f"`weights`{where} name the unknown perspective {unknown[0]!r}; known: {', '.join(names)}.")
    left_out = [name for name in names if name not in row]
    if left_out:
        raise WeightsError(
            f"`weights`{where} leave out the perspective {left_out[0]!r}.", hint="Write 0.0 if it is never to be drawn."
        )
    checked = {name: _number(row[name], name, where) for name in names}
    for name, weight in checked.items():
        if not 0 <= weight <= 1 + TOLERANCE:
            raise WeightsError(f"`weights`{where} give {name!r} the weight {weight:g}; it must lie in [0, 1].")
    total = math.fsum(checked.values())
    if abs(total - 1) > TOLERANCE:
        raise WeightsError(
            f"`weights`{where} sum to {total:.12g}; they must sum to 1 (tolerance {TOLERANCE:g}).",
            hint="Pass Weights.normalised(weights) if that was intended.",
        )
    return checked


def _require_same(calibrated: PerspectiveSet, used: PerspectiveSet) -> None:
    known = {member.name: member.digest for member in calibrated}
    for member in used:
        if member.name in known and known[member.name] != member.digest:
            raise WeightsError(
                f"Perspective {member.name!r} has another instruction or other arguments than when it was calibrated.",
                hint="Use calibration.perspectives, calibrate again, or pass calibration.weights to use them anyway.",
            )


def _thawed(rows: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {entity: dict(row) for entity, row in rows.items()}


def _plain(value: object, name: str) -> Any:
    """A deep copy made of JSON types only, so that what is saved equals what is loaded."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(
            f"`{name}` must hold JSON values only (strings, finite numbers, lists, dicts): {error}."
        ) from error


def _sha256(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_file(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file. A kill at any moment leaves the old file or the new one, whole.

    Args:
        path: Where to; its folder must exist.
        text: What to write, as UTF-8.

    Returns:
        The path.

    Raises:
        ArtifactError: If it cannot be written, or the path is a symbolic link.
    """
    target = Path(path)
    if target.is_symlink():
        raise ArtifactError(f"{target} is a symbolic link.", hint="Save to the file it points to.")
    try:
        _replace(target, text.encode())
    except (OSError, UnicodeEncodeError) as error:
        raise ArtifactError(f"{target} could not be written: {getattr(error, 'strerror', error)}.") from error
    return target


def _replace(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".{target.name[:80]}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read(source: Path) -> str:
    try:
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{source} is not a regular file.")
        if status.st_size > MAX_BYTES:
            raise ArtifactError(f"{source} has {status.st_size} bytes; a calibration has at most {MAX_BYTES}.")
        with source.open("rb") as file:
            return file.read(MAX_BYTES).decode()
    except OSError as error:
        raise ArtifactError(f"{source} could not be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{source} is not UTF-8 text: {error}.") from error


def _parse(text: str, source: Path) -> dict[str, Any]:
    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not allowed")

    def number(literal: str) -> float:
        value = float(literal)
        return value if math.isfinite(value) else constant(literal)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(items)
        if len(entries) != len(items):
            raise ValueError("a key occurs twice")
        return entries

    _limit_depth(text, source)
    try:
        document = json.loads(text, parse_constant=constant, parse_float=number, object_pairs_hook=pairs)
    except ValueError as error:
        raise ArtifactError(f"{source} is no valid JSON: {error}.") from error
    if not isinstance(document, dict):
        raise ArtifactError(f"{source} is no calibration: it holds a {type(document).__name__}, not an object.")
    return document


def _limit_depth(text: str, source: Path) -> None:
    # Counted before parsing, because the parser itself recurses. A string without end is taken whole: linear time.
    depth = 0
    for match in re.finditer(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', text, re.DOTALL):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match.group()[0], 0)
        if depth > MAX_DEPTH:
            raise ArtifactError(f"{source} is nested deeper than {MAX_DEPTH} levels.")
