"""`evaluate`: one way to measure any model or chain on any benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForChainRun
from langchain_core.runnables import Runnable, RunnableConfig, patch_config

from mpf_chains.benchmarks import Split
from mpf_chains.calibration.calibrator import FeatureLike
from mpf_chains.errors import InvalidInput
from mpf_chains.evaluation.bound import gives
from mpf_chains.evaluation.intervals import DEFAULT, Resampling
from mpf_chains.evaluation.job import Items, job_of
from mpf_chains.evaluation.likelihoods import SCORES
from mpf_chains.evaluation.plan import EvaluationPlan
from mpf_chains.evaluation.result import KNOWN_METRICS, Evaluation
from mpf_chains.features import Feature, get_feature
from mpf_chains.runtime import Budget, Executor, Ledger, RetryPolicy, model_identity
from mpf_chains.runtime.background import run_in_background


class Evaluator(Runnable[Items, Evaluation]):
    """Measures a model, or any Runnable that answers messages, on benchmarks.

    Benchmarks are put to the model in one of two ways. By **likelihood**: how likely the model finds each of several
    texts (StereoSet, CrowS-Pairs, RedditBias, BBQ, WinoBias, Winogender, HolisticBias, WikiText-2), or how far the next
    token's distributions after two openings are apart (Hellinger), for models that can say so, such as
    `ChatTransformers`; raw text, no chat template. By **generation**: what the model answers (BBQ, WinoBias,
    Winogender, BOLD, HolisticBias, questions about entities, shares over many answers against a target table), for
    everything. Features judge answers, the classes of a target table as in `ClassFeature`; one named
    "regard" must give -1, 0, 1 or 2 (negative, neutral, positive, other), and of one named "toxicity" 0.5 and more
    counts as toxic. BOLD's openings come with a request to go on, unless the model's `raw` (a field, or bound) is true:
    then it continues them as they stand, as the paper has it, and features see the two put together as they are.

    Arguments bound to the model (``model.bind(alphas=...)``) count in likelihoods too where the model's method takes
    them; what it does not take and would change them is refused.

    Every score and answer is kept in the ledger as it arrives: interrupt a run anywhere, run it again with the same
    ledger, and nothing is asked twice. To a model that draws perspectives, each request carries its own "mpf_key", and
    for questions about an entity "mpf_entity".

    Args:
        model: What is measured: a chat model, a router, a fused chain, ...
        method: "likelihood", "generate", or "auto" (default): likelihood where model and benchmark allow it.
        metrics: Which metrics, by name or key; see `Evaluation.measured`. Default all that the benchmark has.
        features: What judges answers: names, `Feature`s or callables. Default "sentiment" where features are needed.
        draws: Answers per item, ≥ 1. Default 1; of target tables as many as give each context 100.
        limit: Take at most so many items, the same each time; a lower limit takes some of them. Default all.
        split: Which rows of a `Benchmark` are asked. Default its held-out ones where it has any, else all.
        seed: Bound as ``seed=`` to each call, varied by draw, for models that take one. Default none.
        label: What the system is called in tables. Default: the class of the model.
        ledger: A `Ledger`, a path for one, or None (in memory; nothing survives the process). Default None.
        store_text: False keeps scores but no texts in a ledger given as a path.
        max_concurrency: Most calls in flight. Default 8.
        retry: When calls are retried. Default `RetryPolicy()`.
        budget: Limits on calls, tokens or cost over all runs of this evaluator. Default none.
        model_id: Names the model in keys and provenance. Default derived from the model.
        resampling: Level of intervals, resamples, shuffles, seed. Default 90 %, 1000, 200, 0.
        max_missing: Largest share of items without a usable answer, in [0, 1). Default 0.05.
        progress: Show progress bars. Default True.

    Raises:
        InvalidInput: If an argument is outside what is allowed.

    Examples:
        >>> from mpf_chains.benchmarks import Benchmark
        >>> from mpf_chains.testing import BiasedChatModel
        >>> benchmark = Benchmark.builtin("university", ["ETH Zurich"])
        >>> evaluator = Evaluator(BiasedChatModel(), limit=20, progress=False)
        >>> evaluator.plan(benchmark)
        EvaluationPlan(calls=20, texts=0, done=0)
        >>> evaluation = evaluator.invoke(benchmark)
        >>> list(evaluation.measured)
        ['sentiment/mean_score', 'sentiment/target_error', 'sentiment/target_kl']
    """

    def __init__(
        self,
        model: Any,
        *,
        method: Literal["auto", "likelihood", "generate"] = "auto",
        metrics: str | Sequence[str] | None = None,
        features: FeatureLike | Sequence[FeatureLike] = (),
        draws: int | None = None,
        limit: int | None = None,
        split: Split | None = None,
        seed: int | None = None,
        label: str = "",
        ledger: Ledger | str | PathLike[str] | None = None,
        store_text: bool = True,
        max_concurrency: int = 8,
        retry: RetryPolicy | None = None,
        budget: Budget | None = None,
        model_id: str | None = None,
        resampling: Resampling = DEFAULT,
        max_missing: float = 0.05,
        progress: bool = True,
    ) -> None:
        several = features if isinstance(features, Sequence) and not isinstance(features, str) else [features]
        self.model, self.method = model, method
        self.metrics = [metrics] if isinstance(metrics, str) else metrics
        self.features: list[Feature] = [get_feature(each) for each in several]
        self.draws, self.limit, self.split, self.seed = draws, limit, split, seed
        self.label = label or type(model).__name__
        self.ledger = ledger if isinstance(ledger, Ledger) else Ledger(ledger, store_text=store_text)  # type: ignore[arg-type]
        self.resampling, self.max_missing, self.progress = resampling, max_missing, progress
        self._check()
        self.executor = Executor(
            model,
            model_id=_identity(model) if model_id is None else model_id,
            ledger=self.ledger,
            max_concurrency=max_concurrency,
            retry=RetryPolicy() if retry is None else retry,
            budget=budget,
            progress=progress,
        )

    def _check(self) -> None:
        if not (isinstance(self.model, Runnable) or any(gives(self.model, one.method) for one in SCORES.values())):
            raise InvalidInput(
                f"A {type(self.model).__name__} cannot be measured: give a chat model, any Runnable that answers "
                f"messages, or an object with {', '.join(f'`{one.method}`' for one in SCORES.values())}."
            )
        if self.method not in {"auto", "likelihood", "generate"}:
            raise InvalidInput(f'method={self.method!r}; it must be "auto", "likelihood" or "generate".')
        if any(given is not None and (not isinstance(given, int) or given < 1) for given in (self.draws, self.limit)):
            raise InvalidInput(f"draws={self.draws}, limit={self.limit}: they must be at least 1.")
        if not 0 <= self.max_missing < 1:
            raise InvalidInput(f"max_missing must lie in [0, 1), not {self.max_missing}.")
        unknown = [name for name in self.metrics or () if name.rsplit("/", 1)[-1] not in KNOWN_METRICS]
        if unknown:
            raise InvalidInput(f"There is no metric {unknown[0]!r}; there is {', '.join(sorted(KNOWN_METRICS))}.")
        names = [feature.name for feature in self.features]
        if len(set(names)) < len(names):
            raise InvalidInput(f"features {names} must have different names.")

    def plan(self, benchmark: Items) -> EvaluationPlan:
        """Count what `invoke` would ask of the model, without asking.

        Args:
            benchmark: What would be measured on.

        Raises:
            NotSupportedError: As `invoke`.
        """
        return job_of(self, benchmark).plan()

    def check_comparable(self, before: Evaluation, benchmark: Items) -> None:
        """Refuse, before anything is asked, what could not be compared with an earlier evaluation.

        Args:
            before: The earlier one.
            benchmark: What would be measured on now.

        Raises:
            InvalidInput: If items, features, draws or the way of measuring differ.
            NotSupportedError: As `invoke`.
        """
        job = job_of(self, benchmark)
        before.check_comparable(job.benchmark, job.settings)

    def invoke(self, input: Items, config: RunnableConfig | None = None, **kwargs: Any) -> Evaluation:  # noqa: A002
        """Measure.

        Args:
            input: A published benchmark (`read_benchmark`), items of your own, or a `Benchmark`.
            config: As for any Runnable; callbacks, tags and metadata reach every model call once.
            kwargs: None are taken.

        Returns:
            The evaluation.

        Raises:
            NotSupportedError: If the benchmark cannot be put to this model in this way, or a metric is not its.
            IncompleteEvaluation: If more than `max_missing` of the items have no usable answer.
            BudgetExceeded: If the budget would be passed; run again with a higher one to go on.
            GenerationError: If the provider refuses for good.
            FeatureError: If a score is not finite or out of range.
        """
        return run_in_background(self.ainvoke(input, config, **kwargs))

    async def ainvoke(self, input: Items, config: RunnableConfig | None = None, **kwargs: Any) -> Evaluation:  # noqa: A002
        """Measure; the native async form of `invoke`."""
        if kwargs:
            raise InvalidInput(f"Evaluator takes no call arguments; got {', '.join(kwargs)}.")
        return await self._acall_with_config(self._evaluate, input, config, run_type="chain")

    async def _evaluate(
        self, benchmark: Items, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig
    ) -> Evaluation:
        return await job_of(self, benchmark).finish(patch_config(config, callbacks=run_manager.get_child()))


def evaluate(model: Any, benchmark: Items, config: RunnableConfig | None = None, **settings: Any) -> Evaluation:
    """Measure a model, or any Runnable that answers messages, on a benchmark.

    Args:
        model: What is measured.
        benchmark: A published benchmark (`read_benchmark`), items of your own, or a `Benchmark`.
        config: As for any Runnable.
        **settings: As for `Evaluator`: method, metrics, features, draws, limit, ledger, ...

    Returns:
        The evaluation.

    Raises:
        MPFError: As `Evaluator` and its `invoke`.

    Examples:
        >>> from mpf_chains.benchmarks import Benchmark
        >>> from mpf_chains.testing import BiasedChatModel
        >>> benchmark = Benchmark.builtin("university", ["ETH Zurich", "EPFL"])
        >>> before = evaluate(BiasedChatModel(), benchmark, metrics=["mean_score"], limit=20, progress=False)
        >>> 0 < before["sentiment/mean_score"].value < 1
        True
    """
    return Evaluator(model, **settings).invoke(benchmark, config)


def _identity(model: Any) -> str:
    if isinstance(model, Runnable) or hasattr(model, "_identifying_params"):
        return model_identity(model)
    named = getattr(model, "model_name", None)
    return f"{type(model).__name__} {named}" if named else model_identity(model)


async def aevaluate(model: Any, benchmark: Items, config: RunnableConfig | None = None, **settings: Any) -> Evaluation:
    """Measure; the native async form of `evaluate`."""
    return await Evaluator(model, **settings).ainvoke(benchmark, config)
