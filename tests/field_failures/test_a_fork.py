"""Section A, C12: a forked child starts with clean state."""

from tests.support import run_child

FORK = """
    import asyncio, faulthandler, os, sys, threading, traceback, warnings
    from concurrent.futures import ThreadPoolExecutor
    from django_asyncbridge.bridge.sync import (
        ThreadSensitiveContext, async_to_sync, sync_to_async
    )

    # Python 3.12 and later warn of every fork with threads, which is what is tested here.
    warnings.simplefilter("ignore", DeprecationWarning)
    get_ident = sync_to_async(threading.get_ident)

    async def answer():
        await asyncio.sleep(0)
        return "async"

    async def nested():
        return await sync_to_async(lambda: async_to_sync(get_ident)() == threading.get_ident())()

    async def every_way():
        assert await nested()
        assert await sync_to_async(lambda: "sync", thread_sensitive=False)() == "sync"
        async with ThreadSensitiveContext():
            assert await get_ident() == await get_ident()
            assert await nested()

    def work_in_child():
        faulthandler.dump_traceback_later(8, exit=True)
        assert async_to_sync(answer)() == "async"
        asyncio.run(every_way())
        async_to_sync(every_way)()
        assert async_to_sync(get_ident)() == threading.get_ident()

    def fork():
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work_in_child()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0, "the forked child failed"
        return threading.get_ident()
"""


def test_c12_child_forked_after_use_works() -> None:
    """C12: a child does not wait for a thread that lives only in its parent."""
    run_child(
        FORK
        + """
    shared = asyncio.run(get_ident())
    async_to_sync(every_way)()
    fork()
    assert asyncio.run(get_ident()) == shared
    asyncio.run(every_way())
    """
    )


def test_c12_child_forked_in_a_sync_function_works_and_the_parent_goes_on() -> None:
    """C12: the child starts with the state of the forking thread, which means nothing there."""
    run_child(
        FORK
        + """
    def view():
        fork()
        loop = async_to_sync(running_loop)()
        return loop, threading.get_ident(), async_to_sync(get_ident)()

    async def running_loop():
        return asyncio.get_running_loop()

    async def main():
        loop, ident, nested_ident = await sync_to_async(view)()
        assert loop is asyncio.get_running_loop()
        assert ident == nested_ident == await get_ident()
        await every_way()

    asyncio.run(main())

    async def request():
        async with ThreadSensitiveContext():
            await main()

    asyncio.run(request())
    """
    )


def test_c12_child_forked_in_a_function_served_by_its_sync_caller_works() -> None:
    """C12: the waiting call above the fork exists only in the parent, where it goes on."""
    run_child(
        FORK
        + """
    async def main():
        assert await sync_to_async(fork)() == threading.main_thread().ident
        assert await get_ident() == threading.main_thread().ident

    async_to_sync(main)()

    async def outer():
        assert await sync_to_async(lambda: async_to_sync(inner)() == threading.get_ident())()

    async def inner():
        return await sync_to_async(fork)()

    asyncio.run(outer())
    async_to_sync(outer)()
    """
    )


def test_c12_child_process_of_multiprocessing_works() -> None:
    """C12: the same by `multiprocessing` with its fork method, as Celery's prefork pool does."""
    run_child(
        FORK
        + """
    import multiprocessing

    asyncio.run(every_way())
    process = multiprocessing.get_context("fork").Process(target=work_in_child)
    process.start()
    process.join(10)
    assert process.exitcode == 0, process.exitcode
    """
    )


def test_c12_children_forked_while_other_threads_use_the_bridge_work() -> None:
    """C12: a lock that another thread of the parent held at the fork does not stop the child."""
    run_child(
        FORK
        + """
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            async_to_sync(every_way)()

    with ThreadPoolExecutor(2) as pool:
        busy_threads = [pool.submit(busy) for _ in range(2)]
        try:
            for _ in range(6):
                fork()
        finally:
            stop.set()
        for thread in busy_threads:
            thread.result()
    """
    )
