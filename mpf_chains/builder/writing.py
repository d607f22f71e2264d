"""Writing the questions: which calls are due, and what becomes of each answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from mpf_chains.builder.questions import EXAMPLES, INSTRUCTION, problem_of, question_messages, read_question
from mpf_chains.builder.selection import Passage
from mpf_chains.runtime import Call, Completion
from mpf_chains.runtime.tokens import Request


@dataclass(frozen=True)
class Wording:
    """How questions are asked for.

    Args:
        questions: Questions per sentence, at least 1.
        tries: Calls per question, at least 1.
        topic: Of the benchmark.
        others: Names that no question may hold.
        examples: Whether examples are shown before.
        instruction: The system message.
    """

    questions: int = 1
    tries: int = 3
    topic: str = ""
    others: tuple[str, ...] = ()
    examples: bool = False
    instruction: str = INSTRUCTION


@dataclass
class Draft:
    """A passage and the questions written for it so far.

    Args:
        passage: The passage.
        questions: Usable ones, in order.
        tries: Calls made for the question at hand.
        problem: Why the last answer could not be used; empty if it could.
        answer: That answer.
        closed: Whether no more calls are due.
    """

    passage: Passage
    questions: list[str] = field(default_factory=list)
    tries: int = 0
    problem: str = ""
    answer: str = ""
    closed: bool = False


class Writing:
    """The questions of some passages, written in rounds: every open draft asks one call a round.

    What a round asks depends on the answers before only, so a build that is run again with the same ledger asks the
    same and finds its answers there.

    Args:
        chosen: Passages.
        wording: How they are asked for.
    """

    def __init__(self, chosen: Sequence[Passage], wording: Wording) -> None:
        self.drafts = [Draft(one) for one in chosen]
        self.wording = wording

    def due(self) -> list[tuple[Draft, Call]]:
        """The calls of the next round; none when all is written."""
        return [(draft, self._call(draft)) for draft in self.drafts if not draft.closed]

    def requests(self, draft: Draft) -> list[Request]:
        """What an open draft can still ask for at most: the questions it lacks, each `tries` times."""
        again = self._call(replace(draft, problem=f"it does not contain the name {draft.passage.subject[0]}"))
        alternatives = (self._call(draft), again)
        missing = range(self.wording.questions - len(draft.questions))
        return [Request(alternatives, self.wording.tries - (0 if n else draft.tries), drafts=n) for n in missing]

    def take(self, draft: Draft, completion: Completion) -> None:
        """Judge an answer."""
        wording = self.wording
        draft.tries += 1
        draft.answer = read_question(completion.text or "")
        if completion.status == "failed":
            draft.problem, draft.closed = f"the call failed: {completion.error}", True
            return
        draft.problem = (
            "the model declined to answer"
            if completion.status == "refusal"
            else problem_of(
                draft.answer, draft.passage.subject, wording.others, [*draft.questions, *self._shown(draft)]
            )
        )
        if not draft.problem:
            draft.questions.append(draft.answer)
            draft.tries = 0
        draft.closed = len(draft.questions) == wording.questions or draft.tries == wording.tries

    def written(self) -> Iterator[tuple[Passage, str]]:
        """Every usable question with its passage, in order."""
        for draft in self.drafts:
            for question in draft.questions:
                yield draft.passage, question

    def _shown(self, draft: Draft) -> list[str]:
        """Questions of the examples, which small models like to repeat."""
        if not self.wording.examples:
            return []
        return [question.replace("{name}", draft.passage.subject[0]) for _, question in EXAMPLES]

    def _call(self, draft: Draft) -> Call:
        passage, wording = draft.passage, self.wording
        messages = question_messages(
            passage.sentence.text,
            passage.subject[0],
            keyword=passage.keyword,
            topic=wording.topic,
            earlier=draft.questions,
            problem=draft.problem,
            examples=EXAMPLES if wording.examples else (),
            instruction=wording.instruction,
        )
        place = f"{passage.source.name} at {passage.sentence.start}"
        label = f"{place} / {passage.keyword} / question {len(draft.questions) + 1} / try {draft.tries + 1}"
        return Call(messages, draw=draft.tries, kind="question", label=label)
