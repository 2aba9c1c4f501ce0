"""Timing of functions side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

_ROUNDS = 7


def shortest_times(functions: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Returns the shortest time of each function in seconds, of several that are taken in turns, after one call each."""
    for function in functions.values():
        function()  # compiles
    rounds = [{name: _seconds(function) for name, function in functions.items()} for _ in range(_ROUNDS)]
    return {name: min(times[name] for times in rounds) for name in functions}


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
