"""One process of a torch `DistributedDataParallel` run over gloo; environment variables as of torchrun say which.

Writes what it holds at the end of each case of the task to a file of its own.
"""

import os
import sys
from pathlib import Path

import keras
import numpy as np
import torch
from task import BATCH, CASES, EPOCHS, OPTIMIZERS, data, kernels, tied, weights
from torch.nn.parallel import DistributedDataParallel

import kernel_tying as kt


def batches(rank, world):
    """Yields this process's part of each global batch."""
    images, targets = map(torch.as_tensor, data())
    for start in list(range(0, len(images), BATCH)) * EPOCHS:
        own = slice(start + rank * BATCH // world, start + (rank + 1) * BATCH // world)
        yield images[own], targets[own]


def torch_step(model, mode):
    """Returns a step of torch's SGD, which knows nothing of Keras constraints."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step():
        optimizer.step()
        if mode == "constraint":
            kt.project_kernels(model)

    return step


def keras_step(model, mode):
    """Returns a step of a Keras optimizer, which runs constraints itself."""
    optimizer = OPTIMIZERS["adam"]()
    optimizer.build(model.trainable_variables)

    def step():
        with torch.no_grad():
            optimizer.apply([variable.value.grad for variable in model.trainable_variables])

    return step


STEPS = {"sgd": torch_step, "adam": keras_step}


def train(model, step, rank, world):
    parallel = DistributedDataParallel(model)
    for images, targets in batches(rank, world):
        parallel.zero_grad()
        torch.nn.functional.mse_loss(parallel(images), targets).backward()
        step()


def main(folder):
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    found = {}
    for mode, optimizer in CASES:
        model = tied(mode)
        if rank:  # only the weights of process 0 count
            model.set_weights([value + 1 for value in weights(model)])
        train(model, STEPS[optimizer](model, mode), rank, world)
        found |= {f"{mode} {optimizer} weight {index}": value for index, value in enumerate(weights(model))}
        found |= {f"{mode} {optimizer} kernel {index}": value for index, value in enumerate(kernels(model))}
        found[f"{mode} {optimizer} error"] = kt.tying_error(model)
    np.savez(folder / f"{rank}.npz", replicas=world, **found)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
    keras.utils.disable_interactive_logging()
    main(Path(sys.argv[1]))
