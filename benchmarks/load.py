"""Requests over several connections that are kept: by wrk where it is installed, else by `load_child`.

wrk is cheaper and so has the higher ceiling. It counts statuses, and does not look at bodies; those are looked at once before
each slice. An exact number of requests is always asked for by `load_child`, which checks every body.

Which thread may touch what. All of it belongs to the main thread of the command.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench import BenchmarkError
from benchmarks.load_child import Answers, Order
from benchmarks.pages import Page
from benchmarks.project import ROOT, on_processors
from benchmarks.servers import HOST, fetch

__all__ = ("CONNECTIONS", "OWN", "WRK", "Load")

CONNECTIONS = 16
WRK = "wrk"
OWN = "own"
# Added to the time that a load should take: then it has failed.
_LIMIT_SECONDS = 60
# wrk's own numbers are rounded; this prints them as they are.
_SCRIPT = """
done = function(summary, latency, requests)
    local errors = summary.errors
    local sockets = errors.connect + errors.read + errors.write + errors.timeout
    io.write(string.format(
        '{"good": %d, "failed": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f}\\n',
        summary.requests - errors.status, errors.status + sockets, summary.duration / 1e6,
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What asks the servers.

    Args:
        tool: `WRK` or `OWN`.
        processors: where it runs; None for anywhere.
    """

    tool: str
    processors: frozenset[int] | None

    @staticmethod
    def best() -> str:
        """Return the best tool that is installed."""
        return OWN if shutil.which(WRK) is None else WRK

    def for_seconds(self, port: int, page: Page, seconds: int) -> Answers:
        """Ask for a page again and again.

        Raises:
            BenchmarkError: when it is not answered as it has to be, or the tool fails.
        """
        fetch(port, page)
        if self.tool == OWN:
            return self._own(Order(port, page.path, page.body, CONNECTIONS, seconds=seconds))
        with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
            script = Path(folder, "done.lua")
            script.write_text(_SCRIPT, encoding="ascii")
            how = f"-t1 -c{CONNECTIONS} -d{seconds}s --timeout 10s -s {script}"
            url = f"http://{HOST}:{port}{page.path}"
            return self._run([WRK, *how.split(), url], seconds)

    def times(self, port: int, page: Page, requests: int) -> Answers:
        """Ask for a page so many times.

        Raises:
            BenchmarkError: when the tool fails.
        """
        return self._own(Order(port, page.path, page.body, CONNECTIONS, requests=requests))

    def _own(self, order: Order) -> Answers:
        command = [sys.executable, "-m", "benchmarks.load_child"]
        return self._run([*command, json.dumps(dataclasses.asdict(order))], order.seconds or 0)

    def _run(self, command: Sequence[str], seconds: float) -> Answers:
        with on_processors(self.processors):
            try:
                done = subprocess.run(
                    command,
                    cwd=ROOT,
                    stdout=subprocess.PIPE,
                    text=True,
                    timeout=seconds + _LIMIT_SECONDS,
                    check=False,
                    # Ctrl-C is for this process, which then ends the load.
                    start_new_session=True,
                )
            except subprocess.TimeoutExpired as error:
                raise BenchmarkError(f"the load did not end: {command}") from error
        if done.returncode != 0:
            raise BenchmarkError(f"the load failed with exit code {done.returncode}: {command}")
        return Answers(**json.loads(done.stdout.splitlines()[-1]))
