"""The database work of the guest book, for both sides of the bridge.

Django's ORM blocks, so a coroutine may not call it on the event loop's thread. `sync_to_async` moves a
call to the thread that belongs to the request and brings the result back; `async_to_sync` is the way
back for sync code. The three ways to use them are all here: a decorated helper (`awrite_entry`), a
helper for both sides (`latest_entries` and its twin), a coroutine for both sides (`totals`). The last
uses Django's own async ORM: it crosses through asgiref, to the same thread and connection.
"""

from dataclasses import dataclass

from django.contrib.auth.models import User

from django_asyncbridge import sync_to_async
from testproject.guestbook.models import Entry

PAGE_LENGTH = 50


@dataclass(frozen=True)
class Totals:
    """How much the book holds."""

    entries: int
    authors: int


def latest_entries() -> list[Entry]:
    """Return the newest entries with their authors, read in full: a template can use them anywhere."""
    return list(Entry.objects.select_related("author")[:PAGE_LENGTH])


alatest_entries = sync_to_async(latest_entries)


def write_entry(author: User, text: str) -> Entry:
    """Add one line, signed by `author`."""
    return Entry.objects.create(author=author, text=text)


@sync_to_async
def awrite_entry(author: User, text: str) -> Entry:
    """Add one line from a coroutine."""
    return write_entry(author, text)


async def totals() -> Totals:
    """Count entries and authors. Async views await it; sync views call ``async_to_sync(totals)()``."""
    authors = Entry.objects.values("author").distinct()
    return Totals(entries=await Entry.objects.acount(), authors=await authors.acount())
