"""The convex part of steering: output rows of a few tokens that give target shares on fixed hidden states."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp, xlogy

from mpf_chains.errors import InvalidInput, NotConverged

Array = NDArray[np.float64]
_FREE = 1e-3
"""What the ridge costs along the mean state, as a share of what it costs across it."""


@dataclass(frozen=True, eq=False)
class Readings:
    """What decides the first token of some answers while only the rows of K tokens may change.

    Args:
        states: Shape (prompts, width): what the model's output layer gets where the answer begins.
        rest: Shape (prompts,): log Σ exp of the logits of all other tokens. −inf: there are none.
        logits: Shape (prompts, classes): logits of the K tokens before anything is added to their rows; 0 for new ones.
        contexts: What each prompt is about.

    Raises:
        InvalidInput: If shapes do not fit, there are no prompts, or a number is not finite.
    """

    states: Array
    rest: Array
    logits: Array
    contexts: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.contexts)
        for name, wanted in (("states", 2), ("rest", 1), ("logits", 2)):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            if values.ndim != wanted or len(values) != n or not n:
                raise InvalidInput(f"`{name}` has shape {values.shape}; there are {n} prompts.")
            if np.isnan(values).any() or (values == np.inf).any() or (name != "rest" and np.isinf(values).any()):
                raise InvalidInput(f"`{name}` has values that are no finite numbers.")
            object.__setattr__(self, name, values)

    @property
    def spread(self) -> float:
        """Mean squared distance of the states from their mean: the unit of ``ridge``."""
        return float(((self.states - self.states.mean(axis=0)) ** 2).sum(axis=1).mean())

    def take(self, index: ArrayLike) -> Readings:
        """Some of the prompts, by number."""
        chosen = np.asarray(index, dtype=np.intp)
        contexts = tuple(self.contexts[i] for i in chosen)
        return Readings(self.states[chosen], self.rest[chosen], self.logits[chosen], contexts)

    def log_probabilities(self, rows: Array) -> Array:
        """Log-probability of each class's token among all tokens, in nats.

        Args:
            rows: Shape (classes, width): what is added to the tokens' rows.

        Returns:
            Shape (prompts, classes).
        """
        logits = self.logits + self.states @ rows.T
        return np.asarray(logits - np.logaddexp(self.rest, logsumexp(logits, axis=1))[:, None])

    def shares(self, rows: Array) -> Array:
        """Probabilities of the classes given that the answer begins with a token of one of them, same shape."""
        found = self.log_probabilities(rows)
        return np.asarray(np.exp(found - logsumexp(found, axis=1)[:, None]))


@dataclass(frozen=True, eq=False)
class RowFit:
    """Fitted rows, with a proof of how good they are.

    Args:
        rows: Shape (classes, width): what is added to the tokens' rows.
        objective: Mean KL(target ‖ tokens) in nats plus the ridge term, at these rows.
        gap: At most this much above the optimum. The ridge makes the objective f strongly convex: by c in direction j,
            f − min f ≤ Σ (∂f/∂j)² / 2c.
        iterations: Steps taken.
    """

    rows: Array
    objective: float
    gap: float
    iterations: int


class RowProblem:
    """What is added to the output rows of K tokens so that their probabilities are the targets.

    Minimises mean KL(target ‖ tokens) + ridge · spread / 2 · ‖rows‖², which is smooth and strongly convex, by L-BFGS on
    the subspace that the states span (a row's other part could only cost). The probabilities are those among all
    tokens, so mass that leaks to others is punished as in `losses.kl_to_target`. What a row has along the mean state is
    the same for all prompts, as an intercept is, and counts for a thousandth in the norm.

    Source: the loss is the KL part of arXiv 2604.05756; with fixed states it is a softmax regression. Gap: Boyd &
    Vandenberghe 2004, "Convex optimization", equation 9.9.

    Args:
        readings: Of prompts, several per context if wanted.
        targets: Shape (prompts, classes), each row summing to 1.

    Raises:
        InvalidInput: If the targets are no distributions over the readings' tokens.
    """

    def __init__(self, readings: Readings, targets: ArrayLike) -> None:
        wanted = np.asarray(targets, dtype=np.float64)
        if wanted.shape != readings.logits.shape or not np.allclose(wanted.sum(axis=1), 1, atol=1e-6):
            raise InvalidInput(
                f"Targets have shape {wanted.shape}; they must be {readings.logits.shape}, with rows summing to 1."
            )
        self.readings, self._wanted = readings, wanted
        self._unit = max(readings.spread, 1e-12)
        self._directions, self._sizes = _principal(readings.states)
        self._states = readings.states @ self._directions

    def fit(self, ridge: float, *, tolerance: float = 1e-8, start: RowFit | None = None) -> RowFit:
        """Solve it for one ridge.

        Args:
            ridge: Weight of the ridge term, above 0, in units of the states' spread: rows of which the logits vary by
                about 1 cost about ridge / 2.
            tolerance: Largest gap. Default 1e-8 nats.
            start: A fit with another ridge to start from. None (default): no change of the rows.

        Raises:
            InvalidInput: If the ridge is not above 0.
            NotConverged: If the tolerance is not reached.
        """
        if not ridge > 0:
            raise InvalidInput(f"`ridge` is {ridge}; it must be above 0.")
        penalties = ridge * self._unit * np.append(_FREE, np.ones(len(self._sizes) - 1))
        scale = np.sqrt(self._sizes**2 / 4 + penalties)  # makes all directions about equally curved
        costs, states = penalties / scale**2, self._states / scale
        rest, logits, wanted = self.readings.rest, self.readings.logits, self._wanted
        n, classes = wanted.shape
        entropy = float(xlogy(wanted, wanted).sum()) / n
        first = np.zeros((classes, len(scale))) if start is None else start.rows @ self._directions * scale
        best = (np.inf, np.inf, first)

        def value(flat: Array) -> tuple[float, Array]:
            nonlocal best
            steps = flat.reshape(classes, -1)
            moved = logits + states @ steps.T
            whole = np.logaddexp(rest, logsumexp(moved, axis=1))
            loss = entropy + float((whole - (wanted * moved).sum(axis=1)).sum()) / n
            loss += float((steps**2 @ costs).sum()) / 2
            gradient = (np.exp(moved - whole[:, None]) - wanted).T @ states / n + steps * costs
            gap = float((gradient**2 / costs).sum()) / 2
            if gap < best[0]:
                best = (gap, loss, steps.copy())
            return loss, gradient.ravel()

        def stop(_: Array) -> None:
            if best[0] <= tolerance:
                raise StopIteration

        iterations = 0
        for _ in range(10):  # its line search may stop early; a new start forgets what misled it
            found = minimize(
                value, best[2].ravel(), jac=True, method="L-BFGS-B", callback=stop,
                options={"maxiter": 2000, "maxfun": 4000, "maxcor": 20, "ftol": 0.0, "gtol": 0.0},
            )  # fmt: skip
            iterations += int(found.nit)
            if best[0] <= tolerance:
                return RowFit(best[2] / scale @ self._directions.T, best[1], best[0], iterations)
        raise NotConverged(
            f"The rows are up to {best[0]:.1e} nats above the optimum after {iterations} steps; the tolerance is "
            f"{tolerance:.1e}.",
            hint="Raise `ridge` or `tolerance`.",
        )


def fit_rows(readings: Readings, targets: ArrayLike, *, ridge: float, tolerance: float = 1e-8) -> RowFit:
    """Fit what is added to the output rows of K tokens, so that their probabilities are the targets: see `RowProblem`.

    Args:
        readings: Of prompts, several per context if wanted.
        targets: Shape (prompts, classes), each row summing to 1.
        ridge: As in `RowProblem.fit`.
        tolerance: Largest gap. Default 1e-8 nats.

    Raises:
        InvalidInput: If shapes do not fit or the ridge is not above 0.
        NotConverged: If the tolerance is not reached.

    Examples:
        >>> readings = Readings(np.eye(2), np.full(2, -np.inf), np.zeros((2, 2)), ("nurse", "plumber"))
        >>> fit = fit_rows(readings, [[0.9, 0.1], [0.2, 0.8]], ridge=1e-6)
        >>> readings.shares(fit.rows).round(3).tolist()
        [[0.9, 0.1], [0.2, 0.8]]
    """
    return RowProblem(readings, targets).fit(ridge, tolerance=tolerance)


def _principal(states: Array) -> tuple[Array, Array]:
    """Orthonormal directions that span the states, shape (width, rank), and the states' root mean square along each.

    The first is that of the mean state, the others are principal ones across it.
    """
    mean = states.mean(axis=0)
    along = mean / max(float(np.linalg.norm(mean)), 1e-300)
    _, sizes, across = np.linalg.svd(states - np.outer(states @ along, along), full_matrices=False)
    kept = sizes > max(sizes[0], 1e-300) * 1e-12
    directions = np.column_stack([along, across[kept].T])
    return directions, np.sqrt(((states @ directions) ** 2).mean(axis=0))
