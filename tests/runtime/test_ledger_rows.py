import threading
from pathlib import Path

import pytest
from langchain_core.messages import HumanMessage

from mpf_chains.errors import LedgerError
from mpf_chains.runtime import Call, Completion, Ledger
from mpf_chains.runtime.owners import is_alive, new_owner, retire


def call(index: int, kind: str = "generate") -> Call:
    return Call((HumanMessage(f"q{index}"),), kind=kind, label=f"row {index}")


def store(ledger: Ledger, index: int, text: str | None = "text", status: str = "ok", kind: str = "generate") -> str:
    key = call(index, kind).key("m")
    ledger.record(Completion(key, status, text, {"total_tokens": 3}, finish_reason="stop"), call(index, kind))
    return key


def test_what_is_stored_comes_back_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    awkward = "NUL \0, 'quotes', ünïcode 😀, \r\n and \ud83d alone"
    with Ledger(path) as ledger:
        key = store(ledger, 0, awkward)
        ledger.add_scores({key: {"length": 7.0, "mood": 0.25}})
    with Ledger(path) as ledger:
        completion = ledger.lookup([key, "absent"])[key]
        assert completion.text == awkward.replace("\ud83d", "\ufffd")
        assert completion.scores == {"length": 7.0, "mood": 0.25}
        assert (completion.usage, completion.finish_reason) == ({"total_tokens": 3}, "stop")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["run.sqlite"]


def test_a_failure_is_listed_but_not_final() -> None:
    ledger = Ledger()
    key = store(ledger, 0, None, "failed")
    assert ledger.lookup([key]) == {}
    assert ledger.counts() == {"failed": 1}
    store(ledger, 0)
    assert ledger.counts() == {"ok": 1}
    assert ledger.lookup([key])[key].text == "text"


def test_rows_come_in_order_and_by_kind() -> None:
    ledger = Ledger(clock=lambda: 5.0)
    for index in range(1200):
        store(ledger, index, kind="fuse" if index % 2 else "generate")
    assert [row.label for row in ledger.rows()] == [f"row {index}" for index in range(1200)]
    rows = list(ledger.rows("fuse"))
    assert len(rows) == 600
    assert (rows[0].kind, rows[0].created_at, len(ledger)) == ("fuse", 5.0, 1200)


def test_a_claim_holds_while_its_owner_lives() -> None:
    ledger = Ledger()
    first, second = new_owner(), new_owner()
    assert ledger.claim("k", first) is True
    assert ledger.claim("k", first) is True
    assert ledger.claim("k", second) is False
    retire(first)
    assert ledger.claim("k", second) is True
    ledger.release(second)
    assert ledger.claim("k", new_owner()) is True
    key = store(ledger, 0)
    found = ledger.claim(key, second)
    assert isinstance(found, Completion)


def test_a_claim_from_another_machine_holds_for_its_lease() -> None:
    now = 0.0
    ledger = Ledger(clock=lambda: now)
    stranger = "0123456789abcdef:1:2:abc"
    assert is_alive(stranger) is None
    assert ledger.claim("k", stranger) is True
    assert ledger.claim("k", new_owner()) is False
    now = 100.0
    ledger.renew(stranger)
    now = 200.0
    assert ledger.claim("k", new_owner()) is False
    now = 221.0
    assert ledger.claim("k", new_owner()) is True


def test_a_process_that_is_gone_is_not_alive() -> None:
    machine, pid, started, nonce = new_owner().split(":")
    assert is_alive(f"{machine}:{pid}:{int(started) - 1}:{nonce}") is False  # the id was given to another process since
    assert is_alive(f"{machine}:4194305:{started}:{nonce}") is False


def test_threads_share_one_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run.sqlite")
    threads = [
        threading.Thread(target=lambda start=start: [store(ledger, start + index) for index in range(50)])
        for start in range(0, 400, 50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.counts() == {"ok": 400}
    ledger.close()


def test_a_closed_ledger_says_so() -> None:
    ledger = Ledger()
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.counts()
