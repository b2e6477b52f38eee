"""G: Django under ASGI.

The handler: `test_g_handler`. Elsewhere: C68 and C77 on a real server (`tests.postgres`), C69 there and in `test_executors`, C74 in `test_testing_django`, C78 in
`test_db` and its neighbours.
"""

from pathlib import Path

import pytest

from tests.support import run_child

SITE = """
    import asyncio, sys, threading
    from testproject import settings

    settings.DATABASES["default"].update(NAME=sys.argv[1], CONN_MAX_AGE=eval(sys.argv[2]))
    settings.ROOT_URLCONF = "__main__"
    # On a busy machine a thread may be handed over so slowly that another one is started.
    settings.ASYNCBRIDGE = {"REQUEST_THREADS": {"MAX": 1}}
    import django
    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.core.signals import request_finished, request_started
    from django.db import connection
    from django.db.backends.signals import connection_created
    from django.http import HttpResponse
    from django.urls import path
    from django_asyncbridge import sync_to_async
    from django_asyncbridge.asgi import get_asgi_application
    from django_asyncbridge.bridge.sync import pool_statistics
    from tests.handlers.requests import get

    call_command("migrate", verbosity=0)
    connection.close()
    created, started, tasks = [], [], []
    connection_created.connect(lambda **_: created.append(threading.current_thread()), weak=False)
    thread_start = threading.Thread.start

    def start(thread):
        started.append(thread)
        thread_start(thread)

    threading.Thread.start = start

    def count(request):
        return HttpResponse(str(User.objects.count()))

    async def leave_a_task(request):
        async def late():
            await answered.wait()
            return await User.objects.acount(), await sync_to_async(threading.current_thread)()
        tasks.append(asyncio.create_task(late()))
        return HttpResponse("left")

    urlpatterns = [path("count/", count), path("task/", leave_a_task)]
    application = get_asgi_application()
"""


@pytest.fixture
def database(tmp_path: Path) -> str:
    return str(tmp_path / "db.sqlite3")


def test_c68_connections_of_requests_are_used_again(database: str) -> None:
    """A new one for each request, none used again, and the old ones left to the garbage collector."""
    run_child(
        SITE
        + """
    async def main():
        for _ in range(20):
            assert (await get(application, "/count/")).body == b"0"
    asyncio.run(main())
    assert len(created) == 1
    """,
        database,
        "None",
    )


def test_c70_task_that_outlives_its_request_uses_the_one_shared_thread(database: str) -> None:
    """A new thread for each such task, whose connection nobody closes."""
    run_child(
        SITE
        + """
    async def main():
        global answered
        answered = asyncio.Event()
        for _ in range(5):
            assert (await get(application, "/task/")).body == b"left"
        answered.set()
        found = await asyncio.gather(*tasks)
        assert {count for count, _ in found} == {0}
        (thread,) = {thread for _, thread in found}
        assert thread.name == "asyncbridge-shared-1"
    asyncio.run(main())
    assert [thread.name for thread in created].count("asyncbridge-shared-1") == 1
    """,
        database,
        "None",
    )


def test_c73_sync_receivers_of_request_signals_start_no_thread_for_each_request(
    database: str,
) -> None:
    run_child(
        SITE
        + """
    seen = []
    for signal in (request_started, request_finished):
        signal.connect(lambda **_: seen.append(threading.current_thread()), weak=False)
    async def main():
        for _ in range(20):
            await get(application, "/count/")
    asyncio.run(main())
    assert len(seen) == 40
    assert len(set(seen)) == 1
    assert [one.name for one in started if "watch" not in one.name] == ["asyncbridge-request-1"]
    """,
        database,
        "0",
    )


def test_c81_helper_works_where_an_event_loop_runs_in_the_thread_of_sync_code(
    database: str,
) -> None:
    """As in a notebook: sync ORM calls are refused, and users switch the safety off."""
    run_child(
        SITE
        + """
    from django.core.exceptions import SynchronousOnlyOperation
    from django_asyncbridge.db import sync_or_async

    @sync_or_async
    def count_users():
        return User.objects.count()

    async def cell():
        try:
            User.objects.count()
        except SynchronousOnlyOperation:
            return await count_users()
    assert asyncio.run(cell()) == count_users() == 0
    """,
        database,
        "0",
    )
