"""How a server speaks: certificates that can be used, and those that cannot."""

import re
import ssl
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from django_asyncbridge.serving._uvicorn import check_choices
from django_asyncbridge.serving.errors import CertificateError, OptionError
from django_asyncbridge.serving.options import ServingOptions, check_certificate
from tests.serving.children import LIMIT_SECONDS
from tests.serving.in_process import serving

CERTIFICATES = Path(__file__).parent / "certificates"
CERTIFICATE = str(CERTIFICATES / "localhost.pem")
KEY = str(CERTIFICATES / "localhost-key.pem")
ENCRYPTED = str(CERTIFICATES / "localhost-key-encrypted.pem")


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["scheme"].encode()})


@pytest.mark.parametrize("key", [KEY, ENCRYPTED])
def test_certificate_has_the_server_speak_tls(key: str) -> None:
    options: dict[str, Any] = {
        "certificate": CERTIFICATE,
        "certificate_key": key,
        "certificate_password": "secret" if key == ENCRYPTED else None,
    }
    check_certificate(ServingOptions(**options))
    context = ssl.create_default_context(cafile=CERTIFICATE)
    with serving(hello, lifespan="off", **options) as served:
        assert served.server.address is not None
        url = served.server.address.url(served.server.address.port, "https")
        with urllib.request.urlopen(url, timeout=LIMIT_SECONDS, context=context) as response:
            assert response.read() == b"https"


def test_scheme_follows_from_the_certificate() -> None:
    assert ServingOptions().scheme == "http"
    assert ServingOptions(certificate=CERTIFICATE).scheme == "https"
    check_certificate(ServingOptions())


@pytest.mark.parametrize(
    ("certificate", "key", "password", "text"),
    [
        (None, KEY, None, "was given without a certificate; give that too, with --ssl-certfile."),
        ("nowhere.pem", KEY, None, "of 'nowhere.pem' and"),
        (CERTIFICATE, "nowhere.pem", None, "one is not there"),
        (CERTIFICATE, str(CERTIFICATES / "other-key.pem"), None, "the key belongs to another"),
        (__file__, None, None, "no PEM file, or the key is encrypted"),
        (CERTIFICATE, None, None, "no PEM file"),
        (CERTIFICATE, ENCRYPTED, None, "then give its password with --ssl-keyfile-password"),
        (CERTIFICATE, ENCRYPTED, "public", "or the password of the key is another"),
        (str(CERTIFICATES), KEY, None, "cannot be read: Is a directory"),
    ],
)
def test_certificate_that_cannot_be_used_raises_why(
    certificate: str | None, key: str | None, password: str | None, text: str
) -> None:
    options = ServingOptions(
        certificate=certificate, certificate_key=key, certificate_password=password
    )
    with pytest.raises(CertificateError, match=re.escape(text)):
        check_certificate(options)


def test_choices_that_are_there_are_accepted() -> None:
    check_choices(ServingOptions())
    check_choices(ServingOptions(http="h11", ws="none", loop="asyncio"))


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"http": "http3"}, "--http http3: choose one of auto, h11, httptools"),
        ({"ws": "socketio"}, "--ws socketio: choose one of auto, none, "),
        ({"loop": "trio"}, "--loop trio: choose one of asyncio, auto, uvloop."),
        ({"loop": "uvloop"}, "--loop uvloop: uvloop is not installed"),
        ({"http": "httptools"}, "--http httptools: httptools is not installed; choose another, or"),
    ],
)
def test_choices_that_are_not_there_raise(
    monkeypatch: pytest.MonkeyPatch, choice: Any, text: str
) -> None:
    for module in ("uvloop", "httptools"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "uvicorn.protocols.http.httptools_impl", raising=False)
    with pytest.raises(OptionError, match=re.escape(text)):
        check_choices(ServingOptions(**choice))
