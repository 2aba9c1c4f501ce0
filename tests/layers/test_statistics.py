"""The statistics of a BatchNormalization whose scale or offset is tied: pooled over each tied group."""

import contextlib
import inspect

import keras
import numpy as np
import pytest
from keras import layers, ops
from support.backends import array
from support.models import MODES

import kernel_tying as kt

SIX = np.random.default_rng(0).normal(size=(4, 5, 6)).astype("float32") * 3 + np.arange(6)
SCALE = kt.TyingPattern.parse("AABBBC")
OFFSET = kt.TyingPattern.parse("A-ABBB.")
PAIRS = kt.patterns.constant((2,))
TYINGS = {
    "scale": {"gamma": SCALE},
    "offset": {"beta": SCALE},
    "both": {"gamma": SCALE, "beta": OFFSET},
    "fields": {"gamma": PAIRS, "beta": kt.TyingPattern.parse("A-A")},
}
MEANS = {"scale": SCALE, "offset": SCALE, "both": OFFSET, "fields": kt.TyingPattern.parse("A-AB-BC-C")}
VARIANCES = {"scale": SCALE, "offset": SCALE, "both": SCALE, "fields": kt.TyingPattern.parse("AABBCC")}
RENORM = [{"renorm": True}] if "renorm" in inspect.signature(layers.BatchNormalization).parameters else []
SYNCHRONIZED = [{"synchronized": True}] if keras.backend.backend() == "tensorflow" else []

in_both_modes = pytest.mark.parametrize("mode", MODES)
every_tying = pytest.mark.parametrize("tying", TYINGS)


def normalization(tying, mode, **options):
    """Returns a model of one tied BatchNormalization of six channels."""
    shape = (6, 5) if options.get("axis") == 1 else (5, 6)
    model = keras.Sequential([keras.Input(shape), layers.BatchNormalization(name="norm", momentum=0.0, **options)])
    return kt.apply_tying(model, {"norm": TYINGS[tying]}, mode=mode)


def pooled(values, tying):
    """Returns mean and variance of each channel of `values`, `(entries, channels)`, over its tied group, in NumPy."""
    means, variances = MEANS[tying], VARIANCES[tying]
    mean = np.zeros(6)
    for group in range(means.num_free):
        members = np.flatnonzero(means.labels == group)
        mean[members] = means.signs[members] * np.mean(values[:, members] * means.signs[members])
    squares = np.square(values - mean)
    return mean, [squares[:, variances.labels == label].mean() for label in variances.labels]


def moving(model):
    norm = model.get_layer("norm")
    return array(norm.moving_mean), array(norm.moving_variance)


def assert_tied(statistics, tying):
    for found, pattern in zip(statistics, (MEANS[tying], VARIANCES[tying]), strict=True):
        np.testing.assert_array_equal(found, array(kt.project(found, pattern)))


@in_both_modes
@every_tying
@pytest.mark.parametrize(
    "options", [{}, {"dtype": "mixed_float16"}, {"dtype": "mixed_bfloat16"}, {"axis": 1}, *RENORM, *SYNCHRONIZED], ids=str
)
def test_statistics_of_a_batch_are_those_of_the_tied_groups(options, tying, mode):
    model = normalization(tying, mode, **options)
    inputs = np.moveaxis(SIX, -1, 1) if options.get("axis") == 1 else SIX

    model(inputs, training=True)

    rounding = {"mixed_float16": 2**-10, "mixed_bfloat16": 2**-7}.get(options.get("dtype"), 1e-5)
    for found, expected in zip(moving(model), pooled(SIX.reshape(-1, 6), tying), strict=True):
        np.testing.assert_allclose(found, expected, rtol=rounding, atol=10 * rounding)
    assert_tied(moving(model), tying)


@in_both_modes
@every_tying
def test_masked_entries_do_not_count(tying, mode):
    keep = np.arange(20).reshape(4, 5) % 3 > 0
    model = normalization(tying, mode)

    model.get_layer("norm")(ops.convert_to_tensor(SIX), training=True, mask=ops.convert_to_tensor(keep))

    for found, expected in zip(moving(model), pooled(SIX[keep], tying), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert_tied(moving(model), tying)


@in_both_modes
@every_tying
def test_members_of_a_group_are_normalized_alike(tying, mode):
    model = normalization(tying, mode, center=True, scale=True)
    mean, variance = pooled(SIX.reshape(-1, 6), tying)

    outputs = array(model(SIX, training=True))

    np.testing.assert_allclose(outputs, (SIX - mean) / np.sqrt(np.array(variance) + 1e-3), rtol=1e-4, atol=1e-4)


@in_both_modes
@every_tying
def test_moving_statistics_of_a_trained_layer_are_pooled_when_it_is_tied(tying, mode):
    model = keras.Sequential([keras.Input((5, 6)), layers.BatchNormalization(name="norm", momentum=0.0)])
    model(SIX, training=True)

    tied = kt.apply_tying(model, {"norm": TYINGS[tying]}, mode=mode)

    for found, expected in zip(moving(tied), pooled(SIX.reshape(-1, 6), tying), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert_tied(moving(tied), tying)


@in_both_modes
@pytest.mark.parametrize("options", [{}, *RENORM], ids=str)
def test_moving_statistics_stay_tied_to_the_bit_through_training_files_and_more_training(options, mode, tmp_path):
    model = normalization("both", mode, **options)
    for _ in range(2):
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(SIX, SIX[::-1].copy(), epochs=2, batch_size=2, verbose=0)
        assert_tied(moving(model), "both")
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        for found, expected in zip(loaded.variables, model.variables, strict=True):
            np.testing.assert_array_equal(array(found), array(expected))
        model = loaded
    assert kt.tying_error(model) == 0.0


@in_both_modes
def test_a_file_cannot_untie_moving_statistics(mode):
    model = normalization("both", mode)
    norm = model.get_layer("norm")
    layer = norm.layer if mode == "parameterization" else norm
    stored = {}
    layer.save_own_variables(stored)

    layer.load_own_variables({key: array(value) + np.arange(np.size(value)) for key, value in stored.items()})

    assert moving(model)[0].any()
    assert_tied(moving(model), "both")


@in_both_modes
def test_statistics_that_are_assigned_are_pooled_with_the_kernels(mode):
    model = normalization("both", mode)
    model.get_layer("norm").moving_mean.assign(np.arange(6.0))
    is_refused = pytest.raises(AssertionError) if mode == "parameterization" else contextlib.nullcontext()

    kt.project_kernels(model)

    with is_refused:  # nothing is projected in parameterization mode
        assert_tied(moving(model), "both")


@in_both_modes
def test_a_stripped_layer_takes_the_statistics_of_each_channel_again(mode):
    stripped = kt.strip_tying(normalization("both", mode))

    stripped(SIX, training=True)

    np.testing.assert_allclose(moving(stripped)[0], SIX.mean((0, 1)), rtol=1e-5, atol=1e-6)
    assert "_moments" not in vars(stripped.get_layer("norm"))


@in_both_modes
def test_a_frozen_layer_leaves_its_statistics_alone(mode):
    model = normalization("both", mode)
    model.get_layer("norm").trainable = False
    before = moving(model)

    model(SIX, training=True)

    np.testing.assert_array_equal(moving(model), before)
