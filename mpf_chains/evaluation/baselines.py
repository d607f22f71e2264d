"""What steering is compared with on any chat model: the targets stated in the prompt, and verbalized sampling.

The model itself, with nothing added, is the zero-shot baseline.
"""

from __future__ import annotations

import re
import warnings
from typing import Any, NamedTuple

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import add_usage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable, patch_config
from pydantic import ConfigDict, Field, InstanceOf, PrivateAttr

from mpf_chains.core.sampling import IIDSampler
from mpf_chains.errors import DataWarning
from mpf_chains.fusion import PerspectiveRouter
from mpf_chains.fusion.policy import MentionedEntity
from mpf_chains.fusion.request import to_message, to_messages
from mpf_chains.perspectives import Perspective
from mpf_chains.runtime import model_identity
from mpf_chains.targets import TargetTable, fill

STATED = (
    "This request is made many times, and the answers are counted. Asked about {a_context}, answers must come in these "
    "shares of {attribute}: {shares}. Choose at random by these shares, then give one answer, as the request asks; do "
    "not mention the shares."
)
"""The system message of `prompted_target`."""

VERBALIZED = (
    "Do not answer the request once. Write {k} different answers to it, each on a line of its own after the "
    "probability with which you would give it, as in:\n0.25 | the answer\nWrite nothing else."
)
"""The system message of `VerbalizedSampling`."""

_BEFORE = re.compile(r"^[\W_]*(?P<number>\d*\.?\d+)\s*(?P<percent>%?)[\s\])}>*]*[|:–-]\s*(?P<text>\S.*)$")
_AFTER = re.compile(
    r"^(?P<text>\W*\w.*?)\s*[|:(–-]\s*(?:probability\W*)?(?P<number>\d*\.?\d+)\s*(?P<percent>%?)\W*$", re.IGNORECASE
)
_BULLET = re.compile(r"^\s*(?:\d+[.)]|[-*•])\s+")


def prompted_target(model: Runnable[Any, Any], table: TargetTable, *, instruction: str = STATED) -> PerspectiveRouter:
    """A model whose system message states the target shares of the context that it is asked about.

    Source: the prompting baseline of arXiv 2604.05756, in our own words.

    Args:
        model: A chat model, or any Runnable that takes messages.
        table: The targets. The context is the one that the user names last, or "mpf_entity" of the config, as
            `evaluate` gives it.
        instruction: With places for ``{context}`` or ``{a_context}``, ``{attribute}`` and ``{shares}``.

    Returns:
        A router that has one perspective, with this instruction, for each context.

    Examples:
        >>> from mpf_chains.testing import BiasedChatModel
        >>> model = BiasedChatModel(answers={"90 % female, 10 % male": ["Male."]})
        >>> table = TargetTable.of({"nurse": {"female": 0.9, "male": 0.1}}, {"gender": ("female", "male")})
        >>> prompted_target(model, table).invoke("Write the gender of a nurse.").text
        'Male.'
    """

    def stated(context: str) -> str:
        shares = ", ".join(f"{100 * share:.3g} % {name}" for name, share in table[context].items())
        attribute = " and ".join(table.attributes)
        return fill(instruction, context).replace("{attribute}", attribute).replace("{shares}", shares)

    return PerspectiveRouter(
        model=model,
        perspectives=[Perspective(context, stated(context)) for context in table.contexts],
        weights={each: {other: float(other == each) for other in table.contexts} for each in table.contexts},
        entity=MentionedEntity(tuple(table.contexts)),
    )


class Candidate(NamedTuple):
    """An answer that a model offers, with the probability that it claims for it."""

    text: str
    probability: float


class VerbalizedSampling(RunnableSerializable[LanguageModelInput, AIMessage]):
    r"""Asks a model for several answers with their probabilities, and draws one of them by these.

    Where fewer than two answers with probabilities can be read, the model is asked plainly instead. That is never
    silent: the answer's ``response_metadata["verbalized"]`` says "fallback": true, `fallback_share` counts, and a
    `DataWarning` is given.

    Source: Zhang et al., "Verbalized Sampling: How to Mitigate Mode Collapse and Unlock LLM Diversity",
    arXiv 2510.01171; the wording is ours.

    Args:
        model: A chat model, or any Runnable that takes messages.
        k: Answers asked for, at least 2. Default 5.
        seed: Of the draws, which are a function of (seed, key); the key is "mpf_key" of the config, else the run id.
        instruction: The system message; ``{k}`` is the number of answers. It goes before one that is there.

    Examples:
        >>> from mpf_chains.testing import FaultyChatModel
        >>> model = VerbalizedSampling(model=FaultyChatModel(default="0.7 | Female.\n0.3 | Male."))
        >>> answer = model.invoke("Write the gender of a nurse.", {"configurable": {"mpf_key": "request-1"}})
        >>> answer.text, answer.response_metadata["verbalized"]
        ('Female.', {'fallback': False, 'candidates': 2, 'probability': 0.7})
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: InstanceOf[Runnable[Any, Any]]
    k: int = Field(default=5, ge=2)
    seed: int = 0
    instruction: str = Field(default=VERBALIZED, min_length=1)
    _fell_back: list[bool] = PrivateAttr(default_factory=list)

    @property
    def fallback_share(self) -> float:
        """Share of this object's answers so far for which no probabilities could be read."""
        return sum(self._fell_back) / len(self._fell_back) if self._fell_back else 0.0

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What decides answers: names this Runnable in ledgers."""
        return {"model": model_identity(self.model), "k": self.k, "seed": self.seed, "instruction": self.instruction}

    def __repr_args__(self) -> Any:
        return [("model", type(self.model).__name__), ("k", self.k), ("seed", self.seed)]

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:  # noqa: A002
        """One answer, drawn."""
        return self._call_with_config(self._answer, input, config, options=kwargs)  # type: ignore[arg-type]

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Async twin of `invoke`."""
        return await self._acall_with_config(self._aanswer, input, config, options=kwargs)  # type: ignore[arg-type]

    def _answer(
        self,
        given: LanguageModelInput,
        run_manager: CallbackManagerForChainRun,
        config: RunnableConfig,
        *,
        options: dict[str, Any],
    ) -> AIMessage:
        inner, asked = patch_config(config, callbacks=run_manager.get_child()), to_messages(given)
        reply = to_message(self.model.invoke(self._request(asked), inner, **options))
        drawn = self._drawn(reply, config, run_manager.run_id)
        return drawn or self._plain(to_message(self.model.invoke(asked, inner, **options)), reply)

    async def _aanswer(
        self,
        given: LanguageModelInput,
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        *,
        options: dict[str, Any],
    ) -> AIMessage:
        inner, asked = patch_config(config, callbacks=run_manager.get_child()), to_messages(given)
        reply = to_message(await self.model.ainvoke(self._request(asked), inner, **options))
        drawn = self._drawn(reply, config, run_manager.run_id)
        return drawn or self._plain(to_message(await self.model.ainvoke(asked, inner, **options)), reply)

    def _request(self, asked: list[BaseMessage]) -> list[BaseMessage]:
        return Perspective("verbalized", self.instruction.replace("{k}", str(self.k))).condition(asked)

    def _drawn(self, reply: AIMessage, config: RunnableConfig, run_id: object) -> AIMessage | None:
        candidates = candidates_in(reply.text)
        self._fell_back.append(len(candidates) < 2)
        if len(candidates) < 2:
            return None
        key = str(config.get("configurable", {}).get("mpf_key") or run_id)
        odds = {f"{place:06}": each.probability for place, each in enumerate(candidates)}
        chosen = candidates[int(IIDSampler(self.seed).draw(odds, key=key))]
        told = {"fallback": False, "candidates": len(candidates), "probability": chosen.probability}
        metadata = {**reply.response_metadata, "verbalized": told}
        return reply.model_copy(update={"content": chosen.text, "response_metadata": metadata})

    def _plain(self, answer: AIMessage, reply: AIMessage) -> AIMessage:
        warnings.warn(
            "Verbalized sampling: no probabilities could be read in a reply, so the model was asked plainly.",
            DataWarning,
            stacklevel=2,
        )
        metadata = {**answer.response_metadata, "verbalized": {"fallback": True}}
        usage = add_usage(reply.usage_metadata, answer.usage_metadata)
        return answer.model_copy(update={"response_metadata": metadata, "usage_metadata": usage})


def candidates_in(reply: str) -> list[Candidate]:
    r"""The answers in a reply, with probabilities that sum to 1; lines without a probability are left out.

    Examples:
        >>> candidates_in("Here you are:\n3 | Female.\n1 | Male.")
        [Candidate(text='Female.', probability=0.75), Candidate(text='Male.', probability=0.25)]
        >>> [each.text for each in candidates_in("1. **Female** (90%)\n2. Male: 10 %")]
        ['**Female**', 'Male']
    """
    found = []
    for line in reply.splitlines():
        match = _BEFORE.match(line) or _AFTER.match(_BULLET.sub("", line))
        if match:
            found.append(Candidate(match["text"].strip(), float(match["number"]) / (100 if match["percent"] else 1)))
    total = sum(each.probability for each in found)
    return [Candidate(text, share / total) for text, share in found if share > 0]
