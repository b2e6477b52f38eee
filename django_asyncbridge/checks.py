"""System checks: what ``manage.py check`` says about the project's use of the bridge.

Each check collects and never raises; each message has an id that is never used for anything else (docs/checks.md has them all) and a hint that
says what to write. ``register_checks`` registers them, those for production with ``--deploy``.

The settings that are Django's own (``MIDDLEWARE``, ``DATABASES``, ``ASGI_APPLICATION``) are read here. Of ours, what is wrong is one check's, and the others go by what `conf.usable` leaves.
"""

import pkgutil
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage

from django_asyncbridge import _executor_backends, conf
from django_asyncbridge._checks_asgi import check_asgi_application
from django_asyncbridge._checks_handlers import check_lifespan, check_websocket_application
from django_asyncbridge._checks_middleware import check_middleware, check_middleware_order
from django_asyncbridge.safety import definition_path, refusal

__all__ = (
    "TAG",
    "check_async_safe",
    "check_connections",
    "check_executors",
    "check_pools",
    "check_production",
    "check_setting_names",
    "check_settings",
    "register_checks",
)

TAG = "asyncbridge"
"""``manage.py check --tag asyncbridge`` runs these checks and no others."""


def register_checks() -> None:
    """Register all checks with Django; again does nothing."""
    for check in (
        check_settings,
        check_setting_names,
        check_executors,
        check_async_safe,
        check_lifespan,
        check_websocket_application,
        check_middleware,
        check_middleware_order,
        check_connections,
        check_pools,
        check_asgi_application,
    ):
        checks.register(check, TAG)
    checks.register(check_production, TAG, deploy=True)


# --- ASYNCBRIDGE ---------------------------------------------------------------------


def check_settings(**_kwargs: object) -> list[CheckMessage]:
    """Return E001 for each unknown key of ``ASYNCBRIDGE``, and E002 for each wrong value."""
    return [
        checks.Error(
            f"{problem.path} {problem.message}.",
            hint=problem.hint,
            obj=problem.path,
            id="asyncbridge.E001" if problem.unknown else "asyncbridge.E002",
        )
        for problem in conf.parse(getattr(settings, "ASYNCBRIDGE", None))[1]
    ]


def check_setting_names(**_kwargs: object) -> list[CheckMessage]:
    """Return W008 for each setting whose name only looks like ours."""
    return [
        checks.Warning(
            f"The setting {name} is read by nobody.",
            hint="Put what it says into the dict ASYNCBRIDGE.",
            obj=name,
            id="asyncbridge.W008",
        )
        for name in dir(settings)
        if _looks_like_ours(name)
    ]


def _looks_like_ours(name: str) -> bool:
    bare = name.replace("_", "").removeprefix("DJANGO")
    return name.isupper() and bare.startswith("ASYNCBRIDGE") and name != "ASYNCBRIDGE"


def check_executors(**_kwargs: object) -> list[CheckMessage]:
    """Return E003 for each of ``EXECUTORS`` that cannot be built. Starts no thread and no process."""
    found: list[CheckMessage] = []
    for alias, executor in conf.usable().executors.items():
        path = f'ASYNCBRIDGE["EXECUTORS"]["{alias}"]'
        found += [
            checks.Error(
                f"{path} cannot be built: {problem}.",
                hint=(
                    'Name a class of executors, as "BACKEND": "concurrent.futures.ThreadPoolExecutor", '
                    "or leave BACKEND out; give in MAX_WORKERS and OPTIONS only what it takes."
                ),
                obj=path,
                id="asyncbridge.E003",
            )
            for problem in _executor_backends.problems(alias, executor)
        ]
    return found


def check_async_safe(**_kwargs: object) -> list[CheckMessage]:
    """Return E004, E005 and E006: what ``ASYNC_SAFE`` names is not there, cannot be async-safe, or has another path."""
    found: list[CheckMessage] = []
    for path in conf.usable().async_safe:
        try:
            code = pkgutil.resolve_name(path)
        except Exception as error:  # noqa: BLE001  # a module may raise anything
            found.append(
                _async_safe_error("E004", path, f"cannot be imported: {error!r}", _NAME_OR_REMOVE)
            )
            continue
        reason = refusal(code)
        own = definition_path(code)
        if reason is not None:
            found.append(_async_safe_error("E005", path, f"cannot be marked: {reason}", _REMOVE))
        elif own is None:
            problem = "is a wrapper, which is not what it wraps, and has no path of its own"
            found.append(_async_safe_error("E006", path, problem, _MARK_IT))
        elif own != path:
            hint = f'Write "{own}" instead.'
            found.append(_async_safe_error("E006", path, f'is defined as "{own}"', hint))
    return found


def _async_safe_error(number: str, path: str, problem: str, hint: str) -> CheckMessage:
    message = f'ASYNCBRIDGE["ASYNC_SAFE"] names "{path}", which {problem}.'
    return checks.Error(message, hint=hint, obj=path, id=f"asyncbridge.{number}")


_NAME_OR_REMOVE = (
    'Write the path of a function, method or class, as "mysite.middleware.Stamp.process_request".'
)
_REMOVE = "Name a sync function, method or class, or remove the line."
_MARK_IT = (
    'Remove the line, and write "@async_safe" (from django_asyncbridge.safety) above the '
    "other decorators, if what they add never blocks either."
)


# --- Threads and connections -----------------------------------------------------------

_SET_MAX = (
    'Write "REQUEST_THREADS": {"MAX": %s} in ASYNCBRIDGE; it bounds the threads of a process, '
    "and so its connections to each database."
)
# For the hints: some number. Which is best depends on the views; not measured.
_SOME = 20


def _persistent() -> list[tuple[str, dict[str, Any]]]:
    """Return the databases that keep their connections."""
    return [
        (alias, options)
        for alias, options in settings.DATABASES.items()
        if options.get("CONN_MAX_AGE", 0) != 0
    ]


def check_connections(**_kwargs: object) -> list[CheckMessage]:
    """Return W005 for each database that keeps its connections while nothing bounds the threads that have them."""
    if conf.usable().request_threads.maximum is not None:
        return []
    return [
        checks.Warning(
            f'DATABASES["{alias}"] has CONN_MAX_AGE = {options["CONN_MAX_AGE"]}, and REQUEST_THREADS has no MAX: each '
            "request thread keeps a connection, and there are as many threads as requests are served at once.",
            hint=_SET_MAX % _SOME,
            obj=f'DATABASES["{alias}"]',
            id="asyncbridge.W005",
        )
        for alias, options in _persistent()
    ]


def check_pools(**_kwargs: object) -> list[CheckMessage]:
    """Return W006 for each PostgreSQL database whose pool has fewer connections than there may be request threads."""
    maximum = conf.usable().request_threads.maximum
    found: list[CheckMessage] = []
    for alias, options in settings.DATABASES.items():
        size = _pool_size(options)
        if size is not None and (maximum is None or maximum > size):
            has, hint = "no MAX", _SET_MAX % size
            if maximum is not None:
                has = f"MAX = {maximum}"
                hint += f' Or enlarge the pool: "OPTIONS": {{"pool": {{"max_size": {maximum}}}}}.'
            found.append(
                checks.Warning(
                    f'The pool of DATABASES["{alias}"] has {size} connections at most, and REQUEST_THREADS has {has}: '
                    "requests wait for connections, and fail with PoolTimeout when that takes too long.",
                    hint=hint,
                    obj=f'DATABASES["{alias}"]',
                    id="asyncbridge.W006",
                )
            )
    return found


# psycopg_pool.ConnectionPool's own min_size, which is also its max_size unless that is given.
_POOL_DEFAULT = 4


def _pool_size(options: dict[str, Any]) -> int | None:
    """Return how many connections the psycopg pool of a database can have; None if it has no such pool."""
    pool = (options.get("OPTIONS") or {}).get("pool")
    # Oracle has a pool option as well, with other keys. Backends that extend Django's keep its name.
    if not pool or "postg" not in options.get("ENGINE", ""):
        return None
    given = pool if isinstance(pool, dict) else {}
    size = given.get("max_size") or given.get("min_size", _POOL_DEFAULT)
    return size if isinstance(size, int) else None


def check_production(**_kwargs: object) -> list[CheckMessage]:
    """Return W021, W022 and W023, for ``--deploy``: what is fine until many requests come, or the database restarts."""
    threads = conf.usable().request_threads
    found: list[CheckMessage] = []
    if threads.maximum is None:
        found.append(
            checks.Warning(
                "REQUEST_THREADS has no MAX: a burst starts as many threads as there are requests that need one.",
                hint=_SET_MAX % _SOME,
                id="asyncbridge.W021",
            )
        )
    elif threads.wait_seconds is None:
        found.append(
            checks.Warning(
                f"REQUEST_THREADS has MAX = {threads.maximum} and WAIT_SECONDS = None: when all threads are busy, "
                "requests wait for one without limit.",
                hint=(
                    'Write "WAIT_SECONDS": 10 in ASYNCBRIDGE["REQUEST_THREADS"], or leave it out; '
                    "then who has waited that long is answered 503."
                ),
                id="asyncbridge.W022",
            )
        )
    found += [
        checks.Warning(
            f'DATABASES["{alias}"] has CONN_MAX_AGE = {options["CONN_MAX_AGE"]} without CONN_HEALTH_CHECKS: when the '
            "database has gone in a way that closes no connection (a broken network), one request fails for each that was kept.",
            hint=f'Write "CONN_HEALTH_CHECKS": True in DATABASES["{alias}"].',
            obj=f'DATABASES["{alias}"]',
            id="asyncbridge.W023",
        )
        for alias, options in _persistent()
        # SQLite has no server that could be restarted.
        if not options.get("CONN_HEALTH_CHECKS", False)
        and "sqlite" not in options.get("ENGINE", "")
    ]
    return found
