"""How fast weights are fitted, as ratios to SLSQP on the same objective in the same run.

python tests/benchmarks/solver_speed.py            # a few minutes on 2 cores; run it alone
python tests/benchmarks/solver_speed.py --quick    # without the 200,000 bootstrap fits
"""

import argparse
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize

from mpf_chains.core import Objective, bootstrap_many
from mpf_chains.core.fit import fit_weights, solve_one
from mpf_chains.core.objective import Scores
from mpf_chains.errors import MPFWarning


def problem(size: int, questions: int, seed: int = 0) -> tuple[Any, Any]:
    """Scores of perspectives with different means, and a Beta(5, 3) target."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0.1, 0.9, (size, 1))
    return np.clip(rng.normal(centres, 0.15, (size, questions)), 0, 1), rng.beta(5, 3, questions)


def slsqp(scores: Any, target: Any, mode: str, starts: int, analytic: bool) -> tuple[float, float]:
    """Seconds and best value of SLSQP from random starts, with a lean objective and optionally its gradient."""
    program = Scores(scores, target).program([Objective()], mode)
    density, mass, linear = program.density[0], program.mass[0], program.linear[0]
    matrix, offset, weight = program.matrix, program.offset, program.weight[0]

    def loss(w: Any) -> float:
        value = linear @ w - mass @ np.log(np.maximum(density @ w, 1e-300))
        return float(value + weight @ np.abs(matrix @ w - offset)) if len(matrix) else float(value)

    def gradient(w: Any) -> Any:
        slope = linear - (mass / np.maximum(density @ w, 1e-300)) @ density
        return slope + (weight * np.sign(matrix @ w - offset)) @ matrix if len(matrix) else slope

    size, rng, best = len(scores), np.random.default_rng(1), np.inf
    constraint: dict[str, Any] = {"type": "eq", "fun": lambda w: w.sum() - 1}
    if analytic:
        constraint["jac"] = lambda w: np.ones(size)
    begin = time.perf_counter()
    for _ in range(starts):
        result = minimize(
            loss,
            rng.dirichlet(np.ones(size)),
            jac=gradient if analytic else None,
            method="SLSQP",
            bounds=[(0, 1)] * size,
            constraints=[constraint],
        )
        w = np.clip(result.x, 0, 1)
        best = min(best, float(program.value((w / w.sum())[None])[0]))
    return time.perf_counter() - begin, best


def ours(scores: Any, target: Any, mode: str) -> tuple[float, float]:
    """Seconds and value of the certified solver on the same program."""
    program = Scores(scores, target).program([Objective()], mode)
    begin = time.perf_counter()
    weights, _, _ = solve_one(program)
    return time.perf_counter() - begin, float(program.value(weights[None])[0])


def median(function: Callable[[], float], repeats: int) -> float:
    """Median of repeated timings."""
    return statistics.median(function() for _ in range(repeats))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore", MPFWarning)
    print("Q = 100, 20 bins, λ = (0.2, 0.8). Times in ms, medians of alternating runs; 'worse' = SLSQP's best − ours.")
    print(
        f"{'K':>5} {'mode':<11}{'ours':>8}{'10 SLSQP':>10}{'ratio':>8}{'1 SLSQP+grad':>14}{'ours/it':>9}{'worse':>10}"
    )
    for size, repeats in ((5, 9), (20, 5), (100, 3)):
        for mode in ("sampled", "aggregated"):
            rows = []
            for seed in range(repeats):
                scores, target = problem(size, 100, seed)
                ten, best = slsqp(scores, target, mode, 10, analytic=False)
                one, _ = slsqp(scores, target, mode, 1, analytic=True)
                fast = [ours(scores, target, mode) for _ in range(5)]
                mine = statistics.median(seconds for seconds, _ in fast)
                rows.append((mine, ten, ten / mine, one, mine / one, best - fast[0][1]))
            mine, ten, ratio, one, against, worse = (statistics.median(column) for column in zip(*rows, strict=True))
            print(
                f"{size:>5} {mode:<11}{mine * 1e3:>8.2f}{ten * 1e3:>10.1f}{ratio:>8.0f}"
                f"{one * 1e3:>14.2f}{against:>9.2f}{worse:>10.1e}"
            )
    for mode in ("sampled", "aggregated"):
        scores, target = problem(2000, 100)
        begin = time.perf_counter()
        fit = fit_weights(scores, target, mode=mode)
        seconds = time.perf_counter() - begin
        print(f" 2000 {mode:<11}{seconds * 1e3:>8.0f} ms, certified gap {fit.gap:.0e} ({fit.status})")
    if args.quick:
        return
    problems = [problem(5, 100, seed) for seed in range(1000)]
    for mode in ("sampled", "aggregated"):
        begin = time.perf_counter()
        gap = max(result.gap for result in bootstrap_many(problems, mode=mode, resamples=200, workers=2))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        seconds = time.perf_counter() - begin
        print(
            f"200,000 bootstrap fits (1,000 × K 5 × Q 100), {mode}: {seconds:.0f} s, {memory:.0f} MiB, gap ≤ {gap:.0e}"
        )


if __name__ == "__main__":
    main()
