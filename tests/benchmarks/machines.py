"""The machine that numbers were measured on: CPU, vector extensions, caches."""

import os
import platform
from pathlib import Path

EXTENSIONS = ("avx512f", "avx2", "avx", "asimd", "neon")  # from the widest


def machine():
    """Returns what numbers depend on."""
    return {"cpu": cpu(), "cores": os.cpu_count(), "caches": caches(), "python": platform.python_version()}


def cpu():
    """Returns the model of the CPU and its widest vector extension."""
    flags = set((_listed("flags") or _listed("Features")).split())
    widest = next((extension for extension in EXTENSIONS if extension in flags), "no vector extension known")
    return f"{_listed('model name') or platform.machine()}, {widest}"


def caches():
    """Returns the size of each cache that the first core reaches, by level and type."""
    sizes = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        sizes[f"L{level} {kind.lower()}"] = size
    return sizes


def _listed(name):
    """Returns the first entry of a name in Linux' list of processors, or ""."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
