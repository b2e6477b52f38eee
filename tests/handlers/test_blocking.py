"""`no_blocking`: what it sees, and what it leaves alone."""

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from tests.handlers.blocking import BlockingCallError, no_blocking
from tests.support import run_in_thread

BLOCKING: dict[str, Callable[[], Any]] = {
    "import": lambda: __import__("this_module_is_not_there"),
    "open": lambda: Path(__file__).read_text(),
    "os.stat": lambda: Path(__file__).stat(),
    "os.lstat": lambda: os.lstat("."),
    "os.listdir": lambda: os.listdir("."),  # noqa: PTH208  # the function that is watched
    "os.scandir": lambda: os.scandir("."),
    "os.mkdir": lambda: Path("not-made").mkdir(),
    "os.remove": lambda: Path("not-there").unlink(),
    "os.rename": lambda: Path("not-there").rename("neither"),
    "shutil.rmtree": lambda: shutil.rmtree("not-there", ignore_errors=False),
    "socket.gethostname": socket.gethostname,
    "sqlite3.connect": lambda: sqlite3.connect(":memory:"),
    "subprocess.Popen": lambda: subprocess.run([sys.executable, "-V"], check=True),
    "tempfile.mkstemp": tempfile.mkstemp,
    "time.sleep": lambda: time.sleep(0),
    "BaseDatabaseWrapper.cursor": lambda: connection.cursor().close(),
    # Not the one of SQLite, which leaves databases in memory open.
    "BaseDatabaseWrapper.close": lambda: BaseDatabaseWrapper.close(connections["default"]),
    "LocMemCache.get": lambda: LocMemCache("blocking", {}).get("key"),
    "DummyCache.set": lambda: DummyCache("blocking", {}).set("key", 1),
}


@pytest.mark.parametrize("name", BLOCKING)
def test_no_blocking_around_a_blocking_call_raises_its_name(name: str) -> None:
    # What is first done once in a process is done before.
    tempfile.gettempdir()
    with pytest.raises(BlockingCallError, match=name), no_blocking():
        BLOCKING[name]()


def test_no_blocking_around_a_call_that_swallows_errors_raises_at_the_end() -> None:
    def swallow() -> None:
        for name in ("open", "time.sleep"):
            with contextlib.suppress(BlockingCallError):
                BLOCKING[name]()

    with pytest.raises(BlockingCallError, match=r"open, time\.sleep"), no_blocking():
        swallow()


def test_no_blocking_around_an_error_of_another_kind_lets_it_through() -> None:
    with pytest.raises(ZeroDivisionError), no_blocking():
        _ = 1 / 0


def test_no_blocking_around_computing_stays_silent() -> None:
    with no_blocking():
        assert sum(range(10)) == 45
        BaseCache({})
        assert import_module("os") is os


def test_no_blocking_leaves_other_threads_alone() -> None:
    inside, done = threading.Event(), threading.Event()

    def block() -> str:
        assert inside.wait(20)
        try:
            time.sleep(0)
            return Path(__file__).read_text()
        finally:
            done.set()

    def watch() -> None:
        with no_blocking():
            inside.set()
            assert done.wait(20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert run_in_thread(block)
    watcher.join(20)


def test_no_blocking_when_left_allows_everything_again() -> None:
    stat = os.stat
    with no_blocking():
        pass
    assert os.stat is stat
    assert Path(__file__).stat().st_size == os.stat(__file__).st_size  # noqa: PTH116
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
