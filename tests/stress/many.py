"""Many runs, each in a process of its own."""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.stress import run

__all__ = ("try_seeds",)

PROGRAM = f"import sys; from {run.__name__} import main; sys.exit(main(int(sys.argv[1])))"


def try_seeds(seeds: range, program: str = PROGRAM) -> int:
    """Run seeds, as many at once as there are processors; print those that fail, and return the exit code."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        fails = pool.map(_fails, seeds, itertools.repeat(program))
        failed = list(itertools.compress(seeds, fails))
    print(f"{len(seeds)} seeds, failed: {failed or 'none'}")
    return 1 if failed else 0


def _fails(seed: int, program: str) -> bool:
    child = [sys.executable, "-c", program, str(seed)]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout, done.stderr, flush=True)
    return done.returncode != 0
