"""What a pool says of who has its workers: for how long, for whom, and what they are doing."""

import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from django_asyncbridge.bridge import _workers_report
from django_asyncbridge.bridge._leases import Lease
from django_asyncbridge.bridge._worker import Worker
from django_asyncbridge.bridge._workers_report import describe_busy
from tests.bridge import wait
from tests.bridge.pools import new_pool, thread_of


class Spinning:
    """A call that is in this file's code, in no function of another module, until told to end."""

    def __init__(self, lease: Lease) -> None:
        self.begun, self.over = threading.Event(), False
        self.future = lease.submit(self.spin_in_the_view)
        wait(self.begun)

    def spin_in_the_view(self) -> None:
        self.begun.set()
        while not self.over:
            pass

    def end(self) -> None:
        self.over = True
        self.future.result(10)


def described(*workers: Worker, seconds: float = 2.5) -> str:
    return describe_busy("testing", seconds, workers)


def test_describe_busy_names_thread_time_holder_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    with new_pool() as pool:
        lease = Lease(pool, "GET /slow/")
        call = Spinning(lease)
        (worker,) = pool._workers
        clock = SimpleNamespace(monotonic=lambda: worker.lent_at + 12.34)
        monkeypatch.setattr(_workers_report, "time", clock)
        message = described(worker)
        assert message.startswith("no worker of the pool 'testing' became free within 2.5 s; ")
        assert "all are lent: asyncbridge-testing-1 for 12.3 s to GET /slow/, in " in message
        assert "in Spinning.spin_in_the_view (test_workers_report.py:" in message
        assert message.endswith("find out what takes them so long")
        call.end()
        lease.shutdown()


def test_describe_busy_names_those_first_who_have_it_longest() -> None:
    with new_pool() as pool:
        leases = [Lease(pool, name) for name in ("first", "second", "third")]
        for lease in leases:
            thread_of(lease)
        message = described(*reversed(list(pool._workers)))
        assert message.index("to first") < message.index("to second") < message.index("to third")
        for lease in leases:
            lease.shutdown()


def test_describe_busy_of_a_worker_without_work_and_holder_names_no_place() -> None:
    """It is lent to a block that does something else just now."""
    with new_pool() as pool:
        lease = Lease(pool)
        thread_of(lease)
        (worker,) = pool._workers
        message = described(worker, seconds=3)
        assert "within 3 s; all are lent: asyncbridge-testing-1 for 0.0 s; raise" in message
        lease.shutdown()
        # Given back meanwhile.
        assert "asyncbridge-testing-1 for 0.0 s; raise" in described(worker)


def test_describe_busy_of_a_worker_whose_thread_does_not_run_names_no_place() -> None:
    with new_pool() as pool:
        worker = Worker(pool, 7)
        worker.lent_at = 0.0
        assert worker.thread.ident is None
        assert "asyncbridge-testing-7 for " in described(worker)
        assert ", in " not in described(worker)


def test_describe_busy_of_a_worker_that_waits_for_an_event_says_who_waits() -> None:
    """Most of what takes long waits for something."""

    class Waiting:
        def __init__(self) -> None:
            self.release = threading.Event()

        def wait_in_the_view(self) -> None:
            self.release.wait(10)

    with new_pool() as pool:
        waiting = Waiting()
        future = pool.submit(waiting.wait_in_the_view)
        (worker,) = pool._workers
        names: list[str] = []
        while "wait" not in names:
            frame: Any = sys._current_frames().get(worker.thread.ident or 0)
            names = []
            while frame is not None:
                names.append(frame.f_code.co_name)
                frame = frame.f_back
        message = described(worker)
        waiting.release.set()
        future.result(10)
        assert "wait_in_the_view (test_workers_report.py:" in message


def test_describe_busy_of_many_workers_names_the_eight_that_were_lent_first() -> None:
    with new_pool() as pool:
        leases = [Lease(pool) for _ in range(10)]
        names = [thread_of(lease).name for lease in leases]
        text = describe_busy("testing", 1.0, tuple(pool._workers))
        assert all(f"{name} for " in text for name in names[:8])
        assert not any(f"{name} for " in text for name in names[8:])
        assert "; and 2 more for less time; raise" in text
        for lease in leases:
            lease.shutdown()
