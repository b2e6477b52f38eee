"""What docstrings promise: each public thing has one, each name under ``Raises`` is an exception."""

import ast
import builtins
import contextlib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import django_asyncbridge

PACKAGE = Path(django_asyncbridge.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

# PEP 440, without the epochs and local parts that we never use.
VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?")


def imported(path: Path) -> ModuleType:
    """Import the module of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return importlib.import_module(".".join(parts).removesuffix(".__init__"))


def documented_errors(docstring: str) -> Iterator[str]:
    """Yield the names under ``Raises`` of a docstring in Google style."""
    inside = False
    for line in inspect.cleandoc(docstring).splitlines():
        entry = re.match(r"    (\S[^:]*):", line)
        if line and not line.startswith(" "):
            inside = line == "Raises:"
        elif inside and entry:
            yield from re.split(r", | or ", entry.group(1))


def resolved(dotted_name: str, module: ModuleType) -> Any:
    """Return what a name means in a module, or anywhere if it is a whole path; None if it means nothing."""
    first, *others = dotted_name.split(".")
    value = getattr(module, first, getattr(builtins, first, None))
    for name in others:
        value = getattr(value, name, None)
    if value is None and others:
        with contextlib.suppress(ImportError, AttributeError, ValueError):
            value = pkgutil.resolve_name(dotted_name)
    return value


def unresolved_errors(tree: ast.Module, module: ModuleType) -> list[str]:
    """Return the names under ``Raises`` in any docstring of a module that are no exception classes."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | Definition):
            for name in documented_errors(ast.get_docstring(node) or ""):
                value = resolved(name, module)
                if not (inspect.isclass(value) and issubclass(value, BaseException)):
                    found.append(f"{getattr(node, 'name', 'the module')}: {name}")
    return found


def public_definitions(body: list[ast.stmt], path: str = "") -> Iterator[tuple[str, Definition]]:
    """Yield the public classes, functions and methods of a module, but not overloads and setters."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
            if "overload" not in decorators and f"{node.name}.setter" not in decorators:
                yield path + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body, f"{path}{node.name}.")


def undocumented(tree: ast.Module) -> list[str]:
    """Return the public definitions of a module that have no docstring."""
    definitions = public_definitions(tree.body)
    return [name for name, node in definitions if not ast.get_docstring(node)]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_documentation_every_name_under_raises_is_an_exception(path: Path) -> None:
    assert unresolved_errors(ast.parse(path.read_text(encoding="utf-8")), imported(path)) == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_documentation_every_public_definition_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body
    assert undocumented(tree) == []


SAMPLE = '''
"""A module.

Raises:
    ValueError: is one.
"""

class Documented:
    """A class.

    Raises:
        OSError, re.error: are two,
            and this: is none.
        NoSuchError: is none.
        Path: is no exception.

    Returns:
        Nothing: is not raised.
    """

    def method(self): ...

    @property
    def value(self): """A value."""

    @value.setter
    def value(self, value): ...

    def _private(self): ...

    def __len__(self): ...

@overload
def function(a): ...

async def function(a): ...
'''


def test_documentation_check_of_raises_finds_what_is_no_exception() -> None:
    found = unresolved_errors(ast.parse(SAMPLE), importlib.import_module(__name__))
    assert found == ["Documented: NoSuchError", "Documented: Path"]


def test_documentation_check_of_docstrings_finds_what_has_none() -> None:
    assert undocumented(ast.parse(SAMPLE)) == ["Documented.method", "function"]


def test_documentation_version_is_a_version_and_that_of_the_installed_package() -> None:
    assert VERSION.fullmatch(django_asyncbridge.__version__)
    installed = {found.version for found in metadata.distributions(name="django-asyncbridge")}
    assert installed <= {django_asyncbridge.__version__}
