"""Which failures of a model call pass by themselves, how long to wait, and what to tell the user about the others."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential

from mpf_chains.errors import InvalidInput, MPFError

Kind = Literal["transient", "fatal", "refusal", "programming"]

_HINTS: Final[Mapping[int, str]] = {
    400: "The request itself is refused: check the model's arguments and the length of the prompt.",
    401: "The API key is missing or wrong: set the provider's key (for OpenAI, OPENAI_API_KEY) and run again.",
    402: "The account has no credit: top it up and run again.",
    403: "The key may not use this model: check the account's permissions and region.",
    404: "No such model or address: check the model's name and the base URL.",
    413: "The request is too large: shorten the prompt.",
    422: "The server rejects an argument: check the model's arguments.",
}
_PASSING_STATUS: Final = frozenset({408, 409, 425, 429})
_PASSING_NAMES: Final = (
    "timeout", "connection", "ratelimit", "throttl", "toomanyrequests", "overloaded", "unavailable", "internalserver",
    "resourceexhausted", "protocolerror", "readerror", "writeerror", "incompleteread", "networkerror", "transport",
)  # fmt: skip
_PROGRAMMING: Final = (
    TypeError, AttributeError, NameError, LookupError, AssertionError, NotImplementedError, ImportError,
)  # fmt: skip
_REFUSED_CODES: Final = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation")


@dataclass(frozen=True)
class Verdict:
    """What a failure means.

    Args:
        kind: "transient" passes by itself and is retried; "fatal" will fail the same way for every call; "refusal" is
            the provider's content filter speaking about this one request; "programming" is a bug to show as it is.
        hint: What to do about it. Default empty.
    """

    kind: Kind
    hint: str = ""

    @property
    def retryable(self) -> bool:
        """True if trying the same call again can succeed."""
        return self.kind == "transient"


def classify(error: BaseException) -> Verdict:
    """Judge a failed model call by what openai, anthropic, httpx, botocore and their like put on their exceptions.

    Args:
        error: What the model raised. Its causes are looked at as well, since wrappers hide the status code.

    Returns:
        The verdict. An exception of unknown kind counts as transient: providers' libraries raise ValueError and
        RuntimeError for passing trouble, and a retry costs less than a lost run.

    Examples:
        >>> classify(TimeoutError()).kind, classify(TypeError()).kind
        ('transient', 'programming')
    """
    if isinstance(error, MPFError):
        return Verdict("transient" if error.retryable else "programming", error.hint)
    if not isinstance(error, Exception):
        return Verdict("programming")
    for link in _causes(error):
        text = f"{getattr(link, 'code', '')} {getattr(link, 'body', '')} {_aws_code(link)}"
        if any(code in text for code in _REFUSED_CODES):
            return Verdict("refusal")
        if "insufficient_quota" in text:
            return Verdict("fatal", _HINTS[402])
        name = (type(link).__name__ + _aws_code(link)).lower()
        status = _status(link)
        if status in _PASSING_STATUS or status >= 500 or any(word in name for word in _PASSING_NAMES):
            return Verdict("transient")
        if 400 <= status < 500:
            return Verdict("fatal", _HINTS.get(status, "The server rejects the request: check the model's arguments."))
    return Verdict("programming") if isinstance(error, _PROGRAMMING) else Verdict("transient")


def retry_after(error: BaseException, now: float) -> float | None:
    """Read how long the server asks to be left alone.

    Args:
        error: What the model raised.
        now: The present, in seconds since the epoch, for a header that holds a date.

    Returns:
        Seconds, at least 0, from `retry-after-ms` or `Retry-After` (seconds or HTTP date); None without a header.
    """
    for link in _causes(error):
        headers = getattr(getattr(link, "response", None), "headers", None)
        if headers is None or not hasattr(headers, "items"):
            continue
        found = {str(name).lower(): str(value) for name, value in headers.items()}
        try:
            if "retry-after-ms" in found:
                return max(0.0, float(found["retry-after-ms"]) / 1000)
            if "retry-after" in found:
                return max(0.0, _seconds(found["retry-after"], now))
        except (ValueError, OverflowError):
            return None
    return None


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how patiently a failed call is tried again.

    Args:
        attempts: Tries per call, the first included; at least 1. Default 6.
        first_wait: Seconds before the second try; doubles from there, each with a random cut of up to half. Default 1.
        longest_wait: Cap in seconds on that doubling. Default 60.
        longest_retry_after: Cap in seconds on what a server may ask for by Retry-After. Default 120.
        give_up_after: Calls in a row that fail for good, with no success between, before the whole run stops: the
            server is down then. At least 1. Default 50.

    Raises:
        InvalidInput: If a number is out of its range.
    """

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    longest_retry_after: float = 120.0
    give_up_after: int = 50

    def __post_init__(self) -> None:
        for name, least in (("attempts", 1), ("give_up_after", 1)):
            if getattr(self, name) < least:
                raise InvalidInput(f"`{name}` is {getattr(self, name)}; it must be at least {least}.")
        for name in ("first_wait", "longest_wait", "longest_retry_after"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InvalidInput(f"`{name}` is {getattr(self, name)}; it must be a number of seconds, 0 or more.")

    def retrying(self, sleep: Callable[[float], Awaitable[None]], clock: Callable[[], float]) -> AsyncRetrying:
        """Build the retry loop of one call.

        Args:
            sleep: Awaited with the seconds to wait.
            clock: Gives the present in seconds since the epoch.

        Returns:
            A tenacity loop that raises the last error itself once the tries are used up.
        """
        return AsyncRetrying(
            stop=stop_after_attempt(self.attempts),
            wait=_Wait(self, clock),
            retry=retry_if_exception(lambda error: classify(error).retryable),
            sleep=sleep,
            reraise=True,
        )


class _Wait:
    """What the server asks for, else exponential backoff with jitter."""

    # The jitter only spreads load; it has its own generator so that nobody's seeded one moves.
    _jitter = random.Random()  # noqa: S311

    def __init__(self, policy: RetryPolicy, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._clock = clock
        self._backoff = wait_exponential(multiplier=policy.first_wait, max=policy.longest_wait)

    def __call__(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = retry_after(error, self._clock()) if error is not None else None
        if asked is not None:
            return min(asked, self._policy.longest_retry_after)
        return float(self._backoff(state)) * self._jitter.uniform(0.5, 1.0)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _status(error: BaseException) -> int:
    """HTTP status of an error, 0 if it has none."""
    response = getattr(error, "response", None)
    candidates: list[Any] = [getattr(error, name, None) for name in ("status_code", "http_status", "status", "code")]
    candidates.append(getattr(response, "status_code", None))
    if isinstance(response, Mapping):  # botocore
        candidates.append(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    for candidate in candidates:
        if isinstance(candidate, int) and 100 <= candidate < 600:
            return int(candidate)
    return 0


def _aws_code(error: BaseException) -> str:
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, Mapping) else ""


def _seconds(value: str, now: float) -> float:
    try:
        return float(value)
    except ValueError:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:  # "-0000" says UTC with the zone unknown
            moment = moment.replace(tzinfo=timezone.utc)
        return moment.timestamp() - now
