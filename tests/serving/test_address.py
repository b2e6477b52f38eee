"""The address a user writes, and the socket it becomes."""

import socket
from pathlib import Path
from typing import Any

import pytest

from django_asyncbridge.serving.address import (
    Address,
    inherit,
    listen,
    listen_unix,
    parse_addrport,
    remove_unix,
)
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


# --- Unix sockets ----------------------------------------------------------------------

needs_unix = pytest.mark.skipif(
    not hasattr(socket, "AF_UNIX"), reason="the system has no Unix sockets"
)


@needs_unix
def test_listen_unix_accepts_connections_of_any_user_and_is_removed_at_the_end(
    tmp_path: Path,
) -> None:
    path = tmp_path / "site.sock"
    with listen_unix(str(path)) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert listener.gettimeout() == 0
        assert path.stat().st_mode & 0o777 == 0o666
    remove_unix(str(path))
    assert not path.exists()
    remove_unix(str(path))


@needs_unix
def test_listen_unix_takes_the_place_of_a_server_that_was_killed(tmp_path: Path) -> None:
    path = str(tmp_path / "site.sock")
    listen_unix(path).close()
    listen_unix(path).close()


@needs_unix
def test_listen_unix_where_somebody_listens_raises_and_leaves_that_one(tmp_path: Path) -> None:
    path = str(tmp_path / "site.sock")
    with listen_unix(path), socket.socket(socket.AF_UNIX) as client:
        with pytest.raises(ListenError, match="already in use"):
            listen_unix(path)
        remove_unix(path)
        client.connect(path)


@needs_unix
def test_listen_unix_where_a_file_is_raises_and_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "settings.py"
    path.write_text("DEBUG = False")
    with pytest.raises(ListenError, match="something that is no socket"):
        listen_unix(str(path))
    remove_unix(str(path))
    assert path.exists()


@needs_unix
@pytest.mark.parametrize(
    ("name", "reason"), [("no/such/directory", "No such file"), ("x" * 200, "too long")]
)
def test_listen_unix_where_none_can_be_raises(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ListenError, match=reason):
        listen_unix(str(tmp_path / name))


# --- Inherited sockets -------------------------------------------------------------------


def test_inherit_takes_a_socket_that_listens() -> None:
    listener = listen(Address(port=0))
    address = listener.getsockname()
    with inherit(listener.detach()) as inherited:
        assert inherited.getsockname() == address
        assert inherited.gettimeout() == 0


def test_inherit_of_a_descriptor_that_is_not_open_raises() -> None:
    with pytest.raises(ListenError, match="File descriptor 9999 is no socket"):
        inherit(9999)


def test_inherit_of_a_socket_that_does_not_listen_raises_and_leaves_it_open() -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as other:
            with pytest.raises(ListenError, match="does not listen"):
                inherit(other.fileno())
            other.getsockname()


def test_url_of_an_address_has_the_scheme() -> None:
    assert Address("::1", 1).url(443, "https") == "https://[::1]:443/"
    assert Address("0", 1).url(443, "https") == "https://0.0.0.0:443/"
