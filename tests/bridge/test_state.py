"""The registries: the objects that both wrappers show as theirs, and what is left of them in a forked child."""

import asyncio
import contextvars
from typing import Any

import pytest

from django_asyncbridge.bridge import _fork, _state
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor
from django_asyncbridge.bridge.sync import (
    AsyncToSync,
    SyncToAsync,
    async_to_sync,
    pool_statistics,
    sync_to_async,
)
from tests.bridge import hand_driven_loop
from tests.support import run_child, run_in_thread


def test_registries_are_the_class_attributes_of_the_wrappers() -> None:
    assert SyncToAsync.threadlocal is _state.threadlocal
    assert SyncToAsync.single_thread_executor is _state.shared_worker
    assert SyncToAsync.thread_sensitive_context is _state.thread_sensitive_context
    assert SyncToAsync.deadlock_context is _state.deadlock_context
    assert SyncToAsync.context_to_thread_executor is _state.context_to_thread_executor
    assert AsyncToSync.executors is _state.executors
    assert AsyncToSync.loop_thread_executors is _state.loop_thread_executors
    assert AsyncToSync.async_single_thread_context is _state.async_single_thread_context
    assert AsyncToSync.context_to_thread_executor is _state.single_thread_context_executors


def test_calling_loop_is_the_loop_that_waits_for_this_threads_function_and_no_other() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await sync_to_async(_state.calling_loop)() is loop
        assert _state.calling_loop() is None

    assert run_in_thread(_state.calling_loop) is None
    asyncio.run(main())


def test_calling_loop_of_another_process_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def forked() -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_fork, "_pid", _fork.pid() + 1)
            return _state.calling_loop()

    async def main() -> None:
        assert await sync_to_async(forked)() is None

    asyncio.run(main())


def test_current_executor_is_the_one_of_the_nearest_sync_caller_of_this_chain() -> None:
    waiting = _state.current_executor.get

    async def inner() -> object:
        assert contextvars.Context().run(waiting) is None
        return waiting()

    async def outer() -> tuple[object, object]:
        own = waiting()
        nested = await sync_to_async(async_to_sync(inner))()
        assert waiting() is own
        return own, nested

    own, nested = async_to_sync(outer)()
    assert own is not None
    assert nested is not None
    assert own is not nested
    assert waiting() is None
    assert run_in_thread(waiting) is None


def test_executors_show_the_current_executor_under_asgirefs_name_and_nothing_else() -> None:
    """P10: `AsyncToSync.executors.current` is read, set and deleted by who knows asgiref's `Local`."""

    def check() -> None:
        executors: Any = AsyncToSync.executors
        assert executors.current is None
        mine = CurrentThreadExecutor(None)
        executors.current = mine
        assert executors.current is _state.current_executor.get() is mine
        del executors.current
        assert getattr(executors, "current", "unset") is None
        with pytest.raises(AttributeError, match="there is only 'current' here, not 'other'"):
            executors.other  # noqa: B018  # it raises

    contextvars.Context().run(check)


def test_caller_of_thread_is_what_was_set_and_can_be_put_back() -> None:
    def check() -> None:
        nobody = _state.caller_of_thread()
        assert nobody == (None, None, None)
        with hand_driven_loop() as loop:
            mine = (loop, _fork.pid(), ["a task"])
            _state.set_caller_of_thread(mine)
            assert _state.caller_of_thread() == mine
            assert _state.calling_loop() is loop
            del _state.threadlocal.task_context
            assert _state.caller_of_thread() == (loop, _fork.pid(), None)
        _state.set_caller_of_thread(nobody)
        assert _state.calling_loop() is None

    run_in_thread(check)


def test_registries_in_a_forked_child_are_empty_and_not_locked() -> None:
    """They name threads and loops of the parent; and a thread of the parent may have held the lock."""
    run_child(
        """
        import asyncio, os, threading, warnings
        from django_asyncbridge.bridge import _contexts, _state
        from django_asyncbridge.bridge.sync import ThreadSensitiveContext, async_to_sync

        warnings.simplefilter("ignore", DeprecationWarning)

        def check_child(context):
            taken = []
            acquire = lambda: taken.append(_state.registry_lock.acquire(timeout=5))
            thread = threading.Thread(target=acquire)
            thread.start()
            thread.join()
            assert taken == [True]
            assert not _state.loop_thread_executors
            assert not _state.context_to_thread_executor
            assert not _state.single_thread_context_executors

        async def main():
            async with ThreadSensitiveContext() as context:
                _contexts.executor_of(context)
                assert _state.loop_thread_executors and _state.context_to_thread_executor
                _state.registry_lock.acquire()
                child = os.fork()
                if not child:
                    code = 1
                    try:
                        check_child(context)
                        code = 0
                    finally:
                        os._exit(code)
                _state.registry_lock.release()
                assert os.waitpid(child, 0)[1] == 0

        async_to_sync(main)()
        """
    )


def test_pool_statistics_are_those_of_the_process_s_own_pools() -> None:
    names = [statistics.name for statistics in pool_statistics()]
    assert names == ["shared", "request", "default", "loop"]
