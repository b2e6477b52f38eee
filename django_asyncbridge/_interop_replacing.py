"""Attributes of somebody else's classes and modules, replaced for a while.

Which thread may touch what. As `interop`: one thread at a time.
"""

from typing import Any

__all__ = ("Replacements",)

_ABSENT = object()


class Replacements:
    """What was there before; false while nothing is replaced."""

    def __init__(self) -> None:
        self._originals: list[tuple[Any, str, Any]] = []

    def __bool__(self) -> bool:
        return bool(self._originals)

    def put(self, owner: Any, name: str, value: Any) -> None:
        """Give `owner`, a class or a module, an attribute of its own, for the one it has or in addition."""
        self._originals.append((owner, name, vars(owner).get(name, _ABSENT)))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Put everything back, the last first; what others have put in its place meanwhile goes as well."""
        while self._originals:
            owner, name, value = self._originals.pop()
            if value is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
