"""Trains tied kernels on several devices of this machine: as many of them as the CPU is told to be.

    KERAS_BACKEND=tensorflow python examples/distributed.py                 # MirroredStrategy on two logical CPUs
    KERAS_BACKEND=tensorflow python examples/distributed.py multi_worker    # MultiWorkerMirroredStrategy in two processes
    KERAS_BACKEND=jax python examples/distributed.py                        # ModelParallel on four virtual devices
    KERAS_BACKEND=jax python examples/distributed.py data_parallel          # DataParallel on four virtual devices
    KERAS_BACKEND=torch python examples/distributed.py                      # DistributedDataParallel in two processes

Prints what both modes reach in two epochs, and exits with status 1 if a kernel is not tied.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing.connection
import os
import socket
import sys
import tempfile

# For JAX, before it is imported. On few cores, XLA has only as many threads as devices: programs that wait for each other may
# occupy all of them. It aborts if the devices do not meet within 40 s, which a busy machine may not manage.
os.environ.setdefault("NPROC", "16")  # threads
os.environ.setdefault(
    "XLA_FLAGS", "--xla_force_host_platform_device_count=4 --xla_cpu_collective_call_terminate_timeout_seconds=1800"
)

import keras
import numpy as np
from quickstart import NINE_VALUES, load_digits, make_model
from rich.console import Console
from rich.table import Table

import kernel_tying as kt

MODES = ("constraint", "parameterization")
BATCH, EPOCHS = 128, 2


def make_tied(mode: str) -> keras.Model:
    """Returns a tied network, the same one in each process."""
    keras.utils.set_random_seed(0)
    tied = kt.apply_tying(make_model(), NINE_VALUES, mode=mode)
    tied.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return tied


def fit(model: keras.Model) -> keras.Model:
    """Trains a model by Keras' own loop."""
    images, labels, _, _ = load_digits()
    model.fit(images, labels, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    return model


def show(models: dict[str, keras.Model], engine: str) -> int:
    """Prints a table of trained models, and returns the exit status."""
    _, _, images, labels = load_digits()
    table = Table("mode", "test accuracy", "tying error", title=engine)
    for mode, model in models.items():
        answers = keras.ops.convert_to_numpy(model(images)).argmax(axis=-1)
        table.add_row(mode, f"{np.mean(answers == labels):.1%}", f"{kt.tying_error(model):g}")
    Console().print(table)
    return int(any(kt.tying_error(model) != 0.0 for model in models.values()))


def mirrored() -> int:
    """Trains on TensorFlow: each replica takes a part of each batch, and all hold all weights."""
    import tensorflow as tf

    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        models = {mode: fit(make_tied(mode)) for mode in MODES}
        return show(models, "tf.distribute.MirroredStrategy on two logical CPUs")


def multi_worker() -> int:
    """Trains on TensorFlow: two processes on the loopback address take a part of each batch each."""
    with contextlib.ExitStack() as sockets:
        free = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in free]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=train_as_worker, args=(rank, addresses)) for rank in range(2)]
    for worker in workers:
        worker.start()
    multiprocessing.connection.wait([worker.sentinel for worker in workers])
    for worker in workers:
        worker.join(60)  # the other ends soon too, or waits for ever for one that has failed
        worker.kill()
    return int(any(worker.exitcode != 0 for worker in workers))


def train_as_worker(rank: int, addresses: list[str]) -> None:
    """Trains by a loop around Keras' own step, as one worker of several."""
    import tensorflow as tf

    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before any other operation
    images, labels, _, _ = load_digits()
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH).repeat(EPOCHS)
    with strategy.scope():
        models = {mode: make_tied(mode) for mode in MODES}
        for model in models.values():
            model.optimizer.build(model.trainable_variables)
    for model in models.values():
        step = tf.function(functools.partial(strategy.run, model.train_step))
        for batch in strategy.experimental_distribute_dataset(batches):
            step(args=(batch,))
    if rank == 0 and show(models, "MultiWorkerMirroredStrategy in two processes"):
        raise SystemExit(1)


def model_parallel() -> int:
    """Trains on JAX: two parts of each batch, and two parts of each kernel, by output channels."""
    mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"), keras.distribution.list_devices("cpu"))
    layout_map = keras.distribution.LayoutMap(mesh)
    layout_map[r"conv\d/kernel"] = (None, None, None, "model")  # the rule of the stock layers holds for free weights too
    layout_map[r"conv\d/bias"] = ("model",)
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch"))
    return show({mode: fit(make_tied(mode)) for mode in MODES}, "keras.distribution.ModelParallel on 2 x 2 devices")


def data_parallel() -> int:
    """Trains on JAX: each device takes a part of each batch, and all hold all weights."""
    devices = keras.distribution.list_devices("cpu")
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
    return show({mode: fit(make_tied(mode)) for mode in MODES}, f"keras.distribution.DataParallel on {len(devices)} devices")


def distributed_data_parallel() -> int:
    """Trains on torch: two processes take a part of each batch each, and average their gradients."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train_in_process, (f"file://{folder}/meeting_point", 2), nprocs=2)
    return 0


def train_in_process(rank: int, meeting_point: str, world: int) -> None:
    """Trains by a torch loop of its own, as one process of several."""
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", meeting_point, rank=rank, world_size=world)
    images, labels, _, _ = load_digits()
    part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    models = {mode: make_tied(mode) for mode in MODES}
    for mode, model in models.items():
        replica = torch.nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.Adam(model.parameters())
        for start in list(range(0, len(images), BATCH)) * EPOCHS:
            batch, answers = (torch.as_tensor(data[start : start + BATCH][part]) for data in (images, labels))
            optimizer.zero_grad()
            probabilities = replica(batch, training=True)
            torch.nn.functional.nll_loss(torch.log(probabilities + 1e-7), answers).backward()
            optimizer.step()
            if mode == "constraint":
                kt.project_kernels(model)  # torch's optimizers run no constraints
    torch.distributed.destroy_process_group()
    if rank == 0 and show(models, "torch DistributedDataParallel in two processes"):
        raise SystemExit(1)


ENGINES = {  # of each backend, by name; the first is the default
    "tensorflow": {"mirrored": mirrored, "multi_worker": multi_worker},
    "jax": {"model_parallel": model_parallel, "data_parallel": data_parallel},
    "torch": {"distributed_data_parallel": distributed_data_parallel},
}


def main() -> int:
    """Runs the example and returns its exit status."""
    engines = ENGINES[keras.backend.backend()]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", nargs="?", choices=engines, default=next(iter(engines)))
    return engines[parser.parse_args().engine]()


if __name__ == "__main__":
    sys.exit(main())
