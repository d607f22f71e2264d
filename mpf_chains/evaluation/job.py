"""One benchmark put to one model: what is asked, scored, kept, and measured."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.base import RunnableBindingBase

import mpf_chains
from mpf_chains.benchmarks import Benchmark, ItemSet, Row
from mpf_chains.calibration.plan import NORMAL, Caller
from mpf_chains.calibration.scoring import Scorer
from mpf_chains.errors import DataWarning, IncompleteEvaluation, InvalidInput, NotSupportedError
from mpf_chains.evaluation.bound import continues, gives, quota_drawn, steering_of
from mpf_chains.evaluation.likelihoods import SCORES, MaskedModel
from mpf_chains.evaluation.metrics import Measured
from mpf_chains.evaluation.plan import EvaluationPlan, drawing, planned, requests_of
from mpf_chains.evaluation.result import Evaluation
from mpf_chains.evaluation.tasks import GENERATION, SCORED, Record, ScoredKind, TaskKind, kind_of, measures_of
from mpf_chains.evaluation.tasks.shares import TargetShares
from mpf_chains.evaluation.tasks.texts import Prompts
from mpf_chains.features import Feature
from mpf_chains.fusion import ChatMPF
from mpf_chains.fusion.arguments import temperature_of
from mpf_chains.runtime import Call
from mpf_chains.runtime.identity import parts_of

if TYPE_CHECKING:
    from mpf_chains.evaluation.evaluator import Evaluator

Items = ItemSet[Any] | Benchmark
_ASKED_FIRST = {"bold", "holistic_bias"}  # published for generation, whatever else they can serve
_BETWEEN_GROUPS = {"sentiment_gap", "regard_gap", "toxicity_gap", "counterfactual_individual", "counterfactual_group"}
_SCORABLE = list(dict.fromkeys(name for tasks in SCORED.values() for name in tasks))
_TWINS = {"winobias", "winogender", "rows", "targets"}  # items of one family are compared with one another
_ABOUT_ENTITIES = {"rows", "targets"}


class Job(ABC):
    """One benchmark put to one model.

    Args:
        evaluator: The settings.
        items: What is put to the model.
        kind: Whose metrics the benchmark has; see `kind_of`.
    """

    task_kind: TaskKind
    task: Any

    def __init__(self, evaluator: Evaluator, items: ItemSet[Any], kind: str) -> None:
        self.e, self.items, self.kind = evaluator, items, kind
        self.features: list[Feature] = []
        self.bounds: dict[str, tuple[float, float]] = {}
        self.draws = 1
        self.notes: list[str] = []
        self.usage: Counter[str] = Counter()
        self.missing = 0

    @abstractmethod
    def plan(self) -> EvaluationPlan:
        """What is asked of the model."""

    @abstractmethod
    async def records(self, config: RunnableConfig) -> list[Record]:
        """Put everything to the model."""

    async def finish(self, config: RunnableConfig) -> Evaluation:
        """Put everything to the model, and measure."""
        records = await self.records(config)
        measured = await asyncio.to_thread(self._measured, records)  # seconds of arithmetic
        e = self.e
        return Evaluation(
            label=e.label,
            model=e.executor.model_id,
            method="generate" if self.task_kind == "generate" else "likelihood",
            benchmark=self.benchmark,
            measured=measured,
            records=tuple(records),
            bounds=self.bounds,
            missing=self.missing,
            notes=tuple(self.notes),
            usage=dict(sorted(self.usage.items())),
            settings=self.settings,
            library=f"mpf-chains {mpf_chains.__version__}",
        )

    @property
    def benchmark(self) -> dict[str, Any]:
        """What the items are."""
        return {
            "name": self.items.name,
            "kind": self.kind,
            "digest": self.items.digest,
            "items": len(self.items),
            "source": self.items.source,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What else decides the figures."""
        e = self.e
        return {
            "task": self.task_kind,
            "draws": self.draws,
            "limit": e.limit,
            "seed": e.seed,
            "metrics": None if e.metrics is None else list(e.metrics),
            "features": {feature.name: feature.digest for feature in self.features},
            "resampling": asdict(e.resampling),
        }

    def _measured(self, records: Sequence[Record]) -> dict[str, Measured]:
        measures = measures_of(self.kind, self.task_kind, records, self.bounds)
        self.notes += measures.notes
        wanted = None if self.e.metrics is None else set(self.e.metrics)
        keys = [key for key in measures.by_key if wanted is None or {key, key.rsplit("/", 1)[-1]} & wanted]
        for name in wanted or ():
            if not any(name in {key, key.rsplit("/", 1)[-1]} for key in keys):
                self.notes.append(
                    f"{name} could not be measured on these items; there is {', '.join(measures.by_key)}."
                )
        found = {key: measures.by_key[key](self.e.resampling) for key in keys}
        if self.e.resampling.permutations:
            lacking = [key for key, one in found.items() if one.floor is None and one.metric.name in _BETWEEN_GROUPS]
            if lacking:
                self.notes.append(
                    f"{', '.join(lacking)}: no noise floor, since there is one answer for each version of a prompt; "
                    "what chance alone would show is not known. Take several draws."
                )
        return found

    def check_metrics(self) -> None:
        """Refuse what the benchmark never has, before anything is asked."""
        for name in self.e.metrics or ():
            if name.rsplit("/", 1)[-1] not in self.task.metrics:
                raise NotSupportedError(
                    f"{name!r} is not measured on {self.items.name!r} in this way; there is "
                    f"{', '.join(self.task.metrics)}."
                )


class Scoring(Job):
    """By likelihood.

    Args:
        way: How the benchmark is put to the model.
    """

    def __init__(self, evaluator: Evaluator, items: ItemSet[Any], kind: str, way: ScoredKind) -> None:
        super().__init__(evaluator, items, kind)
        self.task_kind, self.task = way, SCORED[way][kind]
        if evaluator.features or (evaluator.draws or 1) > 1:
            raise InvalidInput(
                "Likelihoods are scored once and by no feature; `features` and `draws` are for generated answers.",
                hint='Leave them out, or use method="generate".',
            )
        self.texts = [self.task.texts(item) for item in items]
        self.pairs = [pair for pairs in self.texts for pair in pairs]
        self.scores = SCORES[way](evaluator.model, evaluator.executor.model_id, evaluator.ledger, evaluator.progress)

    def plan(self) -> EvaluationPlan:
        """The texts."""
        distinct = len(set(self.pairs))
        return EvaluationPlan(0, distinct, distinct - self.scores.pending(self.pairs))

    async def records(self, config: RunnableConfig) -> list[Record]:
        """Score every text."""
        del config
        scored = iter(await self.scores.score(self.pairs))
        found = []
        for item, pairs in zip(self.items, self.texts, strict=True):
            scores = [one for each in itertools.islice(scored, len(pairs)) for one in each]
            found.append(self.task.record(item, scores))
        return found


class Asking(Job):
    """By generation."""

    task_kind: TaskKind = "generate"

    def __init__(self, evaluator: Evaluator, items: ItemSet[Any], kind: str) -> None:
        super().__init__(evaluator, items, kind)
        self.task, self.raw = GENERATION[kind], False
        if isinstance(self.task, Prompts) and self.task.continued and continues(evaluator.model):
            self.task, self.raw = replace(self.task, request=""), True
        if evaluator.features and not self.task.scored:
            raise InvalidInput(
                f"On {items.name!r} answers are read, not scored; features {[f.name for f in evaluator.features]} "
                "have nothing to judge."
            )
        self.features = self.task.features(evaluator.features, items)
        self.bounds = {feature.name: feature.bounds for feature in self.features} if self.task.scored else {}
        self.scorer = Scorer(self.features, evaluator.ledger)
        self.rows = [self.task.row(item) for item in items]
        self.fused = drawing(evaluator.model)
        self.steering = None if self.fused is not None else steering_of(evaluator.model)
        self.draws = evaluator.draws or (self.task.draws(items) if isinstance(self.task, TargetShares) else 1)
        if self.draws > 1 and self.fused is None:
            _check_varies(evaluator.model, evaluator.seed, self.steering)
        caller, draws = Caller(seed=evaluator.seed), range(self.draws)
        self.asked = [
            (self._call(row, draw, caller.arguments(NORMAL, draw)), item, row)
            for item, row in zip(items, self.rows, strict=True)
            for draw in draws
        ]

    @property
    def settings(self) -> dict[str, Any]:
        """What else decides the figures."""
        return {**super().settings, "raw": True} if self.raw else super().settings

    def _call(self, row: Row, draw: int, arguments: Mapping[str, Any]) -> Call:
        configurable = {}
        if self.kind == "targets" and self.steering is not None and self.steering["context"] is None:
            arguments = {**arguments, "context": row.entity}  # which the phrasing need not name as the targets do
        if not _is_plain(self.e.model):
            configurable = {"mpf_key": f"{row.id}/{draw}"}
            if self.kind in _ABOUT_ENTITIES:
                configurable["mpf_entity"] = row.entity
        call = Call(
            messages=(HumanMessage(row.question),),
            arguments=arguments,
            draw=draw,
            label=f"{row.entity} / {row.id} / {self.e.label} / draw {draw}",
            configurable=configurable,
        )
        return call if self.fused is None else replace(call, requests=len(requests_of(self.fused, call)))

    def plan(self) -> EvaluationPlan:
        """The calls."""
        calls = {call.key(self.e.executor.model_id): call for call, _, _ in self.asked}
        return planned(self.e.model, calls, self.e.ledger.lookup(calls))

    async def records(self, config: RunnableConfig) -> list[Record]:
        """Ask, and score the answers."""
        executor = self.e.executor
        if quota_drawn(self.steering) and (plan := self.plan()).done and plan.remaining:
            self.notes.append(
                f"{plan.done} of {plan.calls} answers are of an earlier run: quotas are counted anew in each run, so "
                "shares are within one answer of their targets for each run, not for all together."
            )
        rows: dict[str, list[Row]] = {}
        for call, _, row in self.asked:
            rows.setdefault(call.key(executor.model_id), []).append(row)
        answers = await executor.arun(
            [call for call, _, _ in self.asked],
            config=config,
            description="evaluating",
            score=None if self.e.ledger.store_text else self.scorer.while_at_hand(rows),
        )
        for answer in {answer.key: answer for answer in answers}.values():
            self.usage.update(answer.usage)
        items = [(answer, row) for answer, (_, _, row) in zip(answers, self.asked, strict=True)]
        scored = self.scorer.score(items)
        self._check_missing([answer.status for answer in answers], scored)
        targets = self._targets()
        names = [feature.name for feature in self.features]
        return [
            {
                **self.task.record(item, dict(zip(names, scores, strict=True)), targets.get(row.id, {})),
                "draw": call.draw,
            }
            for (call, item, row), scores in zip(self.asked, scored, strict=True)
            if scores is not None
        ]

    def _check_missing(self, statuses: Sequence[str], scored: Sequence[list[float] | None]) -> None:
        self.missing = sum(scores is None for scores in scored)
        if not self.missing:
            return
        message = f"{self.missing} of {len(scored)} answers are not usable ({dict(sorted(Counter(statuses).items()))})."
        if self.missing > self.e.max_missing * len(scored) or self.missing == len(scored):
            raise IncompleteEvaluation(
                message,
                hint=f"At most {self.e.max_missing:.0%} may be missing (max_missing). Run again to retry the failed.",
            )
        self.notes.append(f"{message} They are in no metric.")
        warnings.warn(self.notes[-1], DataWarning, stacklevel=2)

    def _targets(self) -> dict[str, dict[str, float]]:
        """Target scores by row: those given, else of target texts; rows without either have none."""
        if self.kind != "rows":
            return {}
        targets: dict[str, dict[str, float]] = {row.id: dict(row.target_score) for row in self.rows}
        for f, feature in enumerate(self.features):
            todo = [row for row in self.rows if feature.name not in row.target_score and row.target_text is not None]
            for row, score in zip(todo, self.scorer.score_targets(f, todo), strict=True):
                targets[row.id][feature.name] = score
        return {
            row_id: {name: found[name] for name in self.bounds if name in found} for row_id, found in targets.items()
        }


def job_of(evaluator: Evaluator, benchmark: Items) -> Job:
    """Decide how a benchmark is put to the evaluator's model.

    Raises:
        NotSupportedError: If it cannot be put to it in the way that was asked for, or in any.
    """
    if not isinstance(benchmark, ItemSet | Benchmark):
        raise InvalidInput(
            f"A {type(benchmark).__name__} is no benchmark: give what `read_benchmark` or `Benchmark.read` returns."
        )
    items = _sample(_items(benchmark, evaluator.split), evaluator.limit)
    kind, model = kind_of(items), evaluator.model
    ways = [way for way, tasks in SCORED.items() if kind in tasks]
    scorable = [way for way in ways if gives(model, SCORES[way].method)]
    askable = kind in GENERATION and not isinstance(model, MaskedModel)
    prefers_asking = kind in _ASKED_FIRST or bool(evaluator.features) or (evaluator.draws or 1) > 1
    job: Job | None = None
    if evaluator.method != "generate" and scorable and not (evaluator.method == "auto" and askable and prefers_asking):
        job = Scoring(evaluator, items, kind, scorable[0])
    elif evaluator.method != "likelihood" and askable:
        job = Asking(evaluator, items, kind)
    if job is not None:
        job.check_metrics()
        return job
    if ways and evaluator.method != "generate":
        needed = " or ".join(f"`{SCORES[way].method}`" for way in ways)
        raise NotSupportedError(
            f"{items.name!r} compares likelihoods of texts: it needs a model with {needed}, and "
            f"{type(model).__name__} has none.",
            hint="Use a local model (ChatTransformers) by itself; what draws perspectives has no likelihoods. "
            f"Or take a benchmark that is asked: {', '.join(GENERATION)}.",
        )
    raise NotSupportedError(
        f"{items.name!r} cannot be put to a model with method={evaluator.method!r}.",
        hint=f"By likelihood: {', '.join(_SCORABLE)}. By generation: {', '.join(GENERATION)}.",
    )


def _items(benchmark: Items, split: str | None) -> ItemSet[Any]:
    if not isinstance(benchmark, Benchmark):
        if split is not None:
            raise InvalidInput("`split` is for a Benchmark; items of a published one were read with their split.")
        return benchmark
    held_out = any(row.split == "validation" for row in benchmark.rows)
    wanted = split or ("validation" if held_out else None)
    rows = tuple(row for row in benchmark.rows if wanted in {None, row.split})
    if not rows:
        raise InvalidInput(f"Benchmark {benchmark.name!r} has no rows in the split {wanted!r}.")
    return ItemSet(benchmark.name if benchmark.name not in _SCORABLE else "rows", rows)


def _sample(items: ItemSet[Any], limit: int | None) -> ItemSet[Any]:
    """At most so many items, drawn by a hash of their ids: the same each time, and a lower limit takes some of them.

    Items that are compared with one another stay together. (Every k-th item would not do: in BBQ context conditions
    and polarities take turns.)
    """
    if limit is None or len(items) <= limit:
        return items
    families: dict[str, list[int]] = {}
    kind = kind_of(items)
    for index, item in enumerate(items):
        families.setdefault(_family(item, kind) if kind in _TWINS else item.id, []).append(index)
    kept: list[int] = []
    for name in sorted(families, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest()):
        if len(kept) + len(families[name]) > limit:
            break
        kept += families[name]
    if not kept:
        raise InvalidInput(
            f"limit={limit} is too low: {max(map(len, families.values()))} items of {items.name!r} belong together.",
            hint="Raise it.",
        )
    return ItemSet(items.name, tuple(items.items[index] for index in sorted(kept)), items.source)


def _check_varies(model: Any, seed: int | None, steering: Mapping[str, Any] | None) -> None:
    """Refuse several draws of a model that is known to give one answer each time: they would count as independent."""
    if quota_drawn(steering):
        return  # whatever temperature and seed
    parts = list(parts_of(model))
    if temperature_of(model) == 0 and (steering is None or steering["steer"] is not None):
        raise InvalidInput("draws: at temperature 0 all draws are one answer.", hint="Use draws=1, or a temperature.")
    settings = (
        part.kwargs if isinstance(part, RunnableBindingBase) else vars(part)
        for part in parts
        if isinstance(part, RunnableBindingBase | BaseLanguageModel)
    )
    if seed is None and any(each.get("seed") is not None for each in settings):
        raise InvalidInput(
            "draws: the model has a fixed seed, so all draws are one answer.",
            hint="Give the seed here instead, `seed=`: it is varied by draw.",
        )


def _family(item: Any, kind: str) -> str:
    if kind == "targets":
        return str(item.entity)
    return str(item.metadata.get("question_id", item.id)) if isinstance(item, Row) else str(item.family)


def _is_plain(model: Any) -> bool:
    """Whether a model is a language model that draws no perspectives; chains may hold one that does."""
    parts = list(parts_of(model))
    return (
        isinstance(parts[-1], BaseLanguageModel)
        and not any(isinstance(part, ChatMPF) for part in parts)
        and all(isinstance(part, BaseLanguageModel) or hasattr(part, "bound") for part in parts)
    )
