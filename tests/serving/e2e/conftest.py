"""Servers for tests; what they have written is shown with a test that fails."""

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.e2e.servers import Server

# Of one server; those of a busy one are many.
_SHOWN_LINES = 300


class Servers:
    """Starts servers that end with the test."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.started: list[Server] = []
        self._stack = stack

    def __call__(self, *args: str, **how: Any) -> Server:
        """Start one with the arguments of `Server`, and wait for its banner."""
        server = Server(*args, **how)
        self.started.append(server)
        self._stack.callback(server.kill)
        server.wait_for_start()
        return server


@pytest.fixture
def start() -> Iterator[Servers]:
    with contextlib.ExitStack() as stack:
        yield Servers(stack)


@pytest.fixture
def certificates() -> Path:
    return Path(__file__).parent.parent / "certificates"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report what the servers of the test have written."""
    report = yield
    for value in getattr(item, "funcargs", {}).values():
        for server in getattr(value, "started", [value]):
            if isinstance(server, Server):
                text = "\n".join(server.lines[-_SHOWN_LINES:])
                report.sections.append(("what runasgi has written", text))
    return report
