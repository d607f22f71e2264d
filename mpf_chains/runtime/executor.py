"""Making many model calls: bounded, retried one by one, within a budget, and each answer kept as it arrives."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from langchain_core.language_models import BaseLanguageModel
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, merge_configs, patch_config
from tqdm import tqdm

from mpf_chains.errors import FeatureError, GenerationError, InvalidInput, LedgerError, MPFError
from mpf_chains.runtime.background import run_in_background
from mpf_chains.runtime.budget import Budget, Meter, Spent
from mpf_chains.runtime.calls import Call, Completion, read_completion
from mpf_chains.runtime.identity import model_identity, redact, secrets_of
from mpf_chains.runtime.ledger import LEASE_SECONDS, Ledger
from mpf_chains.runtime.models import Replies, output_limit, uncached, with_arguments
from mpf_chains.runtime.owners import new_owner, retire
from mpf_chains.runtime.retry import RetryPolicy, classify

OnCompletion = Callable[[Completion, Call], None]
Score = Callable[[Completion, Call], Mapping[str, float]]

_POLL_SECONDS: Final = 0.05  # between looks at calls that another process is making, with up to 8 workers


class Executor:
    """Makes model calls and keeps their answers in a ledger.

    Calls whose answer is in the ledger are not made again, and equal calls (same key) are made once. The model's cache
    is off, so that k draws are k answers. A call that fails for a passing reason is tried again by the retry policy,
    and comes back as a completion with status "failed" if that does not help; one that is refused for good (wrong
    key, unknown model) stops the run. Runs of one executor that overlap share its budget only once they have ended.

    Args:
        model: A chat model, LLM, or chain that ends in a message or a string.
        model_id: What names the model in keys. Default None: `model_identity(model)`.
        ledger: Where answers are kept. Default None: in memory.
        max_concurrency: Most calls in flight, at least 1. Default 8. A smaller one in a run's config wins.
        retry: When and how long to retry. Default `RetryPolicy()`.
        budget: Limits on what this executor spends over all its runs. Default None: no limit.
        progress: Whether to show a progress bar on stderr. Default True.
        sleep: Awaited with seconds between tries. Default `asyncio.sleep`.
        clock: Gives the present in seconds since the epoch. Default `time.time`.

    Raises:
        InvalidInput: If `max_concurrency` is below 1.

    Examples:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> from langchain_core.messages import HumanMessage
        >>> executor = Executor(FakeListChatModel(responses=["Hello."]), progress=False)
        >>> calls = [Call((HumanMessage("Hi"),), draw=draw) for draw in range(3)]
        >>> executor.pending(calls), [answer.text for answer in executor.run(calls)], executor.pending(calls)
        (3, ['Hello.', 'Hello.', 'Hello.'], 0)
    """

    def __init__(
        self,
        model: Runnable[Any, Any],
        *,
        model_id: str | None = None,
        ledger: Ledger | None = None,
        max_concurrency: int = 8,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008  # frozen
        budget: Budget | None = None,
        progress: bool = True,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if max_concurrency < 1:
            raise InvalidInput(f"`max_concurrency` is {max_concurrency}; it must be at least 1.")
        self.model = model
        self.model_id = model_identity(model, model_id)
        self.ledger = Ledger() if ledger is None else ledger
        self.max_concurrency = max_concurrency
        self.retry = retry
        self.budget = budget
        self.progress = progress
        self.sleep = sleep
        self.clock = clock
        self.spent = Spent()

    def pending(self, calls: Sequence[Call], features: Collection[str] = ()) -> int:
        """Count the calls that a run would make: distinct, and not in the ledger.

        Args:
            calls: What would be asked.
            features: As for `arun`.

        Returns:
            The number of calls, retries aside.
        """
        keys = {call.key(self.model_id) for call in calls}
        return len(keys) - len(self.ledger.lookup(keys, features))

    async def arun(
        self,
        calls: Sequence[Call],
        *,
        config: RunnableConfig | None = None,
        description: str = "",
        on_completion: OnCompletion | None = None,
        score: Score | None = None,
        features: Collection[str] = (),
    ) -> list[Completion]:
        """Answer all calls.

        Args:
            calls: What to ask, in any number.
            config: Callbacks, tags and metadata, given to each model call. Default None.
            description: Words before the progress bar. Default empty.
            on_completion: Called with each completion and its call as soon as it is there, once per distinct call,
                those from the ledger first. An exception from it stops the run. Default None.
            score: Gives feature digest to score for an answer; called while its text is at hand, and stored with it.
                An answer with no text is not scored. Default None.
            features: Digests that `score` gives. An answer from the ledger that lacks one is scored again if its text
                was kept, and asked again if not. Default none.

        Returns:
            One completion per call, in the order of the calls.

        Raises:
            LedgerError: If the ledger cannot be written; before the first call where that can be known.
            GenerationError: If the provider refuses for good. What is finished is in the ledger.
            BudgetExceeded: If the next call would pass the budget. What is finished is in the ledger.
            FeatureError: If `score` fails on an answer whose text the ledger does not keep; it names the answer. Where
                texts are kept, the answer is in the ledger and the error of `score` passes through.
            NotSupportedError: If a global cache is set that cannot be kept from the model.
        """
        keys = [call.key(self.model_id) for call in calls]
        distinct: dict[str, Call] = {}
        for key, call in zip(keys, calls, strict=True):
            distinct.setdefault(key, call)
        run = _Run(self, ensure_config(config), on_completion, score, features)
        for key, completion in self.ledger.lookup(distinct, features).items():
            run.take(distinct.pop(key), completion)
        if distinct:
            await run.finish(distinct, description)
        return [run.done[key] for key in keys]

    def run(
        self,
        calls: Sequence[Call],
        *,
        config: RunnableConfig | None = None,
        description: str = "",
        on_completion: OnCompletion | None = None,
        score: Score | None = None,
        features: Collection[str] = (),
    ) -> list[Completion]:
        """Answer all calls; the synchronous form of `arun`, which also works inside a running event loop."""
        return run_in_background(
            self.arun(
                calls,
                config=config,
                description=description,
                on_completion=on_completion,
                score=score,
                features=features,
            )
        )


class _Run:
    """One run of an executor: workers that pull calls from a queue until it is empty."""

    def __init__(
        self,
        executor: Executor,
        config: RunnableConfig,
        on_completion: OnCompletion | None,
        score: Score | None,
        features: Collection[str],
    ) -> None:
        self.done: dict[str, Completion] = {}
        self._executor = executor
        self._ledger = executor.ledger
        config.pop("run_id", None)  # it names one run, and each call is a run
        self._config = config
        self._on_completion = on_completion
        self._score = score
        self._features = frozenset(features)
        self._queue: deque[tuple[str, Call]] = deque()
        self._held = 0  # calls looked at in a row that another process is making
        self._failed = 0  # calls in a row that failed for good
        self._secrets: frozenset[str] | None = None

    async def finish(self, calls: Mapping[str, Call], description: str) -> None:
        """Make the calls, with what is in flight cancelled and what is finished kept if anything stops it."""
        executor = self._executor
        self._model = uncached(executor.model)
        self._meter = Meter(executor.budget or Budget(), executor.spent, output_limit(executor.model))
        self._queue.extend(calls.items())
        self._ledger.check_writable(len(calls))
        limit = min(executor.max_concurrency, self._config.get("max_concurrency") or executor.max_concurrency)
        self._poll = _POLL_SECONDS * max(1.0, limit / 8)
        self._owner = new_owner()
        self._bar = tqdm(total=len(calls), desc=description or None, disable=not executor.progress, unit="call")
        tasks = [asyncio.create_task(self._work()) for _ in range(min(limit, len(calls)))]
        renewal = asyncio.create_task(self._renew_claims())
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in (*tasks, renewal):
                task.cancel()
            await asyncio.gather(*tasks, renewal, return_exceptions=True)
            executor.spent = self._meter.spent
            self._bar.close()
            retire(self._owner)
            with suppress(LedgerError):  # a retired owner's claims are void anyway
                self._ledger.release(self._owner)

    def take(self, call: Call, completion: Completion) -> None:
        """Accept an answer from the ledger."""
        scored = completion.scores.keys() >= self._features
        if not scored and self._score is not None and (completion.text or "").strip():
            completion = replace(completion, scores={**completion.scores, **self._score(completion, call)})
            self._ledger.add_scores({completion.key: completion.scores})
        self._report(call, completion)

    async def _work(self) -> None:
        while self._queue:
            key, call = self._queue.popleft()
            claim = self._ledger.claim(key, self._owner, self._features)
            if claim is False:
                self._queue.append((key, call))
                self._held += 1
                if self._held >= len(self._queue):
                    await asyncio.sleep(self._poll)
                continue
            self._held = 0
            if isinstance(claim, Completion):
                self.take(call, claim)
            else:
                self._report(call, self._stored(call, await self._answer(key, call)))
            self._bar.update()

    async def _answer(self, key: str, call: Call) -> Completion:
        """Ask until there is an answer or no hope; a failure of this one call is a completion too."""
        retrying = self._executor.retry.retrying(self._executor.sleep, self._executor.clock)
        try:
            completion: Completion = await retrying(self._attempt, key, call)
        except MPFError:
            raise
        except Exception as error:
            completion = self._judged(key, call, error)
        self._failed = self._failed + 1 if completion.status == "failed" else 0
        if self._failed >= self._executor.retry.give_up_after:
            raise GenerationError(
                f"{self._executor.model_id}: the last {self._failed} calls all failed; the last: {completion.error}",
                hint="Check that the provider is up, then run again with the same ledger: finished calls are kept.",
                retryable=True,
            )
        return completion

    async def _attempt(self, key: str, call: Call) -> Completion:
        await self._meter.reserve(call)
        completion = None
        try:
            completion = read_completion(key, *await self._reply(call))
            return completion
        finally:
            self._meter.settle(call, completion)

    async def _reply(self, call: Call) -> tuple[Any, Sequence[Any]]:
        model, replies, config = with_arguments(self._model, call.arguments), Replies(), self._config
        if call.configurable:
            config = patch_config(config, configurable=dict(call.configurable))
        if not isinstance(self._model, BaseLanguageModel):  # a chain may drop usage and finish reason on its way
            config = merge_configs(config, {"callbacks": [replies]})
        return await model.ainvoke(list(call.messages), config), replies.messages

    def _judged(self, key: str, call: Call, error: Exception) -> Completion:
        verdict = classify(error)
        if verdict.kind == "programming":
            raise error
        if self._secrets is None:
            self._secrets = secrets_of(self._executor.model)
        words = redact(f"{type(error).__name__}: {error}", self._secrets)
        if verdict.kind == "fatal":
            raise GenerationError(
                f"{self._executor.model_id} refused {call.name}: {words}", hint=verdict.hint
            ) from error
        if verdict.kind == "refusal":
            return Completion(key, "refusal", "", error=words, finish_reason="content_filter")
        return Completion(key, "failed", None, error=words)

    def _stored(self, call: Call, completion: Completion) -> Completion:
        """Write an answer and its scores; where texts are kept, the answer is safe before a scorer can fail."""
        if self._score is None or not (completion.text or "").strip():
            self._ledger.record(completion, call, owner=self._owner)
            return completion
        if self._ledger.store_text:
            self._ledger.record(completion, call, owner=self._owner)
            scores = dict(self._score(completion, call))
            self._ledger.add_scores({completion.key: scores})
        else:
            try:
                scores = dict(self._score(completion, call))
            except Exception as error:
                raise FeatureError(
                    f"The answer to {call.name} could not be scored, and the ledger keeps no texts, so it is lost. "
                    f"{type(error).__name__}: {error}",
                    hint="Correct the scorer and run again: this answer is asked for again, all others are kept.",
                ) from error
            self._ledger.record(completion, call, scores, owner=self._owner)
        return replace(completion, scores=scores)

    def _report(self, call: Call, completion: Completion) -> None:
        self.done[completion.key] = completion
        if self._on_completion is not None:
            self._on_completion(completion, call)

    async def _renew_claims(self) -> None:
        while True:
            await asyncio.sleep(LEASE_SECONDS / 4)
            self._ledger.renew(self._owner)
