"""What a model can do besides answering, under the arguments that are bound to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from langchain_core.language_models import BaseLanguageModel
from langchain_core.runnables import Runnable
from langchain_core.runnables.base import RunnableBindingBase

from mpf_chains.errors import NotSupportedError
from mpf_chains.runtime.identity import parts_of

_OF_ANSWERS: Final = {
    "temperature", "top_k", "top_p", "filter", "seed", "stop", "max_tokens", "max_new_tokens", "logprobs",
    "top_logprobs", "explain", "raw", "timeout", "stream",
}  # fmt: skip
"""Call arguments that shape how answers are drawn or shown: the likelihood of a given text does not depend on them."""
_STEERING: Final = ("steer", "draw", "context")
"""Settings of a model with steering tokens, as fields and as call arguments."""


def gives(model: Any, name: str) -> bool:
    """Whether a model, or the model inside bindings, has a method.

    Runnables are asked by their class: some pass any name on to what they hold, and lose their own arguments thereby.
    """
    inner = _innermost(model)
    return callable(getattr(type(inner) if isinstance(inner, Runnable) else inner, name, None))


def method_of(model: Any, name: str) -> Callable[..., Any]:
    """A method of a model, under the arguments that are bound to the model.

    Args:
        model: A model, or a binding of one.
        name: Such as "log_likelihoods".

    Raises:
        NotSupportedError: If there is no such method, or something is bound that it does not take and that may change
            what it gives.

    Examples:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> class Corrected(FakeListChatModel):
        ...     def log_likelihoods(self, texts, alphas=None):
        ...         return [(0, alphas)]
        >>> model = Corrected(responses=[]).bind(alphas={"gender": 2.0}, temperature=0.5)
        >>> method_of(model, "log_likelihoods")([("The nurse", " said")])
        [(0, {'gender': 2.0})]
    """
    if not gives(model, name):
        raise NotSupportedError(f"{type(_innermost(model)).__name__} has no `{name}`.", hint="Use ChatTransformers.")
    if not isinstance(model, RunnableBindingBase) or hasattr(type(model), name):
        method: Callable[..., Any] = getattr(model, name)
        return method
    parameters = inspect.signature(getattr(_innermost(model), name)).parameters
    anything = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    taken = {key: value for key, value in model.kwargs.items() if anything or key in parameters}
    lost = sorted(model.kwargs.keys() - taken.keys() - _OF_ANSWERS)
    if lost:
        raise NotSupportedError(
            f"{', '.join(lost)}: bound to the model, but its `{name}` takes no such argument, so the figures would be "
            "those of the model without it.",
            hint="Give it to the model itself, as in ChatTransformers(..., alphas={...}), not with `bind`.",
        )
    return partial(method_of(model.bound, name), **taken)


def continues(model: Any) -> bool:
    """Whether a model continues text as it stands, without a chat template: its `raw`, a field or bound, is true."""
    for part in parts_of(model) if isinstance(model, Runnable) else ():
        raw = part.kwargs.get("raw") if isinstance(part, RunnableBindingBase) else getattr(part, "raw", None)
        if raw is not None:
            return raw is True
    return False


def steering_of(model: Any) -> Mapping[str, Any] | None:
    """How a model steers its answers: "steer", "draw" and "context", fields or bound; None if a model in it does not.

    Examples:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> class Steered(FakeListChatModel):
        ...     steering: str = "adapter"
        ...     steer: str | None = None
        ...     draw: str = "model"
        ...     context: str | None = None
        >>> steering_of(Steered(responses=[]).bind(draw="quota"))
        {'steer': None, 'draw': 'quota', 'context': None}
        >>> steering_of(FakeListChatModel(responses=[])) is None
        True
    """
    found: dict[str, Any] = {}
    for part in parts_of(model) if isinstance(model, Runnable) else ():
        if isinstance(part, RunnableBindingBase):
            found = {**part.kwargs, **found}
        elif isinstance(part, BaseLanguageModel):
            fields = vars(part)
            if fields.get("steering") is None or not fields.keys() >= set(_STEERING):
                return None
            found = {**fields, **found}
    return {name: found[name] for name in _STEERING} if found.get("steering") is not None else None


def quota_drawn(steering: Mapping[str, Any] | None) -> bool:
    """Whether what `steering_of` gives draws the classes of answers by quota."""
    return steering is not None and steering["steer"] is None and steering["draw"] == "quota"


def _innermost(model: Any) -> Any:
    while isinstance(model, RunnableBindingBase):
        model = model.bound
    return model
