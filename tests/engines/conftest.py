"""The engines of one backend each: `pytest tests/engines` runs those of `KERAS_BACKEND`, in one process or several."""

import os

import keras

ENGINES = {
    "tensorflow": {"test_mirrored.py", "test_multi_worker.py"},
    "jax": {"test_sharding.py"},
    "torch": {"test_ddp.py"},
}
collect_ignore = sorted(set().union(*ENGINES.values()) - ENGINES[keras.backend.backend()])


def make_devices():
    """Gives this process several devices, before a backend looks for them."""
    if keras.backend.backend() == "jax":
        # On few cores, XLA has only as many threads as devices: programs that wait for each other may occupy all of them.
        os.environ.setdefault("NPROC", "16")  # threads
        # XLA aborts the process where devices wait longer for each other, 40 seconds by default: a busy machine takes that.
        patience = "--xla_cpu_collective_call_terminate_timeout_seconds=1800"
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4 {patience}"
        os.environ["XLA_FLAGS"] = flags
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)


make_devices()
