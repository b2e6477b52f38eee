"""Named executors: one of each in a process, when they are built and replaced, and what their threads look after."""

import asyncio
import inspect
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NoReturn

import django.apps
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from django_asyncbridge import _executor_backends as backends
from django_asyncbridge import executors as module
from django_asyncbridge import request_threads
from django_asyncbridge.bridge import _processes, _state
from django_asyncbridge.bridge.sync import WorkerPool, async_to_sync, sync_to_async
from django_asyncbridge.conf import ExecutorConf
from django_asyncbridge.executors import (
    ExecutorStatistics,
    UnknownExecutorError,
    executors,
    problems,
    statistics,
)
from tests.bridge import LIMIT_SECONDS
from tests.bridge.pools import Busy, ended
from tests.support import run_child, run_in_thread

THREADS = "concurrent.futures.ThreadPoolExecutor"
PROCESSES = "concurrent.futures.ProcessPoolExecutor"
HERE = f"{__name__}."


@sync_to_async(thread_sensitive=False, executor="reports")
def name_of_thread() -> str:
    return threading.current_thread().name


@sync_to_async(thread_sensitive=False, executor="cpu")
def process_is_set_up() -> tuple[int, bool, bool]:
    looked_after = _processes._after_call is request_threads.look_after_connections
    return os.getpid(), django.apps.apps.ready, looked_after


@sync_to_async(thread_sensitive=False, executor="cpu")
def end_process() -> NoReturn:
    os._exit(1)


def given(**aliases: dict[str, Any]) -> override_settings:
    """Have these executors in the settings, and no others."""
    return override_settings(ASYNCBRIDGE={"EXECUTORS": aliases})


class Manual(Executor):
    """An executor of somebody else's: the test completes its futures."""

    made: "list[Manual]" = []  # noqa: RUF012  # cleared by a fixture

    def __init__(self, max_workers: int = 1, *, color: str = "") -> None:
        self.arguments = max_workers, color
        self.futures: list[Future[Any]] = []
        self.shut_down: list[bool] = []
        self.error: Exception | None = None
        self.made.append(self)

    def submit(self, *args: Any, **kwargs: Any) -> "Future[Any]":
        if self.error is not None:
            raise self.error
        self.futures.append(Future())
        return self.futures[-1]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.shut_down.append(wait)


MANUAL = f"{HERE}Manual"


def manual(alias: str) -> Manual:
    executor = executors[alias]
    assert isinstance(executor, Manual)
    return executor


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_state, "resolve_executor", None)
    module.register()
    yield
    run_in_thread(executors.shutdown)
    Manual.made.clear()


# --- Which there are ------------------------------------------------------------------


def test_executors_default_is_the_bridges_own_pool() -> None:
    with given():
        assert executors["default"] is _state.default_workers
        assert list(executors) == ["default"]
        assert len(executors) == 1


def test_executors_are_those_of_the_settings_and_looking_builds_none() -> None:
    with given(manual={"BACKEND": MANUAL}, reports={}):
        assert list(executors) == ["default", "manual", "reports"]
        assert "manual" in executors
        assert "other" not in executors
        assert Manual.made == []


def test_executor_without_a_backend_is_a_worker_pool_with_the_limits_of_the_settings() -> None:
    options = {"idle_seconds": 5, "wait_seconds": 7}
    with given(reports={"MAX_WORKERS": 2, "OPTIONS": options}):
        pool = executors["reports"]
        assert isinstance(pool, WorkerPool)
        assert (pool.maximum, pool.idle_seconds, pool.wait_seconds) == (2, 5, 7)
        assert asyncio.run(name_of_thread()).startswith("asyncbridge-reports-")


def test_executor_whose_backend_is_the_worker_pool_is_one() -> None:
    with given(reports={"BACKEND": "django_asyncbridge.bridge.sync.WorkerPool", "MAX_WORKERS": 1}):
        assert asyncio.run(name_of_thread()) == "asyncbridge-reports-1"


def test_executor_with_threads_of_the_standard_library_names_them_after_its_alias() -> None:
    with given(reports={"BACKEND": THREADS, "MAX_WORKERS": 3}):
        pool = executors["reports"]
        assert type(pool) is ThreadPoolExecutor
        assert pool._max_workers == 3
        assert asyncio.run(name_of_thread()) == "asyncbridge-reports_0"


def test_executor_with_threads_takes_the_prefix_of_its_options() -> None:
    with given(reports={"BACKEND": THREADS, "OPTIONS": {"thread_name_prefix": "mine"}}):
        assert asyncio.run(name_of_thread()) == "mine_0"


class Unnamed(ThreadPoolExecutor):
    """Takes no names for its threads."""

    def __init__(self, max_workers: int) -> None:
        super().__init__(max_workers)


def test_executor_with_threads_that_takes_no_prefix_gets_none() -> None:
    with given(reports={"BACKEND": f"{HERE}Unnamed", "MAX_WORKERS": 1}):
        assert asyncio.run(name_of_thread()).startswith("ThreadPoolExecutor-")


class Anything(ThreadPoolExecutor):
    """Passes on whatever it is given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)


def test_executor_with_threads_that_passes_options_on_gets_a_prefix() -> None:
    with given(reports={"BACKEND": f"{HERE}Anything", "MAX_WORKERS": 1}):
        assert asyncio.run(name_of_thread()) == "asyncbridge-reports_0"


def test_executor_of_any_class_gets_its_options() -> None:
    with given(manual={"BACKEND": MANUAL, "MAX_WORKERS": 4, "OPTIONS": {"color": "red"}}):
        assert manual("manual").arguments == (4, "red")


def test_executor_without_max_workers_gets_the_default_of_its_class() -> None:
    with given(manual={"BACKEND": MANUAL}):
        made = manual("manual")
        assert made.arguments == (1, "")


def test_executor_of_a_class_that_does_not_tell_what_it_takes_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def signature(of: Any) -> inspect.Signature:
        if isinstance(of, type):
            raise ValueError("no signature found")
        return inspect_signature(of)

    inspect_signature = inspect.signature
    monkeypatch.setattr(inspect, "signature", signature)
    with given(manual={"BACKEND": MANUAL, "MAX_WORKERS": 2}, reports={"BACKEND": THREADS}):
        made = manual("manual")
        assert made.arguments == (2, "")
        assert asyncio.run(name_of_thread()) == "asyncbridge-reports_0"


def test_executor_with_processes_sets_the_project_up_in_them() -> None:
    with given(cpu={"BACKEND": PROCESSES, "MAX_WORKERS": 1}):
        process, ready, looked_after = asyncio.run(process_is_set_up())
        assert process != os.getpid()
        assert ready
        assert looked_after


def test_executor_with_processes_takes_the_context_and_the_initializer_of_its_options() -> None:
    options = {"mp_context": "spawn", "initializer": _processes.set_after_call, "initargs": [len]}
    with given(cpu={"BACKEND": PROCESSES, "MAX_WORKERS": 1, "OPTIONS": options}):
        pool = executors["cpu"]
        assert isinstance(pool, ProcessPoolExecutor)
        assert pool._mp_context is multiprocessing.get_context("spawn")
        assert asyncio.run(process_is_set_up())[2] is False


def test_executor_of_an_unknown_alias_is_told_which_there_are() -> None:
    with (
        given(reports={}),
        pytest.raises(UnknownExecutorError) as caught,
    ):
        asyncio.run(sync_to_async(abs, thread_sensitive=False, executor="report")(1))
    assert str(caught.value) == (
        'ASYNCBRIDGE["EXECUTORS"] has no executor \'report\'. Did you mean "reports"? '
        'There are: "default", "reports".'
    )
    with given(), pytest.raises(LookupError, match=r"no executor 'xyz'\. There are: \"default\"\."):
        executors["xyz"]


def test_executor_that_cannot_be_built_says_which_and_why() -> None:
    with (
        given(manual={"BACKEND": MANUAL, "OPTIONS": {"colour": "red"}}),
        pytest.raises(ImproperlyConfigured, match=r'"EXECUTORS"\]\["manual"\] .*colour'),
    ):
        executors["manual"]


# --- One of each ------------------------------------------------------------------------


def test_executor_that_many_threads_ask_for_at_once_is_built_once() -> None:
    start = threading.Barrier(50)
    found: list[Executor] = []

    def ask() -> None:
        start.wait(LIMIT_SECONDS)
        found.append(executors["manual"])

    with given(manual={"BACKEND": MANUAL}):
        threads = [threading.Thread(target=ask) for _ in range(50)]
        for thread in threads:
            thread.start()
        assert all(map(ended, threads))
    assert len(found) == 50
    assert len(set(map(id, found))) == len(Manual.made) == 1


def test_executor_that_another_thread_built_meanwhile_is_not_built_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    builder = backends.builder

    def overtaken(alias: str, settings: ExecutorConf) -> Any:
        monkeypatch.setattr(module, "builder", builder)
        executors[alias]
        return builder(alias, settings)

    with given(manual={"BACKEND": MANUAL}):
        monkeypatch.setattr(module, "builder", overtaken)
        assert [executors["manual"]] == Manual.made


def test_executor_whose_settings_change_while_it_is_built_is_that_of_the_new_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    builder = backends.builder
    later = given(manual={"BACKEND": MANUAL, "MAX_WORKERS": 2})

    def overtaken(alias: str, settings: ExecutorConf) -> Any:
        monkeypatch.setattr(module, "builder", builder)
        later.enable()
        return builder(alias, settings)

    with given(manual={"BACKEND": MANUAL, "MAX_WORKERS": 1}):
        monkeypatch.setattr(module, "builder", overtaken)
        try:
            made = manual("manual")
            assert made.arguments == (2, "")
            assert Manual.made == [made]
        finally:
            later.disable()


def test_executors_are_usable_before_settings_are_and_follow_them_then() -> None:
    child = run_child(
        """
        import asyncio, threading
        from django.conf import settings
        from django_asyncbridge.bridge.sync import sync_to_async
        from django_asyncbridge import executors

        @sync_to_async(thread_sensitive=False, executor="reports")
        def name_of_thread():
            return threading.current_thread().name

        assert not settings.configured
        try:
            asyncio.run(name_of_thread())
        except LookupError as error:
            print(error)
        settings.configure(ASYNCBRIDGE={"EXECUTORS": {"reports": {"MAX_WORKERS": 1}}})
        import django
        django.setup()
        executors.register()
        print(asyncio.run(name_of_thread()))
        """
    )
    assert "need the Django app" in child.stdout
    assert "asyncbridge-reports-1" in child.stdout


# --- Following the settings ---------------------------------------------------------------


def test_executors_follow_the_settings_and_keep_what_has_not_changed() -> None:
    kept = {"BACKEND": MANUAL, "MAX_WORKERS": 7}
    with given(kept=kept, changed={"BACKEND": MANUAL}, gone={"BACKEND": MANUAL}):
        before = {alias: executors[alias] for alias in ("kept", "changed", "gone")}
        with given(kept=kept, changed={"BACKEND": MANUAL, "MAX_WORKERS": 2}):
            assert executors["kept"] is before["kept"]
            changed = manual("changed")
            assert changed.arguments == (2, "")
            assert "gone" not in executors
            assert [one.shut_down for one in Manual.made] == [[], [False], [False], []]
        assert executors["kept"] is before["kept"]
        assert changed.shut_down == [False]


def test_executors_stay_while_the_settings_are_wrong() -> None:
    with given(manual={"BACKEND": MANUAL}):
        manual = executors["manual"]
        with override_settings(ASYNCBRIDGE={"EXECUTOR": {}}), pytest.raises(ImproperlyConfigured):
            statistics()
        assert executors["manual"] is manual


def test_call_that_runs_when_its_executor_is_replaced_runs_to_its_end() -> None:
    with given(reports={"MAX_WORKERS": 1}):
        busy = Busy(executors["reports"])
        with given(reports={"MAX_WORKERS": 2}):
            assert asyncio.run(name_of_thread()) == "asyncbridge-reports-1"
            thread = busy.end()
        assert ended(thread)


@pytest.mark.parametrize("backend", [None, THREADS])
def test_call_whose_executor_is_replaced_in_this_moment_runs_in_its_successor(
    monkeypatch: pytest.MonkeyPatch, backend: str | None
) -> None:
    later = given(reports={"BACKEND": backend, "MAX_WORKERS": 2} if backend else {"MAX_WORKERS": 2})

    def overtaken(alias: str) -> Executor:
        executor = executors[alias]
        monkeypatch.setattr(_state, "resolve_executor", executors.__getitem__)
        later.enable()
        return executor

    with given(reports={"BACKEND": backend, "MAX_WORKERS": 1} if backend else {"MAX_WORKERS": 1}):
        first = executors["reports"]
        monkeypatch.setattr(_state, "resolve_executor", overtaken)
        try:
            assert asyncio.run(name_of_thread()).startswith("asyncbridge-reports")
            assert executors["reports"] is not first
        finally:
            later.disable()


@sync_to_async(thread_sensitive=False, executor="reports")
def ask_again_from_there() -> tuple[str, str]:
    return threading.current_thread().name, async_to_sync(name_of_thread)()


def test_call_below_one_that_has_the_only_thread_of_its_executor_runs_there() -> None:
    with given(reports={"MAX_WORKERS": 1}):
        outer, inner = run_in_thread(lambda: asyncio.run(ask_again_from_there()))
        assert outer == inner == "asyncbridge-reports-1"


# --- Broken, forked, at the end ---------------------------------------------------------


def test_executor_that_is_broken_is_built_anew_for_the_next_call() -> None:
    async def main() -> None:
        with pytest.raises(BrokenProcessPool):
            await end_process()
        assert (await process_is_set_up())[1]

    with given(cpu={"BACKEND": PROCESSES, "MAX_WORKERS": 1}):
        asyncio.run(main())


def test_executor_that_turns_out_to_be_broken_when_it_is_called_is_built_anew_for_this_call() -> (
    None
):
    async def main() -> None:
        task = asyncio.create_task(
            sync_to_async(abs, thread_sensitive=False, executor="manual")(-1)
        )
        while not Manual.made[-1].futures:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with given(manual={"BACKEND": MANUAL}):
        executors["manual"]
        Manual.made[0].error = BrokenExecutor("killed")
        asyncio.run(main())
        assert executors["manual"] is Manual.made[1]


def test_executor_that_was_replaced_and_breaks_later_does_not_take_its_successor_along() -> None:
    with given(manual={"BACKEND": MANUAL}):
        executors["manual"].submit(abs, -1)
        with given(manual={"BACKEND": MANUAL, "MAX_WORKERS": 2}):
            successor = executors["manual"]
            Manual.made[0].futures[0].set_exception(BrokenExecutor("killed"))
            assert executors["manual"] is successor


def test_executors_in_a_forked_child_are_its_own() -> None:
    child = run_child(
        """
        import asyncio, os, threading, warnings
        from django.conf import settings

        settings.configure(ASYNCBRIDGE={"EXECUTORS": {
            "reports": {"MAX_WORKERS": 1},
            "threads": {"BACKEND": "concurrent.futures.ThreadPoolExecutor", "MAX_WORKERS": 1},
            "cpu": {
                "BACKEND": "concurrent.futures.ProcessPoolExecutor", "MAX_WORKERS": 1,
                "OPTIONS": {"mp_context": "spawn", "initializer": None},
            },
        }})
        import django
        django.setup()
        from django_asyncbridge.bridge.sync import sync_to_async
        from django_asyncbridge.executors import executors, register, statistics
        register()
        warnings.simplefilter("ignore", DeprecationWarning)

        def call(alias):
            return asyncio.run(sync_to_async(os.getpid, thread_sensitive=False, executor=alias)())

        aliases = ("reports", "threads", "cpu")
        before = {alias: (executors[alias], call(alias)) for alias in aliases}
        child = os.fork()
        if not child:
            assert not any(statistics()[alias].built for alias in aliases)
            for alias in aliases:
                assert executors[alias] is not before[alias][0]
                assert call(alias) != before[alias][1]
            executors.shutdown()
            # Python's own functions at exit would join the processes of the parent.
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert all(call(alias) == before[alias][1] for alias in aliases)
        assert statistics()["threads"].submitted == 2
        print("parent went on")
        """
    )
    assert "parent went on" in child.stdout
    assert child.stderr == ""


def test_executors_are_shut_down_at_exit_when_what_they_run_has_ended() -> None:
    child = run_child(
        """
        import atexit, threading
        from concurrent.futures import ThreadPoolExecutor
        from django.conf import settings

        class Telling(ThreadPoolExecutor):
            def shutdown(self, wait=True, **kwargs):
                print("shut down", wait)
                super().shutdown(wait, **kwargs)

        settings.configure(ASYNCBRIDGE={"EXECUTORS": {
            "reports": {"MAX_WORKERS": 1}, "own": {"BACKEND": "__main__.Telling"},
        }})
        import django
        django.setup()
        from django_asyncbridge.executors import executors

        leaving = threading.Event()
        atexit.register(leaving.set)
        def work():
            leaving.wait(10)
            print("ended")
        executors["reports"].submit(work)
        executors["own"].submit(print, "ended")
        """
    )
    assert sorted(child.stdout.splitlines()) == ["ended", "ended", "shut down True"]
    assert child.stderr == ""


# --- Figures ----------------------------------------------------------------------------


def test_statistics_builds_nothing() -> None:
    with given(manual={"BACKEND": MANUAL, "MAX_WORKERS": 2}, reports={}):
        figures = statistics()
        assert Manual.made == []
        assert figures["manual"] == ExecutorStatistics("manual", MANUAL, max_workers=2)
        assert figures["reports"].backend == "django_asyncbridge.bridge._workers.WorkerPool"
        assert figures["default"].built
        assert [one.built for one in figures.values()].count(True) == 1


def test_statistics_of_a_worker_pool_are_those_of_its_workers() -> None:
    with given(reports={"MAX_WORKERS": 1, "OPTIONS": {"wait_seconds": 0}}):
        busy = Busy(executors["reports"])
        with pytest.raises(TimeoutError):
            executors["reports"].submit(abs, -1).result(LIMIT_SECONDS)
        figures = statistics()["reports"]
        assert (figures.built, figures.max_workers, figures.workers) == (True, 1, 1)
        assert (figures.submitted, figures.running, figures.waiting) == (2, 1, 0)
        assert (figures.done, figures.failed) == (1, 1)
        busy.end()
        figures = statistics()["reports"]
        assert (figures.running, figures.done) == (0, 2)


def test_statistics_of_another_executor_are_those_of_its_futures() -> None:
    with given(manual={"BACKEND": MANUAL, "MAX_WORKERS": 3}):
        list_of_futures = [executors["manual"].submit(abs, -1) for _ in range(5)]
        _waiting, running, returned, raised, cancelled = list_of_futures
        running.set_running_or_notify_cancel()
        returned.set_result(1)
        raised.set_exception(ValueError())
        cancelled.cancel()
        assert statistics()["manual"] == ExecutorStatistics(
            alias="manual",
            backend=MANUAL,
            built=True,
            max_workers=3,
            workers=None,
            submitted=5,
            running=1,
            waiting=1,
            done=3,
            failed=1,
        )


# --- What cannot be built -----------------------------------------------------------------


class NotThere(Executor):
    """Runs nothing."""


no_class = threading.current_thread


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ExecutorConf(backend="no_such_package.Executor"), r"cannot be imported: ModuleNotFound"),
        (ExecutorConf(backend="concurrent.futures.NoSuch"), r"cannot be imported: ImportError"),
        (ExecutorConf(backend=f"{HERE}no_class"), r"is no subclass of concurrent\.futures\.Exec"),
        (ExecutorConf(backend="decimal.Decimal"), r"is no subclass of concurrent\.futures\.Exec"),
        (ExecutorConf(backend=f"{HERE}NotThere"), r"it has no submit\(\) of its own"),
        (ExecutorConf(backend=MANUAL, options={"colour": 1}), r"does not take .*colour"),
        (ExecutorConf(backend=f"{HERE}Unnamed"), r"does not take .*max_workers"),
        (ExecutorConf(backend=THREADS, max_workers=-1), r"ThreadPoolExecutor refused .*greater"),
        (
            ExecutorConf(backend=PROCESSES, options={"mp_context": "clone"}),
            r"'clone'; there are: \"",
        ),
        (ExecutorConf(backend=PROCESSES, options={"mp": "clone"}), r"does not take .*'mp'"),
        (ExecutorConf(options={"wait": 1}), r"OPTIONS has 'wait', but .*\"idle_seconds\" and"),
        (ExecutorConf(options={"wait_seconds": -1}), r"WorkerPool refused .*wait_seconds must be"),
        (ExecutorConf(max_workers=0), r"WorkerPool refused .*at least 1"),
    ],
)
def test_problems_names_what_keeps_an_executor_from_being_built(
    settings: ExecutorConf, message: str
) -> None:
    (problem,) = problems("reports", settings)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problem)


@pytest.mark.parametrize(
    "settings",
    [
        ExecutorConf(),
        ExecutorConf(max_workers=3, options={"idle_seconds": None, "wait_seconds": 1}),
        ExecutorConf(backend=THREADS, max_workers=2),
        ExecutorConf(backend=PROCESSES, options={"mp_context": "spawn"}),
        ExecutorConf(backend=MANUAL, options={"color": "red"}),
    ],
)
def test_problems_of_what_can_be_built_are_none_and_nothing_is_started(
    settings: ExecutorConf,
) -> None:
    threads = threading.active_count()
    assert problems("reports", settings) == []
    assert threading.active_count() == threads
    assert Manual.made == []


# --- Connections ----------------------------------------------------------------------------

CONNECTIONS = """
    import asyncio, sys, threading
    from django.conf import settings

    settings.configure(
        DATABASES={"default": {
            "ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1], "CONN_MAX_AGE": int(sys.argv[2]),
        }},
        ASYNCBRIDGE={"EXECUTORS": {"reports": {"MAX_WORKERS": 4}}},
    )
    import django
    django.setup()
    from django.db import connection, connections
    from django.db.backends.signals import connection_created
    from django_asyncbridge.bridge.sync import sync_to_async
    from django_asyncbridge.executors import executors, register
    register()

    opened = []
    def note(connection, **kwargs):
        opened.append(connection)
    connection_created.connect(note)

    together = threading.Barrier(4)

    @sync_to_async(thread_sensitive=False, executor="reports")
    def query():
        together.wait(10)
        with connection.cursor() as cursor:
            return cursor.execute("SELECT 1").fetchone()[0]

    def still_open():
        return sum(one.connection is not None for one in opened)

    async def at_once():
        return await asyncio.gather(*(query() for _ in range(4)))
"""


def test_c69_connections_of_a_named_executor_are_closed_after_each_call(tmp_path: Any) -> None:
    """pi-dash#228, channels#871/#1234: those of worker threads were never closed by request_finished."""
    run_child(
        CONNECTIONS
        + """
    async def main():
        for times in (1, 2):
            assert await at_once() == [1] * 4
            assert (len(opened), still_open()) == (4 * times, 0)

    asyncio.run(main())
    """,
        str(tmp_path / "db"),
        "0",
    )


def test_c69_connections_of_a_named_executor_are_kept_as_long_as_conn_max_age_allows(
    tmp_path: Any,
) -> None:
    """The same, with persistent connections: used again, and closed when their threads end."""
    run_child(
        CONNECTIONS
        + """
    async def main():
        for _ in range(2):
            assert await at_once() == [1] * 4
            assert (len(opened), still_open()) == (4, 4)

    asyncio.run(main())
    executors["reports"].shutdown()
    assert still_open() == 0
    """,
        str(tmp_path / "db"),
        "60",
    )


def test_c70_connection_of_a_background_task_in_a_named_executor_is_closed_after_its_call(
    tmp_path: Any,
) -> None:
    """A task that goes on after the response used the ORM in a thread that nobody looked after."""
    run_child(
        CONNECTIONS
        + """
    from django_asyncbridge.bridge.sync import ThreadSensitiveContext

    async def background(response_sent):
        await response_sent.wait()
        return await at_once()

    async def main():
        response_sent = asyncio.Event()
        async with ThreadSensitiveContext():
            task = asyncio.create_task(background(response_sent))
            await asyncio.sleep(0)
        response_sent.set()
        assert await task == [1] * 4
        assert (len(opened), still_open()) == (4, 0)

    asyncio.run(main())
    """,
        str(tmp_path / "db"),
        "0",
    )
