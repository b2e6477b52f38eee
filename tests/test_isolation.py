"""The bridge stands alone: standard library and typing_extensions, nothing running after an import.

Each test is a child process, since this one has Django and asgiref loaded.
"""

from tests.support import run_child

# Makes the import of anything else fail as if it were not installed. What the child's own start-up loaded
# (a measuring tool, for instance) is not ours and may go on.
STANDARD_LIBRARY_ONLY = """
import sys

class Refuse:
    refused = {"django", "asgiref"}
    allowed = {*sys.stdlib_module_names, "typing_extensions", "django_asyncbridge"}
    allowed |= {name.partition(".")[0] for name in sys.modules} - refused

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.allowed:
            raise ModuleNotFoundError(f"No module named {name!r} (refused by the test)", name=name)

sys.meta_path.insert(0, Refuse())
"""

IMPORT_EVERY_BRIDGE_MODULE = """
import importlib, pkgutil
import django_asyncbridge.bridge
for info in pkgutil.iter_modules(django_asyncbridge.bridge.__path__):
    importlib.import_module(f"django_asyncbridge.bridge.{info.name}")
"""

ASSERT_NOTHING_FOREIGN = """
foreign = {name for name in sys.modules if name.partition(".")[0] in {"django", "asgiref"}}
assert not foreign, foreign
"""


def test_isolation_hook_refuses_installed_packages() -> None:
    run_child(
        STANDARD_LIBRARY_ONLY
        + """
for name in ("django", "asgiref", "asgiref.sync", "uvicorn", "pytest"):
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        assert "refused" in str(error)
    else:
        raise AssertionError(name)
"""
    )


def test_isolation_every_module_imports_without_django_and_asgiref() -> None:
    run_child(STANDARD_LIBRARY_ONLY + IMPORT_EVERY_BRIDGE_MODULE + ASSERT_NOTHING_FOREIGN)


def test_isolation_sync_and_local_work_without_django_and_asgiref() -> None:
    run_child(
        STANDARD_LIBRARY_ONLY
        + """
import threading
from django_asyncbridge import Local, ThreadSensitiveContext, async_to_sync, sync_to_async

local = Local()

def sync_leaf():
    local.back = local.there + 1
    return threading.get_ident()

async def main():
    home = await sync_to_async(sync_leaf)()
    async with ThreadSensitiveContext():
        assert await sync_to_async(threading.get_ident)() == home
    other = await sync_to_async(threading.get_ident, thread_sensitive=False)()
    return home, other

local.there = 1
home, other = async_to_sync(main)()
assert home == threading.get_ident() != other
assert local.back == 2
"""
        + ASSERT_NOTHING_FOREIGN
    )


def test_isolation_current_thread_executor_works_without_django_and_asgiref() -> None:
    run_child(
        STANDARD_LIBRARY_ONLY
        + """
import threading
from concurrent.futures import Future
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor

executor, done = CurrentThreadExecutor(None), Future()

def elsewhere():
    done.set_result(executor.submit(threading.get_ident).result(10))

thread = threading.Thread(target=elsewhere)
thread.start()
executor.run_until_future(done)
thread.join()
assert done.result() == threading.get_ident()
"""
        + ASSERT_NOTHING_FOREIGN
    )


def test_isolation_wsgi_and_testing_work_without_django_and_asgiref() -> None:
    run_child(
        STANDARD_LIBRARY_ONLY
        + """
import asyncio
from django_asyncbridge.bridge.testing import ApplicationCommunicator
from django_asyncbridge.bridge.wsgi import WsgiToAsgi

def hello(environ, start_response):
    start_response("200 OK", [("X-Path", environ["PATH_INFO"])])
    yield environ["wsgi.input"].read()

SCOPE = {
    "type": "http",
    "http_version": "1.1",
    "method": "POST",
    "path": "/there",
    "query_string": b"",
    "headers": [],
}

async def main():
    communicator = ApplicationCommunicator(WsgiToAsgi(hello), SCOPE)
    await communicator.send_input({"type": "http.request", "body": b"back"})
    start = await communicator.receive_output(10)
    assert start["status"] == 200
    assert (b"x-path", b"/there") in [tuple(pair) for pair in start["headers"]]
    assert (await communicator.receive_output(10))["body"] == b"back"
    await communicator.wait(10)

asyncio.run(main())
"""
        + ASSERT_NOTHING_FOREIGN
    )


def test_isolation_server_and_compatibility_work_without_django_and_asgiref() -> None:
    run_child(
        STANDARD_LIBRARY_ONLY
        + """
import asyncio
from django_asyncbridge.bridge.compatibility import guarantee_single_callable, is_double_callable
from django_asyncbridge.bridge.server import StatelessServer

class Legacy:
    def __init__(self, scope):
        self.scope = scope

    async def __call__(self, receive, send):
        await send({"type": "answer", "to": await receive(), "of": self.scope["id"]})

class Server(StatelessServer):
    async def handle(self):
        self.answer = asyncio.get_running_loop().create_future()
        queue = self.get_or_create_application_instance("one", {"type": "test", "id": 1})
        queue.put_nowait("question")
        await self.answer

    async def application_send(self, scope, message):
        self.answer.set_result(message)

assert is_double_callable(Legacy)
assert not is_double_callable(guarantee_single_callable(Legacy))
server = Server(Legacy)
server.run()
assert server.answer.result() == {"type": "answer", "to": "question", "of": 1}
"""
        + ASSERT_NOTHING_FOREIGN
    )


def test_isolation_timeout_and_typing_work_without_django_and_asgiref() -> None:
    run_child(
        STANDARD_LIBRARY_ONLY
        + """
import asyncio, typing, warnings
from django_asyncbridge.bridge import typing as asgi
from django_asyncbridge.bridge.timeout import timeout

warnings.simplefilter("ignore", DeprecationWarning)

async def main():
    never = asyncio.get_running_loop().create_future()
    try:
        async with timeout(0.01) as deadline:
            await never
    except TimeoutError:
        assert deadline.expired
    else:
        raise AssertionError("did not end")

asyncio.run(main())
assert typing.get_type_hints(asgi.HTTPScope)["path"] is str
"""
        + ASSERT_NOTHING_FOREIGN
    )


def test_isolation_import_of_the_package_loads_neither_django_nor_asgiref() -> None:
    run_child("import sys, django_asyncbridge\n" + ASSERT_NOTHING_FOREIGN)


def test_isolation_import_starts_no_thread_and_opens_no_descriptor_and_no_loop() -> None:
    run_child(
        """
import asyncio, os, threading

def descriptors():
    found = set()
    for number in range(256):
        try:
            os.fstat(number)
        except OSError:
            continue
        found.add(number)
    return found

started = []
asyncio.BaseEventLoop.__init__ = lambda loop, *args: started.append(loop)
threading.Thread.start = lambda thread: started.append(thread)
before = descriptors(), threading.enumerate()
"""
        + IMPORT_EVERY_BRIDGE_MODULE
        + """
assert (descriptors(), threading.enumerate()) == before
assert started == []
"""
    )
