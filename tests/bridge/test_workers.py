"""`Worker`: one thread, one call at a time, and an end."""

import threading
import weakref
from concurrent.futures import CancelledError
from types import SimpleNamespace

import pytest

from django_asyncbridge.bridge import _workers
from django_asyncbridge.bridge._workers import Worker
from tests.bridge import wait, without_gc
from tests.support import run_child


def test_worker_starts_its_thread_with_the_first_call_and_names_it_after_its_use() -> None:
    before = threading.enumerate()
    worker = Worker("testing")
    assert set(threading.enumerate()) <= set(before)
    first = worker.submit(threading.current_thread).result(10)
    second = worker.submit(threading.current_thread).result(10)
    assert first is second
    assert first.name.startswith("asyncbridge-testing-")
    worker.shutdown()
    assert not first.is_alive()


def test_worker_runs_one_call_at_a_time_in_the_order_of_submission() -> None:
    log: list[str] = []
    release = threading.Event()

    def work(name: str) -> None:
        log.append(f"{name} began")
        wait(release)
        log.append(f"{name} ended")

    worker = Worker("testing")
    calls = [worker.submit(work, name) for name in ("first", "second")]
    release.set()
    for call in calls:
        call.result(10)
    assert log == ["first began", "first ended", "second began", "second ended"]
    worker.shutdown()


def test_worker_asked_by_its_own_thread_refuses_instead_of_waiting_for_itself() -> None:
    worker = Worker("testing")
    with pytest.raises(RuntimeError, match=r"asyncbridge-testing-\d+ would deadlock"):
        worker.submit(lambda: worker.submit(print)).result(10)
    worker.shutdown()


def test_worker_after_its_shutdown_refuses_calls() -> None:
    worker = Worker("testing")
    worker.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        worker.submit(print)


def test_worker_shut_down_without_waiting_runs_what_was_submitted_and_ends() -> None:
    release = threading.Event()
    worker = Worker("testing")
    thread = worker.submit(threading.current_thread).result(10)
    calls = [worker.submit(wait, release), worker.submit(lambda: None)]
    worker.shutdown(wait=False)
    release.set()
    for call in calls:
        assert call.result(10) is None
    thread.join(10)
    assert not thread.is_alive()


def test_worker_shut_down_with_cancel_futures_cancels_what_has_not_started() -> None:
    begun, release = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        wait(release)

    worker = Worker("testing")
    running, waiting = worker.submit(work), worker.submit(print, "must not run")
    wait(begun)
    worker.shutdown(wait=False, cancel_futures=True)
    release.set()
    assert running.result(10) is None
    with pytest.raises(CancelledError):
        waiting.result(10)
    worker.shutdown()


def test_worker_that_nobody_refers_to_any_more_goes_and_its_thread_ends() -> None:
    with without_gc():
        worker = Worker("testing")
        thread = worker.submit(threading.current_thread).result(10)
        alive = weakref.ref(worker)
        del worker
        assert alive() is None
    thread.join(10)
    assert not thread.is_alive()


def test_worker_that_has_ended_is_not_confused_with_a_thread_that_got_its_ident(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C05: idents are used again; whoever meets an ended worker is told that, not of a deadlock."""
    worker = Worker("testing")
    ident = worker.submit(threading.get_ident).result(10)
    worker.shutdown()
    reused = SimpleNamespace(get_ident=lambda: ident, current_thread=threading.current_thread)
    monkeypatch.setattr(_workers, "threading", reused)
    with pytest.raises(RuntimeError, match="after shutdown"):
        worker.submit(print)


def test_worker_in_a_forked_child_has_a_thread_of_its_own() -> None:
    run_child(
        """
        import os, threading, warnings
        from django_asyncbridge.bridge._workers import Worker

        warnings.simplefilter("ignore", DeprecationWarning)
        worker, unused = Worker("testing"), Worker("testing")
        thread = worker.submit(threading.current_thread).result(10)
        # The lock of the pool and a call are the parent's at the moment of the fork.
        release = threading.Event()
        queued = worker.submit(release.wait, 10)
        child = os.fork()
        if not child:
            code = 1
            try:
                mine = worker.submit(threading.current_thread).result(10)
                assert mine is not thread and mine.is_alive()
                assert unused.submit(lambda: "answer").result(10) == "answer"
                worker.shutdown()
                assert not mine.is_alive()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        release.set()
        assert queued.result(10)
        assert worker.submit(threading.current_thread).result(10) is thread
        """
    )
