"""What one call of `ChatTransformers` asks for: its arguments, and the model's fields where it does not say."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpf_chains.errors import InvalidInput, NotSupportedError
from mpf_chains.local.experts.shared import strengths
from mpf_chains.local.generation import ActiveExperts
from mpf_chains.local.sampling import Sampling, as_number, is_whole
from mpf_chains.local.steering.adapter import SteeringAdapter
from mpf_chains.local.steering.choice import Choice
from mpf_chains.local.tools import Toolbox

if TYPE_CHECKING:
    from mpf_chains.local.chat_model import ChatTransformers

SAMPLING = ("temperature", "top_k", "top_p", "seed")
STEERING = ("steer", "draw", "context")
_EXPERTS = ("alphas", "filter", "explain")
_NOTES = ("logprobs", "top_logprobs")
_KNOWN = (
    "max_tokens", *SAMPLING, "stop", *_NOTES, "timeout", "raw", "tools", "tool_choice", *_EXPERTS, *STEERING,
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A call that makes sense.

    Args:
        sampling: How tokens are chosen, and what is noted about them.
        active: What experts do to it; None: there are none.
        choice: How its class is chosen; None: it is not steered.
        max_tokens: At most this many new tokens, at least 1.
        stop: Texts that end the answer, none empty.
        timeout: Seconds; None: no limit.
        raw: Whether the text is continued without a chat template.
        tools: What the model may call.
    """

    sampling: Sampling
    active: ActiveExperts | None
    choice: Choice | None
    max_tokens: int
    stop: Sequence[str]
    timeout: float | None
    raw: bool
    tools: Toolbox

    @classmethod
    def of(cls, model: ChatTransformers, arguments: Mapping[str, Any], stop: Any = None) -> Call:
        """Read a call's arguments.

        Args:
            model: Its fields hold where the arguments say nothing.
            arguments: By name.
            stop: Texts that end the answer. None (default): the model's.

        Raises:
            InvalidInput: If a value makes no sense.
            NotSupportedError: If an argument is unknown, or two do not go together.
        """
        given = {key: value for key, value in arguments.items() if key not in {"stream", "run_manager"}}
        length = given.pop("max_tokens", given.pop("max_new_tokens", model.max_tokens))
        timeout = given.pop("timeout", model.timeout)
        tools = Toolbox.of(given.pop("tools", None), given.pop("tool_choice", None))
        raw = given.pop("raw", model.raw)
        sampling, active = _sampling(model, given)
        choice = _choice(model, given)
        if given:
            raise NotSupportedError(
                f"ChatTransformers does not know the call argument(s) {', '.join(sorted(given))}.",
                hint=f"It takes {', '.join(_KNOWN)}.",
            )
        if not is_whole(length, least=1):
            raise InvalidInput(f"`max_tokens` is {length!r}; it must be a whole number from 1.")
        if timeout is not None and not 0 <= as_number(timeout) <= threading.TIMEOUT_MAX:
            raise InvalidInput(f"`timeout` is {timeout!r}; it must be a number of seconds, or None for no limit.")
        if raw and tools.definitions:
            raise NotSupportedError("`raw` is on, and tools are written by the chat template.")
        if raw and choice is not None:
            raise NotSupportedError(
                "`raw` is on, and a steering token stands where the chat template lets an answer begin.",
                hint="Leave `raw` out, or use a model without `steering`.",
            )
        stops = as_texts(model.stop if stop is None else stop) or []
        if not (isinstance(stops, Sequence) and all(isinstance(text, str) for text in stops)):
            raise InvalidInput(f"`stop` is {stop!r}; it must be a text or several.")
        return cls(sampling, active, choice, int(length), [text for text in stops if text], timeout, raw, tools)


def as_texts(stop: Any) -> Any:
    """A text alone as a list of it; all else as it is."""
    return [stop] if isinstance(stop, str) else stop


def chosen_strengths(model: ChatTransformers, alphas: Any = None) -> dict[str, float]:
    """α of each expert pair by name: the call's, else the model's, else the pair's own.

    Raises:
        InvalidInput: If they are no mapping, a name is unknown or a strength is no finite number.
    """
    given = [each for each in (model.alphas, alphas) if each is not None]
    for each in given:
        if not isinstance(each, Mapping):
            raise InvalidInput(f"`alphas` is {each!r}; it must map names of expert pairs to numbers.")
    return strengths(model._pairs, {name: alpha for each in given for name, alpha in each.items()})


def _sampling(model: ChatTransformers, given: dict[str, Any]) -> tuple[Sampling, ActiveExperts | None]:
    """Takes out of the arguments what decides how tokens are chosen and noted, and what experts do to them."""
    asked = "top_logprobs" in given or not given
    logprobs = given.pop("logprobs", model.logprobs)
    top = given.pop("top_logprobs", model.top_logprobs)
    if asked and top is not None and not logprobs:
        raise InvalidInput(f"`top_logprobs` is {top}, but `logprobs` is off.", hint="Set `logprobs=True`.")
    alphas = chosen_strengths(model, given.pop("alphas", None))
    explain = given.pop("explain", model.explain)
    if explain and not alphas:
        raise InvalidInput("`explain` is on, but there are no experts.", hint="Give `experts=`.")
    sampling = Sampling(
        **{name: given.pop(name, getattr(model, name)) for name in (*SAMPLING, "filter")},
        top_logprobs=(0 if top is None else top) if logprobs else None,
        alphas=tuple(alphas.values()),
        explain=explain,
    )
    shared = model._shared
    return sampling, None if shared is None else ActiveExperts(shared, alphas, model.speculative)


def _choice(model: ChatTransformers, given: dict[str, Any]) -> Choice | None:
    """Takes out of the arguments what decides how the answer is steered."""
    named = [name for name in STEERING if name in given]
    values = {name: given.pop(name, getattr(model, name)) for name in STEERING}
    adapter, quotas = model.steering, model.quotas
    if not isinstance(adapter, SteeringAdapter) or quotas is None:
        set_ = [name for name, usual in zip(STEERING, (None, "model", None), strict=True) if values[name] != usual]
        if wrong := named or set_:
            raise InvalidInput(
                f"`{wrong[0]}` is {values[wrong[0]]!r}, but the model has no steering tokens.",
                hint="Give `steering=` an adapter.",
            )
        return None
    return Choice(adapter, quotas, **values)
