"""How tied kernels start: fresh ones are redrawn with the initializer's variance, all others are projected."""

from functools import partial

import keras
import numpy as np
import pytest
from keras import layers
from support.backends import array
from support.models import IMAGE, MODES, compile_model, conv, head, make, skip, subclassed, train, unbuilt

import kernel_tying as kt
from kernel_tying._layers.freshness import is_fresh
from kernel_tying._layers.table import kernel_names
from kernel_tying._models.sites import some_tied_kernels
from kernel_tying.algebra import expand, first_members

in_both_modes = pytest.mark.parametrize("mode", MODES)
MIRROR = kt.patterns.mirror((3, 3))
POLICIES = ["float32", "mixed_float16", "mixed_bfloat16", "float16", "bfloat16"]
POLICIES += ["float64"] if keras.backend.backend() != "jax" else []  # which warns of double precision
LAYERS = {
    "Conv1D": (partial(layers.Conv1D, 3, 3), (None, 9, 2)),
    "Conv2D": (partial(layers.Conv2D, 3, 3), (None, 9, 9, 2)),
    "Conv3D": (partial(layers.Conv3D, 3, 3), (None, 9, 9, 9, 2)),
    "Conv1DTranspose": (partial(layers.Conv1DTranspose, 3, 3), (None, 9, 2)),
    "Conv2DTranspose": (partial(layers.Conv2DTranspose, 3, 3), (None, 9, 9, 2)),
    "Conv3DTranspose": (partial(layers.Conv3DTranspose, 3, 3), (None, 9, 9, 9, 2)),
    "DepthwiseConv1D": (partial(layers.DepthwiseConv1D, 3), (None, 9, 2)),
    "DepthwiseConv2D": (partial(layers.DepthwiseConv2D, 3), (None, 9, 9, 2)),
    "SeparableConv1D": (partial(layers.SeparableConv1D, 3, 3), (None, 9, 2)),
    "SeparableConv2D": (partial(layers.SeparableConv2D, 3, 3), (None, 9, 9, 2)),
    "Dense": (partial(layers.Dense, 3), (None, 4)),
    "EinsumDense": (partial(layers.EinsumDense, "abc,cde->abde", (None, 2, 3)), (None, 3, 4)),
}
ORTHOGONAL = {  # which Keras draws in single and double precision only
    "SimpleRNNCell": (partial(layers.SimpleRNNCell, 3), (None, 4)),
    "GRUCell": (partial(layers.GRUCell, 3), (None, 4)),
    "LSTMCell": (partial(layers.LSTMCell, 3), (None, 4)),
}
CASES = [(name, policy) for name in LAYERS for policy in POLICIES] + [(name, "float32") for name in ORTHOGONAL]


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_a_kernel_is_fresh_until_a_bit_of_it_changes(name, policy):
    make_layer, shape = {**LAYERS, **ORTHOGONAL}[name]
    layer = make_layer(dtype=policy)
    layer.build(shape)
    for kernel in [kernel for kernel in kernel_names(layer) if kernel.endswith("kernel")]:
        assert is_fresh(layer, kernel)

        variable = getattr(layer, kernel)
        values = array(variable).copy()
        values.flat[-1] = values.flat[0]
        variable.assign(values)

        assert not is_fresh(layer, kernel)


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("name", ["he_normal", "orthogonal", "random_normal", "random_uniform", "truncated_normal"])
def test_a_kernel_is_fresh_under_each_random_initializer_and_seed(name, seed):
    layer = layers.Conv2D(3, 3, kernel_initializer=type(keras.initializers.get(name))(seed=seed))
    layer.build((None, 9, 9, 2))

    assert is_fresh(layer, "kernel")


class Own(keras.initializers.RandomNormal):
    def __call__(self, shape, dtype=None):
        return np.random.default_rng().normal(size=shape).astype(dtype)


@pytest.mark.parametrize(
    "initializer",
    [Own(), "ones", keras.initializers.HeNormal(seed=keras.random.SeedGenerator(1)), np.ones((3, 3, 2, 3), "float32")],
    ids=["own", "ones", "generator", "array"],
)
def test_a_kernel_that_no_second_draw_repeats_counts_as_trained(initializer):
    initializer = keras.initializers.Constant(initializer) if isinstance(initializer, np.ndarray) else initializer
    layer = layers.Conv2D(3, 3, kernel_initializer=initializer)
    layer.build((None, 9, 9, 2))

    assert not is_fresh(layer, "kernel")


def starts(model):
    return {row.layer: row.init for row in kt.tying_report(model).rows if row.pattern}


@in_both_modes
@pytest.mark.parametrize("builder", [skip, subclassed])
@pytest.mark.filterwarnings("ignore:The config of 'subclassed'")
def test_fresh_kernels_start_with_the_first_member_of_each_group(builder, mode):
    kernels = [array(variable) for variable in make(builder).variables if variable.shape[:2] == (3, 3)]

    tied = kt.apply_tying(make(builder), MIRROR, mode=mode)

    assert set(starts(tied).values()) == {"redrawn"}
    assert {(row.lost, row.error) for row in kt.tying_report(tied).rows if row.pattern} == {(None, 0.0)}
    for kernel, found in zip(kernels, some_tied_kernels(tied), strict=True):
        np.testing.assert_array_equal(array(found.variable), array(expand(first_members(kernel, MIRROR), MIRROR)))


POINT = {  # the kernel of a pattern that is symmetric about its centre, by how the kernel starts
    "redrawn": lambda flat: flat[np.minimum(np.arange(flat.size), np.arange(flat.size)[::-1])],
    "projected": lambda flat: (flat + flat[::-1]) / 2,
}


@pytest.mark.parametrize("start", POINT)
@pytest.mark.parametrize("name", [*LAYERS, *ORTHOGONAL])
def test_wrapping_a_built_layer_redraws_fresh_kernels_and_projects_all_others(name, start):
    make_layer, shape = {**LAYERS, **ORTHOGONAL}[name]
    layer = make_layer()
    layer.build(shape)
    stock = {kernel: getattr(layer, kernel) for kernel in kernel_names(layer) if kernel.endswith("kernel")}
    if start == "projected":
        for variable in stock.values():
            variable.assign(2 * array(variable))
    expected = {kernel: POINT[start](array(variable).ravel()) for kernel, variable in stock.items()}

    tied = kt.Tied(layer, {kernel: kt.patterns.point(tuple(variable.shape)) for kernel, variable in stock.items()})

    for kernel in stock:
        np.testing.assert_allclose(array(getattr(tied.layer, kernel)).ravel(), expected[kernel], rtol=1e-6, atol=1e-7)
    assert {row.init for row in kt.tying_report(tied).rows if row.pattern} == {start}


@in_both_modes
def test_fresh_kernels_keep_their_variance(mode):
    model = keras.Sequential([keras.Input((9, 9, 64)), layers.Conv2D(64, 5, name="wide")])
    variance = np.var(array(model.get_layer("wide").kernel))

    tied = kt.apply_tying(model, "radial", mode=mode)

    assert np.var(array(tied.get_layer("wide").kernel)) == pytest.approx(variance, rel=0.05)


def loaded(tmp_path):
    make(skip).save(tmp_path / "model.keras")
    return keras.saving.load_model(tmp_path / "model.keras")


def with_weights(tmp_path):
    make(skip).save_weights(tmp_path / "model.weights.h5")
    model = make(skip, seed=8)
    model.load_weights(tmp_path / "model.weights.h5")
    return model


def trained(tmp_path):
    model = make(skip, compiled=True)
    train(model)
    return model


def trained_around_a_frozen_layer(tmp_path):
    model = make(skip)
    model.get_layer("first").trainable = False
    compile_model(model)
    train(model)
    return model


def assigned(tmp_path):
    model = make(skip)
    model.set_weights([2 * weight for weight in model.get_weights()])
    return model


@in_both_modes
@pytest.mark.parametrize("source", [loaded, with_weights, trained, trained_around_a_frozen_layer, assigned])
def test_kernels_that_are_trained_loaded_or_set_are_projected(source, mode, tmp_path):
    model = source(tmp_path)
    kernel = array(model.get_layer("first").kernel)

    tied = kt.apply_tying(model, {"first": MIRROR}, mode=mode)

    assert starts(tied) == {"first": "projected"}
    np.testing.assert_array_equal(array(tied.get_layer("first").kernel), array(kt.project(kernel, MIRROR)))


@in_both_modes
def test_a_fresh_layer_on_a_trained_trunk_is_redrawn_and_the_trunk_projected(mode, tmp_path):
    trunk = trained(tmp_path).get_layer("first")
    x = keras.Input(IMAGE)
    model = compile_model(keras.Model(x, head(conv("fresh")(trunk(x)))))

    tied = kt.apply_tying(model, MIRROR, mode=mode)

    assert starts(tied) == {"first": "projected", "fresh": "redrawn"}


@pytest.mark.parametrize("second", MODES)
@pytest.mark.parametrize("first", MODES)
def test_layers_that_a_first_tying_left_fresh_are_redrawn_by_a_second(first, second):
    model = keras.Sequential([keras.Input(IMAGE), conv("a"), conv("b")])

    tied = kt.apply_tying(kt.apply_tying(model, {"a": MIRROR}, mode=first), {"b": MIRROR}, mode=second)

    assert starts(tied) == {"a": "redrawn", "b": "redrawn"}


@in_both_modes
@pytest.mark.parametrize(("init", "start"), [("project", "projected"), ("redraw", "redrawn")])
def test_init_overrides_what_auto_would_choose(init, start, mode, tmp_path):
    for model in (make(skip), trained(tmp_path)):
        assert starts(kt.apply_tying(model, {"first": MIRROR}, mode=mode, init=init)) == {"first": start}


@in_both_modes
def test_the_report_tells_how_kernels_start(mode):
    assert "redrawn" in repr(kt.tying_report(kt.apply_tying(make(skip), MIRROR, mode=mode)))
    assert starts(kt.apply_tying(make(unbuilt), MIRROR, mode=mode)) == {"first": ""}
