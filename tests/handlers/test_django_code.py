"""`django_code`: what is Django's own, and what only has its name."""

import functools
import os
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any
from unittest import mock

import pytest
from django.contrib.messages.storage.cookie import CookieStorage
from django.contrib.messages.storage.fallback import FallbackStorage
from django.db import reset_queries
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.common import CommonMiddleware
from django.middleware.csrf import CsrfViewMiddleware
from django.middleware.gzip import GZipMiddleware
from django.middleware.security import SecurityMiddleware
from django.utils.deprecation import MiddlewareMixin

from django_asyncbridge.handlers.django_code import find_loaded, overrides_nothing
from django_asyncbridge.handlers.django_sides import condition_of
from django_asyncbridge.handlers.sides import never_blocks
from tests.handlers.django_calls import view


def own_hook(self: Any, request: HttpRequest, response: HttpResponse) -> HttpResponse:
    raise AssertionError


class OwnHook(XFrameOptionsMiddleware):
    process_response = own_hook


class OwnHelper(XFrameOptionsMiddleware):
    def get_xframe_options_value(self, request: Any, response: Any) -> str:
        raise AssertionError


class OwnProperty(CsrfViewMiddleware):
    @property
    def allowed_origins_exact(self) -> Any:
        raise AssertionError


class OwnCodeForData(GZipMiddleware):
    @property
    def max_random_bytes(self) -> Any:  # type: ignore[override]
        raise AssertionError


class Intercepting(SecurityMiddleware):
    def __getattribute__(self, name: str) -> Any:
        return super().__getattribute__(name)


class Mixin:
    def get_xframe_options_value(self, request: Any, response: Any) -> str:
        raise AssertionError


class MixedIn(Mixin, XFrameOptionsMiddleware):
    pass


class OwnRedirect(CommonMiddleware):
    class response_redirect_class(HttpResponseRedirect):  # noqa: N801
        pass


class OwnMiddleware(MiddlewareMixin):
    process_response = own_hook


FOREIGN = [OwnHook, OwnHelper, OwnProperty, OwnCodeForData, Intercepting, MixedIn]
FOREIGN += [OwnRedirect, OwnMiddleware]


@pytest.mark.parametrize("middleware", FOREIGN)
def test_condition_of_a_subclass_with_code_of_its_own_is_none(middleware: Any) -> None:
    assert condition_of(middleware(view).process_response) is None


class Plain(SecurityMiddleware):
    def __init__(self, get_response: Any) -> None:
        super().__init__(get_response)
        self.added = True

    def helper(self) -> None:
        raise AssertionError


class OwnData(GZipMiddleware):
    max_random_bytes = 5


class TemporaryRedirect(CommonMiddleware):
    response_redirect_class = HttpResponseRedirect


@pytest.mark.parametrize("middleware", [Plain, OwnData, TemporaryRedirect])
def test_condition_of_a_subclass_that_overrides_no_code_is_that_of_the_class(
    middleware: Any,
) -> None:
    base = middleware.__bases__[0]
    expected = condition_of(base(view).process_response)
    assert expected is not None
    assert condition_of(middleware(view).process_response) is expected


def test_condition_of_a_hook_replaced_in_its_class_is_none() -> None:
    for replacement in (mock.DEFAULT, mock.create_autospec(SecurityMiddleware.process_request)):
        with mock.patch.object(SecurityMiddleware, "process_request", replacement):
            assert condition_of(SecurityMiddleware(view).process_request) is None
    original = SecurityMiddleware.process_request

    @functools.wraps(original)
    def wrapper(*args: Any) -> Any:
        raise AssertionError

    with mock.patch.object(SecurityMiddleware, "process_request", wrapper):
        assert condition_of(SecurityMiddleware(view).process_request) is None


def test_tuple_of_classes_is_code_of_the_class_that_has_it() -> None:
    class OwnStorages(FallbackStorage):
        storage_classes = (CookieStorage,)

    assert overrides_nothing(FallbackStorage, FallbackStorage)
    assert not overrides_nothing(OwnStorages, FallbackStorage)
    with mock.patch.object(FallbackStorage, "storage_classes", (mock.Mock(),)):
        assert not overrides_nothing(FallbackStorage, FallbackStorage)


def test_find_loaded_names_what_is_there_and_waits_for_no_import() -> None:
    assert find_loaded("os.path.join") is os.path.join
    for path in ("os.nothing", "nothing.at_all", "os", ""):
        assert find_loaded(path) is None
    module = types.ModuleType("half_imported")
    module.__spec__ = ModuleSpec("half_imported", None)
    vars(module)["there"] = 1
    with mock.patch.dict(sys.modules, {"half_imported": module}):
        assert find_loaded("half_imported.there") == 1
        vars(module.__spec__)["_initializing"] = True
        assert find_loaded("half_imported.there") is None


def test_condition_of_a_hook_whose_helper_is_replaced_is_none() -> None:
    with mock.patch.object(CommonMiddleware, "should_redirect_with_slash"):
        assert condition_of(CommonMiddleware(view).process_response) is None
    middleware = CommonMiddleware(view)
    with mock.patch.object(middleware, "get_full_path_with_slash"):
        assert condition_of(middleware.process_response) is None
    assert condition_of(middleware.process_response) is never_blocks


def test_condition_of_a_hook_with_a_value_kept_in_the_object_is_known() -> None:
    middleware = CsrfViewMiddleware(view)
    assert middleware.allowed_origins_exact == set()
    assert condition_of(middleware.process_request) is not None


def test_condition_of_a_method_of_another_object_is_none() -> None:
    stolen = types.MethodType(SecurityMiddleware.process_request, OwnMiddleware(view))
    assert condition_of(stolen) is None


def test_condition_of_what_is_no_hook_of_django_is_none() -> None:
    for hook in (view, functools.partial(reset_queries), SecurityMiddleware, object()):
        assert condition_of(hook) is None  # type: ignore[arg-type]
    assert condition_of(SecurityMiddleware.process_request) is None
    copy = types.FunctionType(reset_queries.__code__, dict(reset_queries.__globals__))
    assert condition_of(copy) is None
