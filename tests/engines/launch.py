"""Starts processes that train together on this machine, and waits for them a bounded time."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SECONDS = 1800  # some take ten, others ten times as long on a busy machine: only a deadlock takes all


def free_ports(count):
    """Returns free ports of the loopback address; the system does not give the same one again soon."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def run_together(script, folder, settings):
    """Runs one process of `script` for each dict of environment variables; each is given `folder` to write to."""
    paths = os.pathsep.join([str(HERE), *sys.path])
    processes = []
    try:
        for rank, own in enumerate(settings):
            with open(folder / f"{rank}.log", "w") as log:
                command = [sys.executable, str(HERE / script), str(folder)]
                environment = {**os.environ, **own, "PYTHONPATH": paths}
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
        _wait(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(process.returncode for process in processes):
        logs = "\n".join(
            f"--- process {rank}\n{(folder / f'{rank}.log').read_text()[-4000:]}" for rank in range(len(processes))
        )
        pytest.fail(f"{script} ended with {[process.returncode for process in processes]}\n{logs}")


def _wait(processes):
    """Waits until all processes have ended, one has failed, or time is up."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        codes = [process.poll() for process in processes]
        if None not in codes or any(codes):
            return
        time.sleep(0.1)
