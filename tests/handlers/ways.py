"""Ways to try: layers and views that note what is called, and a site without Django around them."""

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse

from django_asyncbridge.handlers.errors import ANSWER_EXCEPTION
from django_asyncbridge.handlers.plan import Hooks, Layer, Plan
from django_asyncbridge.handlers.sides import Side, Step
from django_asyncbridge.handlers.way import RequestWay, Way

# What a hook or view does: return the name's response, raise, or return nothing.
Act = str | Exception | None


class Answer(HttpResponse):
    """A response with a name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __repr__(self) -> str:
        return self.name


class Unrendered(Answer):
    """A response that is rendered later, into one of another name."""

    def __init__(self, name: str, act: Act = "rendered") -> None:
        super().__init__(name)
        self.act = act

    def render(self) -> Any:
        return act(self.act)


def act(what: Act) -> Any:
    """Do as told."""
    if isinstance(what, Exception):
        raise what
    return Answer(what) if isinstance(what, str) else what


class FakeSite:
    """A handler with hooks and one view, which notes what is called, and where it was called from.

    Args:
        view: what the view does; a callable is the view itself.
    """

    def __init__(self, view: Any = "view") -> None:
        self.hooks = Hooks()
        self.events: list[str] = []
        self.request = HttpRequest()
        self._view = view

    def step(self, name: str, what: Act, passes: bool = False) -> Step:
        """Return a step that notes its name.

        Args:
            name: for the events.
            what: what it does.
            passes: whether it returns its last argument if it has nothing else to return.
        """

        def call(*args: Any) -> Any:
            self.events.append(name)
            result = act(what)
            return args[-1] if passes and result is None else result

        return Step(call, Side.THREAD)

    def plan(self, *layers: tuple[Act, Act], core: Step | None = None) -> Plan:
        """Return a plan of layers named a, b and so on, by what each does on the way in and on the way out."""
        return Plan(
            tuple(
                Layer(
                    self.step(f"{name} in", inward), self.step(f"{name} out", outward, passes=True)
                )
                for name, (inward, outward) in zip("abcdef", layers, strict=False)
            ),
            core,
        )

    def way(self, plan: Plan) -> Way:
        """Return the way of this site's request."""
        return RequestWay(self, self.request).through(plan)

    # --- What the way asks of a handler ---

    def resolve_request(self, request: HttpRequest) -> tuple[Any, Any, Any]:
        view = self._view if callable(self._view) else self.step("view", self._view).call
        return view, ("argument",), {}

    def make_view_atomic(self, view: Any) -> Any:
        return view

    def check_response(self, response: Any, callback: Any, name: str | None = None) -> None:
        if not isinstance(response, HttpResponse):
            raise ValueError(f"{name or 'the view'} returned {response!r}")


def drive(site: FakeSite, way: Way, answer: Callable[[Exception], Act] = repr) -> Any:
    """Run a way of sync steps right here.

    Args:
        site: whose events are added to.
        way: from its beginning.
        answer: what becomes of an exception.
    """
    result, error = None, None
    try:
        while True:
            step, args = way.send(result) if error is None else way.throw(error)
            result, error = None, None
            try:
                if step is ANSWER_EXCEPTION:
                    site.events.append(f"answer {args[1]!r}")
                    result = act(answer(args[1]))
                else:
                    result = step.call(*args)
            except Exception as raised:
                error = raised
            # The error's traceback leads to this frame.
            del step, args
    except StopIteration as end:
        return end.value
