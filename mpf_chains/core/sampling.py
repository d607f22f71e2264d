"""Seeded draws of a perspective: independent by request key, or low-discrepancy with quotas."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import Any, Protocol, TypeAlias, runtime_checkable

_Pair: TypeAlias = tuple[str, tuple[tuple[str, float], ...]]
_KEPT = 10_000


@runtime_checkable
class Sampler(Protocol):
    """Draws one name from a weighted set."""

    def draw(self, weights: Mapping[str, float], *, key: str = "", index: int = 0, entity: str = "") -> str:
        """Draw a name with probability (or long-run share) equal to its weight."""
        ...


def keyed_uniform(*parts: object) -> float:
    """A uniform number in [0, 1) that is a pure function of its parts (BLAKE2b, 53 bits).

    Args:
        parts: Anything with a stable ``repr``: strings and integers.

    Examples:
        >>> keyed_uniform(0, "a") == keyed_uniform(0, "a") != keyed_uniform(0, "b")
        True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


class IIDSampler:
    """Independent draws, each a pure function of (seed, entity, key, index).

    The same request key gives the same perspective, in any thread or process and whatever else is drawn. Use one
    key per request (and ``index`` for several draws within it): a key made of the prompt alone would give every
    repetition of that prompt the same draw.

    Args:
        seed: Any integer. Default 0.

    Examples:
        >>> sampler = IIDSampler(seed=7)
        >>> sampler.draw({"optimist": 0.5, "critic": 0.5}, key="request-1") in ("optimist", "critic")
        True
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def draw(self, weights: Mapping[str, float], *, key: str = "", index: int = 0, entity: str = "") -> str:
        """Draw a name with probability equal to its weight.

        Args:
            weights: Name → weight, non-negative, summing to 1. The order of the names does not matter.
            key: The request's key.
            index: Which draw of that request, from 0.
            entity: The entity whose weights these are.

        Returns:
            One of the names; never one with weight 0.
        """
        remaining = keyed_uniform(self.seed, entity, key, index) * math.fsum(weights.values())
        drawn = ""
        for name in sorted(weights):
            if weights[name] > 0:
                drawn = name
                remaining -= weights[name]
                if remaining < 0:
                    break
        return drawn


class QuotaSampler:
    """Low-discrepancy draws: after n draws each name has been drawn within one of n times its weight.

    The draws of an entity form the earliest-deadline-first schedule of Balinski and Young's quota method: a name
    may be drawn for the (c+1)-th time once n · weight > c, and among those the one whose next draw is due first
    ((c+1) / weight smallest) goes. Every prefix n keeps -1 < count − n · weight < 1, so the realised mean of a score
    varies far less than under independent draws. The schedule does not depend on the request key: use it for
    long-run shares, not where a single request must be unpredictable.

    Counts are kept per entity and weights, of the 10,000 pairs used last: new weights start anew, and several routers
    or versions may share one sampler. So may threads. Pickling keeps the counts.

    Args:
        seed: Decides between names that are due at the same time, so that several servers with equal weights do
            not draw the same sequence. Default 0.

    Examples:
        >>> sampler = QuotaSampler()
        >>> [sampler.draw({"a": 0.75, "b": 0.25}) for _ in range(8)].count("b")
        2
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._counts: OrderedDict[_Pair, dict[str, int]] = OrderedDict()
        self._lock = Lock()

    def draw(self, weights: Mapping[str, float], *, key: str = "", index: int = 0, entity: str = "") -> str:  # noqa: ARG002
        """Draw the name that is due next for this entity.

        Args:
            weights: Name → weight, non-negative, summing to 1.
            key: Not used; accepted so that samplers are interchangeable.
            index: Not used.
            entity: Whose counts to use.

        Returns:
            One of the names; never one with weight 0.
        """
        with self._lock:
            pair = (entity, tuple(sorted(weights.items())))
            counts = self._counts.get(pair)
            if counts is None:
                counts = self._counts[pair] = {name: 0 for name, weight in pair[1] if weight > 0}
                if len(self._counts) > _KEPT:
                    self._counts.popitem(last=False)
            self._counts.move_to_end(pair)
            n = sum(counts.values()) + 1
            released = [name for name in counts if n * weights[name] - counts[name] > 1e-9] or list(counts)
            name = min(released, key=lambda k: ((counts[k] + 1) / weights[k], keyed_uniform(self.seed, entity, k)))
            counts[name] += 1
            return name

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            counts = OrderedDict((pair, dict(each)) for pair, each in self._counts.items())
            return {"seed": self.seed, "_counts": counts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock()
