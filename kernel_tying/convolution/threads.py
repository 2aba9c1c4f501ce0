"""How many threads there are to compute with, and how much of a batch keeps them busy."""

from __future__ import annotations

import os


def cpu_threads() -> int:
    """Returns the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chunk_bytes(threads: int, single: int) -> int:
    """Returns the size of a group sum in a chunk for a number of threads.

    One thread does best where all group sums of a chunk lie in a second-level cache of 2 MB. More threads share the parts
    of an operation, and only large operations are parted at all.
    """
    return single if threads == 1 else 4 * single
