"""`TiedInitializer` draws tied kernels with the variance of its base."""

import keras
import numpy as np
import pytest
from hypothesis import given
from support.backends import array
from support.errors import raises_tying_error
from support.oracles import dense_project

import kernel_tying as kt
from kernel_tying.testing import tied_problems

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


def test_free_weight_is_the_draw_at_the_first_member_of_its_group():
    first, middle, _ = array(keras.initializers.HeNormal(seed=1)((3, 2, 2)))

    kernel = kt.TiedInitializer(kt.TyingPattern.parse("AB-A"), keras.initializers.HeNormal(seed=1))((3, 2, 2))

    np.testing.assert_array_equal(kernel, np.stack([first, middle, -first]))


class Fixed(keras.initializers.Initializer):
    """Returns an array, whatever shape is asked for."""

    def __init__(self, values):
        self.values = values

    def __call__(self, shape, dtype=None):
        return keras.ops.convert_to_tensor(self.values, dtype=dtype)


@given(tied_problems())
def test_a_draw_that_is_tied_already_stays_as_it_is(problem):
    pattern, kernel = problem
    tied = array(kt.project(kernel, pattern))

    drawn = array(kt.TiedInitializer(pattern, Fixed(tied))(tied.shape))

    np.testing.assert_array_equal(drawn, tied)


@pytest.mark.parametrize("attach", ["initializer", "unbuilt layer", "redrawn layer"])
def test_noise_on_a_tied_kernel_keeps_its_variance_and_the_kernel_its_values(attach):
    bump = (np.outer([1, 2, 1], [1, 2, 1]) / 16)[..., None, None]
    noise = 0.01 * np.random.default_rng(0).normal(size=(3, 3, 64, 64))
    layer = keras.layers.Conv2D(64, 3, kernel_initializer=Fixed((bump + noise).astype("float32")))

    if attach == "initializer":
        kernel = kt.TiedInitializer("dihedral", layer.kernel_initializer)((3, 3, 64, 64))
    else:
        layer = kt.apply_tying(layer, "dihedral") if attach == "unbuilt layer" else layer
        layer.build((None, 8, 8, 64))
        layer = kt.apply_tying(layer, "dihedral", init="redraw") if attach == "redrawn layer" else layer
        kernel = layer.kernel

    np.testing.assert_allclose(array(kernel).mean(axis=(2, 3)), bump[..., 0, 0], atol=1e-3)
    np.testing.assert_allclose(array(kernel).std(axis=(2, 3)), np.full((3, 3), 0.01), rtol=0.05)


VALUES = np.arange(9, dtype="float32").reshape(3, 3, 1, 1)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (keras.initializers.Constant(2.0), np.zeros((3, 3, 1, 1))),
        (keras.initializers.Ones(), np.zeros((3, 3, 1, 1))),
        (keras.initializers.Zeros(), np.zeros((3, 3, 1, 1))),
        (keras.initializers.Constant(VALUES), (VALUES - VALUES[:, ::-1]) / 2),
    ],
    ids=["constant", "ones", "zeros", "array"],
)
def test_a_deterministic_initializer_of_keras_is_projected(base, expected):
    pattern = kt.patterns.mirror((3, 3), antisymmetric=True)

    np.testing.assert_array_equal(array(kt.TiedInitializer(pattern, base)((3, 3, 1, 1))), expected)


def test_an_identity_under_a_circulant_pattern_stays_an_identity():
    kernel = kt.TiedInitializer(kt.patterns.circulant((4, 4)), "identity")((4, 4))

    np.testing.assert_array_equal(array(kernel), np.eye(4))


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
