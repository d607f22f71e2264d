"""Seeded draws of a perspective: independent by request key, or low-discrepancy with quotas."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np

_Pair: TypeAlias = tuple[str, tuple[tuple[str, float], ...]]
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_KEPT = 10_000
_AHEAD = 4096


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

    A name may be drawn for the (c+1)-th time once n · weight > c, and must have been by draw (c+1) / weight (Balinski
    and Young's quota method). Within that window it goes at (c + phase) / weight, with a phase from 0 to 1 of its own,
    unless another name could then not keep its deadline; at worst the earliest deadline goes, which always leaves
    room. So every prefix n keeps -1 < count − n · weight < 1, and the realised mean of a score varies far less than
    under independent draws. The phases are drawn by the seed: of two names each count has, over seeds, exactly the
    expectation n · weight (systematic sampling); of more it is nearly so. The schedule does not depend on the request
    key: use it for long-run shares, not where a single request must be unpredictable.

    Counts are kept per entity and weights, of the 10,000 pairs used last: new weights start anew, and several routers
    or versions may share one sampler. So may threads. Pickling keeps the counts.

    Args:
        seed: Draws the phases, so that several servers with equal weights do not draw the same sequence. Few draws
            are right on average only over seeds: give each process its own. Default 0.

    Examples:
        >>> sampler = QuotaSampler()
        >>> [sampler.draw({"a": 0.75, "b": 0.25}) for _ in range(8)].count("b")
        2
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._counts: OrderedDict[_Pair, dict[str, int]] = OrderedDict()
        self._owed: OrderedDict[str, dict[str, float]] = OrderedDict()
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
            counts = _kept(self._counts, pair, {name: 0 for name, weight in pair[1] if weight > 0})
            n = sum(counts.values()) + 1
            released = [name for name in counts if n * weights[name] - counts[name] > 1e-9] or list(counts)
            phases = self._phases(entity, weights)
            first = min(released, key=lambda k: ((counts[k] + 1) / weights[k], phases[k]))
            order = sorted(released, key=lambda k: ((counts[k] + phases[k]) / weights[k], k))
            name = next(each for each in order if each == first or _leaves_room(each, counts, weights))
            counts[name] += 1
            return name

    def draw_changing(self, weights: Mapping[str, float], *, entity: str) -> str:
        """Draw for an entity whose weights change from draw to draw: the name that is furthest behind their sum goes.

        Of two names each stays within one draw of the sum of its weights, with exactly that expectation over seeds; of
        more nearly so.

        Args:
            weights: Name → weight at this draw, non-negative, summing to 1.
            entity: Whose weights are added up.

        Returns:
            One of the names; never one with weight 0.
        """
        with self._lock:
            owed = _kept(self._owed, entity, self._phases(entity, dict.fromkeys(weights, 1.0)))
            for name, weight in weights.items():
                owed[name] = owed.get(name, 0.0) + weight
            name = max((name for name, weight in weights.items() if weight > 0), key=owed.__getitem__)
            owed[name] -= 1
            return name

    def _phases(self, entity: str, weights: Mapping[str, float]) -> dict[str, float]:
        """Of each name; in pairs of u and 1 − u, as two such sequences never want the same draw."""
        phases: dict[str, float] = {}
        for name in sorted(weights, key=lambda k: (-weights[k], k)):
            *_, before = phases.values() or [0.0]
            phases[name] = 1 - before if len(phases) % 2 else keyed_uniform(self.seed, entity, name)
        return phases

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            counts = OrderedDict((pair, dict(each)) for pair, each in self._counts.items())
            owed = OrderedDict((entity, dict(each)) for entity, each in self._owed.items())
            return {"seed": self.seed, "_counts": counts, "_owed": owed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock()


def _kept(kept: OrderedDict[_Key, _Value], key: _Key, new: _Value) -> _Value:
    """What is kept under a key, or what is new; of too many the one used least recently goes."""
    found = kept.setdefault(key, new)
    kept.move_to_end(key)
    if len(kept) > _KEPT:
        kept.popitem(last=False)
    return found


def _leaves_room(name: str, counts: Mapping[str, int], weights: Mapping[str, float]) -> bool:
    """Whether all names can keep their deadlines after a draw of this one.

    They can if after each later draw m no more than m − n draws are due by then (Hall's condition); beyond the
    deadline of ``name`` that goes without saying.
    """
    n, end = sum(counts.values()) + 1, math.ceil((counts[name] + 1) / weights[name] - 1e-9)
    if end - n > _AHEAD:
        return False
    after = np.arange(n, end)
    drawn = np.array([count + (each == name) for each, count in counts.items()])
    due = np.floor(np.outer(after, [weights[each] for each in counts]) + 1e-9) - drawn
    return bool((np.maximum(due, 0).sum(axis=1) <= after - n).all())
