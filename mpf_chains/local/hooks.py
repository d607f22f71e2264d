"""Hooks on the modules of a model, which go with what they belong to."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Owner = TypeVar("Owner")


class OwnedHook(Generic[Owner]):
    """What a module of a model calls as long as somebody else is there.

    Nothing takes hooks off in a finalizer: garbage is collected wherever memory is asked for, also while torch goes
    through a module's hooks, which must not change then. A hook whose owner is gone does nothing, and takes itself off
    when its module next calls it.

    Args:
        owner: Held weakly. Tensors belong into it, not into ``act``, so that they go with it.
        act: Called with the owner and what torch gives such a hook; returns what such a hook returns.
        register: ``module.register_forward_hook`` or ``module.register_forward_pre_hook``.
    """

    def __init__(self, owner: Owner, act: Callable[..., Any], register: Callable[[Any], Any]) -> None:
        self._owner, self._act = weakref.ref(owner), act
        self._handle = register(self)

    def __call__(self, *arguments: Any) -> Any:
        """Called by torch."""
        owner = self._owner()
        if owner is None:
            self._handle.remove()
            return None
        return self._act(owner, *arguments)

    def __reduce__(self) -> tuple[type[_Nothing], tuple[()]]:
        return _Nothing, ()  # a copy of the model is the model as it is


class _Nothing:
    """What stands in a copied or pickled model where a hook was."""

    def __call__(self, *_: Any) -> None:
        """Called by torch."""
