"""Runs scenarios with one library, in child processes, and survives what hangs.

As a program it is the child: it runs the scenarios named on its standard input, in order, each in a thread and
a context of its own, and writes the outcome of each as one line of JSON.
"""

import contextlib
import contextvars
import faulthandler
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.differential.library import Library, load, name_of

__all__ = ("CRASHES", "FAILS", "HANGS", "outcomes", "run_scenario")

ROOT = Path(__file__).resolve().parent.parent.parent
HANGS = "hangs"
CRASHES = "ends the process"
FAILS = "fails with"
# A scenario takes milliseconds. The limit is only waited for where something hangs that should not, the short
# one where a hang is expected.
LIMIT_SECONDS = 10.0
SHORT_LIMIT_SECONDS = 0.3
START_SECONDS = 60.0


def outcomes(
    library: str, names: list[str], expected_to_hang: frozenset[str] = frozenset()
) -> dict[str, object]:
    """Run scenarios with one library, and return the outcome of each.

    After a hang or a crash the rest is run in a new process.

    Args:
        library: "asgiref" or "ours".
        names: the scenarios, in order.
        expected_to_hang: those of them that are given less time.
    """
    found: dict[str, object] = {}
    while left := [name for name in names if name not in found]:
        with child(library, left) as next_line:
            for name in left:
                short = name in expected_to_hang
                line = next_line(SHORT_LIMIT_SECONDS if short else LIMIT_SECONDS)
                found[name] = json.loads(line) if line else HANGS if line is None else CRASHES
                if not line:
                    break
            else:
                # All is done: the process ends by itself, and writes down what coverage has measured.
                next_line(LIMIT_SECONDS)
    return found


@contextlib.contextmanager
def child(library: str, names: list[str]) -> Iterator[Callable[[float], str | None]]:
    """Start a process that runs scenarios; yield a function that waits for its next line.

    The function returns an empty line if the process has ended, and None if the time is up.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, library],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    json.dump(names, process.stdin)
    process.stdin.close()
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=read_lines, args=(process.stdout, lines))
    reader.start()

    def next_line(limit_seconds: float) -> str | None:
        try:
            return lines.get(timeout=limit_seconds)
        except queue.Empty:
            return None

    try:
        assert next_line(START_SECONDS) == "ready\n"
        yield next_line
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


def read_lines(stream: Iterator[str], lines: "queue.SimpleQueue[str]") -> None:
    """Move lines into a queue as they come, and an empty one at the end."""
    for line in stream:
        lines.put(line)
    lines.put("")


def run_scenario(scenario: Callable[[Library], object], library: Library) -> object:
    """Run one scenario in a new thread with an empty context; an error is an outcome as well."""
    found: list[object] = []

    def call() -> None:
        try:
            found.append(scenario(library))
        except BaseException as error:
            traceback.print_exc()
            found.append(f"{FAILS} {name_of(error)}")

    thread = threading.Thread(target=contextvars.Context().run, args=(call,))
    thread.start()
    thread.join()
    return found[0]


def main() -> None:
    """Be the child."""
    from tests.differential.scenarios import SAMPLES, SCENARIOS

    library = load(sys.argv[1])
    table = {**SCENARIOS, **SAMPLES}
    names = json.load(sys.stdin)
    logging.disable()  # asyncio's complaints about what scenarios do on purpose
    print("ready", flush=True)
    for name in names:
        # Whoever wonders about a hang finds on standard error where every thread stood.
        faulthandler.dump_traceback_later(LIMIT_SECONDS * 0.9)
        print(json.dumps(run_scenario(table[name], library)), flush=True)
        faulthandler.cancel_dump_traceback_later()
    # Threads that scenarios left behind on purpose must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
