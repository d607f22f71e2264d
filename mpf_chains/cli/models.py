"""Chat models from a text such as ``openai:gpt-4.1-mini``: what the option ``--model`` takes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.error import URLError
from urllib.parse import urldefrag, urlsplit
from urllib.request import Request, urlopen

from mpf_chains.errors import InvalidInput, MissingExtra, MPFError

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

FORMS: Final = (
    "openai:NAME (such as openai:gpt-4.1-mini), transformers:FOLDER-OR-HUB-ID, transformers:smollm2, "
    "http://HOST:PORT/v1#NAME (any server that speaks OpenAI's protocol), or PROVIDER:NAME for any other provider that "
    "langchain's init_chat_model knows (such as anthropic:NAME)"
)
SERVER_KEY: Final = "MPF_SERVER_API_KEY"
"""Environment variable with the key of an ``http(s)://`` server. That of OpenAI is never sent to another server."""
_LIST_SECONDS: Final = 10.0
_CONNECTION: Final = {
    "api_base", "azure_endpoint", "base_url", "default_headers", "default_query", "endpoint", "endpoint_url",
    "extra_body", "extra_headers", "extra_query", "http_async_client", "http_client", "openai_api_base",
    "openai_proxy", "proxies", "proxy",
}  # fmt: skip
"""Arguments that may carry addresses, headers and other places for secrets."""


def chat_model(
    spec: str,
    arguments: Mapping[str, Any] | None = None,
    corrections: Mapping[str, Any] | None = None,
    *,
    planning: bool = False,
) -> BaseChatModel:
    """The chat model that a spec means.

    Args:
        spec: One of `FORMS`. After ``http://...`` the name may be left out where the server lists only one.
        arguments: Keyword arguments for the model's class, such as temperature and max_tokens. Keys are refused: they
            come from the environment (OPENAI_API_KEY and the like; `SERVER_KEY` for ``http://``). Default none.
        corrections: What a local model is to be told about experts and steering (see `mpf_chains.cli.options`). Default
            none.
        planning: Whether the model will only be planned with; then OpenAI's needs no key. Default False.

    Raises:
        InvalidInput: If the spec or an argument is wrong, a key is missing, or the server does not answer.
        MissingExtra: If the library behind it is not installed.
    """
    given = dict(arguments or {})
    _refuse_secrets(given)
    if corrections:
        local_name(spec, "--expert and --steering correct")
    if spec.startswith(("http://", "https://")):
        return _served(spec, given)
    provider, _, name = spec.partition(":")
    if not provider or not name:
        raise InvalidInput(f"--model is {spec!r}; it must be {FORMS}.")
    if provider == "transformers":
        from mpf_chains.local import ChatTransformers

        return _made(ChatTransformers, spec, {**given, **(corrections or {}), "model": name})
    if provider == "openai":
        return _openai(spec, name, given, planning=planning)
    return _from_langchain(spec, provider, name, given)


def local_name(spec: str, why: str = "This needs") -> str:
    """The folder or hub id in a spec of a model that runs here.

    Args:
        spec: As ``--model`` takes it.
        why: Begins the message if it is another model.

    Raises:
        InvalidInput: If it is.
    """
    provider, _, name = spec.partition(":")
    if provider != "transformers" or not name:
        raise InvalidInput(
            f"{why} a model that runs here, and --model is {spec!r}.", hint="Give transformers:FOLDER-OR-HUB-ID."
        )
    return name


def parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE options; a value that is JSON is that, and any other is text.

    Raises:
        InvalidInput: If one has no name or no "=".

    Examples:
        >>> parse_arguments(["temperature=0.7", 'stop=["END"]', "dtype=bfloat16"])
        {'temperature': 0.7, 'stop': ['END'], 'dtype': 'bfloat16'}
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise InvalidInput(f"--model-arg is {pair!r}; it must be NAME=VALUE, such as temperature=0.7.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _openai(spec: str, name: str, arguments: Mapping[str, Any], *, planning: bool) -> BaseChatModel:
    chat_openai = _chat_openai()
    given = {"max_retries": 0, **arguments, "model": name}  # the runtime tries again, and counts it
    if not os.environ.get("OPENAI_API_KEY"):
        if not planning:
            raise InvalidInput(f"{spec} needs a key.", hint="Set it in the environment: export OPENAI_API_KEY=...")
        given["api_key"] = "none"
    return _made(chat_openai, spec, given)


def _served(spec: str, arguments: Mapping[str, Any]) -> BaseChatModel:
    chat_openai = _chat_openai()
    base, name = urldefrag(spec)
    parts = urlsplit(base)
    if parts.username or parts.password or parts.query:
        raise InvalidInput(
            "--model has a user name, a password or a query in its address; it must be http://HOST:PORT/v1#NAME.",
            hint=f"A key comes from the environment: export {SERVER_KEY}=...",
        )
    key = os.environ.get(SERVER_KEY) or "none"
    given = {"max_retries": 0, **arguments, "base_url": base, "api_key": key, "model": name or _only_model(base, key)}
    return _made(chat_openai, spec, given)


def _only_model(base: str, key: str) -> str:
    """The name of the one model that a server lists."""
    request = Request(f"{base.rstrip('/')}/models", headers={"Authorization": f"Bearer {key}"})  # noqa: S310  # checked
    try:
        with urlopen(request, timeout=_LIST_SECONDS) as answer:  # noqa: S310
            names = [str(entry["id"]) for entry in json.load(answer)["data"]]
    except (URLError, OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"{base}/models does not tell which models there are: {error}.",
            hint=f"Check the address, or name the model: {base}#NAME",
        ) from error
    if len(names) != 1:
        listed = ", ".join(names[:8]) or "none"
        raise InvalidInput(f"{base} lists the models {listed}.", hint=f"Choose one: {base}#NAME")
    return names[0]


def _chat_openai() -> Callable[..., BaseChatModel]:
    try:
        from langchain_openai import ChatOpenAI
    except ImportError as error:
        raise MissingExtra("langchain_openai", "openai") from error
    return ChatOpenAI


def _from_langchain(spec: str, provider: str, name: str, arguments: Mapping[str, Any]) -> BaseChatModel:
    try:
        from langchain.chat_models import init_chat_model
    except ImportError as error:
        raise InvalidInput(
            f"--model is {spec!r}; without langchain it must be one of openai:, transformers:, http://.",
            hint="For other providers: pip install langchain",
        ) from error

    def make(**options: Any) -> BaseChatModel:
        model: BaseChatModel = init_chat_model(name, model_provider=provider, **options)
        return model

    return _made(make, spec, arguments)


def _made(make: Callable[..., BaseChatModel], spec: str, arguments: Mapping[str, Any]) -> BaseChatModel:
    """Construct the model; what is wrong with its arguments is told without their values."""
    from pydantic import ValidationError

    try:
        return make(**arguments)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'model'}: {one['msg']}" for one in error.errors())
        known = ", ".join(sorted(getattr(make, "model_fields", {}).keys() - {"api_key"}))
        hint = f"--model-arg takes {known}." if any(one["type"] == "extra_forbidden" for one in error.errors()) else ""
        raise InvalidInput(f"{spec} cannot be set up. {wrong}.", hint=hint) from error
    except MPFError:
        raise
    except ImportError as error:
        raise InvalidInput(f"{spec} cannot be set up: {error}") from error
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{spec} cannot be set up: {error}", hint=f"--model must be {FORMS}.") from error


def _refuse_secrets(arguments: Mapping[str, Any], path: str = "") -> None:
    from mpf_chains.runtime.identity import _is_secret, redact

    for name, value in arguments.items():
        if not path and name.lower() in _CONNECTION:
            raise InvalidInput(
                f"--model-arg {name} says how to connect, and may hold what must not be written into records.",
                hint="Name a server with --model http://HOST:PORT/v1#NAME; in Python any model can be given.",
            )
        if isinstance(value, str) and "://" in value:
            raise InvalidInput(
                f"--model-arg {path}{name} is an address.",
                hint="Name a server with --model http://HOST:PORT/v1#NAME; in Python any model can be given.",
            )
        if _is_secret(name, value) or (isinstance(value, str) and redact(value) != value):
            raise InvalidInput(
                f"--model-arg {path}{name} would put a secret into the shell's history and into records.",
                hint=f"Keys come from the environment: OPENAI_API_KEY and the like; {SERVER_KEY} for http:// models.",
            )
        if isinstance(value, Mapping):
            _refuse_secrets(value, f"{path}{name}.")
