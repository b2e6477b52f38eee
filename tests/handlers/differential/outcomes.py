"""`Outcome`: what came of one question, and what differs between two.

Nothing is made equal here: the parts of a body are joined, and that is all.

Which thread may touch what. Outcomes do not change.
"""

import difflib
from dataclasses import dataclass, fields
from typing import Any

__all__ = ("LOADING", "Outcome", "differing")

LOADING = "loading"
"""The name of what comes of making a handler, among those of questions."""


@dataclass(frozen=True)
class Outcome:
    """What came of one question.

    Attributes:
        trace: the lines of `trace.note`, in order.
        raised: what came out of the application, its class and text; empty if nothing did.
        status: of the answer; None if none began.
        headers: names and values in the order they were sent.
        body: all of it.
        ended: whether the application said that this is all.
    """

    trace: tuple[str, ...] = ()
    raised: str = ""
    status: int | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    ended: bool = False


def differing(theirs: Outcome, ours: Outcome) -> dict[str, Any]:
    """Return what differs, by the name of the attribute: both values, or for traces what is gone (-) and come (+)."""
    found: dict[str, Any] = {}
    for field in fields(Outcome):
        there, here = getattr(theirs, field.name), getattr(ours, field.name)
        if there == here:
            continue
        if field.name == "trace":
            found["trace"] = [
                line for line in difflib.ndiff(there, here) if not line.startswith("?")
            ]
        else:
            found[field.name] = {"django": there, "ours": here}
    return found
