"""The stacks cover what they say they cover."""

import pytest

from tests.handlers.differential import shapes
from tests.handlers.differential.hooks import MIXINS
from tests.handlers.differential.questions import ESSENTIAL, QUESTIONS
from tests.handlers.differential.stacks import DEPTH, KINDS, STACKS, questions_of


def kind_of(name: str) -> str:
    if name in MIXINS:
        return "mixin"
    return "django" if "." in name else name


def test_stacks_have_every_shape() -> None:
    used = {name for stack in STACKS.values() for name in stack.shapes}
    assert used == {*shapes.SHAPES, *shapes.DJANGOS, *shapes.STARTPROJECT}


def test_stacks_have_every_kind_right_above_every_other() -> None:
    borders = {
        (kind_of(above), kind_of(below))
        for stack in STACKS.values()
        for above, below in zip(stack.shapes, stack.shapes[1:], strict=False)
    }
    assert borders >= {(above, below) for above in KINDS for below in KINDS}


def test_stacks_that_are_drawn_are_not_deeper_than_they_should_be() -> None:
    drawn = [stack for stack in STACKS.values() if not stack.name.startswith(("all_", "failing_"))]
    assert max(len(stack.shapes) for stack in drawn) == DEPTH
    usable = [stack for stack in drawn if stack.name not in shapes.UNUSABLE]
    assert all(set(questions_of(stack)) > set(ESSENTIAL) for stack in usable)


def test_stacks_are_asked_each_question_somewhere_below_a_middleware_of_each_side() -> None:
    asked = set(questions_of(STACKS["all_mixed"]))
    assert asked == set(QUESTIONS)


def test_shapes_of_an_unknown_name_are_refused() -> None:
    with pytest.raises(AttributeError, match="no shape of that name"):
        shapes.unheard_of__0  # noqa: B018  # asking is the test
    with pytest.raises(KeyError):
        shapes.path_of("unheard_of", 0)
