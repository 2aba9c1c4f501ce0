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
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)


make_devices()
