"""What a stored evaluation must look like: everything is checked before it is believed."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class StoredFloor(_Strict):
    """See `NoiseFloor`."""

    mean: FiniteFloat
    limit: FiniteFloat
    quota: FiniteFloat | None = None


class StoredMeasured(_Strict):
    """See `Measured`; infinite ends are None."""

    metric: str
    value: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    level: Annotated[float, Field(gt=0, lt=1)]
    n: Count
    method: Literal["exact", "bootstrap"]
    range: Annotated[list[FiniteFloat | None], Field(min_length=2, max_length=2)]
    floor: StoredFloor | None = None
    parts: dict[str, StoredMeasured] = Field(default_factory=dict)

    @property
    def ends(self) -> tuple[float, float, float, float]:
        """Range and interval: lowest, low, high, highest."""
        lowest, highest = self.range
        bottom, top = -math.inf if lowest is None else lowest, math.inf if highest is None else highest
        return bottom, bottom if self.low is None else self.low, top if self.high is None else self.high, top

    @model_validator(mode="after")
    def _ordered(self) -> StoredMeasured:
        lowest, low, high, highest = self.ends
        if not lowest - 1e-9 <= low <= self.value <= high <= highest + 1e-9:
            raise ValueError(f"the value {self.value} is not within [{low}, {high}], or that not in the metric's range")
        return self


class StoredBenchmark(_Strict):
    """See `Evaluation.benchmark`."""

    name: str
    kind: str
    digest: str
    items: Count
    source: str


class StoredResampling(_Strict):
    """See `Resampling`."""

    level: Annotated[float, Field(gt=0, lt=1)]
    resamples: Annotated[int, Field(ge=20, le=1_000_000)]
    permutations: Annotated[int, Field(ge=0, le=1_000_000)]
    seed: int


class StoredSettings(_Strict):
    """See `Evaluation.settings`."""

    model_config = ConfigDict(strict=True, extra="allow")

    task: Literal["likelihood", "masked", "next_token", "generate"]
    draws: Annotated[int, Field(ge=1)]
    features: dict[str, str]
    resampling: StoredResampling


class StoredRecord(_Strict):
    """What every record has; the rest is the task's."""

    model_config = ConfigDict(strict=True, extra="allow")

    id: str
    draw: Count = 0


class StoredEvaluation(_Strict):
    """See `Evaluation`."""

    label: str
    model: str
    method: Literal["likelihood", "generate"]
    benchmark: StoredBenchmark
    measured: dict[str, StoredMeasured]
    bounds: dict[str, Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]]
    missing: Count
    notes: list[str]
    usage: dict[str, Count]
    settings: StoredSettings
    library: str
    created: str
    records: list[StoredRecord]


def checked(plain: Any) -> StoredEvaluation:
    """The document, if it is one.

    Raises:
        ValueError: Naming what is wrong in it.
    """
    return StoredEvaluation.model_validate(plain)
