import threading

from mpf_chains.local.batching import Batcher


def test_what_arrives_during_a_batch_runs_together_next_oldest_first_and_similar_sizes_together() -> None:
    started, go, done = threading.Event(), threading.Event(), threading.Event()
    batches: list[list[int]] = []

    def run(batch: list[int]) -> None:
        batches.append(batch)
        started.set()
        assert go.wait(10)
        if sum(map(len, batches)) == 7:
            done.set()

    batcher = Batcher(run, size=lambda item: item, max_batch_size=3, quiet=0.001)
    batcher.submit(0)
    assert started.wait(10)
    for item in (50, 1, 52, 2, 51, 3):
        batcher.submit(item)
    go.set()
    assert done.wait(10)
    assert batches == [[0], [50, 52, 51], [1, 2, 3]]


def test_a_failing_batch_is_reported_and_the_next_one_runs() -> None:
    failed: list[tuple[list[int], str]] = []
    ran = threading.Event()

    def run(batch: list[int]) -> None:
        if batch == [1]:
            raise RuntimeError("broken")
        ran.set()

    reported = threading.Event()
    batcher = Batcher(run, fail=lambda batch, error: (failed.append((batch, str(error))), reported.set()), quiet=0.001)
    batcher.submit(1)
    assert reported.wait(10)
    batcher.submit(2)
    assert ran.wait(10)
    assert failed == [([1], "broken")]


def test_the_worker_ends_when_idle_and_starts_again() -> None:
    seen: list[int] = []
    events = [threading.Event(), threading.Event()]
    batcher = Batcher(lambda batch: (seen.extend(batch), events[batch[0]].set()), quiet=0.001, linger=0.01)
    batcher.submit(0)
    assert events[0].wait(10)
    for thread in threading.enumerate():
        if thread.name == "mpf-chains-batcher" and thread is batcher._worker:
            thread.join(10)
    assert batcher._worker is None
    batcher.submit(1)
    assert events[1].wait(10)
    assert seen == [0, 1]
