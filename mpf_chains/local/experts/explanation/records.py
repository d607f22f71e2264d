"""What experts changed about each token, as records: plain data, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mpf_chains.errors import InvalidInput

_MOST_PAIRS = 12  # their parts take one log-sum-exp for each subset of them


@dataclass(frozen=True)
class Moved:
    r"""A token whose probability experts changed.

    Args:
        token: Its id.
        text: What it reads. Bytes that are no whole character by themselves stand as "\xe2\x82".
        before: Its probability by the base model, in [0, 1].
        after: Its probability with the experts, in [0, 1].
    """

    token: int
    text: str
    before: float
    after: float


@dataclass(frozen=True)
class ExplainedToken(Moved):
    """A generated token, and why it was more or less probable than without experts.

    Args:
        contributions: For each pair its part of ln(after / before), in nats. They add up to it. A pair's part is its
            Shapley value: what it adds to the log-probability, averaged over all orders in which the pairs can be
            put to work. Source: Shapley 1953, "A value for n-person games", equation 13. NaN where the base rules
            the token out.
        alternatives: The tokens whose probability changed most, the largest change first; this one may be among them.
    """

    contributions: Mapping[str, float]
    alternatives: tuple[Moved, ...]

    @property
    def change(self) -> float:
        """ln(after / before), in nats: above 0 if the experts made it more probable. NaN as in ``contributions``."""
        return sum(self.contributions.values(), 0.0)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as JSON has it: a part that is no finite number is None."""
        contributions = {name: part if math.isfinite(part) else None for name, part in self.contributions.items()}
        return {
            "token": self.token, "text": self.text, "before": self.before, "after": self.after,
            "contributions": contributions, "alternatives": [asdict(each) for each in self.alternatives],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ExplainedToken:
        """Read what `as_dict` gave.

        Raises:
            InvalidInput: If it is something else.

        Examples:
            >>> she = ExplainedToken(7, " she", 0.2, 0.4, {"gender": 0.693}, (Moved(8, " he", 0.7, 0.5),))
            >>> ExplainedToken.from_dict(she.as_dict()) == she
            True
        """
        try:
            contributions = {
                str(name): float("nan") if part is None else float(part)
                for name, part in record["contributions"].items()
            }
            alternatives = tuple(Moved(**_moved(each)) for each in record["alternatives"])
            return cls(**_moved(record), contributions=contributions, alternatives=alternatives)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidInput(
                f"{_short(record)} is no record of an explained token: {type(error).__name__}: {error}.",
                hint="Give what `ExplainedToken.as_dict` returns.",
            ) from error


def check_explainable(pairs: int) -> None:
    """Whether the work of so many pairs can be told apart.

    Raises:
        InvalidInput: If there are more than 12 that move something.
    """
    if pairs > _MOST_PAIRS:
        raise InvalidInput(
            f"{pairs} pairs move something; at most {_MOST_PAIRS} can be explained.",
            hint="Set the alpha of the others to 0.",
        )


def explained_tokens(source: Any) -> tuple[ExplainedToken, ...]:
    """The explanation of an answer, in whichever form it is at hand.

    Args:
        source: A message by a `ChatTransformers` with ``explain=True``; or its explained tokens, as objects or as
            plain data.

    Raises:
        InvalidInput: If there is no explanation in it.
    """
    metadata = getattr(source, "response_metadata", None)
    if metadata is not None:
        source = (metadata.get("experts") or {}).get("tokens")
        if source is None:
            raise InvalidInput(
                "The message has no explanation in response_metadata['experts']['tokens'].",
                hint="Ask a ChatTransformers with experts, and with explain=True.",
            )
    if not isinstance(source, Sequence) or isinstance(source, str | bytes):
        raise InvalidInput(f"{_short(source)} is neither a message nor a list of explained tokens.")
    return tuple(each if isinstance(each, ExplainedToken) else ExplainedToken.from_dict(each) for each in source)


def _moved(record: Mapping[str, Any]) -> dict[str, Any]:
    before, after = (float(record[name]) for name in ("before", "after"))
    for name, value in (("before", before), ("after", after)):
        if not 0 <= value <= 1 + 1e-9:
            raise ValueError(f"{name!r} is {value}; it must lie in [0, 1]")
    return {"token": int(record["token"]), "text": str(record["text"]), "before": before, "after": after}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
