"""Picking the next token, one random stream per row: what a row gets does not depend on its neighbours in a batch."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpf_chains.errors import InvalidInput

if TYPE_CHECKING:
    import torch

Filter = Literal["last", "base_first"]
_FIRST_CANDIDATES = 512  # a nucleus is nearly always inside these; if it is not, all tokens are sorted


@dataclass(frozen=True)
class Sampling:
    """How one row chooses its tokens.

    Args:
        temperature: Divides the logits; 0 means greedy. In [0, inf). Default 1, the model's own distribution.
        top_k: Keep the k most probable tokens; None (default) keeps all.
        top_p: Then keep the most probable tokens until their mass, renormalised after top_k, reaches p.
            In (0, 1]. Default 1 keeps all.
        seed: With the prompt, decides the random stream. None (default) takes fresh entropy.
        openings: The answer begins with one of these sequences of token ids; which, the rest of this law decides
            token by token among them. Default none: the answer is free.
        top_logprobs: Note the log-probability of each token, and the most probable tokens, so many. None (default):
            note nothing. Does not change what is chosen.
        alphas: Strengths of expert pairs, in the order of an ensemble's pairs; finite. Default (): no experts.
        filter: "last" (default): top_p is of the law that is drawn from, after temperature and top_k. "base_first": of
            the base model's own law, before experts correct it and before temperature and top_k.
        explain: Tell what experts changed about each token. Default False. Does not change what is chosen.

    Raises:
        InvalidInput: If a value is outside its range or of another type.

    Examples:
        >>> Sampling(temperature=0.7, top_k=50, seed=1).greedy
        False
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None
    openings: tuple[tuple[int, ...], ...] = ()
    top_logprobs: int | None = None
    alphas: tuple[float, ...] = ()
    filter: Filter = "last"
    explain: bool = False

    def __post_init__(self) -> None:
        if not 0 <= as_number(self.temperature) < math.inf:
            raise InvalidInput(f"`temperature` is {self.temperature!r}; it must be 0 (greedy) or a positive number.")
        if self.top_k is not None and not is_whole(self.top_k, least=1):
            raise InvalidInput(f"`top_k` is {self.top_k!r}; it must be a whole number from 1, or None to keep all.")
        if not 0 < as_number(self.top_p) <= 1:
            raise InvalidInput(f"`top_p` is {self.top_p!r}; it must be a number in (0, 1].")
        if self.seed is not None and not is_whole(self.seed):
            raise InvalidInput(f"`seed` is {self.seed!r}; it must be a whole number, or None for a fresh one.")
        if self.top_logprobs is not None and not is_whole(self.top_logprobs, least=0):
            raise InvalidInput(f"`top_logprobs` is {self.top_logprobs!r}; it must be a whole number from 0.")
        if not (isinstance(self.alphas, tuple) and all(math.isfinite(as_number(alpha)) for alpha in self.alphas)):
            raise InvalidInput(f"`alphas` are {self.alphas!r}; they must be a tuple of finite numbers.")
        if not (isinstance(self.filter, str) and self.filter in {"last", "base_first"}):
            raise InvalidInput(f"`filter` is {self.filter!r}; it must be 'last' or 'base_first'.")
        for name, kind in (("temperature", float), ("top_p", float), ("top_k", int), ("seed", int)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, kind(value))  # a fraction, or a number of numpy
        object.__setattr__(self, "alphas", tuple(map(float, self.alphas)))

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0

    def uniforms(self, prompt: Sequence[int], n: int) -> NDArray[np.float32]:
        """The row's random stream: ``n`` numbers in [0, 1), a pure function of (seed, prompt).

        Args:
            prompt: Token ids of the whole prompt.
            n: How many. A longer stream starts with the shorter one.
        """
        if self.seed is None:
            entropy = secrets.randbits(128)
        else:
            key = f"{self.seed}:{','.join(map(str, prompt))}".encode()
            entropy = int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big")
        return np.random.default_rng(entropy).random(n, dtype=np.float32)


def as_number(value: Any) -> float:
    """A real number of any kind; NaN in place of what is none, which passes no test of a range.

    Examples:
        >>> as_number(1), as_number("1"), as_number(10**400)
        (1.0, nan, inf)
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf  # or its negative: neither is in any range


def is_whole(value: Any, *, least: int | None = None) -> bool:
    """Whether it is an integer of any kind (no bool), and at least so large. Default: of any size.

    Examples:
        >>> is_whole(2, least=1), is_whole(2.5), is_whole(True)
        (True, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and (least is None or int(value) >= least)


def pick(logits: torch.Tensor, rows: Sequence[Sampling], uniforms: torch.Tensor) -> torch.Tensor:
    """Choose one token per row by inverting the row's cumulative distribution at its uniform number.

    Tokens are laid out in order of their id, not of their probability, so a difference in the last bits of the
    logits (another batch size) moves the choice only if the number falls on the edge between two tokens.

    Args:
        logits: Shape (rows, vocabulary).
        rows: How each row chooses.
        uniforms: Shape (rows,), in [0, 1). Not used by greedy rows.

    Returns:
        Token ids, shape (rows,).
    """
    import torch

    if all(row.greedy for row in rows):
        return logits.argmax(-1)
    scaled = logits.float() / _column([row.temperature or 1.0 for row in rows], logits)
    if all(row.greedy or (row.top_k is None and row.top_p == 1) for row in rows):
        choice = invert(scaled.softmax(-1), uniforms)
    else:
        probabilities, ids = truncate(scaled, rows)
        choice = ids.gather(1, invert(probabilities, uniforms)[:, None])[:, 0]
    if any(row.greedy for row in rows):
        choice = torch.where(_column([row.greedy for row in rows], logits)[:, 0] > 0, logits.argmax(-1), choice)
    return choice


def truncate(scaled: torch.Tensor, rows: Sequence[Sampling]) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of the tokens that top_k and top_p keep (their sum may be below 1), and their ids, ascending."""
    import torch

    vocabulary = scaled.shape[-1]
    k = [1 if row.greedy else min(row.top_k or vocabulary, vocabulary) for row in rows]
    p = _column([row.top_p for row in rows], scaled)
    limited = [n for n in k if n < vocabulary]
    unlimited = _column([n == vocabulary for n in k], scaled)[:, 0] > 0
    size = max(limited, default=1)
    if len(limited) < len(k):
        size = min(max(size, _FIRST_CANDIDATES), vocabulary)
    while True:
        values, ids = scaled.topk(size)  # far cheaper than sorting the vocabulary
        values = values.masked_fill(torch.arange(size, device=scaled.device) >= _column(k, scaled), float("-inf"))
        total = values.logsumexp(-1)
        if len(limited) < len(k):
            total = torch.where(unlimited, scaled.logsumexp(-1), total)
        probabilities = (values - total[:, None]).exp()
        mass = probabilities.cumsum(-1)
        if size == vocabulary or not bool((unlimited & (mass[:, -1] < p[:, 0])).any()):
            break
        size = vocabulary
    probabilities = probabilities.masked_fill((mass - probabilities >= p) & (p < 1), 0.0)
    ids, order = ids.sort(-1)
    return probabilities.gather(1, order), ids


def nucleus(logits: torch.Tensor, shares: Sequence[float]) -> torch.Tensor:
    """Which tokens are in the smallest set of the most probable ones whose probability reaches a share.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", equation 2.

    Args:
        logits: Shape (rows, vocabulary).
        shares: Of each row, in (0, 1]. 1 keeps all that are possible.

    Returns:
        Booleans, same shape; at least one True in each row.

    Examples:
        >>> import torch
        >>> nucleus(torch.tensor([[0.5, 0.1, 0.15, 0.25], [0.5, 0.2, 0.3, 0.0]]).log(), [0.6, 1.0]).tolist()
        [[True, False, False, True], [True, True, True, False]]
    """
    import torch

    inside = logits > float("-inf")
    some = [i for i, share in enumerate(shares) if share < 1]
    if some:
        kept, ids = truncate(logits[some].float(), [Sampling(top_p=shares[i]) for i in some])
        inside[some] = torch.zeros_like(inside[some]).scatter_(-1, ids, kept > 0)
    return inside


def invert(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """First index whose cumulative mass exceeds uniform x total; never one of probability 0."""
    import torch

    mass = probabilities.cumsum(-1)
    total = mass[:, -1:]
    # The product may round up to the total, which no index exceeds.
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(mass, target, right=True)[:, 0]


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]
