"""What a chat model says of itself where another one is inside: all as the one inside says it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable
from pydantic import InstanceOf

from mpf_chains.fusion.arguments import arguments_of
from mpf_chains.fusion.hooks import chat_model_of, leaf_of


class Mirror(BaseChatModel):
    """Base of :class:`~mpf_chains.fusion.chat_model.ChatMPF`: name, profile, tokens, and whether it streams.

    Args:
        model: The model inside.
        temperature, max_tokens, timeout, stop: Passed to every call of the model inside. Default: its own.
        streaming: Whether `invoke` uses the streaming path too. Default: as the model inside.
    """

    model: InstanceOf[Runnable[Any, Any]]
    temperature: float | None = None
    max_tokens: int | None = None
    timeout: float | None = None
    stop: list[str] | None = None
    streaming: bool | None = None

    if TYPE_CHECKING:
        _inner: BaseChatModel | None
        _of_calls: dict[str, Any]

    @property
    def model_name(self) -> str:
        """The name of the model inside; that of its class if it has none, or if the config chooses it."""
        named = self._get_ls_params() if self._inner is not None else {}
        return str(
            named.get("ls_model_name") or getattr(self._inner, "model_id", None) or type(leaf_of(self.model)).__name__
        )

    @property
    def _llm_type(self) -> str:
        # LangChain's middleware chooses what to do for a provider by it.
        return "mpf" if self._inner is None else self._inner._llm_type

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        if not stop and not kwargs:
            return self._ls_params.copy()
        return self._named(stop, kwargs)

    @cached_property
    def _ls_params(self) -> LangSmithParams:
        return self._named(None, {})

    def _named(self, stop: list[str] | None, kwargs: dict[str, Any]) -> LangSmithParams:
        given = self._of_calls
        given = {**arguments_of(self.model), **given, **kwargs}
        bound = given.pop("stop", None)
        stop = stop or self.stop or bound
        if self._inner is None:
            return super()._get_ls_params(stop=stop, **given)
        return self._inner._get_ls_params(stop=stop, **given)

    def _resolve_model_profile(self) -> Any:
        inner = chat_model_of(self.model)
        return None if inner is None else inner.profile

    def get_token_ids(self, text: str) -> list[int]:
        """As the model inside counts."""
        return super().get_token_ids(text) if self._inner is None else self._inner.get_token_ids(text)

    def get_num_tokens(self, text: str) -> int:
        """As the model inside counts."""
        return super().get_num_tokens(text) if self._inner is None else self._inner.get_num_tokens(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """As the model inside counts."""
        if self._inner is None:
            return super().get_num_tokens_from_messages(messages, tools)
        return self._inner.get_num_tokens_from_messages(messages, tools)

    def _streaming_disabled(self, **kwargs: Any) -> bool:
        disabled = super()._streaming_disabled(**kwargs)
        return disabled or (self._inner is not None and self._inner._streaming_disabled(**kwargs))

    def _should_stream(self, *, async_api: bool, run_manager: Any = None, **kwargs: Any) -> bool:
        if self.streaming:
            kwargs["stream"] = True
        if self._inner is None:
            return super()._should_stream(async_api=async_api, run_manager=run_manager, **kwargs)
        if super()._streaming_disabled(**kwargs):
            return False
        return self._inner._should_stream(async_api=async_api, run_manager=run_manager, **kwargs)

    def _should_use_protocol_streaming(self, *, async_api: bool, run_manager: Any = None, **kwargs: Any) -> bool:
        inner = super() if self._inner is None else self._inner
        asked = inner._should_use_protocol_streaming(  # type: ignore[union-attr]
            async_api=async_api, run_manager=run_manager, **kwargs
        )
        return asked and not super()._streaming_disabled(**kwargs)
