"""What is asked of an application, and what is taken for its answer."""

import asyncio
from typing import Any

import pytest

from tests.handlers.differential import asking
from tests.handlers.differential.asking import Question, ask


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the messages that came."""
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    await send({"type": "http.response.start", "status": 201, "headers": [(b"A", b"1")]})
    for message in messages:
        text = repr((message["type"], message.get("body")))
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
    await send({"type": "http.response.body"})


def test_ask_joins_the_parts_of_the_body_and_keeps_the_rest() -> None:
    outcome = asyncio.run(ask(echo, Question("/", parts=(b"one", b"two"))))
    assert outcome.body == b"('http.request', b'one')('http.request', b'two')"
    assert (outcome.status, outcome.headers, outcome.ended) == (201, ((b"A", b"1"),), True)
    assert outcome.trace == ("answer: begins", "answer: ends")


def test_ask_of_a_client_that_leaves_ends_with_a_disconnect() -> None:
    outcome = asyncio.run(ask(echo, Question("/", parts=(b"half",), leaves=True)))
    assert outcome.body == b"('http.request', b'half')('http.disconnect', None)"


@pytest.mark.parametrize(
    ("error", "raised"),
    [(ValueError("no"), "ValueError: no"), (asyncio.CancelledError(), "CancelledError")],
)
def test_ask_of_an_application_that_raises_tells_what(error: BaseException, raised: str) -> None:
    async def fail(scope: Any, receive: Any, send: Any) -> None:
        raise error

    assert asyncio.run(ask(fail, Question("/"))).raised == raised


def test_ask_of_an_application_that_hangs_tells_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "LIMIT_SECONDS", 0.01)

    async def hang(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()

    assert asyncio.run(ask(hang, Question("/"))).raised == "hangs for 0.01 s"


def test_question_with_a_body_tells_its_length() -> None:
    headers = dict(Question("/", parts=(b"ab", b"c")).scope()["headers"])
    assert headers == {b"host": b"localhost", b"content-length": b"3"}
