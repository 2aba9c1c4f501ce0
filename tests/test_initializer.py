import keras
import numpy as np
import pytest
from helpers import array, dense_project, raises_tying_error

import kernel_tying as kt

CHANNELS = (100, 1000)
UNEQUAL = kt.TyingPattern.parse("AAAB/-ACCC/.-BDA")
PATTERNS = {
    "signed and unequal groups": UNEQUAL,
    "question": kt.TyingPattern.parse("AABCC/AABCC/DDEFF/GGHII/GGHII"),
    "constant": kt.patterns.constant((3, 3)),
    "anti-mirror": kt.patterns.mirror((3,), antisymmetric=True),
}
BASES = {
    "uniform": keras.initializers.RandomUniform(-1, 1, seed=1),
    "he_normal": keras.initializers.HeNormal(seed=2),
    "truncated": keras.initializers.TruncatedNormal(stddev=0.3, seed=3),
}
SERIALIZABLE = {
    "pattern": kt.TiedInitializer(UNEQUAL, keras.initializers.HeNormal(seed=1)),
    "name": kt.TiedInitializer("mirror", keras.initializers.GlorotUniform(seed=1)),
    "tied base": kt.TiedInitializer("mirror", kt.TiedInitializer("point", keras.initializers.HeNormal(seed=1))),
}


def draw(pattern, base, channels=CHANNELS):
    return array(kt.TiedInitializer(pattern, base)((*pattern.shape, *channels)))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", PATTERNS)
def test_initial_kernel_has_the_variance_of_the_base_initializer(name, base):
    pattern = PATTERNS[name]
    expected = array(BASES[base]((*pattern.shape, *CHANNELS))).var()

    kernel = draw(pattern, BASES[base])

    assert kernel[pattern.signs != 0].var() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", PATTERNS)
def test_initial_kernel_has_the_variance_of_the_base_initializer_at_every_position(name):
    pattern = PATTERNS[name]
    expected = array(BASES["he_normal"]((*pattern.shape, *CHANNELS))).var()

    kernel = draw(pattern, BASES["he_normal"])

    variances = kernel[pattern.signs != 0].var(axis=(1, 2))
    np.testing.assert_allclose(variances, np.full_like(variances, expected), rtol=0.05)


@pytest.mark.parametrize("name", PATTERNS)
def test_initial_kernel_is_tied(name):
    kernel = draw(PATTERNS[name], "glorot_uniform", (2, 3))

    np.testing.assert_allclose(dense_project(kernel, PATTERNS[name]), kernel, rtol=0, atol=1e-7)


def test_free_weight_is_the_signed_sum_over_the_root_of_the_group_size():
    base = keras.initializers.HeNormal(seed=1)
    first, middle, last = array(base((3, 2, 2)))

    kernel = kt.TiedInitializer(kt.TyingPattern.parse("AB-A"), keras.initializers.HeNormal(seed=1))((3, 2, 2))

    expected = [(first - last) / np.sqrt(2), middle, (last - first) / np.sqrt(2)]
    np.testing.assert_allclose(kernel, np.stack(expected), atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 2, 3), (3, 4, 2, 3), (2, 3, 2, 1, 2)])
def test_name_is_resolved_for_the_spatial_size_of_the_kernel(shape):
    kernel = array(kt.TiedInitializer("mirror")(shape))

    np.testing.assert_array_equal(kernel, np.flip(kernel, len(shape) - 3))


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_initial_kernel_has_the_dtype_asked_for(dtype):
    assert array(kt.TiedInitializer("mirror")((3, 1, 1), dtype=dtype)).dtype == dtype


def test_stock_layer_starts_tied():
    layer = keras.layers.Conv2D(2, 3, kernel_initializer=kt.TiedInitializer("mirror"))

    layer.build((None, 5, 5, 1))

    np.testing.assert_array_equal(layer.kernel, np.flip(array(layer.kernel), 1))


@pytest.mark.parametrize("name", SERIALIZABLE)
def test_initializer_serialized_by_keras_draws_alike(name):
    initializer = SERIALIZABLE[name]

    restored = keras.initializers.deserialize(keras.initializers.serialize(initializer))

    np.testing.assert_array_equal(restored((3, 4, 2, 2)), initializer((3, 4, 2, 2)))


@pytest.mark.parametrize("name", SERIALIZABLE)
def test_initializer_deserialized_has_the_same_config(name):
    config = SERIALIZABLE[name].get_config()

    assert kt.TiedInitializer.from_config(config).get_config() == config


@pytest.mark.parametrize("pattern", [None, "miror", [[0, 1]]], ids=repr)
def test_what_is_no_tying_is_refused(pattern):
    with raises_tying_error(repr(pattern)):
        kt.TiedInitializer(pattern)


def test_shape_that_the_pattern_does_not_fit_is_refused():
    with raises_tying_error("(5, 5, 1, 1)"):
        kt.TiedInitializer(UNEQUAL)((5, 5, 1, 1))
