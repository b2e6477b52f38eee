"""Where a thread is, in words: which lines are told, and nothing kept alive."""

import asyncio
import gc
import json
import threading
import weakref
from pathlib import Path

import pytest

from django_asyncbridge.serving import _stacks
from django_asyncbridge.serving._stacks import Line, Repeats, Stack, read_stack
from tests.serving.children import LIMIT_SECONDS

LIBRARY = Path("venv", "lib", "site-packages")
LOOP = Line("asyncio.events", asyncio.events.__file__, 88, "Handle._run")
SERVER = Line("uvicorn.server", str(LIBRARY / "uvicorn" / "server.py"), 7, "run_asgi")
VIEW = Line("shop.views", str(Path("shop", "views.py")), 12, "report")
DRIVER = Line("psycopg.rows", str(LIBRARY / "psycopg" / "rows.py"), 3, "fetch")
DEBUGGER = Line("pdb", "pdb.py", 1, "Pdb.interaction")


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        (json.__file__, True),
        ("<frozen runpy>", True),
        (_stacks.__file__, True),
        (str(LIBRARY / "rest_framework" / "views.py"), True),
        ("/usr/lib/python3/dist-packages/yaml/__init__.py", True),
        (__file__, False),
        ("<string>", False),
    ],
)
def test_line_of_a_library_is_told_from_the_projects(filename: str, expected: bool) -> None:
    assert Line("module", filename, 1, "function").is_library() is expected


def test_stack_begins_with_the_projects_first_line_and_its_place_is_the_projects_last() -> None:
    entry = VIEW._replace(function="middleware")
    stack = Stack([LOOP, SERVER, entry, DRIVER, VIEW, DRIVER], depth=1)
    assert stack.lines == [entry, DRIVER, VIEW, DRIVER]
    assert stack.place == VIEW
    assert str(stack.place).endswith("views.py:12 in report")


def test_stack_without_lines_of_the_project_is_all_that_runs_in_the_loop() -> None:
    stack = Stack([VIEW, LOOP, SERVER, DRIVER], depth=2)
    assert stack.lines == [SERVER, DRIVER]
    assert stack.place == DRIVER


def test_stack_with_nothing_in_the_loop_is_complete() -> None:
    stack = Stack([VIEW, LOOP], depth=2)
    assert stack.lines == [VIEW, LOOP]
    assert stack.place == LOOP


def test_stack_is_debugged_if_the_debugger_is_inside_the_loop() -> None:
    assert Stack([LOOP, VIEW, DEBUGGER], depth=1).debugged
    assert Stack([LOOP, VIEW, DEBUGGER._replace(module="_pydevd_bundle.x")], depth=1).debugged
    assert not Stack([DEBUGGER, LOOP, VIEW], depth=2).debugged


def test_stack_as_text_is_like_a_traceback_with_the_source() -> None:
    line = Line(__name__, __file__, 1, "Report.get")
    text = str(Stack([LOOP, line], depth=1))
    source = Path(__file__).read_text().splitlines()[0]
    assert text.splitlines() == [
        f'  File "{__file__}", line 1, in Report.get',
        f"    {source}",
    ]


class Local:
    """What a function has in a variable."""


def test_read_stack_of_another_thread_has_its_lines_and_keeps_nothing_alive() -> None:
    ready, release = threading.Event(), threading.Event()
    alive: list[weakref.ref[Local]] = []

    def wait() -> None:
        local = Local()
        alive.append(weakref.ref(local))
        ready.set()
        release.wait(LIMIT_SECONDS)

    thread = threading.Thread(target=wait)
    gc.disable()
    try:
        thread.start()
        assert ready.wait(LIMIT_SECONDS)
        lines = read_stack(thread.ident or 0)
        release.set()
        thread.join()
        assert alive[0]() is None
    finally:
        gc.enable()
    functions = [line.function for line in lines]
    wanted = "test_read_stack_of_another_thread_has_its_lines_and_keeps_nothing_alive.<locals>.wait"
    assert functions.index("Thread.run") < functions.index(wanted)
    own = lines[functions.index(wanted)]
    assert (own.module, own.filename) == (__name__, __file__)
    assert read_stack(thread.ident or 0) == []


def test_repeats_counts_a_place_for_a_minute_from_when_it_was_explained() -> None:
    repeats = Repeats()
    assert [repeats.count(VIEW, now) for now in (0.0, 30.0, 59.0)] == [1, 2, 3]
    assert repeats.count(DRIVER, 59.0) == 1
    assert repeats.count(VIEW, 60.0) == 1
    assert repeats.count(DRIVER, 60.0) == 2
