"""FAULTS.md 40 to 42: what a ledger file holds, and who may read it."""

import logging
import stat
from pathlib import Path

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from pydantic import Field, SecretStr

from mpf_chains.errors import GenerationError
from mpf_chains.runtime import Call, Executor, Ledger, RetryPolicy

CANARY = "canary-8d1f60"
CALL = Call((HumanMessage("the question"),), label="row 0")


class Leaky(FakeListChatModel):
    """A provider that repeats the key in its error message."""

    responses: list[str] = Field(default_factory=lambda: ["a"])
    api_key: SecretStr = SecretStr(CANARY)
    status_code: int = 500

    def _call(self, *args: object, **kwargs: object) -> str:
        error = RuntimeError(f"wrong key {self.api_key.get_secret_value()}")
        error.status_code = self.status_code  # type: ignore[attr-defined]
        raise error


async def no_sleep(seconds: float) -> None:
    pass


def written(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_41_no_key_reaches_the_ledger_or_the_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd) -> None:
    caplog.set_level(logging.DEBUG)
    with Ledger(tmp_path / "run.sqlite") as ledger:
        failing = Leaky().bind(api_key=CANARY)
        (answer,) = Executor(failing, ledger=ledger, sleep=no_sleep, retry=RetryPolicy(attempts=2)).run([CALL])
        assert answer.error == "RuntimeError: wrong key ***"
        with pytest.raises(GenerationError) as caught:
            Executor(Leaky(status_code=401), ledger=ledger).run([CALL])
        assert CANARY.encode() not in written(tmp_path)
        assert ledger.counts() == {"failed": 1}
    assert CANARY.encode() not in written(tmp_path)
    assert CANARY not in caplog.text + "".join(capfd.readouterr()) + str(caught.value)


def test_42_files_are_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deeper" / "run.sqlite"
    with Ledger(path) as ledger:
        ledger.check_writable()
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    Ledger(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("store_text", [True, False])
def test_42_text_is_written_only_if_wanted(tmp_path: Path, store_text: bool) -> None:
    model = RunnableLambda(lambda messages: "the private answer")
    with Ledger(tmp_path / "run.sqlite", store_text=store_text) as ledger:
        Executor(model, model_id="m", ledger=ledger, progress=False).run(
            [CALL], score=lambda completion, call: {"f": 0.5}
        )
        (row,) = ledger.rows()
        assert row.completion.scores == {"f": 0.5}
        assert len(str(row.text_sha256)) == 64
        assert (b"the private answer" in written(tmp_path)) is store_text
    assert (b"the private answer" in written(tmp_path)) is store_text
    assert b"the question" not in written(tmp_path)


def test_40_an_answer_that_looks_like_a_serialised_secret_is_plain_text(tmp_path: Path) -> None:
    text = '{"lc":1,"type":"secret","id":["OPENAI_API_KEY"]}'
    with Ledger(tmp_path / "run.sqlite") as ledger:
        Executor(RunnableLambda(lambda messages: text), model_id="m", ledger=ledger, progress=False).run([CALL])
    with Ledger(tmp_path / "run.sqlite") as ledger:
        assert next(ledger.rows()).completion.text == text
