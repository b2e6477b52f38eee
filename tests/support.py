"""What several test modules need: child processes with a limit, and threads with a limit."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T")


def run_child(
    source: str,
    *args: str,
    timeout_seconds: float = 20,
    expect_code: int | None = 0,
    may_leave_processes: bool = False,
    **env: str,
) -> "subprocess.CompletedProcess[str]":
    """Run `source` as a program in a child process, and fail if it hangs or ends otherwise than expected.

    Whatever may hang when it is broken is tested through here: a hang is a failed test that says what
    the child had printed, never a stuck run; also of a child of its own, which keeps the pipes open. `expect_code` None takes
    any exit code; with `may_leave_processes` what is left is only ended.
    """
    program = [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(source), *args]
    child = subprocess.Popen(
        program,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    hung = None
    try:
        out, err = child.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        hung = "a process that it left" if child.poll() is not None else "it"
        kill_group(child)
        out, err = child.communicate()
    if hung is not None and (hung == "it" or not may_leave_processes):
        raise AssertionError(f"{hung} hung for {timeout_seconds} s\n--- out\n{out}\n--- err\n{err}")
    if expect_code is not None and child.returncode != expect_code:
        raise AssertionError(f"ended with {child.returncode}\n--- out\n{out}\n--- err\n{err}")
    return subprocess.CompletedProcess(program, child.returncode, out, err)


def kill_group(child: "subprocess.Popen[str]") -> None:
    """End a child that began a session of its own, and all that it has started."""
    if hasattr(os, "killpg"):
        os.killpg(child.pid, signal.SIGKILL)
    else:  # pragma: no cover  # Windows
        child.kill()


def run_in_thread(function: Callable[[], T], timeout_seconds: float = 20) -> T:
    """Call `function` in a new thread, wait for it at most that long, and return or raise what it did."""
    outcome: list[Any] = []

    def call() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    if not outcome:
        raise AssertionError(f"{function} did not end within {timeout_seconds} s")
    value, error = outcome[0]
    if error is not None:
        raise error
    result: T = value
    return result
