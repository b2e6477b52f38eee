"""asgiref's wrappers and contexts on our code: what they take, who else has a hand in them, and switching in the middle."""

import asyncio
import contextvars
import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asgiref.sync
import pytest

from django_asyncbridge import interop
from django_asyncbridge.bridge import _state, sync
from tests.support import run_in_thread

# Typed as unknown: versions differ in what their types say.
theirs: Any = asgiref.sync
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Begin accelerated, and leave what the app has installed as it was."""
    accelerated = bool(interop._acceleration)
    interop.accelerate()
    yield
    interop.uninstall()
    interop.install(accelerated)


@pytest.fixture
def crossings() -> Iterator[list[sync.Crossing]]:
    """Collect the crossings of ours: those on asgiref's own code are seen by nobody."""
    seen: list[sync.Crossing] = []
    sync.add_observer(seen.append)
    yield seen
    sync.remove_observer(seen.append)


async def answer() -> int:
    return 42


async def home_of(library: Any) -> int:
    ident: int = await library.sync_to_async(threading.get_ident)()
    return ident


# --- What asgiref's functions take -----------------------------------------------


def test_functions_of_asgirefs_run_on_ours(crossings: list[sync.Crossing]) -> None:
    async def main() -> None:
        assert await theirs.sync_to_async(int)("7") == 7

    theirs.async_to_sync(main)()
    assert [(one.function, one.kind) for one in crossings] == [
        (int, "sync_to_async"),
        (main, "async_to_sync"),
    ]


def test_functions_of_asgirefs_decorate_functions_and_methods() -> None:
    class Thing:
        @theirs.sync_to_async  # type: ignore[untyped-decorator]  # unknown here
        def blocking(self, value: int) -> tuple[object, int, int]:
            return self, value, threading.get_ident()

        @theirs.sync_to_async(thread_sensitive=False)  # type: ignore[untyped-decorator]  # unknown here
        def elsewhere(self) -> int:
            return threading.get_ident()

        @theirs.async_to_sync  # type: ignore[untyped-decorator]  # unknown here
        async def waiting(self, *, value: int) -> tuple[object, int]:
            return self, value

        @theirs.async_to_sync(force_new_loop=True)  # type: ignore[untyped-decorator]  # unknown here
        async def on_new_loop(self) -> asyncio.AbstractEventLoop:
            return asyncio.get_running_loop()

    thing = Thing()

    async def main() -> None:
        assert sync.iscoroutinefunction(thing.blocking)
        assert await thing.blocking(1) == (thing, 1, await home_of(sync))
        assert await thing.elsewhere() not in (await home_of(sync), threading.get_ident())

    asyncio.run(main())
    assert thing.waiting(value=2) == (thing, 2)
    assert thing.on_new_loop().is_closed()


def test_sync_to_async_of_asgirefs_makes_the_generator_of_a_generator_function() -> None:
    """Ours iterates over it in the thread; asgiref's callers expect the generator itself."""

    def numbers() -> Generator[int, None, None]:
        yield 1

    async def main() -> list[int]:
        return list(await theirs.sync_to_async(numbers)())

    assert asyncio.run(main()) == [1]


def test_sync_to_async_of_asgirefs_refuses_what_it_refused() -> None:
    with pytest.raises(TypeError, match="can only be applied to sync functions"):
        theirs.sync_to_async(answer)
    with pytest.raises(TypeError, match="executor must not be set when thread_sensitive is True"):
        theirs.sync_to_async(int, executor=object())


def test_sync_to_async_of_asgirefs_uses_the_executor_given() -> None:
    async def main(executor: ThreadPoolExecutor) -> str:
        call = theirs.sync_to_async(
            threading.current_thread, thread_sensitive=False, executor=executor
        )
        name: str = (await call()).name
        return name

    with ThreadPoolExecutor(1, thread_name_prefix="given") as executor:
        assert asyncio.run(main(executor)).startswith("given")


@pytest.mark.skipif(
    "context" not in inspect.signature(theirs.sync_to_async).parameters, reason="not there yet"
)
def test_sync_to_async_of_asgirefs_uses_the_context_given() -> None:
    context = contextvars.Context()
    context.run(variable.set, "given")

    async def main() -> None:
        assert await theirs.sync_to_async(variable.get, context=context)() == "given"
        assert variable.get(None) is None

    asyncio.run(main())


def test_async_to_sync_of_asgirefs_warns_of_what_is_not_marked_and_runs_what_it_can() -> None:
    def unmarked() -> Any:
        return answer()

    with pytest.warns(UserWarning, match="non-async-marked callable"):
        call = theirs.async_to_sync(unmarked)
    assert call() == 42
    assert theirs.async_to_sync(functools.partial(answer))() == 42


@pytest.mark.parametrize("accelerated", [False, True])
def test_async_to_sync_of_asgirefs_fails_on_what_cannot_be_awaited(accelerated: bool) -> None:
    async def numbers() -> Any:
        yield 1

    interop.install(accelerated)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        of_generator, of_coroutine = theirs.async_to_sync(numbers), theirs.async_to_sync(object())
    with pytest.raises(TypeError, match="async_generator"):
        of_generator()
    assert asyncio.run(anext(numbers())) == 1
    with pytest.raises(TypeError, match="not callable"):
        of_coroutine()


def test_objects_of_asgirefs_have_all_that_methods_of_ours_use() -> None:
    """Whoever gives ours another attribute must lend it to asgiref's classes."""
    pairs: list[tuple[Any, Any]] = [
        (theirs.sync_to_async(int), sync.SyncToAsync(int)),
        (theirs.async_to_sync(answer), sync.AsyncToSync(answer)),
        (theirs.ThreadSensitiveContext(), sync.ThreadSensitiveContext()),
    ]
    if hasattr(theirs, "AsyncSingleThreadContext"):
        with theirs.AsyncSingleThreadContext() as context:
            pairs.append((context, sync.AsyncSingleThreadContext()))
    for one, ours in pairs:
        used = {name for name in (*vars(type(ours)), *vars(ours)) if not name.startswith("__")}
        # What a version does not know it does not share.
        unshared = {"async_single_thread_context", "context_to_thread_executor"}
        assert {name for name in used - unshared if not hasattr(one, name)} == set()


def test_parts_lent_to_asgirefs_classes_tell_who_they_are() -> None:
    for owner, name in (
        (theirs.SyncToAsync, "_described"),
        (theirs.ThreadSensitiveContext, "_outer_executor"),
    ):
        assert getattr(owner, name) is vars(owner)[name]


# --- Who else has a hand in asgiref's classes ------------------------------------


def test_objects_are_instances_of_asgirefs_classes_before_and_after() -> None:
    interop.uninstall()
    classes = theirs.SyncToAsync, theirs.AsyncToSync
    before = theirs.sync_to_async(int), theirs.async_to_sync(answer)
    interop.accelerate()
    after = theirs.sync_to_async(int), theirs.async_to_sync(answer)
    assert (theirs.SyncToAsync, theirs.AsyncToSync) == classes
    for one in (before, after):
        assert tuple(type(wrapper) for wrapper in one) == classes
    assert not isinstance(after[0], sync.SyncToAsync)


def test_wrappers_made_before_run_on_ours(crossings: list[sync.Crossing]) -> None:
    interop.uninstall()
    call, wait = theirs.sync_to_async(int), theirs.async_to_sync(answer)
    interop.accelerate()

    async def main() -> None:
        assert await call("7") == 7

    asyncio.run(main())
    assert wait() == 42
    assert [one.function for one in crossings] == [int, answer]


@pytest.mark.parametrize("made_before", [False, True])
def test_subclass_with_a_thread_handler_of_its_own_runs_on_ours(
    made_before: bool, crossings: list[sync.Crossing]
) -> None:
    """As Channels' ``DatabaseSyncToAsync``."""
    if made_before:
        interop.uninstall()
    handled: list[int] = []

    class Handling(theirs.SyncToAsync):  # type: ignore[misc]  # its base is unknown
        def thread_handler(self, loop: Any, *args: Any, **kwargs: Any) -> Any:
            handled.append(threading.get_ident())
            return super().thread_handler(loop, *args, **kwargs)

    early = Handling(int)
    interop.accelerate()

    async def main() -> None:
        assert await early("7") == 7
        assert await Handling(int)("8") == 8
        assert {*handled} == {await home_of(sync)}

    asyncio.run(main())
    assert [one.function for one in crossings] == [int, int, threading.get_ident]


def patched(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[object]:
    """Have a method note its calls, as monitoring agents do."""
    original = getattr(owner, name)
    calls: list[object] = []

    @functools.wraps(original)
    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, noting)
    return calls


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (theirs.SyncToAsync, "__call__"),
        (theirs.SyncToAsync, "thread_handler"),
        (theirs.AsyncToSync, "__call__"),
        (theirs.AsyncToSync, "main_wrap"),
    ],
)
@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_method_that_somebody_replaces_is_called_and_the_home_thread_is_the_same(
    owner: Any, name: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P10: before the app was ready, between sharing and accelerating, or later."""
    interop.uninstall()
    made_before = theirs.sync_to_async(threading.get_ident)
    if when == "between":
        interop.share_registries()
    if when == "after":
        interop.accelerate()
    with monkeypatch.context() as patch:
        calls = patched(patch, owner, name)
        interop.accelerate()

        async def main() -> int:
            assert await made_before() == await home_of(theirs) == await home_of(sync)
            return await home_of(theirs)

        assert run_in_thread(lambda: theirs.async_to_sync(main)() == threading.get_ident())
        assert len(calls) == (3 if owner is theirs.SyncToAsync else 1)
        if when == "before":
            # What came last goes first, or it would put back what it found.
            interop.uninstall()
    interop.uninstall()


@pytest.mark.parametrize("name", ["thread_handler", "main_wrap"])
def test_hook_that_somebody_has_replaced_keeps_nobody_from_acceleration(
    name: str, monkeypatch: pytest.MonkeyPatch, crossings: list[sync.Crossing]
) -> None:
    interop.uninstall()
    owner = theirs.SyncToAsync if name == "thread_handler" else theirs.AsyncToSync
    old = "awaitable" not in inspect.signature(theirs.AsyncToSync.main_wrap).parameters
    with monkeypatch.context() as patch:
        patched(patch, owner, name)
        interop.accelerate()

        async def main() -> None:
            await theirs.sync_to_async(int)()

        theirs.async_to_sync(main)()
        interop.uninstall()
    kept = ["sync_to_async"] if old and name == "main_wrap" else ["sync_to_async", "async_to_sync"]
    assert [one.kind for one in crossings] == kept


def test_main_wrap_of_unknown_signature_keeps_asgirefs_async_to_sync(
    monkeypatch: pytest.MonkeyPatch, crossings: list[sync.Crossing]
) -> None:
    """asgiref 3.8 hands it the arguments, later versions an awaitable."""
    interop.uninstall()
    original = theirs.AsyncToSync.main_wrap

    def unknown(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(theirs.AsyncToSync, "main_wrap", unknown)
        interop.accelerate()
        assert theirs.async_to_sync(answer)() == 42
        interop.uninstall()
    assert crossings == []


def test_call_that_is_no_function_any_more_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """wrapt puts an object there."""

    class Replaced:
        """Nothing that `types.FunctionType` knows."""

    interop.uninstall()
    replaced = Replaced()
    with monkeypatch.context() as patch:
        patch.setattr(theirs.SyncToAsync, "__call__", replaced)
        interop.accelerate()
        assert vars(theirs.SyncToAsync)["__call__"] is replaced
        interop.uninstall()


def test_asgiref_without_newer_classes_is_accelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    interop.uninstall()
    with monkeypatch.context() as patch:
        patch.setattr(interop, "_LOOP_CONTEXT", (None, sync.AsyncSingleThreadContext))
        interop.accelerate()
        assert theirs.async_to_sync(answer)() == 42
        interop.uninstall()


# --- Contexts --------------------------------------------------------------------


def test_contexts_one_after_the_other_start_no_thread_after_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def counting(thread: threading.Thread) -> None:
        started.append(thread)
        start(thread)

    async def main() -> None:
        async with theirs.ThreadSensitiveContext():
            await home_of(theirs)
        monkeypatch.setattr(threading.Thread, "start", counting)
        for _ in range(200):
            async with theirs.ThreadSensitiveContext():
                await home_of(theirs)

    asyncio.run(main())
    # It is seen that this counts.
    own = run_in_thread(threading.current_thread)
    # The watch over a pool looks after all its waiting callers, for many seconds.
    assert [thread for thread in started if not thread.name.endswith("-watch")] == [own]


def test_context_entered_again_inside_itself_lasts_to_the_outer_end() -> None:
    async def main() -> None:
        async with theirs.ThreadSensitiveContext() as context:
            outer = await home_of(theirs)
            async with context, theirs.ThreadSensitiveContext():
                assert await home_of(sync) == outer
            assert await home_of(theirs) == outer
        assert theirs.SyncToAsync.thread_sensitive_context.get(None) is None

    asyncio.run(main())


def test_context_that_a_task_outlives_leaves_that_to_the_shared_thread() -> None:
    async def main() -> None:
        gone = asyncio.Event()

        async def outlive() -> int:
            await gone.wait()
            return await home_of(theirs)

        async with theirs.ThreadSensitiveContext():
            task = asyncio.create_task(outlive())
            inside = await home_of(theirs)
        gone.set()
        assert await task == await home_of(sync) != inside

    asyncio.run(main())


# What is true of asgiref's code while a context is entered, and while it is left.
switches = pytest.mark.parametrize(
    ("entering", "leaving"), [(False, False), (False, True), (True, False), (True, True)]
)


@switches
@pytest.mark.parametrize("by_hand", [False, True])
def test_context_that_is_open_during_a_switch_ends_right(
    entering: bool, leaving: bool, by_hand: bool
) -> None:
    """``async with`` looks the methods up when it enters, a test fixture when it leaves."""

    async def main() -> None:
        shared = await home_of(sync)
        interop.install(entering)
        context = theirs.ThreadSensitiveContext()
        if by_hand:
            await context.__aenter__()
            inside = await home_of(theirs)
            executor = _state.context_to_thread_executor[context]
            interop.install(leaving)
            assert await home_of(theirs) == await home_of(sync) == inside != shared
            await context.__aexit__(None, None, None)
        else:
            async with context:
                inside = await home_of(theirs)
                executor = _state.context_to_thread_executor[context]
                interop.install(leaving)
                assert await home_of(theirs) == await home_of(sync) == inside != shared
        assert _state.thread_sensitive_context.get(None) is None
        assert context not in _state.context_to_thread_executor
        with pytest.raises(RuntimeError):
            executor.submit(int)
        assert await home_of(theirs) == await home_of(sync) == shared

    asyncio.run(main())


@pytest.mark.skipif(
    "executor" not in inspect.signature(theirs.ThreadSensitiveContext).parameters,
    reason="not there yet",
)
@switches
def test_context_with_an_executor_that_is_open_during_a_switch_gives_the_caller_back(
    entering: bool, leaving: bool
) -> None:
    async def main(executor: ThreadPoolExecutor) -> tuple[int, int, int]:
        interop.install(entering)
        context = theirs.ThreadSensitiveContext(executor=executor)
        await context.__aenter__()
        inside = await home_of(sync)
        interop.install(leaving)
        assert await home_of(theirs) == await home_of(sync) == inside
        await context.__aexit__(None, None, None)
        with pytest.raises(RuntimeError, match="entered"):
            await context.__aenter__()
        return inside, await home_of(theirs), await home_of(sync)

    with ThreadPoolExecutor(1) as executor:
        inside, *outside = sync.async_to_sync(main)(executor)
        assert {*outside} == {threading.get_ident()}
        assert inside == executor.submit(threading.get_ident).result()


def test_calls_that_are_under_way_during_a_switch_end_right() -> None:
    async def inner(step: Callable[[], None]) -> int:
        step()
        await asyncio.sleep(0)
        return await home_of(theirs)

    def outer(step: Callable[[], None]) -> tuple[int, int]:
        step()
        return theirs.async_to_sync(inner)(step), threading.get_ident()

    async def main() -> None:
        for first in (interop.accelerate, interop.decelerate):
            for second in (interop.accelerate, interop.decelerate):
                first()
                result = await theirs.sync_to_async(outer)(second)
                assert result == (await home_of(sync),) * 2

    asyncio.run(main())


def test_call_whose_exception_is_being_handled_ends_right_after_a_switch() -> None:
    async def inner() -> int:
        interop.decelerate()
        await asyncio.sleep(0)
        return 42

    try:
        raise KeyError
    except KeyError:
        assert theirs.async_to_sync(inner)() == 42
