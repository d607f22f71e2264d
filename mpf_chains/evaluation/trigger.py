"""A fixed text before every prompt: the baseline that debiasing methods are compared with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableBindingBase

from mpf_chains.errors import InvalidInput
from mpf_chains.evaluation.bound import method_of
from mpf_chains.fusion.request import to_messages


class Trigger(RunnableBindingBase[LanguageModelInput, Any]):
    """A model with a fixed text before every prompt; for `evaluate`, and as any Runnable.

    In a conversation the text goes before the last human message's; likelihoods are those after it, its own tokens are
    not scored. It is put there exactly as given, with nothing between: end it with a space where words should not run
    together. A passage that is longer than the model's context cannot be scored after a trigger.

    Sheng et al. search the text for each model and pair of groups; this class takes the one that was found. Tong et
    al. compare expert pairs with, for GPT-2 and gender, "MSN Canaveral龍喚士龍喚士 TAMADRAoried" and, for GPT-2 medium,
    "Rail pridely Scot Finished midrange", with no space after them (their local_bias/trigger-local-bias.ipynb). These
    mean nothing to another model.

    Args:
        model: A chat model, or any Runnable that takes messages.
        text: What is put before prompts; not blank.

    Raises:
        InvalidInput: If the text is blank or the model is no Runnable; at a call, if there is no human message.

    References:
        Sheng, Chang, Natarajan, Peng: Towards Controllable Biases in Language Generation, Findings of EMNLP 2020,
        arXiv 2005.00268. As a baseline: Tong et al., arXiv 2412.01711; their code: github.com/EliottZemour/nlg_bias.

    Examples:
        >>> from langchain_core.runnables import RunnableLambda
        >>> Trigger(RunnableLambda(lambda messages: messages[-1].text), "Be fair. ").invoke("The nurse said")
        'Be fair. The nurse said'
    """

    text: str

    def __init__(self, model: Runnable[Any, Any], text: str) -> None:
        if not isinstance(model, Runnable) or not isinstance(text, str) or not text.strip():
            raise InvalidInput(
                f"A trigger of {text!r} before a {type(model).__name__}: it must be a text that is not blank before a "
                "chat model or other Runnable."
            )
        # What is configurable is part of a model's identity, so ledgers keep triggers apart.
        super().__init__(bound=model, config={"configurable": {"mpf_trigger": text}}, text=text)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """No: it is not one of LangChain's own."""
        return False

    def log_likelihoods(self, texts: Sequence[tuple[str, str]], **arguments: Any) -> Iterator[tuple[int, Any]]:
        """As `LikelihoodModel`: of continuations after trigger and context.

        Raises:
            NotSupportedError: If the model has none.
        """
        scored = method_of(self.bound, "log_likelihoods")
        found: Iterator[tuple[int, Any]] = scored([(self.text + before, text) for before, text in texts], **arguments)
        return found

    def next_token_log_probabilities(self, prompts: Sequence[str], **arguments: Any) -> Iterator[tuple[int, Any]]:
        """As `NextTokenModel`: after trigger and prompt.

        Raises:
            NotSupportedError: If the model has none.
        """
        scored = method_of(self.bound, "next_token_log_probabilities")
        found: Iterator[tuple[int, Any]] = scored([self.text + prompt for prompt in prompts], **arguments)
        return found

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """The model's answer to the conversation with the trigger in it."""
        return super().invoke(self._triggered(input), config, **kwargs)

    async def ainvoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """As `invoke`."""
        return await super().ainvoke(self._triggered(input), config, **kwargs)

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """As `invoke`, as it comes."""
        return super().stream(self._triggered(input), config, **kwargs)

    def astream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """As `stream`."""
        return super().astream(self._triggered(input), config, **kwargs)

    # A binding hands these to what is bound; here they go through the methods above.
    batch = Runnable.batch
    abatch = Runnable.abatch
    batch_as_completed = Runnable.batch_as_completed
    abatch_as_completed = Runnable.abatch_as_completed
    transform = Runnable.transform
    atransform = Runnable.atransform
    astream_events = Runnable.astream_events
    stream_events = Runnable.stream_events

    def _triggered(self, given: LanguageModelInput) -> list[BaseMessage]:
        messages = list(to_messages(given))
        last = max((place for place, one in enumerate(messages) if isinstance(one, HumanMessage)), default=None)
        if last is None:
            raise InvalidInput("There is no human message to put the trigger before.")
        content = messages[last].content
        led = self.text + content if isinstance(content, str) else [{"type": "text", "text": self.text}, *content]
        messages[last] = messages[last].model_copy(update={"content": led})
        return messages
