"""No request sees what belongs to another: language, time zone, urlconf, user, messages, transaction, thread-locals of Django's.

One program serves many requests at once in few threads. Each finds out at its begin, at every step and at its end whether all it
sees is its own; some leave things behind on purpose, fail, or have their client leave.
"""

from pathlib import Path

import pytest

from tests.support import run_child

PROGRAM = '''
    import asyncio, logging, random, sys, threading, zoneinfo
    from testproject import settings

    settings.DATABASES["default"].update(NAME=sys.argv[1], CONN_MAX_AGE=eval(sys.argv[2]))
    settings.ROOT_URLCONF = "__main__"
    settings.DEBUG = False
    settings.LANGUAGES = [(code, code) for code in ("de", "fr", "ja", "en-us")]
    settings.MIDDLEWARE.insert(0, "__main__.Own")
    settings.ASYNCBRIDGE = {"REQUEST_THREADS": {"MAX": 4}, "ACCELERATE_DJANGO": eval(sys.argv[3])}
    sys.modules["__main__"].__dict__.setdefault("__file__", "apart.py")

    import django
    django.setup()
    logging.disable(logging.CRITICAL)
    from asgiref.local import Local as TheirLocal
    from django.contrib import messages
    from django.contrib.auth import aauthenticate, alogin, get_user
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connection, transaction
    from django.http import HttpResponse
    from django.urls import get_urlconf, path, set_urlconf
    from django.utils import timezone, translation
    from django.utils.decorators import sync_and_async_middleware
    from django_asyncbridge import Local, sync_to_async
    from django_asyncbridge.asgi import get_asgi_application
    from django_asyncbridge.db import aatomic
    from tests.handlers.requests import Answer, scope

    ZONES = sorted(zoneinfo.available_timezones())[:40]
    LANGUAGES = ["de", "fr", "ja"]
    ours, theirs = Local(), TheirLocal()
    wrong = []

    def expect(what, seen, wanted):
        if seen != wanted:
            wrong.append((what, seen, wanted))

    def begin(request):
        expect("zone at the begin", timezone.get_current_timezone_name(), "UTC")
        expect("language at the begin", translation.get_language(), "en-us")
        expect("urlconf at the begin", get_urlconf(), "__main__")
        expect("ours", getattr(ours, "number", None), None)
        expect("theirs", getattr(theirs, "number", None), None)
        request.number = int(request.headers["x-number"])
        ours.number = theirs.number = request.number
        timezone.activate(ZONES[request.number % len(ZONES)])
        translation.activate(LANGUAGES[request.number % len(LANGUAGES)])

    def look(request, where):
        number = request.number
        expect(("zone", where), timezone.get_current_timezone_name(), ZONES[number % len(ZONES)])
        expect(("language", where), translation.get_language(), LANGUAGES[number % len(LANGUAGES)])
        expect(("ours", where), getattr(ours, "number", None), number)
        expect(("theirs", where), getattr(theirs, "number", None), number)

    class Own:
        """A middleware in two parts: sync hooks would each have a crossing of their own."""
        sync_capable, async_capable = False, True

        def __init__(self, get_response):
            self.get_response = get_response
            from django_asyncbridge.bridge.sync import markcoroutinefunction
            markcoroutinefunction(self)

        async def __call__(self, request):
            begin(request)
            await sync_to_async(look)(request, "middleware, thread")
            try:
                response = await self.get_response(request)
            finally:
                look(request, "middleware, back")
            return response

    def in_transaction(request):
        look(request, "sync view")
        expect("a transaction at the begin", connection.in_atomic_block, False)
        name = f"user-{request.number}"
        if request.number % 7 == 0:
            transaction.atomic().__enter__()
            User.objects.create(username=name + "-left-open")
        with transaction.atomic():
            User.objects.create(username=name)
            if request.number % 5 == 0:
                raise ValueError("rolled back")
        messages.info(request, name)
        expect("messages", [str(one) for one in messages.get_messages(request)], [name])
        expect("user", request.user.is_anonymous, True)
        look(request, "sync view, end")
        return HttpResponse(str(request.number))

    async def across(request):
        look(request, "async view")
        name = f"user-{request.number}"
        async with aatomic():
            await User.objects.acreate(username=name)
            await sync_to_async(look)(request, "async view, thread")
            for _ in range(request.number % 4):
                await asyncio.sleep(0)
            if request.number % 5 == 0:
                raise ValueError("rolled back")
        if request.number % 11 == 0:
            set_urlconf("nowhere")
        user = await User.objects.aget(username=name)
        await alogin(request, user, "django.contrib.auth.backends.ModelBackend")
        expect("user", (await request.auser()).pk, user.pk)
        await sync_to_async(look)(request, "async view, thread again")
        look(request, "async view, end")
        return HttpResponse(str(request.number))

    urlpatterns = [path("sync/", in_transaction), path("async/", across)]
    call_command("migrate", verbosity=0)
    connection.close()
    application = get_asgi_application()

    async def ask(number):
        address = "/sync/" if number % 2 else "/async/"
        request = scope(address)
        request["headers"].append((b"x-number", b"%d" % number))
        answer, turns = Answer(), number % 29
        asked = iter([{"type": "http.request"}])

        async def receive():
            for message in asked:
                return message
            if number % 3 == 0:
                for _ in range(turns):
                    await asyncio.sleep(0)
                return {"type": "http.disconnect"}
            await asyncio.Event().wait()

        await application(request, receive, answer.send)
        if number % 3:
            expect("answer", answer.status, 500 if number % 5 == 0 else 200)
            if number % 5:
                expect("body", answer.body, b"%d" % number)

    async def main():
        numbers = iter(range(1, COUNT))

        async def client():
            for number in numbers:
                # A task for each, as servers have.
                await asyncio.create_task(ask(number))

        await asyncio.gather(*(client() for _ in range(16)))

    COUNT = int(sys.argv[4])
    asyncio.run(main())
    assert not wrong, (len(wrong), wrong[:10])
    names = set(User.objects.values_list("username", flat=True))
    assert not [name for name in names if name.endswith("left-open")], "a transaction was not rolled back"
    for number in range(1, COUNT):
        there = f"user-{number}" in names
        if number % 5 == 0 or (number % 7 == 0 and number % 2):
            assert not there, number
        elif number % 3:
            assert there, number
'''


@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize("max_age", [None, 0])
def test_requests_at_once_see_nothing_of_each_other(
    tmp_path: Path, max_age: int | None, accelerated: bool
) -> None:
    run_child(
        PROGRAM,
        str(tmp_path / "db.sqlite3"),
        str(max_age),
        str(accelerated),
        "400",
        timeout_seconds=90,
    )
