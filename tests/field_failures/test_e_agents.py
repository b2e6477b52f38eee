"""Section E, C55: monitoring agents that patch the classes, and subclasses."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from django_asyncbridge.bridge.sync import SyncToAsync, sync_to_async
from tests.field_failures.common import on_plain_loop


def test_c55_agent_that_passes_a_keyword_through_the_partial_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C55: an agent adds a keyword to `__call__` and takes it out of the partial in the worker."""
    call, thread_handler = SyncToAsync.__call__, SyncToAsync.thread_handler
    carried: list[tuple[str, str]] = []

    def traced_call(self: SyncToAsync[Any, Any], *args: Any, **kwargs: Any) -> Any:
        kwargs["_agent_trace"] = "trace"
        return call(self, *args, **kwargs)

    def traced_handler(self: SyncToAsync[Any, Any], *args: Any, **kwargs: Any) -> Any:
        *_, child = args
        carried.append((child.keywords.pop("_agent_trace"), threading.current_thread().name))
        return thread_handler(self, *args, **kwargs)

    monkeypatch.setattr(SyncToAsync, "__call__", traced_call)
    monkeypatch.setattr(SyncToAsync, "thread_handler", traced_handler)

    class View:
        @sync_to_async
        def get(self, name: str, *, suffix: str) -> str:
            return name + suffix

    def function(*args: str, **kwargs: str) -> tuple[tuple[str, ...], dict[str, str]]:
        return args, kwargs

    async def main() -> tuple[object, str, str]:
        plain = await sync_to_async(function)("a", b="c")
        method = await View().get("view", suffix="!")
        return plain, method, await sync_to_async(lambda: threading.current_thread().name)()

    plain, method, thread = on_plain_loop(main)
    assert (plain, method) == ((("a",), {"b": "c"}), "view!")
    assert carried == [("trace", thread)] * 3


def test_c55_subclass_that_wraps_the_handler_runs_around_each_function_in_its_thread() -> None:
    """P10: Channels' `database_sync_to_async` closes connections before and after each call."""
    effects: list[str] = []

    class Closing(SyncToAsync[Any, Any]):
        def thread_handler(self, loop: Any, *args: Any, **kwargs: Any) -> Any:
            effects.append("before")
            try:
                return super().thread_handler(loop, *args, **kwargs)
            finally:
                effects.append("after")

    def fail() -> None:
        effects.append("function")
        raise ValueError("expected")

    async def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            await Closing(effects.append)("function")
            with pytest.raises(ValueError, match="expected"):
                await Closing(fail, thread_sensitive=False, executor=pool)()

    on_plain_loop(main)
    assert effects == ["before", "function", "after"] * 2
