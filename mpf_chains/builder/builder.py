"""`BenchmarkBuilder`: corpus → sentences → questions → entities swapped → benchmark."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForChainRun
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import Runnable, RunnableConfig, patch_config

import mpf_chains
from mpf_chains.benchmarks import Benchmark, Row, swap_entity
from mpf_chains.benchmarks.entities import mentioned
from mpf_chains.builder.built import BuildPlan, Built, Dropped
from mpf_chains.builder.corpus import Corpus, read_corpus
from mpf_chains.builder.keywords import contains, given_keywords, keyword_messages, rank_keywords, read_keywords
from mpf_chains.builder.questions import INSTRUCTION, Method, asking, same_question
from mpf_chains.builder.roles import baseline_of
from mpf_chains.builder.selection import Names, Passage, assign_splits, by_embeddings, by_words, passages, select
from mpf_chains.builder.writing import Wording, Writing
from mpf_chains.errors import BenchmarkError, DataWarning, InvalidInput, NotSupportedError
from mpf_chains.perspectives import Perspective
from mpf_chains.runtime import Budget, Call, Completion, Executor, Ledger, RetryPolicy, model_identity
from mpf_chains.runtime.background import run_in_background
from mpf_chains.runtime.canonical import sha256_of
from mpf_chains.runtime.tokens import Request

Baseline = Literal["counterfactual", "role-play"]
Chooser = Literal["corpus", "model"]

_SETTINGS = (
    "topic", "per_keyword", "questions", "tries", "named", "baseline", "validation", "structured", "articles", "seed",
)  # fmt: skip
_OFFERED = 60  # words from which the model chooses keywords


class BenchmarkBuilder(Runnable[Corpus, Benchmark]):
    """Makes a benchmark of a text: sentences about an entity become questions, asked of many entities.

    The idea is that of SAGED (arXiv 2409.11149): choose keywords, take the corpus's sentences that hold them, have a
    model write a question for each, and put other entities in the place of the one the text is about. With the
    "counterfactual" baseline the sentence itself, its name swapped, is the target of its question, so that every entity
    has the same target (the first of the two baselines of MPF, arXiv 2507.02595; its own data are 100 questions to fit
    on and 40 to judge on, of one text about a fictional entity). With "role-play" the target is what a role answers.
    The targets set a tone. They are not statements about the entities and must not be shown as such.

    Questions are checked for form, not for sense: those of small models miss the sentence more often than not, so read
    what comes before you use it. Sentences that only point back ("It grew.") are not told from others.

    Every answer is kept in the ledger as it arrives: interrupt a build anywhere, invoke again with the same ledger, and
    nothing is asked twice. Nothing is fetched; a corpus is data, whatever it says.

    Args:
        model: Writes the questions: a chat model, or any Runnable from messages to a message or text.
        entities: Names of those to ask about, each once.
        fictional: What the corpus calls the entity it is about: its full name, or that and shorter ones. Default None:
            the corpus is about the `entities` themselves, and a sentence about one serves all.
        topic: What the questions are about, in a few words for the model. Default empty.
        keywords: The keywords; or "corpus" (default): words that stand out by count; or "model": the chat model
            chooses among these in one call.
        most_keywords: How many to choose, at least 1. Default 10.
        per_keyword: Most sentences of a keyword, at least 1. Default 10.
        questions: Questions per sentence, at least 1. Default 1.
        tries: Calls per question, at least 1. An answer that is not one line with the entity's name and a question mark
            at its end is not used and asked for again, with the reason; after so many the sentence is dropped and
            recorded. Default 3.
        named: Whether a sentence must name the entity. False also takes the other sentences of a text that names it
            somewhere; their targets are then the same words for all. Default True.
        baseline: "counterfactual" (default) or "role-play".
        roles: For "role-play": by entity a perspective, or a sentence on its standing to go with `role`. Default none.
        role: Who speaks in "role-play", such as "You advise families on where to live." Default empty.
        validation: Share of sentences whose questions are to judge on, from 0 to below 1. All rows of a sentence, for
            all entities, are on one side. Default 0.3.
        embeddings: Rank the sentences of a keyword by similarity to topic and keyword instead of by the number of
            keywords they hold. They are embedded anew by each plan and build. Default none.
        articles: Whether an English "a" or "an" follows the name put after it. Default True; False for other languages.
        structured: Whether to ask for structured output. Default None: if the chat model has it. Otherwise it is asked
            in plain words, with three examples.
        method: How a model is asked for structure: "function_calling" (default), "json_schema" or "json_mode".
        instruction: The system message; `{name}` in it becomes the entity's name. Default `INSTRUCTION`.
        name: Name of the benchmark. Default the topic, else "built".
        ledger: A `Ledger` that keeps texts, a path for one, or None (in memory). Default None.
        max_concurrency: Most calls in flight. Default 8.
        retry: When calls are retried. Default `RetryPolicy()`.
        budget: Limits on calls, tokens or cost over all builds of this object. Default none.
        model_id: Names the model in keys and provenance. Default derived from the model.
        seed: Orders equal sentences and splits them. Default 0.
        progress: Show progress bars. Default True.

    Raises:
        InvalidInput: If an argument is outside what is allowed.
        NotSupportedError: If structured output is asked of a model without it, or the ledger keeps no texts.

    Examples:
        >>> from mpf_chains.testing import FaultyChatModel
        >>> model = FaultyChatModel(default="How are the libraries of Xaviria?")
        >>> builder = BenchmarkBuilder(
        ...     model, ["Yale", "ETH Zurich"], fictional="Xaviria", keywords=["libraries"], validation=0, progress=False
        ... )
        >>> builder.plan("The libraries of Xaviria open late.")
        BuildPlan(sentences=1, least=1, remaining=3, done=0)
        >>> for row in builder.invoke("The libraries of Xaviria open late.").rows:
        ...     print(row.id, row.question, row.target_text)
        q001/Yale How are the libraries of Yale? The libraries of Yale open late.
        q001/ETH Zurich How are the libraries of ETH Zurich? The libraries of ETH Zurich open late.
    """

    def __init__(
        self,
        model: Runnable[Any, Any],
        entities: Sequence[str],
        *,
        fictional: str | Sequence[str] | None = None,
        topic: str = "",
        keywords: Sequence[str] | Chooser = "corpus",
        most_keywords: int = 10,
        per_keyword: int = 10,
        questions: int = 1,
        tries: int = 3,
        named: bool = True,
        baseline: Baseline = "counterfactual",
        roles: Mapping[str, Perspective | str] | None = None,
        role: str = "",
        validation: float = 0.3,
        embeddings: Embeddings | None = None,
        articles: bool = True,
        structured: bool | None = None,
        method: Method = "function_calling",
        instruction: str = INSTRUCTION,
        name: str = "",
        ledger: Ledger | str | PathLike[str] | None = None,
        max_concurrency: int = 8,
        retry: RetryPolicy | None = None,
        budget: Budget | None = None,
        model_id: str | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        self.model, self.model_id = model, model_identity(model, model_id)
        self.entities = _names("entities", entities)
        self.fictional = (
            None if fictional is None else _names("fictional", [fictional] if isinstance(fictional, str) else fictional)
        )
        self.topic, self.title = " ".join(topic.split()), name or topic or "built"
        self.keywords = keywords if keywords in ("corpus", "model") else tuple(given_keywords(keywords))
        self.most_keywords, self.per_keyword, self.questions, self.tries = most_keywords, per_keyword, questions, tries
        self.named, self.baseline, self.validation, self.seed = named, baseline, validation, seed
        self.embeddings, self.articles, self.instruction = embeddings, articles, instruction
        self.ledger = ledger if isinstance(ledger, Ledger) else Ledger(ledger)  # type: ignore[arg-type]
        self._check(roles, role)
        self.roles = baseline_of(self.entities, roles, role) if baseline == "role-play" else {}
        writer, self.structured = asking(model, structured=structured, method=method)
        options: dict[str, Any] = {
            "ledger": self.ledger, "max_concurrency": max_concurrency, "retry": retry or RetryPolicy(),
            "budget": budget, "progress": progress,
        }  # fmt: skip
        shape = f" as Question by {method}" if self.structured else ""
        self.executor = Executor(writer, model_id=self.model_id + shape, **options)
        self._chooser = Executor(model, model_id=self.model_id, **options) if self.structured else self.executor

    def _check(self, roles: Mapping[str, Perspective | str] | None, role: str) -> None:
        for name in ("most_keywords", "per_keyword", "questions", "tries"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        if not 0 <= self.validation < 1:
            raise InvalidInput(f"`validation` is {self.validation}; it must lie in [0, 1).")
        if self.baseline not in ("counterfactual", "role-play"):
            raise InvalidInput(f'`baseline` is {self.baseline!r}; it must be "counterfactual" or "role-play".')
        if self.baseline == "counterfactual" and (roles or role):
            raise InvalidInput("`roles` and `role` go with the role-play baseline.", hint='Pass baseline="role-play".')
        for entity in self.entities:
            if held := mentioned(entity, self.fictional or ()):
                raise InvalidInput(
                    f"The entity {entity!r} contains the fictional name {held[0]!r}; the two must differ.",
                    hint="For a text about one of the entities themselves, leave `fictional` out.",
                )
        if not self.ledger.store_text:
            raise NotSupportedError(
                "The ledger keeps no texts, and a benchmark is made of them.", hint="Use store_text=True."
            )

    def plan(self, corpus: Corpus) -> BuildPlan:
        """Count the calls that `invoke` would make, without making any.

        Args:
            corpus: What would be built from.

        Returns:
            The counts.

        Raises:
            BenchmarkError: As `invoke`, for all that is wrong with the corpus.
        """
        build = _Build(self, corpus)
        done = 0
        if call := build.choice():
            answer = self._found([call], self._chooser).get(call.key(self._chooser.model_id))
            if answer is None:
                return build.plan_before_choice(call)
            build.choose(answer)
            done = 1
        writing = build.select()
        least = 0
        requests: list[Request] = []
        while due := writing.due():
            found = self._found([call for _, call in due], self.executor)
            for draft, call in due:
                answer = found.get(call.key(self.executor.model_id))
                if answer is None:
                    least += self.questions - len(draft.questions)
                    requests += writing.requests(draft)
                    draft.closed = True
                else:
                    done += 1
                    writing.take(draft, answer)
        return BuildPlan(len(writing.drafts), least, sum(one.times for one in requests), done, requests)

    def invoke(self, input: Corpus, config: RunnableConfig | None = None, **kwargs: Any) -> Benchmark:  # noqa: A002
        """Build the benchmark.

        Args:
            input: A text, a file (`Path` to .txt or .md), or a sequence of them.
            config: As for any Runnable; callbacks, tags and metadata reach every model call once.
            kwargs: None are taken.

        Returns:
            The benchmark. Each row's metadata say where it comes from: "question_id", "keyword", "source" (name and
            SHA-256), "sentence" as it stands there, its "start" and "end" in characters, "subject", and under "built"
            the library, the model, the settings, and a digest over these and the corpus.

        Raises:
            BenchmarkError: If the corpus is empty or cannot be read (naming file:line:column), does not name the
                entity, has no sentence with a keyword, or too few to split; or no question could be used.
            BudgetExceeded: If the budget would be passed; invoke again with a higher one to go on.
            GenerationError: If the provider refuses for good.

        Warns:
            DataWarning: If sentences were dropped because no usable question came; `build` says which.
        """
        return self.build(input, config, **kwargs).benchmark

    async def ainvoke(self, input: Corpus, config: RunnableConfig | None = None, **kwargs: Any) -> Benchmark:  # noqa: A002
        """Build the benchmark; the native async form of `invoke`."""
        return (await self.abuild(input, config, **kwargs)).benchmark

    def build(self, corpus: Corpus, config: RunnableConfig | None = None, **kwargs: Any) -> Built:
        """Build the benchmark, with the record of what was dropped and left out.

        Args:
            corpus: As for `invoke`.
            config: As for `invoke`.
            kwargs: None are taken.

        Returns:
            The benchmark and the record.
        """
        return run_in_background(self.abuild(corpus, config, **kwargs))

    async def abuild(self, corpus: Corpus, config: RunnableConfig | None = None, **kwargs: Any) -> Built:
        """Build the benchmark with its record; the native async form of `build`."""
        if kwargs:
            raise InvalidInput(f"BenchmarkBuilder takes no call arguments; got {', '.join(kwargs)}.")
        record: list[Built] = []

        async def run(
            corpus: Corpus, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig
        ) -> Benchmark:
            record.append(await self._built(corpus, patch_config(config, callbacks=run_manager.get_child())))
            return record[0].benchmark

        await self._acall_with_config(run, corpus, config, run_type="chain")
        return record[0]

    async def _built(self, corpus: Corpus, config: RunnableConfig) -> Built:
        build = _Build(self, corpus)
        if call := build.choice():
            self._chooser.spent = self.executor.spent
            (answer,) = await self._chooser.arun([call], config=config, description="choosing keywords")
            self.executor.spent = self._chooser.spent
            build.choose(answer)
        writing = build.select()
        while due := writing.due():
            answers = await self.executor.arun([call for _, call in due], config=config, description="writing")
            for (draft, _), answer in zip(due, answers, strict=True):
                build.completions[answer.key] = answer
                writing.take(draft, answer)
        return build.finish(writing)

    def _found(self, calls: Sequence[Call], executor: Executor) -> dict[str, Completion]:
        return self.ledger.lookup([call.key(executor.model_id) for call in calls])


class _Build:
    """One build: what was read, and what became of it so far."""

    def __init__(self, builder: BenchmarkBuilder, corpus: Corpus) -> None:
        self.b = builder
        self.sources = read_corpus(corpus)
        self.subjects: list[Names] = [(entity,) for entity in builder.entities]
        self.others: Names = ()
        if builder.fictional is not None:
            self.subjects, self.others = [builder.fictional], builder.entities
        self._check_named()
        self.candidates, self.left_out = passages(self.sources, self.subjects, self.others, named=builder.named)
        if not self.candidates:
            raise self._nothing("No sentence of the corpus can be used")
        names = [*builder.entities, *(builder.fictional or ())]
        self.ranked = rank_keywords([one.sentence.text for one in self.candidates], exclude=names)
        self.keywords = (
            list(builder.keywords) if isinstance(builder.keywords, tuple) else self.ranked[: builder.most_keywords]
        )
        self.completions: dict[str, Completion] = {}
        self.notes: list[str] = []

    def _check_named(self) -> None:
        names = [name for subject in self.subjects for name in subject]
        if any(mentioned(source.text, names) for source in self.sources):
            return
        near = [name for name in names if any(contains(source.text, name) for source in self.sources)]
        hint = "Give the name as it stands in the text, capitals included." if near else "Correct the name."
        if self.b.fictional is None:
            hint += " For a text about another entity, name it: fictional='...'."
        raise BenchmarkError(f"The corpus does not name {' or '.join(map(repr, names))}.", hint=hint)

    def _nothing(self, what: str) -> BenchmarkError:
        counts = "; ".join(f"{reason}: {count}" for reason, count in self.left_out.most_common())
        hint = "Pass named=False to take sentences that do not name the entity as well." if self.b.named else ""
        return BenchmarkError(f"{what}. Sentences left out: {counts or 'none'}.", hint=hint)

    def choice(self) -> Call | None:
        """The call that chooses keywords, if the model is to choose them."""
        if self.b.keywords != "model":
            return None
        messages = keyword_messages(self.ranked[:_OFFERED], self.b.most_keywords, self.b.topic)
        return Call(messages, kind="keywords", label="keywords")

    def plan_before_choice(self, call: Call) -> BuildPlan:
        """What can be said before the model has chosen the keywords: every sentence may be wanted."""
        b = self.b
        most = min(b.most_keywords * b.per_keyword, len(self.candidates))
        word = max(self.ranked[:_OFFERED], key=len, default="")
        calls = [call for _, call in self._writing([replace(one, keyword=word) for one in self.candidates]).due()]
        requests = [Request((call,)), *(Request(tuple(calls), most * b.tries, drafts=n) for n in range(b.questions))]
        return BuildPlan(most, 1 + b.questions, sum(one.times for one in requests), 0, requests)

    def choose(self, answer: Completion) -> None:
        """Take the model's choice; the count decides where it chose nothing from the list."""
        self.completions[answer.key] = answer
        chosen = read_keywords(answer.text or "", self.ranked[:_OFFERED], self.b.most_keywords)
        if not chosen:
            self._note("The model chose no keyword from the list; those that stand out by count were taken.")
        self.keywords = chosen or self.keywords

    def select(self) -> Writing:
        """Choose the sentences and put them on their side."""
        b = self.b
        rank = by_embeddings(b.embeddings, b.topic) if b.embeddings else by_words([b.topic, *self.keywords])
        chosen, alike = select(self.candidates, self.keywords, b.per_keyword, rank, seed=b.seed)
        self.left_out += alike
        used = {one.keyword for one in chosen}
        if not chosen:
            raise self._nothing(
                f"No usable sentence contains a keyword ({', '.join(map(repr, self.keywords)) or 'none found'})"
            )
        if isinstance(b.keywords, tuple) and (idle := [word for word in self.keywords if word not in used]):
            self._note(f"No sentence was taken for the keywords {', '.join(map(repr, idle))}.")
        self.keywords = [word for word in self.keywords if word in used]
        return self._writing(assign_splits(chosen, b.validation, seed=b.seed))

    def _writing(self, chosen: Sequence[Passage]) -> Writing:
        b = self.b
        others = tuple(name for subject in self.subjects for name in subject) + self.others
        return Writing(chosen, Wording(b.questions, b.tries, b.topic, others, not b.structured, b.instruction))

    def finish(self, writing: Writing) -> Built:
        """The benchmark, with what is missing from it."""
        dropped = [
            Dropped(d.passage.source.name, d.passage.sentence.text, d.passage.keyword, d.problem, d.answer)
            for d in writing.drafts
            if d.problem
        ]
        asked: list[tuple[Passage, str]] = []
        seen: set[str] = set()
        for passage, question in writing.written():
            masked = same_question(swap_entity(question, passage.subject, "X", articles=False))
            if masked in seen:
                reason = "the same question was written for another sentence"
                dropped.append(Dropped(passage.source.name, passage.sentence.text, passage.keyword, reason, question))
            else:
                seen.add(masked)
                asked.append((passage, question))
        self._check_written(asked, dropped)
        if dropped:
            reasons = Counter(one.reason for one in dropped).most_common()
            wanted = len(writing.drafts) * self.b.questions
            self._note(
                f"{wanted - len(asked)} of {wanted} questions are missing: "
                + "; ".join(f"{reason} ({count})" for reason, count in reasons) + "."
            )  # fmt: skip
        usage: Counter[str] = Counter()
        for completion in self.completions.values():
            usage.update(completion.usage)
        benchmark = Benchmark(self.b.title, tuple(self._rows(asked)), self.b.roles)
        return Built(
            benchmark, tuple(self.keywords), tuple(dropped), dict(self.left_out), tuple(self.notes), dict(usage)
        )

    def _check_written(self, asked: Sequence[tuple[Passage, str]], dropped: Sequence[Dropped]) -> None:
        sides = {passage.split for passage, _ in asked}
        if len(sides) == (2 if self.b.validation else 1):
            return
        what = (
            f"Every question on the {'validation' if 'decomposition' in sides else 'decomposition'} side"
            if sides
            else "Every question"
        )
        last = f"; the last answer: {dropped[-1].answer[:80]!r}" if dropped and dropped[-1].answer else ""
        raise BenchmarkError(
            f"{what} is missing: {dropped[-1].reason if dropped else 'none was asked for'}{last}.",
            hint="Take a stronger model, more text, or more `tries`; answers so far are in the ledger.",
        )

    def _rows(self, asked: Sequence[tuple[Passage, str]]) -> Iterator[Row]:
        built, targets = self._provenance(), self.b.baseline == "counterfactual"
        for entity in self.b.entities:
            for number, (passage, question) in enumerate(asked, 1):
                identifier = f"q{number:03d}"
                yield Row(
                    id=f"{identifier}/{entity}",
                    entity=entity,
                    question=self._about(entity, question, passage),
                    target_text=self._about(entity, passage.sentence.text, passage) if targets else None,
                    split=passage.split,
                    metadata={
                        "question_id": identifier,
                        "keyword": passage.keyword,
                        "source": {"name": passage.source.name, "sha256": passage.source.digest},
                        "sentence": passage.sentence.text,
                        "start": passage.sentence.start,
                        "end": passage.sentence.end,
                        "subject": passage.subject[0],
                        "built": built,
                    },
                )

    def _about(self, entity: str, text: str, passage: Passage) -> str:
        if entity in passage.subject:
            return text
        return swap_entity(text, passage.subject, entity, articles=self.b.articles)

    def _provenance(self) -> dict[str, Any]:
        b = self.b
        known = {
            "library": f"mpf-chains {mpf_chains.__version__}",
            "model": b.model_id,
            "settings": {
                "keywords": list(self.keywords),
                "chosen_by": "user" if isinstance(b.keywords, tuple) else b.keywords,
                "embeddings": type(b.embeddings).__name__ if b.embeddings else None,
                "instruction": hashlib.sha256(b.instruction.encode()).hexdigest(),
                **{name: getattr(b, name) for name in _SETTINGS},
            },
        }
        return {**known, "digest": sha256_of([known, [source.digest for source in self.sources]])}

    def _note(self, note: str) -> None:
        self.notes.append(note)
        warnings.warn(note, DataWarning, stacklevel=3)


def _names(argument: str, names: Sequence[str]) -> Names:
    if isinstance(names, (str, Mapping)):
        raise InvalidInput(f"`{argument}` must be a list of names, not {names!r}.")
    kept = tuple(" ".join(name.split()) for name in names)
    if not kept or not all(kept) or len(set(kept)) < len(kept):
        raise InvalidInput(f"`{argument}` must be at least one name, none blank, each once; got {list(names)}.")
    return kept
