"""Interleaved timing: the things to compare run in turns, so that what else the machine does hits all of them alike."""

import statistics
import time

FIELDS = ("median", "low", "high")


def interleaved(functions, rounds=9, seconds=0.02, clock=time.perf_counter):
    """Returns for each function, by name, median and quartiles of its time in seconds.

    Args:
        functions: by name, functions without arguments that return when their work is done.
        rounds: how often each has its turn.
        seconds: the least length of a turn, for which a fast function is called several times.
        clock: returns the time in seconds. `time.process_time` leaves out what other processes take from one thread.
    """
    calls = {}
    for name, function in functions.items():
        function()  # compiles
        function()
        calls[name] = max(1, round(seconds / max(_seconds(function, 1, clock), 1e-9)))
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(_seconds(function, calls[name], clock))
    return {name: _summary(values) for name, values in times.items()}


def ratios(summaries, base):
    """Returns for each name how many times faster it is than `base`: of the medians, and from quartile to quartile."""
    stock = summaries[base]
    return {
        name: {
            "median": stock["median"] / one["median"],
            "low": stock["low"] / one["high"],
            "high": stock["high"] / one["low"],
        }
        for name, one in summaries.items()
    }


def _seconds(function, calls, clock):
    start = clock()
    for _ in range(calls):
        function()
    return (clock() - start) / calls


def _summary(values):
    low, median, high = statistics.quantiles(values, n=4)
    return dict(zip(FIELDS, (median, low, high), strict=True))
