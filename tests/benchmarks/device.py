"""Times both convolution algorithms on many threads and on a GPU: `python tests/benchmarks/device.py results.json`.

Each backend and device is measured in a process of its own, which cores of its own run: as many side by side as the machine
has cores. It takes under ten minutes, and stops then. The results are rows of `kt.tune` for cases that fitted the rules of
"auto".
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

BACKENDS = ("torch", "jax")


class Device(NamedTuple):
    """Where to compute: "gpu", or "cpu" with a number of threads."""

    kind: str
    threads: int = 1
    dtypes: tuple[str, ...] = ("float32",)


DEVICES = (*(Device("cpu", threads) for threads in (1, 2, 4, 8)), Device("gpu", 1, ("float32", "bfloat16")), Device("cpu", 16))


def rounds(cores):
    """Returns the devices in rounds, each with its first core, such that no two in a round share a core."""
    packed, used = [[]], 0
    for device in DEVICES:
        if device.threads > cores or (device.kind == "gpu" and not shutil.which("nvidia-smi")):
            continue
        if used + device.threads > cores:
            packed, used = [*packed, []], 0
        packed[-1].append((device, used))
        used += device.threads
    return packed


def main():
    """Measures what the machine has, and writes all rows after each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=570)
    options = parser.parse_args()
    end, rows = time.monotonic() + options.seconds, []
    for devices in rounds(os.cpu_count()):
        for backend in BACKENDS:
            runs = [start(backend, device, first, options.cases) for device, first in devices]
            for run, (device, _) in zip(runs, devices, strict=True):
                try:
                    output, _ = run.communicate(timeout=max(1, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    run.kill()
                    output, _ = run.communicate()
                rows += [json.loads(line) for line in output.splitlines() if line.startswith("{")]
                print(f"{backend}, {device}: exit status {run.returncode}, {len(rows)} rows so far", file=sys.stderr)
            options.file.write_text(json.dumps(rows, indent=1))


def start(backend, device, first, cases):
    """Returns a process that measures a number of cases on a device, on cores from `first` on."""
    environment = {**os.environ, "KERAS_BACKEND": backend}
    if device.kind == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    arguments = (device.kind, device.threads, ",".join(device.dtypes), first, cases)
    command = [sys.executable, "-c", f"import device; device.measure({backend!r}, *{arguments!r})"]
    return subprocess.Popen(command, cwd=Path(__file__).parent, env=environment, stdout=subprocess.PIPE, text=True)


def measure(backend, kind, threads, dtypes, first, cases):
    """Prints a row of JSON for each case, forward and with gradients."""
    from backends import set_threads

    set_threads(backend, threads, first)
    import keras
    from cases import FITTED
    from machines import cpu

    import kernel_tying as kt

    name = f"{threads} threads of {cpu()}" if kind == "cpu" else gpu()
    for dtype in dtypes.split(","):
        for case in FITTED[:cases]:
            image = keras.Input((case.size, case.size, case.channels))
            layer = keras.layers.Conv2D(case.channels, case.k, padding="same", dtype=dtype)
            tied = kt.apply_tying(keras.Model(image, layer(image)), case.pattern, mode="parameterization")
            for training in (False, True):
                (row,) = kt.tune(tied, case.batch, training=training, verbose=0).to_dict()["rows"]
                setting = {"backend": backend, "device": name, "dtype": dtype, "case": str(case), "training": training}
                print(json.dumps({**setting, **row}))
                sys.stdout.flush()


def gpu():
    """Returns the name of the GPU."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


if __name__ == "__main__":
    main()
