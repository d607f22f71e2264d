"""What a model is called with: tools and structured output (seen, and taken off), temperature, all that is bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.runnables import Runnable, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from pydantic import BaseModel

_OFFERS = ("tools", "functions", "tool_choice", "tool_calls", "function_call", "parallel_tool_calls")
_SHAPES = (
    "response_format",
    "ls_structured_output_format",
    "structured_output_format",
    "format",
    "response_schema",
    "response_json_schema",
    "guided_json",
)


def has_tools(model: object, arguments: Mapping[str, Any]) -> bool:
    """Whether a call offers tools or asks for structured output, by its arguments or by what is bound to the model."""
    if any(arguments.get(name) for name in (*_OFFERS, *_SHAPES)):
        return True
    if isinstance(model, RunnableBindingBase):
        return has_tools(model.bound, model.kwargs)
    if isinstance(model, RunnableWithFallbacks):
        return any(has_tools(each, {}) for each in model.runnables)
    if isinstance(model, BaseModel):
        return False
    # What `init_chat_model` returns for a model that the config chooses keeps them for later.
    queued = getattr(model, "_queued_declarative_operations", None)
    return isinstance(queued, list) and any(name in ("bind_tools", "with_structured_output") for name, *_ in queued)


def without_tools(model: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """The model with tools that were bound to it taken off, so that merging can call none."""
    if isinstance(model, RunnableBindingBase):
        return model.model_copy(update={"bound": without_tools(model.bound), "kwargs": plain_arguments(model.kwargs)})
    if isinstance(model, RunnableWithFallbacks):
        fallbacks = [without_tools(fallback) for fallback in model.fallbacks]
        return model.model_copy(update={"runnable": without_tools(model.runnable), "fallbacks": fallbacks})
    return model


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Call arguments without those that offer tools."""
    return {name: value for name, value in arguments.items() if name not in _OFFERS}


def temperature_of(model: object) -> float | None:
    """The temperature a model runs at, as far as it says."""
    if isinstance(model, RunnableBindingBase):
        return dict(model.kwargs).get("temperature", temperature_of(model.bound))
    if isinstance(model, RunnableWithFallbacks):
        return temperature_of(model.runnable)
    value = getattr(model, "temperature", None)
    return value if isinstance(value, (int, float)) else None


def arguments_of(model: object) -> dict[str, Any]:
    """The call arguments bound to a model."""
    return {**arguments_of(model.bound), **model.kwargs} if isinstance(model, RunnableBindingBase) else {}
