"""Which class an answer is steered to: the one that is asked for, or one drawn from a target or by the model itself."""

from __future__ import annotations

import difflib
import re
import secrets
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from mpf_chains.core.sampling import IIDSampler, QuotaSampler
from mpf_chains.errors import DataWarning, InvalidInput

if TYPE_CHECKING:
    from mpf_chains.local.steering.adapter import SteeringAdapter

Draw = Literal["model", "target", "quota"]
_NEAR = 0.85  # similarity by difflib, from 0 to 1, from which a context is taken for a slip


@dataclass(frozen=True)
class Choice:
    """How the class of an answer is chosen.

    Args:
        adapter: Its classes are chosen from; its targets are drawn from.
        quotas: Keeps count of quota draws.
        steer: The class. None (default): it is drawn.
        draw: "model" (default): independently, with the probabilities that the model itself gives the classes' tokens
            at this prompt, as shares of each other. "target": independently, from the target of the context. "quota":
            from the target, so that after any number of draws each class was drawn within one of its share of them;
            without a target of the context from the model's own shares, whose sum is kept up with for each context, or
            for each prompt without one.
        context: What the answer is about, as the targets name it, upper and lower case alike. Others have no target.
            None (default): see `about`.

    Raises:
        InvalidInput: If the class is unknown, the way to draw is none of these, the context is blank, or "target" is
            drawn from and the targets lack the context.

    Warns:
        DataWarning: If it is drawn by quota, and the context is nearly one of the targets'.
    """

    adapter: SteeringAdapter
    quotas: QuotaSampler
    steer: str | None = None
    draw: Draw = "model"
    context: str | None = None

    def __post_init__(self) -> None:
        tokens = self.adapter.tokens
        if self.steer is not None and self.steer not in tokens.classes:
            near = difflib.get_close_matches(str(self.steer), tokens.classes, n=1)
            raise InvalidInput(
                f"`steer` is {self.steer!r}; the classes of {tokens.attribute} are "
                f"{', '.join(map(repr, tokens.classes))}.",
                hint=f"Did you mean {near[0]!r}?" if near else "Leave it out to have a class drawn.",
            )
        if not (isinstance(self.draw, str) and self.draw in get_args(Draw)):
            raise InvalidInput(f"`draw` is {self.draw!r}; it must be 'model', 'target' or 'quota'.")
        if self.context is not None:
            object.__setattr__(self, "context", self._meant(self.context))

    def _meant(self, context: str) -> str:
        """The context by its name in the targets, if it is one of them."""
        targets = self.adapter.targets
        if not isinstance(context, str) or not context.strip():
            raise InvalidInput(
                f"`context` is {context!r}; it must be a text, such as {targets.contexts[0]!r}, or None.",
                hint="Leave it out to have it found in the message.",
            )
        alike = [name for name in targets.contexts if _folded(name) == _folded(context)]
        if alike:
            return context if context in alike else alike[0]
        if self.steer is None and self.draw == "target":
            targets[context]
        near = difflib.get_close_matches(_folded(context), map(_folded, targets.contexts), n=3, cutoff=_NEAR)
        if near and self.steer is None and self.draw == "quota":
            warnings.warn(
                f"The targets of {targets.attribute} have no context {context!r} (near it are "
                f"{', '.join(map(repr, near))}), so classes follow the model's own shares.",
                DataWarning,
                stacklevel=2,
            )
        return context

    def about(self, texts: Iterable[str]) -> Choice:
        """The same, with the context that the first of these texts to name any names: see `named_context`.

        Args:
            texts: What the user has said, the latest first.

        Raises:
            InvalidInput: If "target" is drawn from, and no context is given or named.
        """
        targets = self.adapter.targets
        found = self
        if self.context is None:
            named = next((names for text in texts if (names := _named(text, targets.contexts))), set())
            found = replace(self, context=next(iter(named))) if len(named) == 1 else self
        if found.context is None and self.steer is None and self.draw == "target":
            raise InvalidInput(
                f"The messages do not name exactly one of the {len(targets)} contexts of the targets of "
                f"{targets.attribute}, so it is not known which target to draw from.",
                hint='Give `context="..."`, or draw="quota" or "model", which can do without a target.',
            )
        return found

    @property
    def asks_model(self) -> bool:
        """Whether the model's own shares are drawn from."""
        targets = self.adapter.targets
        return self.steer is None and (self.draw == "model" or (self.draw == "quota" and self.context not in targets))

    def settle(self, prompt: Sequence[int], seed: int | None, own: Mapping[str, float]) -> Chosen:
        """Choose.

        Args:
            prompt: Token ids.
            seed: With the prompt, decides an independent draw. None: fresh entropy.
            own: The model's own share of each class; used only if it is asked.
        """
        targets, classes = self.adapter.targets, tuple(self.adapter.tokens.classes)
        if self.steer is not None:
            return Chosen(self, self.steer, "given", {name: float(name == self.steer) for name in classes})
        shares = dict(own) if self.asks_model else targets[str(self.context)]
        ids = ",".join(map(str, prompt))
        if self.draw == "quota" and self.asks_model:
            entity = f"prompt {ids}" if self.context is None else f"{targets.attribute}: {self.context}"
            drawn = self.quotas.draw_changing(shares, entity=entity)
        elif self.draw == "quota":
            drawn = self.quotas.draw(shares, entity=f"{targets.attribute}: {self.context}")
        else:
            key = f"steering {ids}" if seed is not None else secrets.token_hex(16)
            drawn = IIDSampler(seed or 0).draw(shares, key=key)
        return Chosen(self, drawn, "model" if self.asks_model else "target", shares)


@dataclass(frozen=True)
class Chosen:
    """The class of an answer.

    Args:
        choice: How it was chosen.
        name: The class.
        source: What it was drawn from; "given": it was asked for.
        shares: The share of each class in that.
    """

    choice: Choice
    name: str
    source: Literal["given", "target", "model"]
    shares: Mapping[str, float]

    @property
    def index(self) -> int:
        """The class's place among the classes."""
        return tuple(self.choice.adapter.tokens.classes).index(self.name)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for the metadata of an answer."""
        return {
            "class": self.name, "draw": self.choice.draw, "context": self.choice.context, "from": self.source,
            "shares": dict(self.shares),
        }  # fmt: skip


def named_context(text: str, contexts: Sequence[str]) -> str | None:
    """The one context that a text names as a whole word, upper and lower case alike; None if it names none or several.

    A plural with s counts. A name within a longer one, or beside a hyphen, does not: "a truck driver" names "truck
    driver" and not "driver". A longer one that is no context is not known to be one: "a flight attendant" names
    "attendant".

    Examples:
        >>> named_context("Write about a truck driver.", ["driver", "truck driver", "nurse"])
        'truck driver'
        >>> named_context("A nurse and a driver", ["driver", "nurse"]) is None
        True
    """
    found = _named(text, contexts)
    return next(iter(found)) if len(found) == 1 else None


def _named(text: str, contexts: Sequence[str]) -> set[str]:
    longest = sorted(contexts, key=len, reverse=True)
    patterns = (r"\s+".join(map(re.escape, context.split())) for context in longest)
    expression = re.compile(
        rf"(?<![\w-])(?:{'|'.join(f'({pattern})' for pattern in patterns)})s?(?![\w-])", re.IGNORECASE
    )
    return {longest[match.lastindex - 1] for match in expression.finditer(text) if match.lastindex}


def _folded(name: str) -> str:
    return " ".join(name.casefold().split())
