"""One small network, its data and its training on one device: what every engine has to reproduce."""

import keras
import numpy as np

import kernel_tying as kt

MODES = ["constraint", "parameterization"]
OPTIMIZERS = {"sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9), "adam": lambda: keras.optimizers.Adam(0.01)}
CASES = [(mode, optimizer) for mode in MODES for optimizer in OPTIMIZERS]
PATTERNS = {"conv1": kt.patterns.mirror((3, 3), antisymmetric=True), "conv2": "rotation"}
BATCH, EPOCHS = 8, 2
ROUNDING = 1e-6  # of weights below 1, after eight steps in another order of summation
ENOUGH = 1e-2  # what training moves weights by, at least


def data():
    """Returns images and targets, four batches of them."""
    random = np.random.default_rng(3)
    return random.normal(size=(4 * BATCH, 8, 8, 2)).astype("float32"), random.normal(size=(4 * BATCH, 4)).astype("float32")


def stock():
    keras.utils.set_random_seed(5)
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.Conv2D(8, 3, activation="relu", name="conv1"),
            keras.layers.Conv2D(8, 3, padding="same", name="conv2"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4, name="head"),
        ],
        name="network",
    )


def tied(mode):
    return kt.apply_tying(stock(), PATTERNS, mode=mode)


def fit(model, optimizer, **options):
    model.compile(OPTIMIZERS[optimizer](), "mse")
    model.fit(*data(), batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0, **options)
    return model


def kernels(model):
    return [keras.ops.convert_to_numpy(model.get_layer(name).kernel) for name in PATTERNS]


def weights(model):
    return [keras.ops.convert_to_numpy(weight) for weight in model.weights]


def assert_tied_to_the_bit(kernels):
    """Checks the two tyings without a word of kernel_tying."""
    conv1, conv2 = kernels
    np.testing.assert_array_equal(conv1, -conv1[:, ::-1])
    np.testing.assert_array_equal(conv2, np.rot90(conv2))


def assert_as_on_one_device(found, mode, optimizer):
    """Compares weights with those that `fit` finds on one device, and checks that these have moved."""
    start = weights(tied(mode))
    expected = weights(fit(tied(mode), optimizer))
    assert all(np.abs(after - before).max() > ENOUGH for before, after in zip(start, expected, strict=True))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=ROUNDING)


def assert_held_in_common(processes, mode, optimizer):
    """Checks that two processes hold the same tied kernels, by the arrays that their workers have saved."""
    first, second = ([process[f"{mode} {optimizer} kernel {index}"] for index in range(2)] for process in processes)
    np.testing.assert_equal(second, first)
    assert_tied_to_the_bit(first)
    assert [float(process[f"{mode} {optimizer} error"]) for process in processes] == [0.0, 0.0]
