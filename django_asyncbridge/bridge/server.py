"""A base for servers whose clients have no connection to this process.

Datagrams, messages of a channel layer, requests that something else parses: the server finds out for
itself which application instance each belongs to (the scope id). The base class keeps the instances: makes
them, finds them again, ends them when there are too many, reports how they failed, leaves none behind.

An instance is one task with one input queue. It is in `application_instances` until it is deleted (by name,
evicted, or found ended). Deleting cancels; the task may take its time to end, and until then
`_applications` holds it. A failure is reported once, by whoever first finds the instance ended. All of this
happens on the thread of the event loop that runs `arun`; nothing here may be called from another one.
"""

import asyncio
import functools
import logging
import math
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from django_asyncbridge.bridge._ending import (
    InputQueue,
    Sigterm,
    ended,
    failure_of,
    is_idle,
    raise_failure,
    to_the_end,
    watch,
)
from django_asyncbridge.bridge.compatibility import guarantee_single_callable

__all__ = ("StatelessServer",)

logger = logging.getLogger("django_asyncbridge.bridge.server")


class StatelessServer:
    """Run one application instance per scope id, for protocols without connections.

    A subclass overrides `handle`, which takes in events for as long as the server runs, and
    `application_send`, which carries out what applications send. For each event, `handle` asks for the
    queue of the instance that it belongs to and puts the event there::

        queue = self.get_or_create_application_instance("player-7", {"type": "game", "player": 7})
        queue.put_nowait({"type": "game.move", "field": "e4"})

    All methods belong to the thread of the event loop; those that are not coroutines never wait.
    Applications start in a copy of the context of the caller that first asks for them.

    When `handle` returns, raises or is cancelled, the server winds up: `application_drain` lets busy
    applications finish, then every instance left is cancelled and awaited (it may still send), and
    failures are reported. Another cancellation meanwhile does not cut this short. What does not end when
    it is cancelled is waited for, and the log says so.

    A subclass that replaces `run` calls `arun`, or starts `application_checker` itself.

    Args:
        application: The ASGI application, in either style, called with positional arguments.
        max_applications: How many instances there may be at a time; at least one can always run.

    Attributes:
        application_instances: For each scope id a dict of ``input_queue`` (asyncio.Queue), ``future``
            (the task), ``scope`` and ``last_used`` (seconds since the epoch like `time.time`, but
            never twice the same and never going back).
        application_checker_interval: Seconds between two looks for applications that have ended.
        application_drain_seconds: How many seconds `application_drain` may wait. 0: it does not.
    """

    application_checker_interval: float = 0.1
    application_drain_seconds: float = 0.0

    def __init__(self, application: Callable[..., Any], max_applications: int = 1000) -> None:
        self.application = application
        self.max_applications = max_applications
        self.application_instances: dict[Any, dict[str, Any]] = {}
        self._applications: set[asyncio.Future[Any]] = set()  # running, deleted or not
        self._reports: set[asyncio.Future[None]] = set()  # running
        self._reported: weakref.WeakSet[asyncio.Future[Any]] = weakref.WeakSet()
        self._latest_use = 0.0
        self._ending = False

    def run(self) -> None:
        """Serve in an event loop of its own until `handle` ends, or Ctrl-C or SIGTERM.

        Both signals wind the server up and let this return; they are heard in the main thread only.
        SIGTERM is taken over meanwhile, unless the process ignores it, and given back afterwards; a
        handler that the program had for it is then called. `handle` may install its own, as uvicorn does.

        Raises:
            Exception: Whatever `arun` raises.
        """
        sigterm = Sigterm()
        try:
            asyncio.run(self._run_until(sigterm))
        except KeyboardInterrupt:
            logger.info("Stopped by Ctrl-C.")
        except asyncio.CancelledError:
            if not sigterm.received:
                raise
            logger.info("Stopped by SIGTERM.")
        sigterm.pass_on()

    async def arun(self) -> None:
        """Serve in the running event loop until `handle` ends, and leave nothing running.

        Cancelling this cancels `handle`, and takes as long as the winding up. It may be called again.

        Raises:
            Exception: Whatever `handle` raised, or `application_checker` if that failed first; after
                the winding up.
        """
        tasks: list[asyncio.Future[None]] = [
            asyncio.ensure_future(self._call_handle()),
            asyncio.ensure_future(self.application_checker()),
        ]
        try:
            await watch(*tasks)
        finally:
            try:
                await to_the_end(self._wind_up(*tasks))
            finally:
                raise_failure(tasks)

    async def handle(self) -> None:
        """Take in events and pass them to instances, until the server is to end. To be overridden.

        Runs in a task of its own beside `arun`, which cancels it on Ctrl-C, SIGTERM and its own
        cancellation. What it starts, it ends.

        Raises:
            NotImplementedError: It is not overridden.
        """
        raise NotImplementedError("A StatelessServer needs handle(): override it.")

    async def application_send(self, scope: Any, message: Any) -> None:
        """Carry out what an application sends. To be overridden.

        Runs in the application's task, whose `send` raises what this raises. Also called for
        instances that were deleted and say goodbye.

        Args:
            scope: The scope of the instance.
            message: What the application sent.

        Raises:
            NotImplementedError: It is not overridden.
        """
        raise NotImplementedError("A StatelessServer needs application_send(): override it.")

    def get_or_create_application_instance(self, scope_id: Any, scope: Any) -> "asyncio.Queue[Any]":
        """Return the input queue of the instance with that id, making the instance if need be.

        One that has ended is replaced, even before the checker has found it, so that what is put into
        the queue has a reader. At the limit, ended instances go first, then the least recently used.

        Args:
            scope_id: Anything hashable that tells instances apart.
            scope: The scope for a new instance; not looked at if there is one.

        Returns:
            The queue that the instance's `receive` takes from.

        Raises:
            RuntimeError: An instance is to be made and no event loop runs in this thread.
        """
        details = self.application_instances.get(scope_id)
        if details is not None and not details["future"].done():
            details["last_used"] = self._now()
        else:
            if details is not None:
                self._let_go(self.application_instances.pop(scope_id))
            self._make_room()
            details = self._start_application(scope_id, scope)
        queue: asyncio.Queue[Any] = details["input_queue"]
        return queue

    def delete_oldest_application_instance(self) -> None:
        """Delete the least recently used instance.

        Raises:
            ValueError: There is none.
        """
        instances = self.application_instances
        if not instances:
            raise ValueError("There is no application instance to delete.")
        oldest = min(instances, key=lambda scope_id: instances[scope_id]["last_used"])
        self.delete_application_instance(oldest)

    def delete_application_instance(self, scope_id: Any) -> None:
        """Take an instance out of `application_instances`, and cancel it if it runs.

        It ends when the event loop goes on; if it then fails, that is reported like any failure.

        Args:
            scope_id: The id that the instance was asked for with.

        Raises:
            KeyError: There is no such instance.
        """
        self._let_go(self.application_instances.pop(scope_id))

    async def application_checker(self) -> None:
        """Look for instances that have ended, report their failures, forget them; for ever.

        `arun` runs this in a task beside `handle`. One that ended cancelled is forgotten quietly.
        """
        while True:
            await asyncio.sleep(self.application_checker_interval)
            await self._collect_ended()

    async def application_exception(
        self, exception: BaseException, application_details: dict[str, Any]
    ) -> None:
        """Report that an application failed. The default logs it as an error, with its traceback.

        Override it to do more. It runs in a task of its own, which the winding up waits for; what it
        raises is logged and stops nothing.

        Args:
            exception: What the application raised; never CancelledError.
            application_details: The dict that is or was in `application_instances`.
        """
        logger.error("Exception in an application: %s", exception, exc_info=exception)

    async def application_drain(self) -> None:
        """Give applications time to finish what they are doing, once `handle` is over.

        The default waits up to `application_drain_seconds`, until every instance has ended or waits in
        its `receive` with nothing there for it. What an override raises, `arun` raises at the end.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.application_drain_seconds
        while (remaining := deadline - loop.time()) > 0 and (busy := self._busy()):
            # Ending can be waited for, falling idle only looked for.
            await asyncio.wait(busy, timeout=min(remaining, self.application_checker_interval))

    def _now(self) -> float:
        # Rising strictly, so that the least recently used is one, whatever is done to the clock.
        self._latest_use = max(time.time(), math.nextafter(self._latest_use, math.inf))
        return self._latest_use

    def _start_application(self, scope_id: Any, scope: Any) -> dict[str, Any]:
        async def send(message: Any) -> None:
            await self.application_send(scope, message)

        queue = InputQueue()
        loop = asyncio.get_running_loop()
        application = guarantee_single_callable(self.application)
        coroutine = _call(application, scope, queue.get, send)
        future = loop.create_task(coroutine, name=f"asyncbridge-application-{scope_id}")
        details: dict[str, Any] = {"input_queue": queue, "future": future, "scope": scope}
        details["last_used"] = self._now()
        self.application_instances[scope_id] = details
        self._applications.add(future)
        future.add_done_callback(functools.partial(self._application_ended, scope_id, details))
        if self._ending:  # before it runs, or one that is restarted whenever it fails had no end
            future.cancel()
        return details

    def _application_ended(
        self, scope_id: Any, details: dict[str, Any], future: "asyncio.Future[Any]"
    ) -> None:
        self._applications.discard(future)
        if self.application_instances.get(scope_id) is not details:
            self._report(details)  # deleted before it ended, so the checker will not see it

    def _make_room(self) -> None:
        instances = self.application_instances
        if len(instances) >= self.max_applications:
            for scope_id in [key for key, value in instances.items() if value["future"].done()]:
                self._let_go(instances.pop(scope_id))
        while instances and len(instances) >= self.max_applications:
            self.delete_oldest_application_instance()

    def _let_go(self, details: dict[str, Any]) -> None:
        if details["future"].done():
            self._report(details)
        else:
            details["future"].cancel()

    async def _collect_ended(self) -> None:
        for scope_id, details in list(self.application_instances.items()):
            if not details["future"].done():
                continue
            report = self._report(details)
            if report is not None:
                await asyncio.wait([report])
            # While it was reported, the instance may have been deleted or replaced.
            if self.application_instances.get(scope_id) is details:
                del self.application_instances[scope_id]

    def _report(self, details: dict[str, Any]) -> "asyncio.Task[None] | None":
        """Start to report the failure of an ended instance, unless there is none or it was reported."""
        future: asyncio.Future[Any] = details["future"]
        exception = failure_of(future)
        if exception is None or future in self._reported:
            return None
        self._reported.add(future)
        report = future.get_loop().create_task(self._report_exception(exception, details))
        self._reports.add(report)
        report.add_done_callback(self._report_ended)
        return report

    def _report_ended(self, report: "asyncio.Task[None]") -> None:
        self._reports.discard(report)
        failure_of(report)  # looked at, or asyncio would complain of a SystemExit long dealt with

    async def _report_exception(self, exception: BaseException, details: dict[str, Any]) -> None:
        try:
            await self.application_exception(exception, details)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # CancelledError too: it is nobody's but the override's
            logger.exception("application_exception() failed to report: %r", exception)

    def _busy(self) -> "list[asyncio.Future[Any]]":
        return [
            details["future"]
            for details in self.application_instances.values()
            if not details["future"].done() and not is_idle(details["input_queue"])
        ]

    async def _run_until(self, sigterm: "Sigterm") -> None:
        with sigterm.cancels_this_task():
            await self.arun()

    async def _call_handle(self) -> None:
        await self.handle()

    async def _wind_up(
        self, handler: "asyncio.Future[None]", checker: "asyncio.Future[None]"
    ) -> None:
        try:
            handler.cancel()
            await ended([handler], "handle()")
            await self.application_drain()
        finally:
            checker.cancel()
            await ended([checker], "application_checker()")
            await self._end_applications()

    async def _end_applications(self) -> None:
        self._ending = True
        try:
            # Again and again, because an application or a report may ask for a new instance.
            while self.application_instances or self._applications or self._reports:
                await ended(self._cancel_applications(), "applications")
                await ended(self._reports, "application_exception()")
        finally:
            self._ending = False

    def _cancel_applications(self) -> "set[asyncio.Future[Any]]":
        futures = set(self._applications)
        for scope_id, details in list(self.application_instances.items()):
            futures.add(details["future"])
            try:
                self.delete_application_instance(scope_id)
            except Exception:
                logger.exception("delete_application_instance(%r) failed", scope_id)
            # An override may have failed, or have done less than what it replaces.
            self.application_instances.pop(scope_id, None)
            self._let_go(details)
        return futures


async def _call(
    application: Callable[[Any, Any, Any], Awaitable[Any]], scope: Any, receive: Any, send: Any
) -> None:
    # A task needs a coroutine, and an application may be a plain callable that returns any awaitable,
    # or raises: then that is its failure, not that of whoever asked for the instance.
    await application(scope, receive, send)
