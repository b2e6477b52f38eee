"""Several processes: each may die, be replaced or have enough, and the others go on serving."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

from tests.serving.e2e.conftest import Servers
from tests.serving.e2e.load import Load
from tests.serving.e2e.servers import Server, complaints, until


def workers(server: Server) -> set[int]:
    """Return the processes that answer."""
    with ThreadPoolExecutor(8) as clients:
        answers = clients.map(server.fetch_json, ["/scope/"] * 16)
        return {answer["pid"] for answer in answers}


def all_workers(server: Server, count: int = 2, without: frozenset[int] = frozenset()) -> set[int]:
    """Wait until so many processes answer, none of them one of those."""
    seen: set[int] = set()

    def are_there() -> bool:
        nonlocal seen
        now = workers(server)
        seen = set() if now & without else seen | now
        return len(seen) >= count

    until(are_there)
    assert len(seen) == count
    return seen


def test_killed_worker_comes_back_under_load_and_a_killed_parent_takes_all_with_it(
    start: Servers,
) -> None:
    server = start("0", "--workers", "2")
    before = all_workers(server)
    assert server.process.pid not in before
    with Load(server.address) as load:
        load.go_on()
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        server.wait_for("SIGKILL")
        after = all_workers(server, without=frozenset({killed}))
        # What the killed one had taken is lost with it, at most one request of each client; a connection that it had not taken
        # is not reset, for the listening socket stays open.
        lost = len(load.lost) + load.refused
        assert lost <= len(load.clients)
        load.go_on()
    assert len(load.lost) + load.refused == lost
    assert before - {killed} < after
    assert complaints(server.lines) == []
    assert len([line for line in server.lines if line.startswith("Serving ")]) == 1
    server.signal(signal.SIGKILL)
    assert server.end() == -signal.SIGKILL


def test_sighup_under_load_replaces_all_workers_and_loses_no_request(start: Servers) -> None:
    server = start("0", "--workers", "2")
    before = all_workers(server)
    with Load(server.address) as load:
        load.go_on()
        server.signal(signal.SIGHUP)
        after = all_workers(server, without=frozenset(before))
        load.go_on()
    assert load.lost == []
    assert load.refused == 0
    assert not before & after
    assert server.stop() == 0
    assert complaints(server.lines) == []


def test_max_requests_under_load_replaces_workers_and_loses_no_request(start: Servers) -> None:
    server = start("0", "--workers", "2", "--max-requests", "300")
    before = workers(server)
    with Load(server.address) as load:
        until(lambda: not before & workers(server))
        load.go_on()
    assert load.lost == []
    assert load.refused == 0
    assert server.stop() == 0
    assert complaints(server.lines) == []
