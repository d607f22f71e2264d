"""One event loop in a thread of its own, for the synchronous forms.

Sharing it between runs keeps a provider's connection pool usable: connections belong to the loop they were opened in,
and a loop per run would leave the next run with connections to a closed loop.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import wait
from typing import Any, TypeVar

from mpf_chains.errors import NotSupportedError

T = TypeVar("T")
_CANCEL_SECONDS = 10.0
_WAKE_SECONDS = 0.5


class _Background:
    """A running loop and its thread; made anew after a fork."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.pid = os.getpid()
        self._thread = threading.Thread(target=self.loop.run_forever, name="mpf_chains", daemon=True)
        self._thread.start()
        atexit.register(self._close)

    def _close(self) -> None:
        if self.pid == os.getpid():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(_CANCEL_SECONDS)
            if not self.loop.is_running():
                self.loop.close()


_current: _Background | None = None
_making = threading.Lock()


def run_in_background(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from synchronous code, inside a running event loop too.

    Args:
        coroutine: What to run. It sees the caller's context variables.

    Returns:
        Its result.

    Raises:
        NotSupportedError: If called from the background loop itself, which would wait for itself.
        KeyboardInterrupt: As it comes; the coroutine is cancelled and has ended by then.
    """
    loop = _loop()
    if threading.current_thread().name == "mpf_chains":
        coroutine.close()
        raise NotSupportedError("run() was called from inside another run().", hint="Use `await ...arun(...)` there.")
    ended = threading.Event()

    async def watched() -> T:
        try:
            return await coroutine
        finally:
            ended.set()

    future = asyncio.run_coroutine_threadsafe(watched(), loop)
    try:
        while not future.done():  # a signal that comes just before the wait begins is seen when it ends
            wait([future], timeout=_WAKE_SECONDS)
        return future.result()
    except BaseException:
        if future.cancel():
            ended.wait(_CANCEL_SECONDS)
        raise


def _loop() -> asyncio.AbstractEventLoop:
    global _current  # noqa: PLW0603
    with _making:
        if _current is None or _current.pid != os.getpid():
            _current = _Background()
        return _current.loop
