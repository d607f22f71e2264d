"""How many tokens calls will take, before any is made: counted where the model's tokenizer can, else estimated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable

from mpf_chains.runtime.budget import Price
from mpf_chains.runtime.calls import Call
from mpf_chains.runtime.identity import parts_of
from mpf_chains.runtime.models import output_limit

_BYTES_PER_TOKEN = 4  # of English text
_TOKENS_PER_MESSAGE = 4  # what a chat template puts around a message; only where the template is not counted itself
_OPENAI = ("api.openai.com",)


@dataclass(frozen=True)
class Estimate:
    """What calls will take at most, retries aside; add two to plan both.

    Args:
        calls: Number of requests, ≥ 0.
        input_tokens: Tokens of their prompts. None: unknown, since they hold answers whose length is not limited.
        output_tokens: Most tokens of their answers. None: the model sets no limit.
        counted: Whether the model's own tokenizer has counted the prompts as they are sent. False: at least one is an
            estimate from its text, at 4 bytes a token.
    """

    calls: int = 0
    input_tokens: int | None = 0
    output_tokens: int | None = 0
    counted: bool = True

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.calls + other.calls,
            _sum(self.input_tokens, other.input_tokens),
            _sum(self.output_tokens, other.output_tokens),
            self.counted and other.counted,
        )

    def cost(self, price: Price) -> float | None:
        """Most that the calls cost, in the currency of the price; None if a number of tokens is unknown."""
        if self.input_tokens is None or self.output_tokens is None:
            return None
        return price.of(self.input_tokens, self.output_tokens)


@dataclass(frozen=True)
class Request:
    """A call to come, of which perhaps only the alternatives are known.

    Args:
        alternatives: The calls of which one will be made; at least one.
        times: How often one of them is drawn. Default 1.
        drafts: How many answers its prompt will hold besides what is in it now. Default 0.
    """

    alternatives: tuple[Call, ...]
    times: int = 1
    drafts: int = 0


class TokenCounter:
    """Counts the tokens of prompts as a model does.

    `get_num_tokens_from_messages` of the model is taken where its class has its own; then `get_num_tokens` of each
    text, plus 4 tokens a message; else 4 bytes count as a token. (LangChain's default counts with the tokenizer of
    GPT-2; it is not used. That of ChatOpenAI is used for OpenAI's own models; it fetches their vocabulary once.)

    Args:
        model: The model; the first language model in it counts.

    Examples:
        >>> from langchain_core.messages import HumanMessage
        >>> from mpf_chains.testing import BiasedChatModel
        >>> TokenCounter(BiasedChatModel()).estimate([Request((Call((HumanMessage("How is it there?"),)),))])
        Estimate(calls=1, input_tokens=8, output_tokens=None, counted=False)
    """

    def __init__(self, model: Runnable[Any, Any]) -> None:
        self.limit = output_limit(model)
        self._model = next((part for part in parts_of(model) if isinstance(part, BaseLanguageModel)), None)
        self._whole = _defines(self._model, "get_num_tokens_from_messages") and not _speaks_for_another(self._model)
        self._texts = _counts_texts(self._model) and not _speaks_for_another(self._model)
        self._known: dict[str, int] = {}

    @property
    def counted(self) -> bool:
        """Whether all prompts so far were counted as they are sent."""
        return self._whole

    def __call__(self, messages: Sequence[BaseMessage]) -> int:
        """Tokens of a prompt."""
        if self._whole and self._model is not None:
            try:
                return int(self._model.get_num_tokens_from_messages(list(messages)))
            except Exception:  # a model that the class does not know, or no connection for its vocabulary
                self._whole = False
        return sum(self._of_text(str(message.text)) + _TOKENS_PER_MESSAGE for message in messages)

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """What requests take at most: of alternatives the dearest counts.

        Args:
            requests: The requests.

        Returns:
            The sum.
        """
        inputs, outputs, calls = 0, 0, 0
        inputs_known = outputs_known = True
        for request in requests:
            limits = [self._limit(call) for call in request.alternatives]
            answer = max((limit for limit in limits if limit is not None), default=0)
            bounded = None not in limits
            calls += request.times
            inputs += request.times * (
                max(self(call.messages) for call in request.alternatives) + request.drafts * answer
            )
            outputs += request.times * answer
            inputs_known &= bounded or not request.drafts
            outputs_known &= bounded
        counted = self.counted and not any(request.drafts for request in requests)
        return Estimate(calls, inputs if inputs_known else None, outputs if outputs_known else None, counted)

    def _limit(self, call: Call) -> int | None:
        """Most tokens of the call's answer; None if that is not limited."""
        stated = call.arguments.get("max_completion_tokens", call.arguments.get("max_tokens", self.limit))
        return stated if isinstance(stated, int) else None

    def _of_text(self, text: str) -> int:
        if text not in self._known:
            self._known[text] = self._fresh(text)
        return self._known[text]

    def _fresh(self, text: str) -> int:
        if self._texts and self._model is not None:
            try:
                return int(self._model.get_num_tokens(text))
            except Exception:  # as above
                self._texts = False
        return -(-len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN)


def _sum(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second


def _defines(model: object, method: str) -> bool:
    """Whether the class has its own form of a method of LangChain's base class."""
    return isinstance(model, BaseLanguageModel) and getattr(type(model), method) is not getattr(
        BaseLanguageModel, method
    )


def _counts_texts(model: object) -> bool:
    own = any(_defines(model, method) for method in ("get_num_tokens", "get_token_ids"))
    return own or getattr(model, "custom_get_token_ids", None) is not None


def _speaks_for_another(model: object) -> bool:
    """Whether an OpenAI client talks to a server whose models have other tokenizers than it knows."""
    base = getattr(model, "openai_api_base", None)
    return isinstance(base, str) and urlsplit(base).hostname not in _OPENAI
