"""The address a user writes, and the socket it becomes."""

import socket
from typing import Any

import pytest

from django_asyncbridge.serving.address import Address, listen, parse_addrport
from django_asyncbridge.serving.errors import AddressError, ListenError
from tests.serving.children import LIMIT_SECONDS


@pytest.mark.parametrize(
    ("text", "address", "url"),
    [
        (None, Address("127.0.0.1", 8000), "http://127.0.0.1:8000/"),
        ("", Address("127.0.0.1", 8000), "http://127.0.0.1:8000/"),
        ("0", Address("127.0.0.1", 0), "http://127.0.0.1:0/"),
        ("8080", Address("127.0.0.1", 8080), "http://127.0.0.1:8080/"),
        ("0:80", Address("0", 80), "http://0.0.0.0:80/"),
        ("10.0.0.7:65535", Address("10.0.0.7", 65535), "http://10.0.0.7:65535/"),
        ("[::1]:8000", Address("::1", 8000), "http://[::1]:8000/"),
        ("localhost:8000", Address("localhost", 8000), "http://localhost:8000/"),
        ("web_1.example:8000", Address("web_1.example", 8000), "http://web_1.example:8000/"),
    ],
)
def test_parse_addrport_in_runserver_s_forms_gives_host_and_port(
    text: str | None, address: Address, url: str
) -> None:
    assert parse_addrport(text) == address
    assert address.url(address.port) == url


@pytest.mark.parametrize(
    "text",
    [
        "65536",
        "999999",
        "x",
        "127.0.0.1",
        "127.0.0.1:",
        ":8000",
        "::1:8000",
        "[::1]",
        "a b:1",
        "٨٠",
        "80\n",
    ],
)
def test_parse_addrport_in_another_form_raises(text: str) -> None:
    with pytest.raises(AddressError, match="is not a port number"):
        parse_addrport(text)


def test_listen_accepts_connections_before_anyone_serves() -> None:
    hosts = ["127.0.0.1", "localhost", *(["::1"] if socket.has_ipv6 else [])]
    for host in hosts:
        with (
            listen(Address(host, 0)) as listener,
            socket.create_connection(listener.getsockname()[:2], timeout=LIMIT_SECONDS),
        ):
            assert listener.gettimeout() == 0


def test_address_of_a_listener_has_the_port_that_the_system_chose() -> None:
    for host in ["127.0.0.1", *(["::1"] if socket.has_ipv6 else [])]:
        with listen(Address(host, 0)) as listener:
            assert Address.of(listener) == Address(host, listener.getsockname()[1])


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="the system has no Unix sockets")
def test_address_of_a_unix_socket_is_none() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        assert Address.of(listener) is None


def test_listen_on_a_name_with_both_takes_the_ipv4_address(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: found)
    with listen(Address("both.example", 0)) as listener:
        assert listener.family == socket.AF_INET


def test_listen_on_an_unknown_host_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_args: Any, **_options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ListenError, match=r'"nobody": no such host'):
        listen(Address("nobody", 0))


def test_listen_on_an_address_of_another_machine_raises() -> None:
    # 192.0.2.0/24 is set aside for documentation (RFC 5737).
    with pytest.raises(ListenError, match="not one of this machine"):
        listen(Address("192.0.2.1", 0))


def test_listen_where_the_platform_is_not_posix_leaves_the_port_exclusive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_asyncbridge.serving.address.os.name", "nt")
    with listen(Address(port=0)) as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
