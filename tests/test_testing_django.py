"""`django_asyncbridge.testing` and the pytest plugin: async tests share the thread, connection and transaction of their fixtures.

The plugin is tried on a small project of its own, in a child process: these tests run without it.
"""

import asyncio
import functools
import importlib.metadata
import textwrap
import threading
import unittest
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from django.utils import translation

from django_asyncbridge import async_to_sync, sync_to_async
from django_asyncbridge.bridge.testing import ApplicationCommunicator
from django_asyncbridge.testing import HomeThreadMixin, count_crossings, home_thread
from tests.support import run_child, run_in_thread

get_ident = sync_to_async(threading.get_ident)

# --- count_crossings ---------------------------------------------------------------


def cross(times: int) -> None:
    async def main() -> None:
        for _ in range(times):
            await get_ident()

    asyncio.run(main())


def test_count_crossings_counts_those_of_the_block_and_names_them() -> None:
    cross(1)
    with count_crossings() as crossings:
        assert crossings.count == 0
        cross(2)
        with count_crossings() as inner:
            cross(3)
    cross(1)
    assert (crossings.count, inner.count) == (5, 3)
    assert [one.kind for one in inner.all] == ["sync_to_async"] * 3
    assert repr(inner) == "<Crossings: 3 (get_ident, get_ident, get_ident)>"


def test_count_crossings_leaves_out_what_others_do_meanwhile() -> None:
    with count_crossings() as crossings:
        run_in_thread(functools.partial(cross, 2))
    assert crossings.count == 0


# --- home_thread -------------------------------------------------------------------


def is_home() -> bool:
    return asyncio.run(get_ident()) == threading.get_ident()


def test_home_thread_blocks_nest_and_end() -> None:
    run, get_loop = asyncio.Runner.run, asyncio.Runner.get_loop
    with home_thread():
        with home_thread():
            assert is_home()
        assert is_home()
        assert not run_in_thread(is_home)
        with asyncio.Runner() as runner:
            loop = run_in_thread(runner.get_loop)
            assert "run_forever" not in vars(loop)
            assert "run_forever" in vars(runner.get_loop())
        # Another thread's block ends without this one.
        assert run_in_thread(home_thread()(is_home))
        assert is_home()
    assert not is_home()
    assert asyncio.Runner.run is run
    assert asyncio.Runner.get_loop is get_loop


def test_home_thread_below_somebody_elses_patch_leaves_that_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = asyncio.Runner.run
    with home_thread():
        ours = asyncio.Runner.run

        def theirs(*args: Any, **kwargs: Any) -> Any:
            return ours(*args, **kwargs)

        monkeypatch.setattr(asyncio.Runner, "run", theirs)
        assert is_home()
    assert not is_home()
    with home_thread():
        assert is_home()
    monkeypatch.undo()
    assert asyncio.Runner.run is ours
    with home_thread():
        assert is_home()
    assert asyncio.Runner.run is run


def test_home_thread_over_a_runner_made_before_hosts_its_loop() -> None:
    with asyncio.Runner() as runner:
        assert runner.run(get_ident()) != threading.get_ident()
        with home_thread():
            assert runner.run(get_ident()) == threading.get_ident()
        assert runner.run(get_ident()) != threading.get_ident()


def test_home_thread_in_a_sync_function_of_async_code_is_home_there() -> None:
    @home_thread()
    def inner() -> bool:
        return is_home()

    assert async_to_sync(sync_to_async(inner))()


def test_language_of_the_test_is_active_in_the_coroutine_after_the_move() -> None:
    async def main() -> list[str | None]:
        before = translation.get_language()
        await get_ident()
        after = translation.get_language()
        translation.activate("fr")
        return [before, after, await sync_to_async(translation.get_language)()]

    with translation.override("de"), home_thread():
        assert asyncio.run(main()) == ["de", "de", "fr"]
        assert translation.get_language() == "de"


class _Case(HomeThreadMixin, unittest.IsolatedAsyncioTestCase):
    threads: list[int]

    def setUp(self) -> None:
        self.threads = [threading.get_ident()]

    async def asyncSetUp(self) -> None:
        self.threads.append(await get_ident())

    async def test(self) -> None:
        self.threads.append(await get_ident())

    async def asyncTearDown(self) -> None:
        self.threads.append(await get_ident())


def test_mixin_runs_all_of_a_test_case_at_home() -> None:
    case = _Case("test")
    result = case.run(unittest.TestResult())
    assert result is not None
    assert result.wasSuccessful()
    assert case.threads == [threading.get_ident()] * 4
    case = _Case("test")
    case.debug()
    assert case.threads == [threading.get_ident()] * 4


# --- The plugin ----------------------------------------------------------------------

SITE = {
    "shelf/__init__.py": "",
    "shelf/models.py": """
        from django.db import models

        class Book(models.Model):
            title = models.CharField(max_length=80)
        """,
    "shelf/urls.py": """
        from django.http import JsonResponse
        from django.urls import path
        from shelf.models import Book

        async def view(request):
            await Book.objects.acreate(title="by an async view")
            return JsonResponse({"count": await Book.objects.acount()})

        def sync_view(request):
            Book.objects.create(title="by a sync view")
            return JsonResponse({"count": Book.objects.count()})

        urlpatterns = [path("async", view), path("sync", sync_view)]
        """,
    "shelf_settings.py": """
        from pathlib import Path

        HERE = Path(__file__).parent
        SECRET_KEY = "of the tests"
        INSTALLED_APPS = ["django_asyncbridge", "shelf"]
        MIDDLEWARE = ["django_asyncbridge.middleware.ThreadSensitiveContextMiddleware"]
        ROOT_URLCONF = "shelf.urls"
        # Files: connections to a database in memory see each other's rows.
        DATABASES = {"default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": HERE / "db.sqlite3",
            "TEST": {"NAME": HERE / "test.sqlite3"},
        }}
        """,
    "conftest.py": """
        import threading
        import pytest
        from asgiref.sync import sync_to_async

        @pytest.fixture
        def book(db):
            from shelf.models import Book
            return Book.objects.create(title="by a fixture")

        @pytest.fixture
        def get_ident():
            return sync_to_async(threading.get_ident)
        """,
}
HEAD = """
    import asyncio, signal, threading, unittest
    import pytest, pytest_asyncio, uvloop
    from asgiref.sync import sync_to_async
    from django.db import transaction
    from django.test import TestCase
    from django_asyncbridge import ThreadSensitiveContext, check_cancelled
    from shelf.models import Book

    home = threading.get_ident()
"""


def run_tests(
    path: Path, source: str, *options: str, ini: str = "", code: int = 0, **outcomes: int
) -> str:
    """Run `source` as the tests of the small project, and check how many passed, failed and so on."""
    for name, text in SITE.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(textwrap.dedent(text))
    tests = path / "test_shelf.py"
    tests.write_text(textwrap.dedent(HEAD) + textwrap.dedent(source))
    config = path / "pytest.ini"
    config.write_text(
        "[pytest]\npythonpath = .\nfilterwarnings = error\n"
        "asyncio_default_fixture_loop_scope = function\n" + textwrap.dedent(ini)
    )
    child = run_child(
        "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))",
        *("-c", str(config), "--rootdir", str(path), "-p", "no:cacheprovider", "--strict-config"),
        *("-q", *options, str(tests)),
        timeout_seconds=60,
        expect_code=code,
        DJANGO_SETTINGS_MODULE="shelf_settings",
    )
    for outcome, count in outcomes.items():
        assert f"{count} {outcome}" in child.stdout, child.stdout
    return child.stdout


def test_plugin_is_an_entry_point() -> None:
    (found,) = importlib.metadata.entry_points(group="pytest11", name="asyncbridge")
    assert found.value == "django_asyncbridge.pytest_plugin"


FIXTURES = """
    @pytest_asyncio.fixture
    async def abook(db):
        yield await Book.objects.acreate(title="by an async fixture")
        assert await Book.objects.acount() == 3

    # Twice: what the first leaves behind the second would see.
    @async_test
    @pytest.mark.parametrize("time", [1, 2])
    async def test_rows_are_shared_and_rolled_back(book, get_ident, time):
        assert await Book.objects.acount() == 1
        await Book.objects.acreate(title="by a test")
        assert await asyncio.gather(*(Book.objects.acount() for _ in range(5))) == [2] * 5
        assert await get_ident() == home
        assert await sync_to_async(threading.get_ident, thread_sensitive=False)() != home

    @async_test
    async def test_async_fixture(book, abook):
        assert await Book.objects.acount() == 2
        await Book.objects.acreate(title="by a test")

    @async_test
    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize("time", [1, 2])
    async def test_transactional(time):
        assert await Book.objects.acount() == 0
        with_atomic = transaction.atomic()(lambda: Book.objects.create(title="committed"))
        await sync_to_async(with_atomic)()
        assert await Book.objects.acount() == 1

    @async_test
    async def test_client(book, async_client):
        assert (await async_client.get("/async")).json() == {"count": 2}
        async with ThreadSensitiveContext():
            assert (await async_client.get("/sync")).json() == {"count": 3}

    @async_test
    async def test_timeout(book):
        running = threading.Event()

        def slow():
            Book.objects.create(title="by a call that is cancelled")
            running.set()
            while True:
                check_cancelled()

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await sync_to_async(slow)()
        assert running.is_set() and await Book.objects.acount() == 2

    def test_run(book):
        assert asyncio.run(Book.objects.acount()) == 1
"""


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_plugin_with_pytest_asyncio_shares_the_transaction(tmp_path: Path, mode: str) -> None:
    marker = "" if mode == "auto" else "@pytest.mark.asyncio"
    run_tests(
        tmp_path,
        FIXTURES.replace("@async_test", marker),
        ini=f"asyncio_mode = {mode}\n",
        passed=8,
    )


def test_plugin_with_anyio_shares_the_transaction(tmp_path: Path) -> None:
    pytest.importorskip("anyio")
    source = """
        @pytest.fixture(params=["asyncio", ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"])
        def anyio_backend(request):
            return request.param

        @pytest.fixture
        async def abook(book, anyio_backend):
            yield await Book.objects.acreate(title="by an async fixture")
            assert await Book.objects.acount() == 3

        @pytest.mark.anyio
        async def test_it(abook, async_client, get_ident):
            assert await get_ident() == home
            assert (await async_client.get("/async")).json() == {"count": 3}
        """
    run_tests(tmp_path, source, passed=2)


def test_plugin_with_test_cases_shares_the_transaction(tmp_path: Path) -> None:
    source = """
        class DjangoTests(TestCase):
            @classmethod
            def setUpTestData(cls):
                Book.objects.create(title="of the class")

            async def test_it(self):
                self.assertEqual(await Book.objects.acount(), 1)
                async with ThreadSensitiveContext():
                    await Book.objects.acreate(title="by a test")
                    self.assertEqual(await sync_to_async(threading.get_ident)(), home)
                self.assertEqual((await self.async_client.get("/sync")).json(), {"count": 3})
                self.assertEqual((await self.async_client.get("/async")).json(), {"count": 4})

            test_again = test_it

        class IsolatedTests(unittest.IsolatedAsyncioTestCase, TestCase):
            def setUp(self):
                Book.objects.create(title="by setUp")

            async def asyncSetUp(self):
                await Book.objects.acreate(title="by asyncSetUp")

            async def test_it(self):
                self.assertEqual(await Book.objects.acount(), 2)
                self.assertEqual(await sync_to_async(threading.get_ident)(), home)
                self.assertEqual((await self.async_client.get("/sync")).json(), {"count": 3})

            async def asyncTearDown(self):
                self.assertEqual(await Book.objects.acount(), 3)

            test_again = test_it
        """
    run_tests(tmp_path, source, passed=4)


@pytest.mark.parametrize("factory", ["asyncio.new_event_loop", "uvloop.new_event_loop"])
def test_plugin_with_a_loop_of_the_module_keeps_its_tasks(tmp_path: Path, factory: str) -> None:
    source = f"""
        pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.django_db]

        @pytest.fixture(scope="module")
        def _asyncio_loop_factory():
            return {factory}

        threads = []

        @pytest_asyncio.fixture(scope="module", loop_scope="module")
        async def beating():
            async def beat():
                while True:
                    threads.append(await sync_to_async(threading.get_ident)())

            task = asyncio.create_task(beat())
            yield task
            task.cancel()

        @pytest.mark.parametrize("time", range(5))
        async def test_it(book, beating, time):
            count = len(threads)
            assert await Book.objects.acount() == 1
            while len(threads) < count + 3:
                await asyncio.sleep(0)
            assert not beating.done() and set(threads) == {{home}}
            assert type(asyncio.get_running_loop()).__module__.startswith({factory.split(".", maxsplit=1)[0]!r})
        """
    run_tests(tmp_path, source, passed=5)


def test_plugin_reports_failures_and_rolls_back(tmp_path: Path) -> None:
    source = """
        @pytest.mark.asyncio
        @pytest.mark.parametrize("time", [1, 2])
        async def test_it(book, time):
            assert await Book.objects.acount() == 1
            raise LookupError("as expected")
        """
    out = run_tests(tmp_path, source, code=1, failed=2)
    assert out.count("LookupError: as expected") >= 2


def test_plugin_ends_at_ctrl_c(tmp_path: Path) -> None:
    source = """
        @pytest.mark.asyncio
        async def test_it(book):
            await Book.objects.acount()
            await sync_to_async(signal.raise_signal)(signal.SIGINT)
            await asyncio.sleep(60)
        """
    assert "KeyboardInterrupt" in run_tests(tmp_path, source, code=2)


NOT_SHARED = """
    def test_it():
        assert asyncio.run(sync_to_async(threading.get_ident)()) != home
"""


def test_plugin_that_is_switched_off_does_nothing(tmp_path: Path) -> None:
    run_tests(tmp_path, NOT_SHARED, ini="asyncbridge_home_thread = false\n", passed=1)


def test_plugin_without_the_app_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SITE["shelf_settings.py"].replace('"django_asyncbridge", ', "")
    monkeypatch.setitem(SITE, "shelf_settings.py", settings)
    run_tests(tmp_path, NOT_SHARED, passed=1)


def test_plugin_without_django_imports_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent(
            """
            import sys

            def test_it():
                assert "django_asyncbridge.pytest_plugin" in sys.modules
                assert not {"django", "django_asyncbridge.testing"} & set(sys.modules)
            """
        )
    )
    run_child(
        "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))",
        *("-q", "-p", "no:django", "-p", "no:asyncio", "-p", "no:cacheprovider", "-W", "error"),
        *("-c", "/dev/null", "--rootdir", str(tmp_path), str(tmp_path)),
    )


# --- count_crossings and communicators ------------------------------------------------


def test_count_crossings_counts_what_a_communicator_runs() -> None:
    seen: list[object] = []
    variable: ContextVar[str] = ContextVar("variable", default="unset")

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append(variable.get())
        await get_ident()

    async def main() -> int:
        variable.set("the test's")
        asking = ApplicationCommunicator(application, {"type": "http"})
        with count_crossings() as crossings:
            await asking.wait()
        return crossings.count

    assert asyncio.run(main()) == 1
    # Of the application's own variables none is inherited.
    assert seen == ["unset"]
