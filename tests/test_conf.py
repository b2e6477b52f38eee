"""The setting ``ASYNCBRIDGE``: what each value means, every wrong one named, live with override_settings."""

import dataclasses
import threading
from types import MappingProxyType
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from django_asyncbridge import conf
from django_asyncbridge.conf import Conf, ExecutorConf, Problem, RequestThreads


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a listener heard: ``current`` or the error of each change. The app's own listeners stay away."""
    heard: list[Any] = []

    def listener() -> None:
        try:
            heard.append(conf.current())
        except ImproperlyConfigured as error:
            heard.append(error)

    monkeypatch.setattr(conf, "_listeners", [])
    conf.on_change(listener)
    return heard


@pytest.fixture(autouse=True)
def _read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conf, "_current", None)


def right(raw: object) -> Conf:
    """Parse what has to be right."""
    parsed, problems = conf.parse(raw)
    assert problems == []
    return parsed


def wrong(raw: object) -> Problem:
    """Parse what has to have one problem, and to count as absent for the rest."""
    _, (problem,) = conf.parse(raw)
    return problem


# --- What values mean ----------------------------------------------------------------


@pytest.mark.parametrize("raw", [None, {}, {"REQUEST_THREADS": None}, {"EXECUTORS": {}}], ids=str)
def test_conf_nothing_set_is_the_defaults(raw: object) -> None:
    parsed = right(raw)
    assert parsed == Conf()
    assert parsed.request_threads == RequestThreads(None, 60.0, 10.0)
    assert parsed.executors == {"default": ExecutorConf(None, 32)}
    assert parsed.accelerate_django is True
    assert parsed.async_safe == ()
    assert (parsed.lifespan, parsed.websocket_application) == (None, None)


def test_conf_everything_set_is_what_is_set() -> None:
    parsed = right(
        {
            "REQUEST_THREADS": {"MAX": 20, "IDLE_SECONDS": 5, "WAIT_SECONDS": 0.5},
            "EXECUTORS": {
                "default": {"MAX_WORKERS": 8},
                "reports": {"MAX_WORKERS": 2, "OPTIONS": {"idle_seconds": 1}},
                "cpu": {"BACKEND": "concurrent.futures.ProcessPoolExecutor"},
            },
            "ACCELERATE_DJANGO": False,
            "ASYNC_SAFE": ["mysite.middleware.Stamp", "mysite.receivers.note"],
            "LIFESPAN": "mysite.lifespan.lifespan",
            "WEBSOCKET_APPLICATION": "mysite.ws.application",
        }
    )
    assert parsed == Conf(
        request_threads=RequestThreads(20, 5.0, 0.5),
        executors={
            "default": ExecutorConf(None, 8),
            "reports": ExecutorConf(None, 2, MappingProxyType({"idle_seconds": 1})),
            "cpu": ExecutorConf("concurrent.futures.ProcessPoolExecutor"),
        },
        accelerate_django=False,
        async_safe=("mysite.middleware.Stamp", "mysite.receivers.note"),
        lifespan="mysite.lifespan.lifespan",
        websocket_application="mysite.ws.application",
    )


def test_conf_none_means_no_limit() -> None:
    threads = {"MAX": None, "IDLE_SECONDS": None, "WAIT_SECONDS": None}
    parsed = right({"REQUEST_THREADS": threads, "EXECUTORS": {"default": {"MAX_WORKERS": None}}})
    assert parsed.request_threads == RequestThreads(None, None, None)
    assert parsed.executors["default"].max_workers is None


def test_conf_default_executor_keeps_its_bound_beside_other_keys() -> None:
    parsed = right({"EXECUTORS": {"default": {"OPTIONS": {"wait_seconds": 3}}}})
    assert parsed.executors["default"].max_workers == 32
    assert parsed.executors["default"].options == {"wait_seconds": 3}


def test_conf_default_executor_is_there_beside_others() -> None:
    assert right({"EXECUTORS": {"reports": {}}}).executors == {
        "default": ExecutorConf(None, 32),
        "reports": ExecutorConf(),
    }


def test_conf_seconds_are_floats_from_zero_to_what_threads_can_wait() -> None:
    for value in (0, 1, 0.25, threading.TIMEOUT_MAX):
        seconds = right({"REQUEST_THREADS": {"WAIT_SECONDS": value}}).request_threads.wait_seconds
        assert seconds == value
        assert isinstance(seconds, float)


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_conf_async_safe_may_be_any_collection(kind: type[Any]) -> None:
    assert right({"ASYNC_SAFE": kind(["a.b"])}).async_safe == ("a.b",)


def test_conf_view_is_frozen_and_apart_from_the_setting() -> None:
    options = {"idle_seconds": 1}
    raw = {"EXECUTORS": {"reports": {"OPTIONS": options}}, "ASYNC_SAFE": ["a.b"]}
    parsed = right(raw)
    options["idle_seconds"] = 2
    raw.clear()
    assert parsed.executors["reports"].options == {"idle_seconds": 1}
    for record in (parsed, parsed.request_threads, parsed.executors["reports"]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, dataclasses.fields(record)[0].name, None)
    for mapping in (parsed.executors, parsed.executors["reports"].options):
        with pytest.raises(TypeError):
            mapping["more"] = None  # type: ignore[index]


# --- What is wrong -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "path", "hint"),
    [
        ({"REQUEST_THREAD": {}}, "ASYNCBRIDGE", 'Did you mean "REQUEST_THREADS"?'),
        ({"async_safe": []}, "ASYNCBRIDGE", 'Did you mean "ASYNC_SAFE"?'),
        (
            {"REQUEST_THREADS": {"WAIT": 1}},
            'ASYNCBRIDGE["REQUEST_THREADS"]',
            'Did you mean "WAIT_SECONDS"?',
        ),
        (
            {"EXECUTORS": {"cpu": {"WORKERS": 1}}},
            'ASYNCBRIDGE["EXECUTORS"]["cpu"]',
            'Did you mean "MAX_WORKERS"?',
        ),
        (
            {"REQUEST_THREADS": {3: 4}},
            'ASYNCBRIDGE["REQUEST_THREADS"]',
            'There are: "MAX", "IDLE_SECONDS", "WAIT_SECONDS".',
        ),
    ],
    ids=str,
)
def test_conf_unknown_key_is_named_with_the_nearest_or_all(
    raw: object, path: str, hint: str
) -> None:
    problem = wrong(raw)
    assert problem.unknown
    assert (problem.path, problem.hint) == (path, hint)
    assert problem.message.startswith("has the unknown key ")


COUNTS = [0, -1, 1.0, "4", True, [1]]
SECONDS = [
    -1,
    -0.5,
    "1",
    False,
    float("inf"),
    float("nan"),
    2 * threading.TIMEOUT_MAX,
    10**400,
]
DOTTED = ["", "name", "a.", ".a", "a..b", "a.b c", "a-b.c", None, 3, ("a", "b")]
WRONG = [
    *(("MAX", value, "a whole number above 0, or None") for value in COUNTS),
    *(
        ("WAIT_SECONDS", value, "a number of seconds, 0 or more, or None for no limit")
        for value in SECONDS
    ),
]


@pytest.mark.parametrize(("key", "value", "expected"), WRONG, ids=lambda value: str(value)[:20])
def test_conf_wrong_request_threads_value_is_named_and_counts_as_absent(
    key: str, value: object, expected: str
) -> None:
    raw = {"REQUEST_THREADS": {key: value, "IDLE_SECONDS": 7}}
    assert wrong(raw) == Problem(
        f'ASYNCBRIDGE["REQUEST_THREADS"]["{key}"]', f"is {value!r}", f"It has to be {expected}."
    )
    assert conf.parse(raw)[0] == Conf(request_threads=RequestThreads(idle_seconds=7.0))


@pytest.mark.parametrize("value", DOTTED, ids=str)
def test_conf_wrong_dotted_path_is_named(value: object) -> None:
    path = 'ASYNCBRIDGE["EXECUTORS"]["cpu"]["BACKEND"]'
    hint = 'It has to be a dotted path as "package.module.Name".'
    assert wrong({"EXECUTORS": {"cpu": {"BACKEND": value}}}) == Problem(path, f"is {value!r}", hint)
    problem = wrong({"ASYNC_SAFE": [value, "a.b"]})
    assert (problem.path, problem.message) == (
        'ASYNCBRIDGE["ASYNC_SAFE"]',
        f"contains {value!r}",
    )
    assert conf.parse({"ASYNC_SAFE": [value, "a.b"]})[0].async_safe == ("a.b",)


@pytest.mark.parametrize("key", ["LIFESPAN", "WEBSOCKET_APPLICATION"])
def test_conf_path_of_a_scope_type_is_a_dotted_path_or_none(key: str) -> None:
    assert right({key: None}) == Conf()
    for value in (one for one in DOTTED if one is not None):
        hint = 'It has to be a dotted path as "package.module.Name", or None.'
        assert wrong({key: value}) == Problem(f'ASYNCBRIDGE["{key}"]', f"is {value!r}", hint)
        assert conf.parse({key: value})[0] == Conf()


@pytest.mark.parametrize(
    ("raw", "path", "hint"),
    [
        ([], "ASYNCBRIDGE", "Make it a dict."),
        ({"REQUEST_THREADS": 4}, 'ASYNCBRIDGE["REQUEST_THREADS"]', "Make it a dict."),
        ({"EXECUTORS": {"cpu": 4}}, 'ASYNCBRIDGE["EXECUTORS"]["cpu"]', "Make it a dict."),
        ({"EXECUTORS": []}, 'ASYNCBRIDGE["EXECUTORS"]', "It has to be a dict of dicts by alias."),
        (
            {"EXECUTORS": {"": {}}},
            'ASYNCBRIDGE["EXECUTORS"]',
            "It has to be a dict of dicts by alias.",
        ),
        (
            {"EXECUTORS": {1: {}}},
            'ASYNCBRIDGE["EXECUTORS"]',
            "It has to be a dict of dicts by alias.",
        ),
        (
            {"EXECUTORS": {"cpu": {"OPTIONS": {1: 2}}}},
            'ASYNCBRIDGE["EXECUTORS"]["cpu"]["OPTIONS"]',
            "It has to be a dict of keyword arguments.",
        ),
        (
            {"EXECUTORS": {"cpu": {"OPTIONS": "x"}}},
            'ASYNCBRIDGE["EXECUTORS"]["cpu"]["OPTIONS"]',
            "It has to be a dict of keyword arguments.",
        ),
        (
            {"ACCELERATE_DJANGO": 1},
            'ASYNCBRIDGE["ACCELERATE_DJANGO"]',
            "It has to be True or False.",
        ),
        (
            {"ASYNC_SAFE": "a.b"},
            'ASYNCBRIDGE["ASYNC_SAFE"]',
            "It has to be a list of dotted paths.",
        ),
    ],
    ids=str,
)
def test_conf_wrong_type_is_named_and_counts_as_absent(raw: object, path: str, hint: str) -> None:
    problem = wrong(raw)
    assert not problem.unknown
    assert (problem.path, problem.hint) == (path, hint)
    parsed = conf.parse(raw)[0]
    aliases = {"default", "cpu"} if '["cpu"]' in path else {"default"}
    assert parsed == Conf(executors={alias: parsed.executors[alias] for alias in aliases})


def test_conf_default_executor_with_a_backend_is_wrong() -> None:
    raw = {"EXECUTORS": {"default": {"BACKEND": "concurrent.futures.ThreadPoolExecutor"}}}
    problem = wrong(raw)
    assert problem.path == 'ASYNCBRIDGE["EXECUTORS"]["default"]'
    assert "another alias" in problem.hint
    assert conf.parse(raw)[0] == Conf()


def test_conf_several_problems_are_all_named_in_their_order() -> None:
    raw = {"NO": 1, "REQUEST_THREADS": {"MAX": 0, "WAIT_SECONDS": -1}, "ASYNC_SAFE": ["a", "b"]}
    assert [problem.path.rpartition("[")[2] for problem in conf.parse(raw)[1]] == [
        "ASYNCBRIDGE",
        '"MAX"]',
        '"WAIT_SECONDS"]',
        '"ASYNC_SAFE"]',
        '"ASYNC_SAFE"]',
    ]


# --- Now -----------------------------------------------------------------------------


def test_conf_current_is_read_once_and_anew_when_the_setting_changes() -> None:
    before = conf.current()
    assert conf.current() is before
    with override_settings(ASYNCBRIDGE={"REQUEST_THREADS": {"MAX": 3}}):
        during = conf.current()
        assert during.request_threads.maximum == 3
        assert conf.current() is during
    assert conf.current() == before


def test_conf_current_stays_when_another_setting_changes(heard: list[Any]) -> None:
    before = conf.current()
    with override_settings(LOGIN_URL="elsewhere"):
        assert conf.current() is before
    assert heard == []


def test_conf_current_with_problems_is_an_error_that_names_all(heard: list[Any]) -> None:
    with override_settings(ASYNCBRIDGE={"MAX": 3, "ACCELERATE_DJANGO": "no"}):
        for _ in range(2):
            with pytest.raises(ImproperlyConfigured) as caught:
                conf.current()
            assert str(caught.value) == (
                "ASYNCBRIDGE has the unknown key 'MAX': "
                'There are: "REQUEST_THREADS", "EXECUTORS", "ACCELERATE_DJANGO", "ASYNC_SAFE", '
                '"LIFESPAN", "WEBSOCKET_APPLICATION". '
                "ASYNCBRIDGE[\"ACCELERATE_DJANGO\"] is 'no': It has to be True or False."
            )
        assert isinstance(heard.pop(), ImproperlyConfigured)
    assert heard == [conf.current()]


def test_conf_usable_leaves_out_what_is_wrong() -> None:
    raw = {"MAX": 3, "REQUEST_THREADS": {"MAX": 3, "WAIT_SECONDS": "?"}}
    with override_settings(ASYNCBRIDGE=raw):
        assert conf.usable() == Conf(request_threads=RequestThreads(maximum=3))


def test_conf_listener_hears_of_each_change_after_it(heard: list[Any]) -> None:
    with override_settings(ASYNCBRIDGE={"ACCELERATE_DJANGO": False}):
        assert [one.accelerate_django for one in heard] == [False]
    assert [one.accelerate_django for one in heard] == [False, True]


def test_conf_in_words_says_what_counts_for_a_server() -> None:
    assert Conf().in_words() == (
        "request threads: any number; executors: default (32); Django's own calls: accelerated; "
        "lifespan: none; WebSockets: refused"
    )
    parsed, problems = conf.parse(
        {
            "REQUEST_THREADS": {"MAX": 8},
            "EXECUTORS": {"cpu": {"BACKEND": "concurrent.futures.ProcessPoolExecutor"}},
            "ACCELERATE_DJANGO": False,
            "LIFESPAN": "mysite.asgi.lifespan",
            "WEBSOCKET_APPLICATION": "mysite.ws.application",
        }
    )
    assert problems == []
    assert parsed.in_words() == (
        "request threads: at most 8; executors: default (32), cpu; Django's own calls: as they are; "
        "lifespan: mysite.asgi.lifespan; WebSockets: mysite.ws.application"
    )
