"""Torch's `DistributedDataParallel`: two processes with gloo on the loopback address."""

import numpy as np
import pytest
import torch
from launch import free_ports, run_together
from task import (
    CASES,
    MODES,
    assert_as_on_one_device,
    assert_held_in_common,
    assert_tied_to_the_bit,
    data,
    kernels,
    stock,
    tied,
)

import kernel_tying as kt

in_each_case = pytest.mark.parametrize(("mode", "optimizer"), CASES)


@pytest.fixture(scope="session")
def processes(tmp_path_factory):
    """Returns what each process held after they have trained together."""
    folder = tmp_path_factory.mktemp("ddp")
    (port,) = free_ports(1)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    run_together("worker_ddp.py", folder, [{**common, "RANK": str(rank)} for rank in range(2)])
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]


def test_two_processes_train_together(processes):
    assert [int(process["replicas"]) for process in processes] == [2, 2]


@in_each_case
def test_training_in_two_processes_equals_training_on_one_device(processes, mode, optimizer):
    found = [value for key, value in processes[0].items() if key.startswith(f"{mode} {optimizer} weight")]

    assert_as_on_one_device(found, mode, optimizer)


@in_each_case
def test_processes_hold_bit_equal_tied_kernels(processes, mode, optimizer):
    assert_held_in_common(processes, mode, optimizer)


def torch_step(model):
    """Takes one step of torch's own optimizer."""
    images, targets = map(torch.as_tensor, data())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.nn.functional.mse_loss(model(images), targets).backward()
    optimizer.step()
    return model


def test_a_torch_optimizer_runs_no_constraint_so_that_kernels_are_projected_by_hand():
    model = torch_step(tied("constraint"))
    assert kt.tying_error(model) > 1e-3

    kt.project_kernels(model)

    assert_tied_to_the_bit(kernels(model))


def test_a_torch_optimizer_keeps_free_weights_tied():
    assert_tied_to_the_bit(kernels(torch_step(tied("parameterization"))))


@pytest.mark.parametrize("mode", MODES)
def test_torch_finds_the_parameters_of_a_tied_model_under_the_names_of_the_stock_model(mode):
    expected, found = ([name for name, _ in model.named_parameters()] for model in (stock(), tied(mode)))

    assert len(expected) == 6
    assert found == expected
