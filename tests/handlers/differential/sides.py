"""The two handlers, and asking both the same.

Which thread may touch what. For the thread of the test: each side has an event loop of its own there, one after the other.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import IO, Any

from django.core.handlers.asgi import ASGIHandler

from django_asyncbridge.asgi import get_asgi_application
from tests.handlers.differential import trace
from tests.handlers.differential.asking import Application, Question, ask
from tests.handlers.differential.differences import STAND_INS
from tests.handlers.differential.outcomes import LOADING, Outcome
from tests.handlers.differential.shapes import standing_in
from tests.handlers.differential.sites import site
from tests.handlers.differential.stacks import Stack, questions_of
from tests.handlers.differential.trace import close_later, listening

__all__ = ("both", "ours", "outcomes", "theirs")

Make = Callable[[], Application]
Pairs = dict[str, tuple[Outcome, Outcome]]


class _Djangos(ASGIHandler):
    """Django's handler; where it leaves a body open, that is closed."""

    async def read_body(self, receive: Any) -> IO[bytes]:
        body = await super().read_body(receive)
        close_later(body)
        return body


_Djangos.__name__ = ASGIHandler.__name__


def theirs() -> Application:
    """Return Django's handler."""
    return _Djangos()


def ours() -> Application:
    """Return the handler that projects get from us."""
    return get_asgi_application()


def outcomes(make: Make, questions: Mapping[str, Question]) -> dict[str, Outcome]:
    """Make a handler, and return what comes of that and of each question, in order; nothing is asked if it cannot be made."""
    lines = trace.begin()
    try:
        application = make()
    except Exception as error:
        return {LOADING: Outcome(tuple(lines), f"{type(error).__name__}: {error}")}

    async def main() -> dict[str, Outcome]:
        return {name: await ask(application, question) for name, question in questions.items()}

    return {LOADING: Outcome(tuple(lines)), **asyncio.run(main())}


def both(stack: Stack, names: Collection[str] | None = None, make: Make = ours) -> Pairs:
    """Ask both handlers, and return the outcomes by the name of the question: Django's, and that of `make`.

    Args:
        stack: what they serve with.
        names: of the questions; all that are asked of the stack if None.
        make: makes the other handler.
    """
    asked = questions_of(stack)
    questions = {name: one for name, one in asked.items() if names is None or name in names}
    there = _outcomes_in(stack, theirs, questions, STAND_INS)
    here = _outcomes_in(stack, make, questions, {})
    return {
        name: (there.get(name, Outcome()), here.get(name, Outcome())) for name in {**there, **here}
    }


def _outcomes_in(
    stack: Stack, make: Make, questions: Mapping[str, Question], stand_ins: Mapping[str, str]
) -> dict[str, Outcome]:
    with (
        standing_in(stand_ins),
        site(stack.shapes, stack.settings),
        listening(stack.async_receivers),
    ):
        return outcomes(make, questions)
