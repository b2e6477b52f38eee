"""The helpers that guard the other tests do guard."""

import os
import threading

import pytest

from tests.support import run_child, run_in_thread


def test_run_child_that_hangs_is_killed_and_fails_with_what_it_printed() -> None:
    with pytest.raises(AssertionError, match=r"hung for 2 s\n--- out\nso far"):
        run_child(
            "import threading; print('so far', flush=True); threading.Event().wait()",
            timeout_seconds=2,
        )


LEAVING = """
    import os, threading
    if os.fork() == 0:
        threading.Event().wait()
    print("ended", flush=True)
    os._exit(3)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_run_child_that_leaves_a_process_which_keeps_its_pipes_open_ends_that_too() -> None:
    with pytest.raises(
        AssertionError, match=r"a process that it left hung for 4 s\n--- out\nended"
    ):
        run_child(LEAVING, timeout_seconds=4, expect_code=3)
    child = run_child(LEAVING, timeout_seconds=4, expect_code=3, may_leave_processes=True)
    assert (child.returncode, child.stdout) == (3, "ended\n")


def test_run_child_that_ends_otherwise_than_expected_fails() -> None:
    with pytest.raises(AssertionError, match="ended with 3"):
        run_child("raise SystemExit(3)")
    assert run_child("raise SystemExit(3)", expect_code=3).returncode == 3


def test_run_in_thread_that_hangs_fails() -> None:
    never = threading.Event()
    with pytest.raises(AssertionError, match="did not end within"):
        run_in_thread(never.wait, timeout_seconds=0.05)
    never.set()
