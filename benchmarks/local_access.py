"""Reading and setting an attribute of a `Local`, often enough for the loop around it not to count."""

from typing import Any

from benchmarks.measure import Sample, Slice, now, since

__all__ = ("getting", "setting")

_UNROLLED = 10


def getting(local: Any) -> Slice:
    """Return a slice that reads one of three attributes of `local`."""

    def run(calls: int) -> Sample:
        local.first, local.second, local.value = 1, 2, 3
        blocks = -(-calls // _UNROLLED)
        start = now()
        for _ in range(blocks):
            _ = local.value
            _ = local.value
            _ = local.value
            _ = local.value
            _ = local.value
            _ = local.value
            _ = local.value
            _ = local.value
            _ = local.value
            _ = local.value
        return since(start, blocks * _UNROLLED)

    return run


def setting(local: Any, others: int = 2) -> Slice:
    """Return a slice that sets an attribute of `local`, to another value each time, beside `others` that stay."""

    def run(calls: int) -> Sample:
        for number in range(others):
            setattr(local, f"other_{number}", number)
        blocks = -(-calls // _UNROLLED)
        start = now()
        for number in range(blocks):
            local.value = number
            local.value = None
            local.value = number
            local.value = None
            local.value = number
            local.value = None
            local.value = number
            local.value = None
            local.value = number
            local.value = None
        return since(start, blocks * _UNROLLED)

    return run
