"""Dynamic batching: calls made at the same time, from any thread or event loop, run together."""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_EXIT_SECONDS = 60.0
_open: weakref.WeakSet[Batcher[Any]] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    """Let workers end before the interpreter does: one that is stopped inside torch takes the process down with it."""
    for batcher in list(_open):
        batcher.close()


class Batcher(Generic[T]):
    """Collects items and hands them in batches to one worker thread.

    The worker starts with the first item and ends when nothing has come for a while, so nothing has to be closed.

    Args:
        run: Works through one batch; called from the worker only, one batch at a time. It must report failures to
            the items' owners itself: what it raises is passed to ``fail``.
        fail: Called with the batch and the exception if ``run`` raises.
        size: Of an item, in numbers or tuples of them: items similar in size are put into one batch (less padding).
            Default: order of arrival.
        max_batch_size: At most this many items per batch. Default 32.
        quiet: A batch that is not full waits until no item has come for this long, seconds. Default 0.01.
        max_wait: ... but no longer than this, seconds. Default 0.25.
        linger: The idle worker ends after this long, seconds. Default 2.

    Examples:
        >>> batches, done = [], threading.Event()
        >>> batcher = Batcher(lambda batch: (batches.append(sorted(batch)), done.set()))
        >>> for item in range(3):
        ...     batcher.submit(item)
        >>> done.wait(5) and batches
        [[0, 1, 2]]
    """

    def __init__(
        self,
        run: Callable[[list[T]], Any],
        *,
        fail: Callable[[list[T], BaseException], Any] = lambda _batch, _error: None,
        size: Callable[[T], Any] = lambda _item: 0,
        max_batch_size: int = 32,
        quiet: float = 0.01,
        max_wait: float = 0.25,
        linger: float = 2.0,
    ) -> None:
        self.max_batch_size = max_batch_size
        self._run, self._fail, self._size = run, fail, size
        self._quiet, self._max_wait, self._linger = quiet, max_wait, linger
        self._arrivals: queue.Queue[T | None] = queue.Queue()  # None wakes the worker to end
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None
        _open.add(self)

    def submit(self, item: T) -> None:
        """Queue an item; returns at once."""
        with self._lock:
            self._arrivals.put(item)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="mpf-chains-batcher", daemon=True)
                self._worker.start()

    def close(self) -> None:
        """End the worker when it has worked through what is queued, and wait for it, up to a minute."""
        with self._lock:
            worker = self._worker
            if worker is not None:
                self._arrivals.put(None)
        if worker is not None:
            worker.join(_EXIT_SECONDS)

    def _work(self) -> None:
        waiting: list[T] = []  # in order of arrival
        while True:
            try:
                first = None if waiting else self._arrivals.get(timeout=self._linger)
            except queue.Empty:
                first = None
            if first is not None:
                waiting.append(first)
            elif not waiting:
                with self._lock:
                    if self._arrivals.empty():
                        self._worker = None
                        return
                continue
            self._collect(waiting)
            batch = self._take(waiting)
            try:
                self._run(batch)
            except BaseException as error:  # the owners must hear of everything, or wait forever
                self._fail(batch, error)
            del batch  # an idle worker holds nothing

    def _collect(self, waiting: list[T]) -> None:
        """Add what has arrived, and what still arrives until the queue is quiet."""
        deadline = time.monotonic() + self._max_wait
        while True:
            full = len(waiting) >= self.max_batch_size
            patience = 0.0 if full else min(self._quiet, deadline - time.monotonic())
            try:
                item = self._arrivals.get(block=patience > 0, timeout=max(patience, 0.0))
            except queue.Empty:
                return
            if item is not None:
                waiting.append(item)

    def _take(self, waiting: list[T]) -> list[T]:
        """Remove and return a batch: the oldest item, and those nearest to it in size."""
        order = sorted(range(len(waiting)), key=lambda i: self._size(waiting[i]))
        start = order.index(0) // self.max_batch_size * self.max_batch_size
        chosen = sorted(order[start : start + self.max_batch_size])
        batch = [waiting[i] for i in chosen]
        for i in reversed(chosen):
            del waiting[i]
        return batch
