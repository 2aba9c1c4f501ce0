"""`tf.distribute.MultiWorkerMirroredStrategy`: two processes on the loopback address."""

import json

import keras
import numpy as np
import pytest
from launch import free_ports, run_together
from task import CASES, assert_as_on_one_device, assert_held_in_common, data

import kernel_tying as kt

in_each_case = pytest.mark.parametrize(("mode", "optimizer"), CASES)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The folder into which both workers wrote, after they have trained together."""
    folder = tmp_path_factory.mktemp("multi_worker")
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    configs = [{"cluster": cluster, "task": {"type": "worker", "index": index}} for index in range(2)]
    run_together("worker_multi.py", folder, [{"TF_CONFIG": json.dumps(config)} for config in configs])
    return folder


@pytest.fixture(scope="session")
def workers(folder):
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]


def test_two_workers_train_together(workers):
    assert [int(worker["replicas"]) for worker in workers] == [2, 2]


@in_each_case
def test_training_on_two_workers_equals_training_on_one_device(workers, mode, optimizer):
    found = [value for key, value in workers[0].items() if key.startswith(f"{mode} {optimizer} weight")]

    assert_as_on_one_device(found, mode, optimizer)


@in_each_case
def test_workers_hold_bit_equal_tied_kernels(workers, mode, optimizer):
    assert_held_in_common(workers, mode, optimizer)


@in_each_case
def test_files_of_both_workers_load_into_the_same_tied_model(folder, mode, optimizer):
    first, second = (keras.saving.load_model(folder / f"{mode}-{optimizer}-{rank}.keras") for rank in range(2))

    assert kt.tying_error(first) == 0.0
    np.testing.assert_array_equal(first.predict(data()[0], verbose=0), second.predict(data()[0], verbose=0))


def test_keras_itself_can_neither_fit_nor_evaluate_on_several_workers(workers):
    """Once this fails, Keras can, and docs/distributed.md need not tell how to write the loop (keras issue 20585)."""
    errors = [str(error) for worker in workers for error in worker["errors_of_keras"]]

    assert len(errors) == 4
    for error in errors:
        assert error.startswith("Attempt to convert a value (PerReplica:{")
        assert error.endswith("unsupported type (<class 'tensorflow.python.distribute.values.PerReplica'>) to a Tensor.")
