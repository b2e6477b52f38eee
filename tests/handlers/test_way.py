"""`RequestWay`: what is called in which order, as a table; nothing here is a request of a client's."""

import weakref
from typing import Any

import pytest

from django_asyncbridge.handlers.plan import Hooks
from django_asyncbridge.handlers.sides import Side
from django_asyncbridge.handlers.way import response_of
from tests.bridge import without_gc
from tests.handlers.ways import Act, Answer, FakeSite, Unrendered, drive

A, B = ValueError("a"), KeyError("b")
V = LookupError("view")

NOTHING = (None, None)


@pytest.mark.parametrize(
    ("layers", "view", "events", "response"),
    [
        ((), "view", "view", "view"),
        ((NOTHING,), "view", "a in, view, a out", "view"),
        ((NOTHING, NOTHING), "view", "a in, b in, view, b out, a out", "view"),
        # A hook that answers: its own layer and those outside see it.
        ((("short", None), NOTHING), "view", "a in, a out", "short"),
        ((NOTHING, ("short", None)), "view", "a in, b in, b out, a out", "short"),
        ((NOTHING, (None, "other")), "view", "a in, b in, view, b out, a out", "other"),
        # An exception becomes a response at its own layer, whose way out is not taken.
        (((A, None), NOTHING), "view", f"a in, answer {A!r}", repr(A)),
        ((NOTHING, (B, None)), "view", f"a in, b in, answer {B!r}, a out", repr(B)),
        ((NOTHING, (None, B)), "view", f"a in, b in, view, b out, answer {B!r}, a out", repr(B)),
        (((None, A), NOTHING), "view", f"a in, b in, view, b out, a out, answer {A!r}", repr(A)),
        ((NOTHING,), V, f"a in, view, answer {V!r}, a out", repr(V)),
        (((None, A), (None, B)), V, None, repr(A)),
        # What is no answer and no exception is passed on, for the next to stumble over.
        (((None, None),), None, None, "ValueError('the view returned None')"),
    ],
)
def test_way_through_layers(
    layers: tuple[tuple[Act, Act], ...], view: Act, events: str | None, response: str
) -> None:
    site = FakeSite(view)
    answer = drive(site, site.way(site.plan(*layers)))
    assert repr(answer) == response
    if events is not None:
        assert ", ".join(site.events) == events


def test_way_with_a_layer_without_hooks_passes_through() -> None:
    site = FakeSite()
    plan = site.plan(NOTHING)
    (layer,) = plan.layers
    bare = type(plan)((type(layer)(None, None), layer), plan.core)
    assert repr(drive(site, site.way(bare))) == "view"


def test_way_to_a_core_that_is_no_view_calls_it_with_the_request() -> None:
    site = FakeSite()
    core = site.step("core", None, passes=True)
    assert drive(site, site.way(site.plan(NOTHING, core=core))) is site.request
    assert site.events == ["a in", "core", "a out"]


def test_way_whose_answer_to_an_exception_raises_is_answered_layer_by_layer() -> None:
    """As with DEBUG_PROPAGATE_EXCEPTIONS: nobody on the way out is asked, everybody tries to answer."""
    site = FakeSite(V)

    def fail(error: Exception) -> Exception:
        return error

    with pytest.raises(LookupError) as raised:
        drive(site, site.way(site.plan(NOTHING, NOTHING)), fail)
    assert raised.value is V
    assert site.events == ["a in", "b in", "view", *[f"answer {V!r}"] * 3]


def test_way_on_which_the_second_answer_succeeds_goes_on_from_there() -> None:
    site = FakeSite(V)
    acts: Any = iter([A, "answered"])
    answer = drive(site, site.way(site.plan(NOTHING, NOTHING)), lambda _: next(acts))
    assert repr(answer) == "answered"
    assert site.events == ["a in", "b in", "view", f"answer {V!r}", f"answer {A!r}", "a out"]


# --- Around the view ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("hooks", "view", "events", "response"),
    [
        ([None, None], "view", "v0, v1, view", "view"),
        (["hook", None], "view", "v0", "hook"),
        ([None, A], "view", f"v0, v1, answer {A!r}", repr(A)),
    ],
)
def test_way_asks_the_view_hooks_until_one_answers(
    hooks: list[Act], view: Act, events: str, response: str
) -> None:
    site = FakeSite(view)
    steps = tuple(site.step(f"v{number}", what) for number, what in enumerate(hooks))
    site.hooks = Hooks(view=steps)
    assert repr(drive(site, site.way(site.plan()))) == response
    assert ", ".join(site.events) == events


def test_way_with_a_view_hook_that_returns_neither_none_nor_an_answer_is_complained_of() -> None:
    site = FakeSite()
    site.hooks = Hooks(view=(site.step("v", None), site.step("0", None)))
    empty = site.step("empty", None)
    site.hooks = Hooks(view=(type(empty)(lambda *_: "", Side.ANY),))
    assert repr(drive(site, site.way(site.plan()))) == "ValueError(\"the view returned ''\")"


@pytest.mark.parametrize(
    ("hooks", "events", "response"),
    [
        ([], f"view, answer {V!r}", repr(V)),
        ([None, "hook", "late"], "view, x0, x1", "hook"),
        ([None, None], f"view, x0, x1, answer {V!r}", repr(V)),
        ([A, "late"], f"view, x0, answer {A!r}", repr(A)),
    ],
)
def test_way_offers_an_exception_of_the_view_to_the_exception_hooks(
    hooks: list[Act], events: str, response: str
) -> None:
    site = FakeSite(V)
    steps = tuple(site.step(f"x{number}", what) for number, what in enumerate(hooks))
    site.hooks = Hooks(exception=steps)
    assert repr(drive(site, site.way(site.plan()))) == response
    assert ", ".join(site.events) == events


def test_way_offers_no_exception_of_a_view_hook_to_the_exception_hooks() -> None:
    site = FakeSite()
    site.hooks = Hooks(view=(site.step("v", A),), exception=(site.step("x", "hook"),))
    drive(site, site.way(site.plan()))
    assert site.events == ["v", f"answer {A!r}"]


# --- Rendering ----------------------------------------------------------------------


def with_template_hook(what: Act | Answer, view: Answer) -> tuple[FakeSite, Any]:
    site = FakeSite(lambda *_: view)

    class Middleware:
        def process_template_response(self, _request: Any, response: Answer) -> Any:
            site.events.append("t")
            return response if what == "same" else what

    hook = Middleware().process_template_response
    step = site.step("t", None)
    site.hooks = Hooks(
        template_response=(type(step)(hook, Side.THREAD),),
        exception=(site.step("x", "by hook"),),
    )
    return site, drive(site, site.way(site.plan()))


def test_way_renders_after_the_template_hooks() -> None:
    site, response = with_template_hook("same", Unrendered("view"))
    assert (repr(response), site.events) == ("rendered", ["t"])


def test_way_does_not_call_template_hooks_for_a_plain_response() -> None:
    site, response = with_template_hook("same", Answer("view"))
    assert (repr(response), site.events) == ("view", [])


def test_way_offers_an_exception_of_rendering_to_the_exception_hooks() -> None:
    site, response = with_template_hook("same", Unrendered("view", A))
    assert (repr(response), site.events) == ("by hook", ["t", "x"])


def test_way_offers_what_a_template_hook_returned_and_cannot_be_rendered_to_the_exception_hooks() -> (
    None
):
    site, response = with_template_hook(Answer("plain"), Unrendered("view"))
    assert (repr(response), site.events) == ("by hook", ["t", "x"])


def test_way_with_a_template_hook_that_returns_none_names_it() -> None:
    _, response = with_template_hook(None, Unrendered("view"))
    assert repr(response) == ("ValueError('Middleware.process_template_response returned None')")


def test_way_with_a_render_method_that_returns_a_coroutine_complains() -> None:
    async def late() -> None: ...

    coroutine = late()

    class Late(Unrendered):
        def render(self) -> Any:
            return coroutine

    _, response = with_template_hook("same", Late("view"))
    coroutine.close()
    assert "the view returned <coroutine object" in repr(response)


# --- What is left -------------------------------------------------------------------


def test_way_remembers_the_response_of_the_view_for_who_has_to_close_it() -> None:
    site = FakeSite()
    way = site.way(site.plan(NOTHING))
    assert response_of(site.request) is None
    step, args = next(way)
    while step.call(*args) is None:
        step, args = way.send(None)
    answer = Answer("view")
    way.send(answer)
    way.close()
    assert response_of(site.request) is answer


def test_way_does_not_remember_what_is_no_response() -> None:
    site = FakeSite(lambda *_: 7)
    drive(site, site.way(site.plan()))
    assert response_of(site.request) is None


def test_way_passes_arguments_of_the_url_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def view(_request: Any, argument: str, *, number: int) -> Answer:
        return Answer(f"{argument} {number}")

    site = FakeSite(view)
    match = (view, ("positional",), {"number": 7})
    monkeypatch.setattr(site, "resolve_request", lambda _: match)
    assert repr(drive(site, site.way(site.plan()))) == "positional 7"


def test_way_ends_at_once_with_what_is_no_exception() -> None:
    site = FakeSite()
    way = site.way(site.plan(NOTHING))
    next(way)
    with pytest.raises(KeyboardInterrupt):
        way.throw(KeyboardInterrupt())
    assert site.events == []


def test_way_keeps_no_exception_alive_in_its_frames() -> None:
    """Every exception leads to frames, and none of ours leads back: there are no reference cycles."""

    class OwnError(Exception):
        pass

    references: list[weakref.ref[Exception]] = []

    def own() -> Exception:
        error = OwnError()
        references.append(weakref.ref(error))
        return error

    def view(*_args: object) -> None:
        raise own()

    with without_gc():
        site = FakeSite(view)
        drive(site, site.way(site.plan(NOTHING, NOTHING)), lambda _: "answer")
        assert [reference() for reference in references] == [None]
