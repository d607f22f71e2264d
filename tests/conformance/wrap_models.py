"""pytest plugin: every chat model that a test makes is wrapped in a ChatMPF with one empty perspective.

It wraps at construction, so that whatever holds the model (agents, middleware, requests, ``init_chat_model``, the test
itself) holds the ChatMPF. Test code that asks for an attribute or the class of its fake is answered by the fake; the
libraries under test see the ChatMPF alone. Comparisons of messages leave out what ChatMPF adds to each answer,
``response_metadata["mpf"]``.

Not wrapped are fakes that replace ``invoke`` or ``ainvoke`` to record what arrives there: a chat model works beneath
these methods, so inside any other model they record nothing. They are counted by class.
"""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage

from mpf_chains import ChatMPF, Perspective

SEEN = Counter[str]()
"""What the current test did: "ran <class>" per model run, "left <class>" per model made and not wrapped."""


MEMORY = 8 << 30
"""Bytes: an agent whose model was wrapped wrongly can loop until there is no memory left."""


def pytest_configure() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    wrap_at_construction(type(BaseChatModel))
    show_fakes_to_their_tests(ChatMPF)
    compare_without_record(AIMessage)
    count_runs(BaseChatModel)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    SEEN.clear()
    try:
        yield
    finally:
        item.user_properties.extend(SEEN.items())


def wrap_at_construction(metaclass: Any) -> None:
    construct, is_instance = metaclass.__call__, metaclass.__instancecheck__

    def wrapped(cls: type, *args: Any, **kwargs: Any) -> Any:
        made = construct(cls, *args, **kwargs)
        if not isinstance(made, BaseChatModel) or isinstance(made, ChatMPF):
            return made
        own = {name for base in cls.__mro__ if base.__module__.startswith("tests.") for name in vars(base)}
        if own & {"invoke", "ainvoke"}:
            SEEN[f"left {cls.__name__}"] += 1
            return made
        return ChatMPF(model=made, perspectives=[Perspective("as is")], weights={"as is": 1.0})

    def is_instance_inside(cls: type, instance: Any) -> bool:
        inside = type(instance) is ChatMPF and asked_by_test() and is_instance(cls, instance.model)
        return bool(inside or is_instance(cls, instance))

    metaclass.__call__, metaclass.__instancecheck__ = wrapped, is_instance_inside


def asked_by_test() -> bool:
    """Whether the calling function was called by test code, or by `patch.object` on its behalf."""
    caller: str = sys._getframe(2).f_globals.get("__name__", "")
    return caller.startswith(("tests.", "unittest.mock"))


def show_fakes_to_their_tests(wrapper: Any) -> None:
    def shown(plain: Any, on_fake: Any) -> Any:
        def access(self: Any, name: str, *value: Any) -> Any:
            own = hasattr(wrapper, name) or name in wrapper.model_fields
            return plain(self, name, *value) if own or not asked_by_test() else on_fake(self.model, name, *value)

        return access

    for method, on_fake in {"__getattr__": getattr, "__setattr__": setattr, "__delattr__": delattr}.items():
        setattr(wrapper, method, shown(getattr(wrapper, method), on_fake))


def compare_without_record(message: Any) -> None:
    equal = message.__eq__

    def without_record(one: Any) -> Any:
        if not isinstance(one, AIMessage) or "mpf" not in one.response_metadata:
            return one
        rest = {name: value for name, value in one.response_metadata.items() if name != "mpf"}
        return one.model_copy(update={"response_metadata": rest})

    message.__eq__ = lambda self, other: equal(without_record(self), without_record(other))


def count_runs(base: Any) -> None:
    once_per_run = base._get_ls_params_with_defaults

    def counted(self: BaseChatModel, *args: Any, **kwargs: Any) -> Any:
        SEEN[f"ran {type(self).__name__}"] += 1
        return once_per_run(self, *args, **kwargs)

    base._get_ls_params_with_defaults = counted
