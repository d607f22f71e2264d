"""What names a model in keys and provenance: its class and parameters, never its secrets."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Final

from langchain_core.language_models import BaseLanguageModel
from langchain_core.output_parsers import BaseLLMOutputParser
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import Runnable, RunnableSequence, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import DynamicRunnable
from pydantic import BaseModel, SecretBytes, SecretStr

from mpf_chains.errors import DataWarning
from mpf_chains.runtime.canonical import canonical_json

_SECRET: Final = re.compile(
    r"(?:^|[_\W])(?:api_?)?(?:key|keys|secret|secrets|password|passwd|headers?|authorization|credentials?|cookies?)(?:$|[_\W])"
    r"|apikey|^token$|(?:api|access|auth|bearer|hf|hub|session|security|refresh|id)_?token",
    re.IGNORECASE,
)
_PARAMETERS: Final = (
    "model", "model_name", "model_id", "deployment_name", "temperature", "top_p", "top_k", "max_tokens",
    "max_completion_tokens", "max_new_tokens", "stop", "seed", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "reasoning_effort",
)  # fmt: skip
_SHAPES: Final = re.compile(
    r"\b(?:sk|pk|hf|gsk|xai|AIza)[-_]?[A-Za-z0-9_\-]{16,}|(?i:bearer\s+)[^\s'\",]+|(?i:[?&](?:api_?)?key=)[^\s&'\"]+"
)


def model_identity(model: Runnable[Any, Any], identity: str | None = None) -> str:
    """Name a model and its parameters, the same way in every process and without its secrets.

    Args:
        model: A chat model, or a chain, binding or fallback around one.
        identity: Your own name for it, returned as it is. Default None: it is read off the model.

    Returns:
        Class names and canonical JSON of the parameters that change answers, such as
        'ChatOpenAI {"model_name":"gpt-4o-mini","temperature":0.0}'.

    Warns:
        DataWarning: If a part is of a kind whose parameters cannot be read; only its class is in the name then, so
            changing those parameters would not change the key of a call.

    Examples:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> model_identity(FakeListChatModel(responses=["a"]).bind(temperature=0.5, api_key="secret"))
        'FakeListChatModel {"ls_provider":"fakelistchatmodel","responses":["a"]} with {"temperature":0.5}'
    """
    return identity if identity is not None else _identity(model)


def secrets_of(model: Runnable[Any, Any]) -> frozenset[str]:
    """Collect the secret values that a model holds, to strike them out of messages.

    Args:
        model: Any Runnable; the models inside bindings, sequences and fallbacks are searched.

    Returns:
        Every secret string of at least four characters: secret fields, and values under names such as `api_key`.
    """
    found: set[str] = set()
    for part in parts_of(model):
        fields = dict(part) if isinstance(part, BaseModel) else {}
        found.update(_secret_values(fields))
    return frozenset(value for value in found if len(value) >= 4)


def redact(text: str, secrets: frozenset[str] = frozenset()) -> str:
    """Strike secrets out of a provider's message.

    Args:
        text: The message.
        secrets: Known secret values; things shaped like API keys and bearer tokens go as well.

    Returns:
        The message with "***" in their place.

    Examples:
        >>> redact("bad key canary-1, Authorization: Bearer abc", frozenset({"canary-1"}))
        'bad key ***, Authorization: ***'
    """
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return _SHAPES.sub("***", text)


def parts_of(model: Runnable[Any, Any]) -> Iterator[Runnable[Any, Any]]:
    """Walk a Runnable and the Runnables it is built of, outermost first."""
    yield model
    for part in _inner(model):
        yield from parts_of(part)


def _inner(model: Runnable[Any, Any]) -> list[Runnable[Any, Any]]:
    if isinstance(model, RunnableBindingBase):
        return [model.bound]
    if isinstance(model, RunnableSequence):
        return list(model.steps)
    if isinstance(model, RunnableWithFallbacks):
        return [model.runnable, *model.fallbacks]
    if isinstance(model, DynamicRunnable):
        return [model.default]
    return []


def _identity(model: Runnable[Any, Any]) -> str:
    if isinstance(model, RunnableBindingBase):
        bound = _public({**(model.config.get("configurable") or {}), **model.kwargs})
        return f"{_identity(model.bound)} with {canonical_json(bound)}" if bound else _identity(model.bound)
    if isinstance(model, BaseLanguageModel):
        return f"{type(model).__name__} {canonical_json(_parameters(model))}"
    if isinstance(model, BasePromptTemplate):
        return f"{type(model).__name__} {canonical_json(getattr(model, 'pretty_repr', lambda: '')())}"
    if isinstance(model, BaseLLMOutputParser):
        return type(model).__name__
    described = getattr(type(model), "_identifying_params", None)
    if isinstance(described, property):  # our own Runnables have what language models have
        return f"{type(model).__name__} {canonical_json(_public(model._identifying_params))}"  # type: ignore[attr-defined]
    if inner := _inner(model):
        return (" | " if isinstance(model, RunnableSequence) else " or ").join(_identity(part) for part in inner)
    warnings.warn(
        f"The parameters of {type(model).__name__} cannot be read, so they are not pinned in the keys of its calls: "
        "after changing them, answers of the old ones would be reused. Pass model_id='a name you change with them'.",
        DataWarning,
        stacklevel=4,
    )
    return type(model).__name__


def _parameters(model: BaseLanguageModel[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: getattr(model, name, None) for name in _PARAMETERS}
    describe = getattr(model, "_get_ls_params", None)
    if describe is not None:
        found["ls_provider"] = describe().get("ls_provider")
    # ChatOpenAI repeats its model's name here; what is only about transport or tracing is not in it.
    found.update(model._identifying_params)
    public = _public(found)
    return {name: value for name, value in public.items() if value is not None}


def _public(value: Any, name: str = "") -> Any:
    """Keep what is JSON-like, drop secrets, and name the rest by its class (a repr may hold an address)."""
    if isinstance(value, Mapping):
        kept = {str(key): item for key, item in value.items() if not _is_secret(str(key), item)}
        return {key: _public(item, key) for key, item in kept.items()}
    if isinstance(value, (list, tuple)):
        return [_public(item, name) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_public(item, name) for item in value), key=canonical_json)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if isinstance(value, BaseModel):
        return {"class": type(value).__name__, **_public(dict(value))}
    kind = value if isinstance(value, type) or callable(value) else type(value)
    return f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', type(kind).__name__)}"


def _is_secret(name: str, value: Any) -> bool:
    return isinstance(value, (SecretStr, SecretBytes)) or _SECRET.search(name) is not None


def _secret_values(fields: Mapping[str, Any], *, named: bool = False) -> Iterator[str]:
    for name, value in fields.items():
        secret = named or _is_secret(str(name), value)
        if isinstance(value, SecretStr):
            yield value.get_secret_value()
        elif isinstance(value, Mapping):
            yield from _secret_values(value, named=secret)
        elif secret and isinstance(value, str):
            yield value
