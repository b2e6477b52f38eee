"""The options of ``runasgi``: their names, what they mean, and the records that are made of them.

Which thread may touch what. Nothing is kept here; any thread may call all of it.
"""

import argparse
from typing import Any

from django.core.management.base import CommandParser

from django_asyncbridge.serving.errors import OptionError
from django_asyncbridge.serving.options import ServingOptions
from django_asyncbridge.serving.watchdog import DEFAULT_THRESHOLD_SECONDS

__all__ = ("add_serving_arguments", "check_combination", "serving_options")


def add_serving_arguments(parser: CommandParser) -> None:
    """Give a command the options of a server."""
    _add_places(parser)
    _add_processes(parser)
    _add_limits(parser)
    _add_protocols(parser)


def _add_places(parser: CommandParser) -> None:
    parser.add_argument(
        "addrport",
        nargs="?",
        help="Port, or address:port ([address]:port for IPv6); 127.0.0.1:8000 if not given.",
    )
    parser.add_argument("--uds", metavar="PATH", help="Listen on a Unix socket instead.")
    parser.add_argument(
        "--fd",
        type=_whole(0),
        metavar="NUMBER",
        help="Listen on a socket that the process was started with instead, by its file descriptor.",
    )
    parser.add_argument(
        "--app",
        metavar="PATH",
        help="The ASGI or WSGI application, as mysite.asgi.application or mysite.asgi:application. "
        "Default: settings.ASGI_APPLICATION, or the project.",
    )
    parser.add_argument("--ssl-certfile", metavar="PATH", help="Speak TLS, with that certificate.")
    parser.add_argument("--ssl-keyfile", metavar="PATH", help="The key, if it is not in that file.")
    parser.add_argument("--ssl-keyfile-password", metavar="TEXT", help="Of an encrypted key.")


def _add_processes(parser: CommandParser) -> None:
    parser.add_argument(
        "--workers",
        type=_whole(1),
        metavar="N",
        help="Serve in so many processes, which are started again when they die. Default: in this one.",
    )
    parser.add_argument(
        "--reload",
        action="store_true",
        default=None,
        help="Start again when code changes. Default: with DEBUG, unless --workers is given.",
    )
    parser.add_argument("--noreload", dest="reload", action="store_false", help="Do not.")
    parser.add_argument(
        "--graceful-timeout",
        type=_whole(0),
        metavar="SECONDS",
        help="When told to stop, cancel what is in flight after so long. Default: never.",
    )
    parser.add_argument(
        "--max-requests",
        type=_whole(1),
        metavar="N",
        help="End a process after so many requests; with --workers another is started.",
    )
    parser.add_argument(
        "--watchdog",
        type=_seconds,
        metavar="SECONDS",
        help="Warn when the event loop is blocked for so long, and say by what; 0 for never. "
        f"Default: {DEFAULT_THRESHOLD_SECONDS} with DEBUG, else never.",
    )


def _add_limits(parser: CommandParser) -> None:
    parser.add_argument(
        "--limit-concurrency",
        type=_whole(1),
        metavar="N",
        help="Answer 503 to what would be more requests and WebSockets at a time, in each process.",
    )
    parser.add_argument(
        "--timeout-keep-alive",
        type=_whole(0),
        default=ServingOptions().keep_alive_seconds,
        metavar="SECONDS",
        help="Close a connection that was idle for so long between two requests. Default: %(default)s.",
    )


def _add_protocols(parser: CommandParser) -> None:
    for name, what in (
        ("http", "HTTP parser: auto, h11, httptools."),
        ("ws", "WebSockets: auto, websockets, websockets-sansio, wsproto, none."),
        ("loop", "Event loop: auto, asyncio, uvloop."),
    ):
        parser.add_argument(f"--{name}", default="auto", metavar="NAME", help=what)
    parser.add_argument(
        "--lifespan",
        choices=("auto", "on", "off"),
        default="auto",
        help="Whether the application has to answer the lifespan scope, may, or is not offered it.",
    )
    parser.add_argument(
        "--root-path",
        default="",
        metavar="PATH",
        help="Where a proxy serves the project, as /shop.",
    )
    parser.add_argument(
        "--proxy-headers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Believe X-Forwarded-For and X-Forwarded-Proto of --forwarded-allow-ips. Default: yes.",
    )
    parser.add_argument(
        "--forwarded-allow-ips",
        metavar="LIST",
        help="Addresses and networks, separated by commas, or *. Default: the environment variable "
        "FORWARDED_ALLOW_IPS, or 127.0.0.1.",
    )
    parser.add_argument(
        "--access-log",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Write a line for each request. Default: yes.",
    )


def serving_options(options: dict[str, Any], *, debug: bool) -> ServingOptions:
    """Return how to serve, of what the command line says.

    Raises:
        OptionError: an option has no meaning; with what to write.
    """
    root_path = options["root_path"].rstrip("/")
    if root_path and not root_path.startswith("/"):
        raise OptionError(f"--root-path {options['root_path']}: it begins with a slash, as /shop.")
    watchdog = options["watchdog"]
    if watchdog is None and debug:
        watchdog = DEFAULT_THRESHOLD_SECONDS
    return ServingOptions(
        http=options["http"],
        ws=options["ws"],
        loop=options["loop"],
        lifespan=options["lifespan"],
        root_path=root_path,
        proxy_headers=options["proxy_headers"],
        forwarded_allow_ips=options["forwarded_allow_ips"],
        access_log=options["access_log"],
        keep_alive_seconds=options["timeout_keep_alive"],
        graceful_seconds=options["graceful_timeout"],
        max_requests=options["max_requests"],
        certificate=options["ssl_certfile"],
        certificate_key=options["ssl_keyfile"],
        certificate_password=options["ssl_keyfile_password"],
        watchdog_seconds=watchdog or None,
    )


def check_combination(options: dict[str, Any]) -> None:
    """Say which options exclude each other.

    Raises:
        OptionError: two of those that were given do.
    """
    places = [
        name
        for name, given in (
            (f"the address {options['addrport']}", options["addrport"]),
            ("--uds", options["uds"]),
            ("--fd", options["fd"] is not None),
        )
        if given
    ]
    if len(places) > 1:
        raise OptionError(f"{places[0]} and {places[1]}: there is one place to listen; give one.")
    if options["reload"] and (options["workers"] or 1) > 1:
        raise OptionError(
            "--reload and --workers: code that changes is tried in one process; give one of the two."
        )


def _whole(least: int) -> Any:
    def read(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is too small; it is at least {least}.")
        return number

    # What argparse calls the type in its message about text that is no number.
    read.__name__ = "whole number"
    return read


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds.")
    return number
