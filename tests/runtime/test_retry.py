from email.utils import formatdate
from types import SimpleNamespace

import pytest

from mpf_chains.errors import GenerationError, InvalidInput
from mpf_chains.runtime import RetryPolicy, classify
from mpf_chains.runtime.retry import retry_after


def failure(name: str = "APIStatusError", **attributes: object) -> Exception:
    error = type(name, (Exception,), {})("said the provider")
    for attribute, value in attributes.items():
        setattr(error, attribute, value)
    return error


def caused_by(cause: Exception) -> Exception:
    error = ValueError("wrapped")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *[(failure(status_code=status), "transient") for status in (408, 409, 429, 500, 502, 503, 529)],
        *[(failure(status_code=status), "fatal") for status in (400, 401, 402, 403, 404, 413, 422)],
        (failure(response=SimpleNamespace(status_code=503)), "transient"),
        (failure(response=SimpleNamespace(status_code=401)), "fatal"),
        (failure("ReadTimeout"), "transient"),
        (failure("RemoteProtocolError"), "transient"),
        (TimeoutError(), "transient"),
        (ConnectionResetError(), "transient"),
        (failure("ClientError", response={"Error": {"Code": "ThrottlingException"}}), "transient"),
        (failure("ClientError", response={"ResponseMetadata": {"HTTPStatusCode": 403}}), "fatal"),
        (failure(status_code=429, code="insufficient_quota"), "fatal"),
        (failure(status_code=400, body={"code": "content_filter"}), "refusal"),
        (caused_by(failure(status_code=401)), "fatal"),
        (RuntimeError("hiccup"), "transient"),
        (GenerationError("x", retryable=True), "transient"),
        (GenerationError("x"), "programming"),
        (TypeError(), "programming"),
        (KeyError(), "programming"),
        (KeyboardInterrupt(), "programming"),
    ],
)
def test_errors_are_told_apart(error: BaseException, kind: str) -> None:
    assert classify(error).kind == kind
    assert classify(error).retryable == (kind == "transient")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418])
def test_a_fatal_error_has_a_hint(status: int) -> None:
    assert classify(failure(status_code=status)).hint


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"Retry-After": formatdate(1_000_030, usegmt=True)}, 30.0),
        ({"Retry-After": formatdate(999_000, usegmt=True)}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(headers: dict[str, str], seconds: float | None) -> None:
    error = caused_by(failure(response=SimpleNamespace(headers=headers)))
    assert retry_after(error, now=1_000_000.0) == seconds


async def waits_of(policy: RetryPolicy, error: Exception) -> list[float]:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        await policy.retrying(sleep, lambda: 0.0)(fail)
    return waits


async def test_waits_double_up_to_the_cap() -> None:
    waits = await waits_of(RetryPolicy(attempts=6, first_wait=1, longest_wait=5), TimeoutError())
    assert len(waits) == 5
    for wait, full in zip(waits, [1, 2, 4, 5, 5], strict=True):
        assert full / 2 <= wait <= full


async def test_the_servers_wish_is_honoured_up_to_the_cap() -> None:
    error = failure(status_code=429, response=SimpleNamespace(headers={"Retry-After": "600"}))
    assert await waits_of(RetryPolicy(attempts=2, longest_retry_after=90), error) == [90.0]


@pytest.mark.parametrize(
    "options", [{"attempts": 0}, {"first_wait": -1}, {"longest_wait": float("nan")}, {"give_up_after": 0}]
)
def test_impossible_policies_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(options))):
        RetryPolicy(**options)
