"""What each strength of expert pairs does to bias and fluency."""

from __future__ import annotations

import math
import os
from dataclasses import astuple, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpf_chains.core.distributions import Array
from mpf_chains.errors import InvalidInput, MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVEL = 0.9
RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A number with its percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13), nominal coverage 0.9.

    The interval is widened to hold the number where it does not, as may be with |SS − 50| near 0. NaN at both ends:
    there is one unit only (one text), which says nothing about the spread. Of few units it is too narrow, and of units
    that all agree it is empty.

    Args:
        value: The number.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class AlphaCurve:
    """Measurements at every point of a grid of strengths; `alpha_curve` makes them.

    Metrics, each over the items that it needs:

    - "ss", "lm", "icat", and where there are several axes the same of each as "ss/gender" and so on: StereoSet's
      stereotype score, language modelling score and ICAT (Nadeem et al., ACL 2021, section 5), in %: means over target
      terms, a tie is no win. "lm" and "icat" are there if all associations have an unrelated text. For the intervals
      the associations of each axis are resampled, each weighing 1 / (associations of its term).
    - "perplexity": exp of the mean −ln p per token of the texts, which are resampled.
    - "kl": mean KL(base ‖ corrected) per token of the texts, in nats.
    - "hellinger": mean Hellinger distance √(1 − Σ √(p q)) between the next-token distributions of paired prompts
      (arXiv 2412.01711), in [0, 1]; the pairs are resampled.

    Args:
        pairs: Names of the pairs.
        points: Strengths of the pairs, shape (points, pairs); one point is all zeros.
        scores: Mean ln p per token of the stereotypical, the anti-stereotypical and the unrelated text of each
            association, shape (points, associations, 3); NaN where there is no unrelated text.
        axes: Axis of each association.
        terms: Target term of each association.
        losses: Sum of −ln p of each text, in nats, shape (points, texts).
        divergences: Sum of KL(base ‖ corrected) over the tokens of each text, in nats, shape (points, texts).
        tokens: Tokens of each text, shape (texts,).
        distances: Hellinger distance of each pair of prompts, shape (points, prompt pairs).
        seed: Seeds the resampling. Default 0.
        resample: "associations" (default): how would other sentences about these terms have done? "terms": how would
            other terms, with all their associations? That interval is wider, and needs many terms: StereoSet has 10 for
            gender and 3 for religion. `dataclasses.replace` turns one curve into the other.

    Raises:
        InvalidInput: If shapes do not go together, some associations have an axis and others none, or no point is all
            zeros.
    """

    pairs: tuple[str, ...]
    points: Array
    scores: Array
    axes: tuple[str, ...]
    terms: tuple[str, ...]
    losses: Array
    divergences: Array
    tokens: Array
    distances: Array
    seed: int = 0
    resample: Literal["associations", "terms"] = "associations"
    _drawn: dict[str, Array] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        count = len(self.points)
        shapes = {
            "points": (count, len(self.pairs)), "scores": (count, len(self.axes), 3),
            "losses": (count, len(self.tokens)), "divergences": (count, len(self.tokens)),
            "distances": (count, self.distances.shape[-1]),
        }  # fmt: skip
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise InvalidInput(f"`{name}` has shape {getattr(self, name).shape}; it should be {shape}.")
        if self.resample not in {"associations", "terms"}:
            raise InvalidInput(f"`resample` is {self.resample!r}; it must be 'associations' or 'terms'.")
        if len(self.terms) != len(self.axes):
            raise InvalidInput(f"There are {len(self.terms)} terms for {len(self.axes)} associations.")
        if "" in self.axes and any(self.axes):
            raise InvalidInput("Some associations have an axis and others have none.", hint="Give all one, or none.")
        if not (self.points == 0).all(axis=1).any():
            raise InvalidInput("No point has all strengths 0, so there is nothing to compare with.")

    @property
    def zero(self) -> int:
        """Index of the point without correction."""
        return int((self.points == 0).all(axis=1).argmax())

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Names of what was measured."""
        related = bool(self.axes) and not np.isnan(self.scores).any()
        kinds = ("ss", "lm", "icat") if related else ("ss",) if self.axes else ()
        several = list(dict.fromkeys(self.axes)) if len(set(self.axes)) > 1 else []
        names = [*kinds, *(f"{kind}/{axis}" for axis in several for kind in kinds)]
        names += ["perplexity", "kl"] if len(self.tokens) else []
        return (*names, *(["hellinger"] if self.distances.size else []))

    def values(self, metric: str) -> Array:
        """A metric at every point, shape (points,).

        Raises:
            InvalidInput: If it was not measured.
        """
        values: Array = self.draws(metric)[0]
        return values

    def draws(self, metric: str) -> Array:
        """A metric at every point: measured, then in each resample of the units; shape (1 + 1000, points).

        All metrics of texts use the same resamples, and so do all of associations, so their draws go together; those
        of one axis are independent of those of another. With one unit only the resamples are NaN.

        Raises:
            InvalidInput: If it was not measured.
        """
        if metric not in self.metrics:
            raise InvalidInput(f"There is no metric {metric!r}; measured are: {', '.join(self.metrics)}.")
        if metric not in self._drawn:
            self._drawn[metric] = self._draw(metric)
        return self._drawn[metric]

    def estimates(self, metric: str) -> list[Estimate]:
        """A metric with its interval at every point.

        Raises:
            InvalidInput: If it was not measured.
        """
        return [estimate(draws) for draws in self.draws(metric).T]

    def records(self) -> list[dict[str, Any]]:
        """Plain data, as JSON has it: for each point its strengths by name, and (value, low, high) of each metric.

        None in place of a number that is not finite: of one text there is no interval.
        """
        columns = {metric: self.estimates(metric) for metric in self.metrics}
        return [
            {
                "alphas": dict(zip(self.pairs, point, strict=True)),
                **{name: tuple(map(_or_none, astuple(each[i]))) for name, each in columns.items()},
            }
            for i, point in enumerate(self.points.tolist())
        ]

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw every metric against the strength of each pair, the others at 0.

        Args:
            path: Where to write the figure; the suffix decides the format. Default nowhere.

        Returns:
            The matplotlib figure: lines are values, bands their intervals, the dashed line is an SS of 50.

        Raises:
            MissingExtra: If matplotlib is not installed.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingExtra("matplotlib", "plots") from error
        figure = Figure(figsize=(6.0, 1.0 + 1.8 * len(self.metrics)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(self.metrics), 1, sharex=True, squeeze=False)[:, 0]
        for panel, metric in zip(panels, self.metrics, strict=True):
            low, high = np.quantile(self.draws(metric)[1:], TAILS, axis=0)
            for i, name in enumerate(self.pairs):
                rows = self._alone(i)
                rows = rows[np.argsort(self.points[rows, i])]
                (line,) = panel.plot(self.points[rows, i], self.values(metric)[rows], marker=".", label=name)
                panel.fill_between(self.points[rows, i], low[rows], high[rows], alpha=0.2, color=line.get_color())
            panel.set_ylabel(metric)
            if metric.startswith("ss"):
                panel.axhline(50, linestyle="--", linewidth=0.8, color="0.4")
            if metric == "perplexity" and high.max() > 10 * low.min():
                panel.set_yscale("log")
        panels[0].legend()
        panels[-1].set_xlabel("strength α (other pairs at 0)")
        if path is not None:
            figure.savefig(path)
        return figure

    def _alone(self, pair: int) -> NDArray[np.intp]:
        """Points at which no other pair does anything."""
        return np.flatnonzero((np.delete(self.points, pair, axis=1) == 0).all(axis=1))

    def _draw(self, metric: str) -> Array:
        kind, _, axis = metric.partition("/")
        if kind == "hellinger":
            counts = self._counts(self.distances.shape[1], 2)
            distances: Array = counts @ self.distances.T / counts.sum(axis=1, keepdims=True)
            return distances
        if kind in {"perplexity", "kl"}:
            counts = self._counts(len(self.tokens), 1)
            sums = self.losses if kind == "perplexity" else self.divergences
            with np.errstate(over="ignore"):
                means: Array = counts @ sums.T / (counts @ self.tokens)[:, None]
                return np.exp(means) if kind == "perplexity" else means
        some = [each for each in self.by_axis if not axis or each.axis == axis]
        total = sum(each.shares.sum(axis=1) for each in some)[:, None]
        ss: Array = 100 * sum(each.shares @ each.stereotyped.T for each in some) / total
        if kind == "ss":
            return ss
        lm: Array = 100 * sum(each.shares @ each.related.T for each in some) / total
        icat: Array = lm * np.minimum(ss, 100 - ss) / 50
        return lm if kind == "lm" else icat

    @cached_property
    def by_axis(self) -> tuple[Wins, ...]:
        """Which text of each association won, axis by axis."""
        pro, anti, unrelated = np.moveaxis(self.scores, 2, 0)
        stereotyped, related = (pro > anti).astype(float), ((pro > unrelated).astype(float) + (anti > unrelated)) / 2
        found = []
        for place, axis in enumerate(dict.fromkeys(self.axes)):
            items = [i for i, each in enumerate(self.axes) if each == axis]
            _, term, sizes = np.unique([self.terms[i] for i in items], return_inverse=True, return_counts=True)
            unit = term if self.resample == "terms" else np.arange(len(items))
            counts = self._counts(int(unit.max()) + 1, 0, place)
            weights = 1 / sizes[term]
            found.append(Wins(axis, stereotyped[:, items], related[:, items], unit, weights, counts[:, unit] * weights))
        return tuple(found)

    def _counts(self, units: int, *stream: int) -> Array:
        """How often each unit counts: once each, then in each resample; shape (1 + 1000, units)."""
        rng = np.random.default_rng([self.seed, *stream])
        drawn = rng.multinomial(units, np.full(units, 1 / units), size=RESAMPLES).astype(float)
        return np.concatenate([np.ones((1, units)), drawn if units > 1 else np.full_like(drawn, np.nan)])


@dataclass(frozen=True, eq=False)
class Wins:
    """Which texts of an axis's associations are the likelier ones.

    Args:
        axis: The axis.
        stereotyped: 1 where the stereotypical text wins, shape (points, associations).
        related: Share of the two related texts that win against the unrelated one, likewise.
        unit: Number of the unit that an association is resampled with, shape (associations,).
        weights: 1 / (associations of its term), shape (associations,).
        shares: How much each association counts: its weight, then in each resample, shape (1 + 1000, associations).
    """

    axis: str
    stereotyped: Array
    related: Array
    unit: NDArray[np.intp]
    weights: Array
    shares: Array


TAILS = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]


def estimate(draws: Array) -> Estimate:
    """The first of these numbers, with the interval that the others span, shape (1 + resamples,)."""
    value, (low, high) = float(draws[0]), np.quantile(draws[1:], TAILS)
    return Estimate(value, min(float(low), value), max(float(high), value))


def _or_none(number: float) -> float | None:
    return number if math.isfinite(number) else None
