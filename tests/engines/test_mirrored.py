"""`tf.distribute.MirroredStrategy` on two logical CPUs."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.models import images, make, subclassed, targets
from task import (
    CASES,
    MODES,
    PATTERNS,
    assert_as_on_one_device,
    assert_tied_to_the_bit,
    data,
    fit,
    kernels,
    stock,
    tied,
    weights,
)

import kernel_tying as kt

in_both_modes = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(scope="session")
def strategy():
    """One for all tests: a second one in a process would abort it."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def trained(strategy):
    """Returns the model of a case, trained once for all tests, which leave it as it is."""

    @functools.cache
    def train(mode, optimizer):
        with strategy.scope():
            return fit(tied(mode), optimizer)

    return train


def replicas(strategy, tensors):
    """Returns what `tensors()` is on each replica, as arrays."""
    on_each = strategy.run(tf.function(lambda: [tf.convert_to_tensor(one) for one in tensors()]))
    return [[strategy.experimental_local_results(one)[index].numpy() for one in on_each] for index in range(2)]


def kernels_of_replicas(strategy, model):
    return replicas(strategy, lambda: [model.get_layer(name).kernel for name in PATTERNS])


def assert_mirrored(model):
    assert {type(weight.value).__name__ for weight in model.weights} == {"MirroredVariable"}


@pytest.mark.parametrize(("mode", "optimizer"), CASES)
def test_training_on_two_replicas_equals_training_on_one_device(trained, mode, optimizer):
    model = trained(mode, optimizer)

    assert_mirrored(model)
    assert_as_on_one_device(weights(model), mode, optimizer)


@pytest.mark.parametrize(("mode", "optimizer"), CASES)
def test_replicas_hold_bit_equal_tied_kernels(strategy, trained, mode, optimizer):
    model = trained(mode, optimizer)

    first, second = kernels_of_replicas(strategy, model)

    np.testing.assert_equal(second, first)
    assert_tied_to_the_bit(first)
    assert kt.tying_error(model) == 0.0


@in_both_modes
def test_a_model_that_trains_on_replicas_can_be_tied_and_stripped(strategy, mode):
    with strategy.scope():
        trained = kt.apply_tying(fit(stock(), "adam"), PATTERNS, mode=mode)
        trained.fit(*data(), batch_size=8, verbose=0)
        stripped = kt.strip_tying(trained)
    found = kernels(stripped)
    stripped.fit(*data(), batch_size=8, verbose=0)

    assert_tied_to_the_bit(found)
    assert_mirrored(stripped)
    first, second = kernels_of_replicas(strategy, stripped)
    np.testing.assert_equal(second, first)
    assert np.abs(first[0] + first[0][:, ::-1]).max() > 1e-4, "a stripped model is still tied"


@in_both_modes
@pytest.mark.filterwarnings("ignore:The config of 'subclassed' does not describe")
def test_a_subclassed_model_is_tied_in_place_on_every_replica(strategy, mode):
    with strategy.scope():
        model = kt.apply_tying(make(subclassed), "mirror", mode=mode)
        model.compile("adam", "mse")
    model.fit(images(model), targets(model), batch_size=4, epochs=2, verbose=0)

    first, second = replicas(strategy, lambda: [model.first.kernel, model.second.kernel])

    np.testing.assert_equal(second, first)
    for kernel in first:
        np.testing.assert_array_equal(kernel, kernel[:, ::-1])


@in_both_modes
def test_a_saved_model_is_loaded_onto_the_replicas(strategy, trained, mode, tmp_path):
    model = trained(mode, "adam")
    model.save(tmp_path / "model.keras")

    with strategy.scope():
        loaded = keras.models.load_model(tmp_path / "model.keras")

    assert_mirrored(loaded)
    np.testing.assert_equal(weights(loaded), weights(model))
    assert kt.tying_error(loaded) == 0.0


def test_keep_tied_ties_moving_averages_on_every_replica(strategy):
    with strategy.scope():
        model = tied("constraint")
        model.compile(keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.5), "mse")
    model.fit(*data(), batch_size=8, epochs=2, verbose=0, callbacks=[kt.KeepTied()])

    first, second = kernels_of_replicas(strategy, model)

    np.testing.assert_equal(second, first)
    assert_tied_to_the_bit(first)


@in_both_modes
def test_a_synchronized_tied_batch_normalization_pools_over_replicas_and_tied_groups(strategy, mode):
    channels = np.random.default_rng(0).normal(size=(8, 3, 4)).astype("float32") * 2 + np.arange(4)
    pairs = kt.patterns.constant((2,))
    with strategy.scope():
        norm = keras.layers.BatchNormalization(momentum=0.0, synchronized=True, name="norm")
        model = keras.Sequential([keras.Input((3, 4)), norm])
        model = kt.apply_tying(model, {"norm": {"gamma": pairs, "beta": pairs}}, mode=mode)
        model.compile("sgd", "mse")
    model.fit(channels, channels, batch_size=8, verbose=0)

    found = [keras.ops.convert_to_numpy(value) for value in (norm_of(model).moving_mean, norm_of(model).moving_variance)]

    of_pair = [channels[..., :2], channels[..., 2:]]
    expected = [np.repeat([statistic(pair) for pair in of_pair], 2) for statistic in (np.mean, np.var)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(*np.reshape(found, (-1, 2)).T)


def norm_of(model):
    return model.get_layer("norm")
