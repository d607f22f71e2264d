"""Preparing a model for the executor: its cache off, its arguments bound where they belong, its replies seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import Runnable, RunnableSequence, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import (
    DynamicRunnable,
    RunnableConfigurableAlternatives,
)

from mpf_chains.errors import NotSupportedError
from mpf_chains.runtime.identity import parts_of

Model = Runnable[Any, Any]


def uncached(model: Model) -> Model:
    """Copy a model so that it answers every call afresh, whatever cache is set.

    With a LangChain cache, k draws of one prompt would be one answer k times.

    Args:
        model: A chat model, or a chain, binding or fallback around one. Not modified.

    Returns:
        The copy, with the cache of each language model inside it off.

    Raises:
        NotSupportedError: If a global cache is set and a language model may be hidden where it cannot be reached.
    """
    if get_llm_cache() is not None and (not has_language_model(model) or _hides_models(model)):
        raise NotSupportedError(
            f"A global LangChain cache is set and the model inside {type(model).__name__} cannot be reached to switch "
            "it off, so repeated draws of one prompt would all be the same answer.",
            hint="Give that model cache=False and call langchain_core.globals.set_llm_cache(None), or pass the chat "
            "model itself.",
        )
    return _rebuilt(model)


def has_language_model(model: Model) -> bool:
    """Tell whether a language model can be found in a Runnable."""
    return any(isinstance(part, BaseLanguageModel) for part in parts_of(model))


def with_arguments(model: Model, arguments: Mapping[str, Any]) -> Model:
    """Bind keyword arguments to the model call; in a sequence, to its first step that is or holds a language model."""
    if not arguments:
        return model
    if isinstance(model, RunnableSequence):
        for index, step in enumerate(model.steps):
            if has_language_model(step):
                steps = [*model.steps[:index], with_arguments(step, arguments), *model.steps[index + 1 :]]
                return RunnableSequence(*steps, name=model.name)
    return model.bind(**arguments)


def output_limit(model: Model) -> int | None:
    """The most output tokens a model is set to give; None if it is set to no limit."""
    for part in parts_of(model):
        bound = part.kwargs if isinstance(part, RunnableBindingBase) else {}
        for name in ("max_completion_tokens", "max_tokens", "max_new_tokens", "max_output_tokens", "num_predict"):
            for value in (bound.get(name), getattr(part, name, None)):
                if isinstance(value, int) and value > 0:
                    return value
    return None


class Replies(AsyncCallbackHandler):
    """Collects the messages of the models in a chain, whose usage and finish reason a string parser drops."""

    def __init__(self) -> None:
        self.messages: list[BaseMessage] = []

    async def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        """Keep the messages of one model call."""
        for generations in response.generations:
            self.messages += [item.message for item in generations if isinstance(item, ChatGeneration)]


def _hides_models(model: Model) -> bool:
    """Tell whether a chain closes over Runnables that a copy of it would share."""
    for part in parts_of(model):
        if isinstance(part, RunnableConfigurableAlternatives):
            return True
        if any(has_language_model(held) for held in getattr(part, "deps", ())):  # of a RunnableLambda
            return True
    return False


def _rebuilt(model: Model) -> Model:
    if isinstance(model, BaseLanguageModel):
        return model.model_copy(update={"cache": False})
    if isinstance(model, RunnableBindingBase):
        return model.model_copy(update={"bound": _rebuilt(model.bound)})
    if isinstance(model, RunnableSequence):
        return RunnableSequence(*[_rebuilt(step) for step in model.steps], name=model.name)
    if isinstance(model, RunnableWithFallbacks):
        fallbacks = [_rebuilt(fallback) for fallback in model.fallbacks]
        return model.model_copy(update={"runnable": _rebuilt(model.runnable), "fallbacks": fallbacks})
    if isinstance(model, DynamicRunnable):
        return model.model_copy(update={"default": _rebuilt(model.default)})
    return model
