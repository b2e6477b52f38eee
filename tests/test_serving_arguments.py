"""The options of ``runasgi``: what they come to, and what is refused."""

import re
from typing import Any

import pytest
from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_asyncbridge.management.serving_arguments import (
    add_serving_arguments,
    check_combination,
    serving_options,
)
from django_asyncbridge.serving.errors import OptionError
from django_asyncbridge.serving.options import ServingOptions
from django_asyncbridge.serving.watchdog import DEFAULT_THRESHOLD_SECONDS


def parse(*args: str) -> dict[str, Any]:
    # Django's parser then raises, where on the command line it ends the process with a usage line.
    parser = CommandParser(called_from_command_line=False)
    add_serving_arguments(parser)
    return vars(parser.parse_args(args))


def test_options_that_are_not_given_are_the_server_s_own() -> None:
    assert serving_options(parse(), debug=False) == ServingOptions()
    assert parse()["limit_concurrency"] is None


def test_options_that_are_given_reach_the_server() -> None:
    args = (
        "--http h11 --ws none --loop asyncio --lifespan on --root-path /shop/ --no-proxy-headers "
        "--forwarded-allow-ips 10.0.0.0/8 --no-access-log --timeout-keep-alive 7 --graceful-timeout 8 "
        "--max-requests 9 --ssl-certfile c --ssl-keyfile k --ssl-keyfile-password p --watchdog 1.5"
    )
    assert serving_options(parse(*args.split()), debug=False) == ServingOptions(
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        root_path="/shop",
        proxy_headers=False,
        forwarded_allow_ips="10.0.0.0/8",
        access_log=False,
        keep_alive_seconds=7,
        graceful_seconds=8,
        max_requests=9,
        certificate="c",
        certificate_key="k",
        certificate_password="p",
        watchdog_seconds=1.5,
    )


@pytest.mark.parametrize(
    ("args", "seconds"), [((), DEFAULT_THRESHOLD_SECONDS), (("--watchdog", "0"), None)]
)
def test_watchdog_is_on_while_debugging_unless_it_is_switched_off(
    args: tuple[str, ...], seconds: float | None
) -> None:
    assert serving_options(parse(*args), debug=True).watchdog_seconds == seconds


@pytest.mark.parametrize(
    ("args", "value"), [((), None), (("--reload",), True), (("--noreload",), False)]
)
def test_reload_is_left_open_unless_it_is_said(args: tuple[str, ...], value: bool | None) -> None:
    assert parse(*args)["reload"] is value


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("--workers", "0"), "argument --workers: 0 is too small; it is at least 1."),
        (("--workers", "many"), "argument --workers: invalid whole number value: 'many'"),
        (("--watchdog", "-1"), "argument --watchdog: -1 is no number of seconds."),
        (("--watchdog", "inf"), "argument --watchdog: inf is no number of seconds."),
        (("--lifespan", "of"), "argument --lifespan: invalid choice: 'of'"),
    ],
)
def test_values_that_mean_nothing_are_refused(args: tuple[str, ...], text: str) -> None:
    with pytest.raises(CommandError, match=re.escape(text)):
        parse(*args)


def test_root_path_without_a_slash_is_refused() -> None:
    with pytest.raises(OptionError, match="--root-path shop: it begins with a slash"):
        serving_options(parse("--root-path", "shop"), debug=False)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("8000", "--uds", "x"), "the address 8000 and --uds: there is one place to listen"),
        (("--uds", "x", "--fd", "0"), "--uds and --fd"),
        (("--reload", "--workers", "2"), "--reload and --workers"),
    ],
)
def test_options_that_exclude_each_other_are_refused(args: tuple[str, ...], text: str) -> None:
    with pytest.raises(OptionError, match=re.escape(text)):
        check_combination(parse(*args))


def test_options_that_go_together_are_accepted() -> None:
    for args in ((), ("8000",), ("--fd", "3", "--workers", "2"), ("--reload", "--workers", "1")):
        check_combination(parse(*args))


def test_help_tells_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    class Command(BaseCommand):
        def add_arguments(self, parser: CommandParser) -> None:
            add_serving_arguments(parser)

    Command().print_help("manage.py", "runasgi")
    text = capsys.readouterr().out
    for option in ("addrport", "--uds", "--ssl-certfile", "--no-proxy-headers", "--watchdog"):
        assert option in text
