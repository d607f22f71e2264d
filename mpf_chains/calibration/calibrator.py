"""`MPFCalibrator`: plan → generate → score → fit → validate."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, get_args

import numpy as np
from langchain_core.callbacks import AsyncCallbackManagerForChainRun
from langchain_core.runnables import Runnable, RunnableConfig, patch_config

import mpf_chains
from mpf_chains.artifact import Calibration
from mpf_chains.benchmarks import Benchmark, Row
from mpf_chains.calibration.fitting import Fitted, Fitter, question_of
from mpf_chains.calibration.plan import NORMAL, Caller, Plan, System, drawn_requests, grid_calls, planned, target_calls
from mpf_chains.calibration.scoring import USABLE, Scorer
from mpf_chains.calibration.validation import Answers, summarise, validation_calls
from mpf_chains.core import Grid, IIDSampler, Mode, Objective, QuotaSampler
from mpf_chains.core.fit import Solver
from mpf_chains.errors import BenchmarkError, DataWarning, IncompleteCalibration, InvalidInput, NotSupportedError
from mpf_chains.features import Feature, get_feature
from mpf_chains.fusion import MERGE_INSTRUCTION
from mpf_chains.fusion.arguments import temperature_of  # one rule for what is deterministic
from mpf_chains.perspectives import Perspective, PerspectiveSet, Position
from mpf_chains.runtime import Budget, Call, Completion, Executor, Ledger, RetryPolicy
from mpf_chains.runtime.background import run_in_background

FeatureLike = str | Feature | Callable[[Sequence[str]], Sequence[float]]


class MPFCalibrator(Runnable[Benchmark, Calibration]):
    """Fits perspective weights to a benchmark, and checks them on its held-out questions.

    Every answer is kept in the ledger as it arrives: interrupt a run anywhere, invoke again with the same ledger, and
    nothing is asked twice. The result does not depend on where it was interrupted.

    Args:
        model: Chat model, or any Runnable from messages to a message or text.
        perspectives: The perspectives to weigh, a set or a sequence. Default the built-in "mpf" set.
        feature: What is scored: a name ("sentiment"), a `Feature`, a callable, or a sequence of these for several.
        mode: "sampled" (one perspective answers each request; default) or "aggregated" (answers are fused).
        objective: Strengths of the loss terms; one for all features, or one each. Default λ_kl 0.2, λ_cal 0.8.
        draws: Answers per question and perspective, ≥ 1. Default 1. At temperature 0 all draws are one call.
        bins: Bins per feature. Default 20.
        smoothing: Pseudo-count per bin. Default 0.5.
        max_support: At most so many perspectives above weight 0. Default no limit.
        solver: "convex" (default) or "slsqp" (the paper's, with β; gives no intervals).
        validate: Systems to generate on the held-out questions with: any of "normal", "sampled", "aggregated".
            Default "normal" and `mode`, what the weights were fitted for; empty skips validation.
        n: Draws per fused answer in "aggregated" validation, ≥ 1. Default 5.
        sampler: "iid" (default) or "quota": how validation draws perspectives; use what your router will use.
        merge_instruction: Instruction of the merging call. Default that of `PerspectiveFusion`.
        ledger: A `Ledger`, a path for one, or None (in memory; nothing survives the process). Default None.
        store_text: False keeps scores but no texts in a ledger given as a path; "aggregated" validation needs texts.
        max_concurrency: Most calls in flight. Default 8.
        retry: When calls are retried. Default `RetryPolicy()`.
        budget: Limits on calls, tokens or cost over all invocations of this calibrator. Default none.
        model_id: Names the model in keys and provenance. Default derived from the model.
        position: How an instruction joins a system message. Default "before".
        seed: Seeds draws and resampling (the weights do not depend on it). Default 0.
        bind_seed: Bind ``seed=`` to each model call, so that models that take one answer reproducibly. Default False.
        level: Coverage of all intervals. Default 0.9.
        resamples: Bootstrap refits. Default 200.
        max_missing: Largest share without a usable answer, in [0, 1), of the cells (answers under the perspectives and
            role-played targets) and of each system's held-out answers. Default 0.05.
        strict: Raise if the optimum could not be certified. Default False.
        progress: Show progress bars. Default True.

    Raises:
        InvalidInput: If an argument is outside what is allowed.
        NotSupportedError: For "aggregated" validation on a ledger that keeps no texts.

    Examples:
        >>> from mpf_chains.testing import BiasedChatModel
        >>> from mpf_chains.benchmarks import Benchmark
        >>> benchmark = Benchmark.builtin("university", ["ETH Zurich"]).select(per_entity=30)
        >>> calibrator = MPFCalibrator(model=BiasedChatModel(), progress=False)
        >>> calibrator.plan(benchmark)
        Plan(calibration=150, validation=60, done=0)
        >>> calibration = calibrator.invoke(benchmark)
        >>> round(sum(calibration.weights["ETH Zurich"].values()), 9)
        1.0
    """

    def __init__(
        self,
        *,
        model: Runnable[Any, Any],
        perspectives: PerspectiveSet | Sequence[Perspective] | None = None,
        feature: FeatureLike | Sequence[FeatureLike] = "sentiment",
        mode: Mode = "sampled",
        objective: Objective | Sequence[Objective] | None = None,
        draws: int = 1,
        bins: int = 20,
        smoothing: float = 0.5,
        max_support: int | None = None,
        solver: Solver = "convex",
        validate: Sequence[System] | None = None,
        n: int = 5,
        sampler: Literal["iid", "quota"] = "iid",
        merge_instruction: str = MERGE_INSTRUCTION,
        ledger: Ledger | str | PathLike[str] | None = None,
        store_text: bool = True,
        max_concurrency: int = 8,
        retry: RetryPolicy | None = None,
        budget: Budget | None = None,
        model_id: str | None = None,
        position: Position = "before",
        seed: int = 0,
        bind_seed: bool = False,
        level: float = 0.9,
        resamples: int = 200,
        max_missing: float = 0.05,
        strict: bool = False,
        progress: bool = True,
    ) -> None:
        self.model = model
        self.perspectives = PerspectiveSet.builtin("mpf") if perspectives is None else PerspectiveSet(perspectives)
        several = feature if isinstance(feature, Sequence) and not isinstance(feature, str) else [feature]
        self.features = [get_feature(each) for each in several]
        self.mode, self.solver, self.validate = mode, solver, ("normal", mode) if validate is None else tuple(validate)
        self.draws, self.n, self.sampler, self.merge_instruction = draws, n, sampler, merge_instruction
        self.ledger = ledger if isinstance(ledger, Ledger) else Ledger(ledger, store_text=store_text)  # type: ignore[arg-type]
        self.position, self.seed, self.bind_seed, self.max_missing = position, seed, bind_seed, max_missing
        self._check()
        self.fitter = Fitter(
            grids=tuple(Grid(*f.bounds, bins=bins, smoothing=smoothing) for f in self.features),
            objective=Objective() if objective is None else objective,
            mode=mode,
            solver=solver,
            max_support=max_support,
            level=level,
            resamples=resamples,
            seed=seed,
            strict=strict,
        )
        self.fitter.check()
        self.caller = Caller(position, seed if bind_seed else None, temperature_of(model))
        if all(map(self.caller.repeats, self.perspectives)):
            self.draws = 1
        self.executor = Executor(
            model,
            model_id=model_id,
            ledger=self.ledger,
            max_concurrency=max_concurrency,
            retry=RetryPolicy() if retry is None else retry,
            budget=budget,
            progress=progress,
        )

    def _check(self) -> None:
        names = [feature.name for feature in self.features]
        if not names or len(set(names)) < len(names):
            raise InvalidInput(f"features {names} must be at least one, with different names.")
        for name in ("draws", "n"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 <= self.max_missing < 1:
            raise InvalidInput(f"max_missing must lie in [0, 1), not {self.max_missing}.")
        unknown = set(self.validate) - {"normal", "sampled", "aggregated"}
        if unknown or self.mode not in ("sampled", "aggregated") or self.sampler not in ("iid", "quota"):
            raise InvalidInput(
                f"validate={self.validate}, mode={self.mode!r}, sampler={self.sampler!r}: systems are normal, sampled, "
                "aggregated; modes sampled, aggregated; samplers iid, quota."
            )
        if self.position not in get_args(Position):
            raise InvalidInput(f"position={self.position!r}; it must be one of {', '.join(get_args(Position))}.")
        if "aggregated" in self.validate and not self.ledger.store_text:
            raise NotSupportedError(
                "Validating 'aggregated' merges texts, and the ledger keeps none.",
                hint="Use validate=('normal',), or store_text=True.",
            )

    def plan(self, benchmark: Benchmark) -> Plan:
        """Count the calls that `invoke` would make, without making any.

        Args:
            benchmark: What would be calibrated on.

        Returns:
            The counts; their `estimate` tells tokens and cost. After a complete run, what remains is the calls of
            "sampled" and "aggregated", of which only the weights tell which they are.
        """
        fit_rows, held_out = self._rows(benchmark)
        asked = [
            *grid_calls(self.caller, fit_rows, self.perspectives, self.draws).values(),
            *target_calls(self.caller, benchmark, [*fit_rows, *held_out], self._names).values(),
        ]
        calls = {call.key(self.executor.model_id): call for call in asked}
        bare = [self.caller.answer(row, NORMAL) for row in held_out if "normal" in self.validate]
        normal = {call.key(self.executor.model_id): call for call in bare}
        drawn = drawn_requests(self.caller, held_out, self.perspectives, self.validate, self.n, self.merge_instruction)
        return planned(calls, normal, drawn, self.ledger.lookup([*calls, *normal]))

    def invoke(self, input: Benchmark, config: RunnableConfig | None = None, **kwargs: Any) -> Calibration:  # noqa: A002
        """Calibrate.

        Args:
            input: The benchmark: rows of the "decomposition" split are fitted on, those of "validation" judged on.
            config: As for any Runnable; callbacks, tags and metadata reach every model call once.
            kwargs: None are taken.

        Returns:
            The calibration.

        Raises:
            IncompleteCalibration: If more than `max_missing` of the cells, or of a system's held-out answers, have no
                usable answer.
            BudgetExceeded: If the budget would be passed; invoke again with a higher one to go on.
            GenerationError: If the provider refuses for good.
            FeatureError: If a score is not finite or out of range.
        """
        return run_in_background(self.ainvoke(input, config, **kwargs))

    async def ainvoke(self, input: Benchmark, config: RunnableConfig | None = None, **kwargs: Any) -> Calibration:  # noqa: A002
        """Calibrate; the native async form of `invoke`."""
        if kwargs:
            raise InvalidInput(f"MPFCalibrator takes no call arguments; got {', '.join(kwargs)}.")
        return await self._acall_with_config(self._calibrate, input, config, run_type="chain")

    async def _calibrate(
        self, benchmark: Benchmark, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig
    ) -> Calibration:
        config = patch_config(config, callbacks=run_manager.get_child())
        run = _Run(self, benchmark, config)
        await run.generate()
        fitted = run.fit()
        validation = await run.validate(fitted)
        return run.calibration(fitted, validation)

    def _rows(self, benchmark: Benchmark) -> tuple[list[Row], list[Row]]:
        fit_rows = [row for row in benchmark.rows if row.split == "decomposition"]
        held_out = [row for row in benchmark.rows if row.split == "validation"] if self.validate else []
        if not fit_rows:
            raise InvalidInput(f"Benchmark {benchmark.name!r} has no rows in the 'decomposition' split to fit on.")
        self._check_targets(benchmark, [*fit_rows, *held_out])
        return fit_rows, held_out

    def _check_targets(self, benchmark: Benchmark, rows: Sequence[Row]) -> None:
        for row, feature in itertools.product(rows, self.features):
            score = row.target_score.get(feature.name)
            if score is None and row.target_text is None and row.entity not in benchmark.baseline:
                raise BenchmarkError(
                    f"Row {row.id!r} has no target for feature {feature.name!r}: neither a target_score of that name "
                    f"(it has {sorted(row.target_score)}), nor a target_text, nor a baseline for {row.entity!r}."
                )
            if score is not None and not feature.bounds[0] <= score <= feature.bounds[1]:
                raise BenchmarkError(
                    f"Row {row.id!r} has the target_score {score:g} for feature {feature.name!r}; it must lie within "
                    f"{list(feature.bounds)}."
                )

    @property
    def _names(self) -> list[str]:
        return [feature.name for feature in self.features]


class _Run:
    """One invocation: the rows, the answers so far, and what became of every cell."""

    def __init__(self, calibrator: MPFCalibrator, benchmark: Benchmark, config: RunnableConfig) -> None:
        self.c, self.benchmark, self.config = calibrator, benchmark, config
        self.scorer = Scorer(calibrator.features, calibrator.ledger)
        self.fit_rows, self.held_out = calibrator._rows(benchmark)
        self.completions: dict[str, Completion] = {}
        self.targets: dict[str, list[float] | None] = {}
        self.cells: dict[tuple[str, str, int], list[float] | None] = {}
        self.notes: list[str] = []

    async def ask(self, calls: Sequence[tuple[Call, Row]], description: str) -> list[Completion]:
        """Answer calls, and score each while its text is at hand if the ledger keeps none."""
        executor = self.c.executor
        rows: dict[str, list[Row]] = {}
        for call, row in calls:
            rows.setdefault(call.key(executor.model_id), []).append(row)
        score = None if executor.ledger.store_text else self.scorer.while_at_hand(rows)
        answers = await executor.arun(
            [call for call, _ in calls], config=self.config, description=description, score=score
        )
        self.completions |= {answer.key: answer for answer in answers}
        return answers

    async def generate(self) -> None:
        """Answer and score every cell of the decomposition split, and what targets are to be role-played."""
        rows = {row.id: row for row in self.benchmark.rows}
        cells = grid_calls(self.c.caller, self.fit_rows, self.c.perspectives, self.c.draws)
        targets = target_calls(self.c.caller, self.benchmark, [*self.fit_rows, *self.held_out], self.c._names)
        asked = [(call, rows[row_id]) for (row_id, _, _), call in cells.items()]
        asked += [(call, rows[row_id]) for row_id, call in targets.items()]
        answers = await self.ask(asked, "calibrating")
        scores = self.scorer.score([(answer, row) for answer, (_, row) in zip(answers, asked, strict=True)])
        self.cells = dict(zip(cells, scores[: len(cells)], strict=True))
        self.targets = dict(zip(targets, scores[len(cells) :], strict=True))
        played = [row.id for row in self.fit_rows if row.id in targets]
        self._score_given_targets()
        self._check_missing(played)

    def _score_given_targets(self) -> None:
        """A given score goes before that of a target text; a row with neither has its role-played target already."""
        rows = [*self.fit_rows, *self.held_out]
        with_text = [row for row in rows if row.id not in self.targets]
        self.targets |= {row.id: [float("nan")] * len(self.c.features) for row in with_text}
        for f, feature in enumerate(self.c.features):
            given = {row.id: row.target_score[feature.name] for row in rows if feature.name in row.target_score}
            todo = [row for row in with_text if row.id not in given]
            scored = self.scorer.score_targets(f, todo)
            for row_id, score in {**given, **{row.id: one for row, one in zip(todo, scored, strict=True)}}.items():
                if (target := self.targets[row_id]) is not None:
                    target[f] = score

    def _check_missing(self, played: Sequence[str]) -> None:
        """Refuse too many missing cells: answers, and targets of the rows that were role-played."""
        missing = [cell for cell, scores in self.cells.items() if scores is None]
        missing_targets = [row_id for row_id in played if self.targets[row_id] is None]
        total = len(self.cells) + len(played)
        count = len(missing) + len(missing_targets)
        if not count:
            return
        statuses = Counter(answer.status for answer in self.completions.values())
        named = ", ".join("/".join(map(str, cell)) for cell in missing[:3]) or ", ".join(missing_targets[:3])
        message = f"{count} of {total} cells have no usable answer ({dict(statuses)}); the first: {named}."
        if count > self.c.max_missing * total:
            raise IncompleteCalibration(
                message,
                hint=f"At most {self.c.max_missing:.0%} may be missing (max_missing). Run again to retry the failed.",
            )
        self._note(f"{message} Their questions were left out for that entity.")

    def _note(self, note: str) -> None:
        self.notes.append(note)
        warnings.warn(note, DataWarning, stacklevel=3)

    def problem(self, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Scores (F, K, Q·draws), targets (F, Q·draws) and question labels of the rows whose cells are complete."""
        scores, target, labels = [], [], []
        for row in rows:
            for draw in range(self.c.draws):
                cells = [self.cells[row.id, name, draw] for name in self.c.perspectives.names]
                wanted = self.targets[row.id]
                if wanted is not None and all(cell is not None for cell in cells):
                    scores.append(cells)
                    target.append(wanted)
                    labels.append(question_of(row))
        if not scores:
            raise IncompleteCalibration(f"No question about {rows[0].entity!r} has an answer from every perspective.")
        return np.transpose(np.array(scores, dtype=np.float64), (2, 1, 0)), np.array(target).T, labels

    def fit(self) -> Fitted:
        """Fit every entity, and all of them pooled."""
        problems = {
            entity: self.problem([row for row in self.fit_rows if row.entity == entity])
            for entity in dict.fromkeys(row.entity for row in self.fit_rows)
        }
        return self.c.fitter.fit(problems, self.c.perspectives.names)

    async def validate(self, fitted: Fitted) -> dict[str, Any]:
        """Generate with every system on the held-out questions, and measure."""
        if self.c.validate and not self.held_out:
            self._note("Nothing was validated: the benchmark has no rows in the 'validation' split.")
        rows = [row for row in self.held_out if row.entity in fitted.weights and self.targets[row.id] is not None]
        if len(rows) < len(self.held_out):
            self._note(
                f"{len(self.held_out) - len(rows)} of {len(self.held_out)} held-out questions are left out: "
                "their entity has no questions to fit on, or their target has no usable answer."
            )
        if not rows or not self.c.validate:
            return {}
        sampler = QuotaSampler(self.c.seed) if self.c.sampler == "quota" else IIDSampler(self.c.seed)
        answers = Answers(self.c.caller, self.c.perspectives, self.c.merge_instruction)
        drawn = {
            system: validation_calls(answers, rows, fitted.weights, sampler, 1 if system == "sampled" else self.c.n)
            if system != "normal"
            else [[(NORMAL.name, self.c.caller.answer(row, NORMAL))] for row in rows]
            for system in self.c.validate
        }
        flat = [
            (call, row) for calls in drawn.values() for row, group in zip(rows, calls, strict=True) for _, call in group
        ]
        await self.ask(flat, "validating")
        final: dict[str, list[Completion]] = {}
        for system, groups in drawn.items():
            found = [[self.completions[call.key(self.c.executor.model_id)] for _, call in group] for group in groups]
            final[system] = [group[0] for group in found]
            if system == "aggregated":
                final[system] = await self._fuse(
                    answers, rows, found, [[name for name, _ in group] for group in groups]
                )
        self._check_held_out(final)
        scores = {system: self.scorer.score(list(zip(given, rows, strict=True))) for system, given in final.items()}
        return summarise(scores, rows, self.targets, self.c.features, self.c.fitter, {
            system: [[name for name, _ in group] for group in groups] for system, groups in drawn.items()
        })  # fmt: skip

    async def _fuse(
        self,
        answers: Answers,
        rows: Sequence[Row],
        found: Sequence[Sequence[Completion]],
        drawn: Sequence[Sequence[str]],
    ) -> list[Completion]:
        """The fused answer of each row; as in the fusion, failures leave it to the other answers, and it is said."""
        merges = answers.merges(rows, found, drawn)
        waiting = iter(await self.ask([(call, row) for call, row in merges if call is not None], "merging"))
        fused = []
        for (call, row), group in zip(merges, found, strict=True):
            failed = [answer.status for answer in group if answer.status not in USABLE]
            if failed:
                self.notes.append(
                    f"{len(failed)} of {len(group)} draws for the fused answer to row {row.id!r} gave no usable answer "
                    f"({dict(Counter(failed))})."
                )
            answer = _first_usable(group) if call is None else next(waiting)
            if call is not None and answer.status not in USABLE:
                self.notes.append(f"The merge for row {row.id!r} gave no answer; a drawn answer stood in.")
                answer = _first_usable(group)
            fused.append(answer)
        return fused

    def _check_held_out(self, final: Mapping[str, Sequence[Completion]]) -> None:
        """Refuse to judge a system that answered too few of the held-out questions."""
        missing = {system: sum(a.status not in USABLE for a in answers) for system, answers in final.items()}
        named = ", ".join(f"{n} of {len(final[system])} by {system!r}" for system, n in missing.items() if n)
        if not named:
            return
        message = f"Held-out questions without a usable answer: {named}."
        if any(n > self.c.max_missing * len(final[system]) for system, n in missing.items()):
            raise IncompleteCalibration(
                message,
                hint=f"At most {self.c.max_missing:.0%} per system may be missing (max_missing). Run again to retry "
                "the failed; the weights alone can be had with validate=().",
            )
        self._note(message)

    def calibration(self, fitted: Fitted, validation: dict[str, Any]) -> Calibration:
        """The artefact."""
        usage: Counter[str] = Counter()
        for answer in self.completions.values():
            usage.update(answer.usage)
        c = self.c
        return Calibration(
            perspectives=c.perspectives,
            mode=c.mode,
            features=tuple(c._names),
            weights=fitted.weights,
            pooled=fitted.pooled,
            intervals=fitted.intervals,
            pooled_intervals=fitted.pooled_intervals,
            level=c.fitter.level,
            fits=fitted.fits,
            validation=validation,
            diagnostics={**fitted.diagnostics, "notes": self.notes},
            provenance=self._provenance(dict(sorted(usage.items()))),
        )

    def _provenance(self, usage: Mapping[str, int]) -> dict[str, Any]:
        c = self.c
        statuses = Counter(answer.status for answer in self.completions.values())
        return {
            "library": f"mpf-chains {mpf_chains.__version__}",
            "model": c.executor.model_id,
            "benchmark": {
                "name": self.benchmark.name,
                "digest": self.benchmark.digest,
                "rows": len(self.benchmark.rows),
            },
            "perspectives": c.perspectives.digest,
            "features": {feature.name: feature.digest for feature in c.features},
            "settings": {
                **c.fitter.settings(),
                "draws": c.draws,
                "n": c.n,
                "sampler": c.sampler,
                "position": c.position,
                "bind_seed": c.bind_seed,
                "validate": list(c.validate),
                "merge_instruction": hashlib.sha256(c.merge_instruction.encode()).hexdigest(),
                "max_missing": c.max_missing,
            },
            "answers": {"distinct": len(self.completions), "by_status": dict(sorted(statuses.items()))},
            "usage": usage,
        }


def _first_usable(answers: Sequence[Completion]) -> Completion:
    """What stands for answers that all say the same."""
    return next((answer for answer in answers if answer.status in USABLE), answers[0])
