"""`ExplanationView`: an answer, coloured by what experts changed, for a page, a notebook or a terminal."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpf_chains.errors import InvalidInput, MissingExtra
from mpf_chains.local.experts.explanation.readable import readable, spelled, whole_characters
from mpf_chains.local.experts.explanation.records import ExplainedToken, explained_tokens

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

FACTORS = (1.1, 2.0, 10.0)
"""A token is marked from the first factor between its two probabilities on, and more strongly from each next one."""


@dataclass(frozen=True)
class ShownToken:
    """A token as views show it.

    Args:
        record: What is known about it.
        text: What it reads in the running text, nothing hidden in it; "·" if it holds only part of a character, which
            the token that completes it shows.
        name: What it reads by itself: spaces, line ends and single bytes can be seen.
        change: What it is coloured by, in nats; NaN where the base rules the token out.
    """

    record: ExplainedToken
    text: str
    name: str
    change: float

    @property
    def level(self) -> int:
        """How much more (1 to 3) or less (-1 to -3) probable it became; 0: hardly. See `FACTORS`."""
        return level(self.change)


class ExplanationView:
    """What experts changed about an answer, token by token, to look at.

    Tokens that became more probable are blue and underlined with a line (in a terminal: ▲), those that became less
    probable are orange and underlined with dots (▼); the stronger, the further. In a notebook it shows itself; with
    `rich`, ``rich.print(view)`` does.

    Args:
        source: A message by a `ChatTransformers` with ``explain=True``; or explained tokens, as objects or as plain
            data.
        pair: Colour by what this pair contributed. Default: by what all of them did.
        alphas: Strengths to be named above it. Default: those that the message has, if it is one.

    Attributes:
        tokens: What is shown.
        alphas: Strength by name; empty if it is not known.
        pairs: Names of the pairs.
        pair: Coloured by; None: all.

    Raises:
        InvalidInput: If there is no explanation, or no such pair in it.

    Examples:
        >>> record = {"token": 7, "text": "she", "before": 0.2, "after": 0.4, "contributions": {"gender": 0.69},
        ...     "alternatives": [{"token": 8, "text": "he", "before": 0.7, "after": 0.5}]}
        >>> view = ExplanationView([record])
        >>> view.tokens[0].level, "0.200 → 0.400" in view.html()
        (1, True)
    """

    def __init__(self, source: Any, *, pair: str | None = None, alphas: Mapping[str, float] | None = None) -> None:
        records = explained_tokens(source)
        self.pairs = tuple(dict.fromkeys(name for record in records for name in record.contributions))
        if pair is not None and pair not in self.pairs:
            known = ", ".join(map(repr, self.pairs)) or "none"
            raise InvalidInput(f"`pair` is {pair!r}; those that are explained are: {known}.")
        self.pair = pair
        told = getattr(source, "response_metadata", {}).get("experts", {}).get("alphas", {})
        self.alphas = dict(told if alphas is None else alphas)
        self.tokens = tuple(self._shown(records))

    def _shown(self, records: tuple[ExplainedToken, ...]) -> Iterator[ShownToken]:
        texts = whole_characters([record.text for record in records])
        for record, text in zip(records, texts, strict=True):
            change = record.change if self.pair is None else record.contributions.get(self.pair, 0.0)
            yield ShownToken(record, readable(text) or "·", spelled(record.text), change)

    def strongest(self, count: int) -> list[tuple[int, ShownToken]]:
        """The tokens that changed most among those that are marked, with their places, in the order of the text."""
        marked = [(place, token) for place, token in enumerate(self.tokens) if token.level]
        most = sorted(marked, key=lambda each: -abs(each[1].change))[:count]
        return sorted(most, key=lambda each: each[0])

    def summary(self) -> str:
        """In a sentence or two: how many tokens changed, and what each pair did to the answer as a whole."""
        marked = sum(token.level != 0 for token in self.tokens)
        words = f"{marked} of {len(self.tokens)} tokens changed in probability by a factor of {FACTORS[0]:g} or more."
        if not self.pairs:
            return words
        return f"{words} What the pairs did to ln p of the whole answer: {', '.join(map(self._total, self.pairs))}."

    def _total(self, name: str) -> str:
        parts = [token.record.contributions.get(name, 0.0) for token in self.tokens]
        strength = f" (α = {self.alphas[name]:g})" if name in self.alphas else ""
        return f"{readable(name)}{strength} {nats(sum(part for part in parts if math.isfinite(part)))}"

    def html(self) -> str:
        """A fragment that can stand anywhere in a page: escaped, with its own style, no script and no request."""
        from mpf_chains.local.experts.explanation.html import fragment

        return fragment(self)

    def page(self, title: str = "What the experts changed") -> str:
        """The same as a whole page.

        Args:
            title: Put above. Default "What the experts changed".
        """
        from mpf_chains.local.experts.explanation.html import page

        return page(self, title)

    def save(self, path: str | os.PathLike[str], title: str = "What the experts changed") -> Path:
        """Write the page.

        Args:
            path: The file.
            title: See `page`.

        Returns:
            The path.
        """
        file = Path(path)
        file.write_text(self.page(title), "utf-8")
        return file

    def show(self) -> None:
        """Print it to this terminal: in colour where it has any and NO_COLOR is not set, marked in any case.

        Raises:
            MissingExtra: If rich is not installed.
        """
        try:
            from rich.console import Console
        except ImportError as error:
            raise MissingExtra("rich", "cli") from error
        Console().print(self)

    def _repr_html_(self) -> str:
        return self.html()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from mpf_chains.local.experts.explanation.terminal import rendered

        del console
        yield from rendered(self, ascii_only=options.ascii_only)


def level(change: float) -> int:
    """How strongly a change is marked.

    Args:
        change: ln(after / before), in nats.

    Examples:
        >>> [level(math.log(factor)) for factor in (1.05, 1.2, 0.4, 50)], level(float("nan"))
        ([0, 1, -2, 3], 0)
    """
    size = sum(abs(change) >= math.log(factor) for factor in FACTORS)
    return size if change > 0 else -size


def probability(value: float) -> str:
    """A probability in few characters; 0 and 1 only if it is.

    Examples:
        >>> [probability(p) for p in (0.0, 3.21e-7, 0.25, 0.99971, 1.0)]
        ['0', '3.2e-07', '0.250', '0.9997', '1']
    """
    if value in {0, 1} or 1 - value < 1e-9:
        return f"{value:.0f}"
    if value < 0.001:
        return f"{value:.1e}"
    return f"{value:.3f}" if value < 0.9995 else f"{value:.{1 - math.floor(math.log10(1 - value)) - 1}f}"


def factor(change: float) -> str:
    """A change in nats as what a probability is multiplied by.

    Examples:
        >>> [factor(change) for change in (0.0, 0.6931, -2.3026, 30.0, float("nan"))]
        ['×1.00', '×2.00', '×0.10', '×1e+13', '–']
    """
    if not math.isfinite(change):
        return "–"
    value = math.exp(min(change, 700.0))
    return f"×{value:.2f}" if 0.01 <= value < 100 else f"×{value:.0e}"


def nats(value: float | None) -> str:
    """A part of a change, in nats, with its sign."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:+.2f}" if abs(value) >= 0.005 else "0.00"
