"""`penalize` adds the squared distance from the tied kernels to the loss of a model, in place, and `strip_tying` removes it."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers
from support.backends import array
from support.errors import raises_tying_error
from support.models import (
    DESCRIBED,
    IMAGE,
    MODES,
    UNDESCRIBED,
    compile_model,
    conv,
    custom_layer,
    images,
    make,
    nested,
    preset,
    sequential,
    skip,
    subclassed,
    targets,
    train,
    unbuilt,
)
from support.oracles import dense_project

import kernel_tying as kt

STRENGTH = 0.3
BUILDERS = [*DESCRIBED, *UNDESCRIBED]


def convolutions(model):
    return [variable for variable in model.trainable_variables if len(variable.shape) == 4]


def distance(kernel, pattern):
    return np.sum((array(kernel) - dense_project(array(kernel), pattern)) ** 2)


def penalize(model, patterns="mirror", strength=STRENGTH):
    """Penalizes; checks that exactly models whose config leaves their layers out draw a warning of it."""
    is_undescribed = model.name in [builder.__name__ for builder in UNDESCRIBED]
    with pytest.warns(UserWarning, match="does not describe") if is_undescribed else contextlib.nullcontext():
        return kt.penalize(model, patterns, strength)


def total(losses):
    return sum(float(array(loss)) for loss in losses)


@pytest.mark.parametrize("builder", BUILDERS)
def test_penalty_is_strength_times_the_squared_distance_of_all_kernels(builder):
    model = make(builder)
    expected = STRENGTH * sum(distance(kernel, kt.patterns.mirror((3, 3))) for kernel in convolutions(model))

    penalized = penalize(model)

    assert penalized is model
    assert total(model.losses) == pytest.approx(expected, rel=1e-5)


def test_penalty_adds_to_the_regularizers_that_are_there():
    regularizers = {"kernel_regularizer": "l1", "bias_regularizer": keras.regularizers.L2(0.5), "bias_initializer": "ones"}
    model = make(lambda: keras.Sequential([keras.Input(IMAGE), conv(**regularizers)]))
    before, kernel = total(model.losses), model.layers[0].kernel

    penalize(model)

    assert total(model.losses) == pytest.approx(before + STRENGTH * distance(kernel, kt.patterns.mirror((3, 3))), rel=1e-5)


def test_penalty_of_an_unbuilt_layer_counts_once_it_is_built():
    model = penalize(make(unbuilt))

    model.build((None, *IMAGE))

    expected = STRENGTH * distance(model.get_layer("first").kernel, kt.patterns.mirror((3, 3)))
    assert total(model.losses) == pytest.approx(expected, rel=1e-5)


def test_patterns_are_those_of_apply_tying():
    model, cross = make(nested), kt.patterns.cross((3, 3))

    penalize(model, {"trunk/*": cross, "outer": None})

    assert total(model.losses) == pytest.approx(STRENGTH * distance(convolutions(model)[0], cross), rel=1e-5)


def test_penalizing_again_replaces_the_penalty():
    model = penalize(penalize(make(skip, compiled=True), "cross", 5.0))

    expected = STRENGTH * distance(model.get_layer("first").kernel, kt.patterns.mirror((3, 3)))
    assert total(model.losses) == pytest.approx(expected, rel=1e-5)


def facts(model):
    """Returns what a model and its layers are, by identity where there are objects."""
    variables = [(id(variable), array(variable).tolist(), variable.regularizer) for variable in model.variables]
    inner = model._flatten_layers()
    return variables, [{name: id(value) for name, value in vars(layer).items()} for layer in inner if not layer._layers]


@pytest.mark.parametrize("builder", BUILDERS)
def test_stripping_a_penalty_gives_back_the_model_as_it_was(builder):
    model = make(builder)
    convolutions(model)[0].regularizer = keras.regularizers.L2(0.1)
    before = facts(model)

    stripped = kt.strip_tying(penalize(model))

    assert stripped is model
    assert facts(model) == before


def test_a_compiled_model_is_traced_again():
    model = make(skip, compiled=True, run_eagerly=False)
    train(model)
    x, y = images(model), targets(model)
    before = model.evaluate(x, y, verbose=0)

    penalize(model, strength=10.0)

    added = 10.0 * distance(model.get_layer("first").kernel, kt.patterns.mirror((3, 3)))
    assert model.evaluate(x, y, verbose=0) == pytest.approx(before + added, rel=1e-5)
    assert train(model).history["loss"][0] > added
    kt.strip_tying(model)
    assert not model.losses


def test_files_keep_the_penalty(tmp_path):
    model = make(lambda: keras.Sequential([keras.Input(IMAGE), conv(kernel_regularizer="l2")]))
    penalize(model, kt.patterns.cross((3, 3)))
    model.save(tmp_path / "model.keras")

    loaded = keras.saving.load_model(tmp_path / "model.keras")

    assert total(loaded.losses) == pytest.approx(total(model.losses), rel=1e-6)
    assert type(kt.strip_tying(loaded).layers[0].kernel_regularizer) is keras.regularizers.L2


@pytest.mark.parametrize("mode", MODES)
def test_a_penalized_model_can_be_tied(mode):
    model = penalize(make(sequential))

    tied = kt.apply_tying(model, "mirror", mode=mode)

    assert total(tied.losses) == 0.0
    assert kt.strip_tying(tied).losses == []


REFUSED = {
    "strength=-1": ("mirror", -1),
    "strength=nan": ("mirror", float("nan")),
    "'nowhere'": ({"nowhere": "mirror"}, 0.1),
    "'miror'": ("miror", 0.1),
    "pattern's shape (5, 5)": (kt.patterns.mirror((5, 5)), 0.1),
}


@pytest.mark.parametrize("received", REFUSED)
@pytest.mark.parametrize("builder", [sequential, subclassed, preset, custom_layer])
def test_a_refused_penalty_leaves_the_model_as_it_was(builder, received):
    model = make(builder)
    before = facts(model)

    with raises_tying_error(received):
        kt.penalize(model, *REFUSED[received])

    assert facts(model) == before


def test_a_layer_may_be_penalized_alone():
    layer = layers.Dense(4, name="dense")
    layer.build((None, 4))

    kt.penalize(layer, "circulant", 1.0)

    assert total(layer.losses) == pytest.approx(distance(layer.kernel, kt.patterns.circulant((4, 4))), rel=1e-5)


def test_a_tied_layer_takes_no_penalty():
    with raises_tying_error("'first'"):
        kt.penalize(kt.apply_tying(make(skip), "mirror"), "mirror", 0.1)


def test_compiling_is_kept():
    model = compile_model(make(skip))
    optimizer = model.optimizer

    penalize(model)

    assert model.compiled
    assert model.optimizer is optimizer
