"""The pages that are asked for, what they have to answer, and what ratios are to be reached with them.

A ratio here is ours to the peer's requests per second: above 1 ours is faster. The targets of pages that query were set
on PostgreSQL.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = (
    "AGETS",
    "GRANIAN",
    "GUNICORN",
    "HELLO",
    "OURS",
    "PAGES",
    "STOCK",
    "USERS",
    "Page",
    "selected_pages",
)

HELLO = "hello"
AGETS = 10
# By primary key, from 1.
USERS = tuple(f"user-{number}" for number in range(1, AGETS + 1))

OURS = "ours"
STOCK = "stock"
GRANIAN = "granian wsgi"
GUNICORN = "gunicorn gthread"


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """One view that is measured; there is one object of each, which can be a key.

    Args:
        name: as ``--only`` and the tables have it; with slashes around it, its path.
        title: what the view does, in words.
        body: what it has to answer.
        queries: whether it asks the database.
        crossings: how many crossings of ours a request may have, those for closing left out; None where nothing is to be reached.
        handler: the ratio in process, by peer, that is to be reached.
        served: the ratio under a server, by peer, that is to be reached.
    """

    name: str
    title: str
    body: str
    queries: bool = False
    crossings: int | None = None
    handler: Mapping[str, float] = field(default_factory=dict)
    served: Mapping[str, float] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Where it is found."""
        return f"/{self.name}/"


PAGES = (
    Page(
        "sync-hello",
        "a sync view that answers at once",
        HELLO,
        crossings=1,
        handler={STOCK: 10},
        served={STOCK: 12, GRANIAN: 1},
    ),
    Page(
        "async-hello",
        "an async view that answers at once",
        HELLO,
        crossings=0,
        handler={STOCK: 10},
        served={STOCK: 8},
    ),
    Page(
        "sync-query",
        "a sync view with one query",
        USERS[0],
        queries=True,
        served={STOCK: 5, GRANIAN: 1, GUNICORN: 1},
    ),
    Page(
        "async-aget",
        "an async view with one aget",
        USERS[0],
        queries=True,
        served={STOCK: 4, GRANIAN: 1, GUNICORN: 1},
    ),
    Page(
        "async-aget-10",
        f"an async view with {AGETS} aget, one after the other",
        " ".join(USERS),
        queries=True,
        served={STOCK: 1.7},
    ),
)


def selected_pages(only: Sequence[str]) -> tuple[Page, ...]:
    """Return the pages that have one of the strings as their name, or in it if none has it as its name; all of them for no strings.

    Raises:
        ValueError: for a string that is in no name.
    """
    if not only:
        return PAGES
    found = {page.name for part in only for page in _named(part)}
    return tuple(page for page in PAGES if page.name in found)


def _named(part: str) -> list[Page]:
    exact = [page for page in PAGES if page.name == part]
    found = exact or [page for page in PAGES if part in page.name]
    if not found:
        names = ", ".join(page.name for page in PAGES)
        raise ValueError(f"no page has {part!r} in its name; there are {names}")
    return found
