"""The machine: its CPU threads, the chunk size that suits them, and timing of functions in turns."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping

_ROUNDS = 7


def cpu_threads() -> int:
    """Returns the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sum_bytes(threads: int, single: int) -> int:
    """Returns the size in bytes of one group sum of a chunk: `single` for one thread, twice that for more threads.

    One thread is fastest if all group sums of a chunk fit in an L2 cache of 2 MB. Several threads need larger chunks,
    because only large operations are split among threads.
    """
    return single if threads == 1 else 2 * single


def shortest_times(functions: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Returns the shortest time of each function in seconds. After one warm-up call each, the functions run in turns."""
    for function in functions.values():
        function()  # compiles
    shortest = dict.fromkeys(functions, math.inf)
    for _ in range(_ROUNDS):  # in turns, so that a change in load affects all functions
        for name, function in functions.items():
            shortest[name] = min(shortest[name], _seconds(function))
    return shortest


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
