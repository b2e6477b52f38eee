"""Thousands of requests at once: those that wait hold no threads, and those that hold one keep nobody out in silence.

In a child process, since all of it would hang if it were broken.
"""

from tests.support import run_child

SITE = """
    import asyncio, os, sys, threading

    import django
    from django.conf import settings
    from django.http import HttpResponse, StreamingHttpResponse
    from django.urls import path

    settings.configure(
        SECRET_KEY="a key",
        ROOT_URLCONF=__name__,
        INSTALLED_APPS=["django_asyncbridge", "django.contrib.sessions"],
        SESSION_ENGINE="django.contrib.sessions.backends.cache",
        MIDDLEWARE=[
            "django.middleware.security.SecurityMiddleware",
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.middleware.clickjacking.XFrameOptionsMiddleware",
        ],
        ALLOWED_HOSTS=["*"],
        ASYNCBRIDGE={"REQUEST_THREADS": {"MAX": eval(sys.argv[1]), "WAIT_SECONDS": 0.05}},
    )

    from django_asyncbridge.asgi import get_asgi_application
    from django_asyncbridge.bridge import _state
    from django_asyncbridge.handlers import departure
    from tests.handlers.requests import get

    here = 0
    upstream = answers = None

    async def slow(request):
        global here
        here += 1
        await upstream.wait()
        return HttpResponse("slow")

    async def events(request):
        # A key that nobody has: it is looked for, in the request's thread.
        request.session._session_key = "a" * 32
        assert await request.session.aget("user") is None

        async def parts():
            global here
            yield b"data: first\\n\\n"
            here += 1
            await upstream.wait()

        return StreamingHttpResponse(parts(), content_type="text/event-stream")

    def hello(request):
        return HttpResponse("hello")

    async def ahello(request):
        return HttpResponse("hello")

    urlpatterns = [
        path("slow/", slow),
        path("events/", events),
        path("hello/", hello),
        path("ahello/", ahello),
    ]

    async def wait_for(count, tasks):
        while here < count:
            assert not any(task.done() and task.exception() for task in tasks)
            await asyncio.sleep(0.01)

    async def asked(application, address, count):
        tasks = [asyncio.create_task(get(application, address)) for _ in range(count)]
        await wait_for(count, tasks)
        return tasks

    async def ended(tasks):
        upstream.set()
        return {(one.status, one.body) for one in await asyncio.gather(*tasks)}

    def threads():
        return sum(one.name.startswith("asyncbridge-request") for one in threading.enumerate())

    def run(main):
        async def whole():
            global upstream
            upstream = asyncio.Event()
            await main(get_asgi_application())
        asyncio.run(whole())
"""


def run_site(maximum: int | None, main: str) -> None:
    run_child(SITE + main, repr(maximum), timeout_seconds=100)


def test_ten_thousand_async_requests_that_wait_for_an_upstream_hold_no_thread() -> None:
    run_site(
        None,
        """
    async def main(application):
        # The first of all imports the cache, in a thread.
        assert (await get(application, "/ahello/")).status == 200
        lent = _state.request_workers.statistics().lent
        tasks = await asked(application, "/slow/", 10_000)
        assert (await get(application, "/ahello/")).status == 200
        assert _state.request_workers.statistics().lent == lent
        assert threads() <= 1, threads()
        assert await ended(tasks) == {(200, b"slow")}

    run(main)
    """,
    )


def test_a_thousand_event_streams_that_touched_the_session_let_a_new_request_in() -> None:
    run_site(
        None,
        """
    async def main(application):
        tasks = await asked(application, "/events/", 1_000)
        assert threads() == 1_000, threads()
        assert (await get(application, "/hello/")).body == b"hello"
        assert await ended(tasks) == {(200, b"data: first\\n\\n")}

    run(main)
    """,
    )


def test_event_streams_that_hold_all_threads_have_a_new_request_answered_503_with_the_reason() -> (
    None
):
    run_site(
        20,
        """
    import logging
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("django_asyncbridge.handlers").addHandler(handler)

    async def main(application):
        tasks = await asked(application, "/events/", 20)
        answer = await get(application, "/hello/")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1"), answer.status
        (message,) = said
        assert message.startswith("Service Unavailable: GET /hello/: "), message
        assert "to GET /events/" in message, message
        # What needs no thread is served.
        assert (await get(application, "/ahello/")).status == 200
        assert await ended(tasks) == {(200, b"data: first\\n\\n")}
        assert (await get(application, "/hello/")).status == 200

    run(main)
    """,
    )
