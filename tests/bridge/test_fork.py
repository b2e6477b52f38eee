"""What a forked child starts with, and that the hooks come before any other code of it."""

import os

from django_asyncbridge.bridge import _fork
from tests.support import run_child

FORK = """
    import os, warnings
    from django_asyncbridge.bridge import _fork

    warnings.simplefilter("ignore", DeprecationWarning)

    def in_child(function):
        child = os.fork()
        if not child:
            code = 1
            try:
                function()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
"""


def test_pid_is_that_of_this_process() -> None:
    assert _fork.pid() == os.getpid()


def test_pid_and_epoch_in_a_child_and_its_child_are_their_own() -> None:
    run_child(
        FORK
        + """
    def check(generation):
        assert _fork.pid() == os.getpid()
        assert _fork.epoch() == generation
        if generation < 2:
            in_child(lambda: check(generation + 1))

    check(0)
    assert _fork.epoch() == 0 and _fork.pid() == os.getpid()
    """
    )


def test_hooks_run_in_the_child_only_in_order_and_before_any_other_code() -> None:
    run_child(
        FORK
        + """
    log = []
    _fork.on_fork(lambda: log.append(("first", _fork.epoch())))
    _fork.on_fork(lambda: log.append(("second", _fork.pid() == os.getpid())))

    def check():
        assert log == [("first", 1), ("second", True)], log

    in_child(check)
    assert log == []
    """
    )
