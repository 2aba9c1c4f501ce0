"""Laws of whole models: tied, trained and stripped, with the given model left as it was."""

import json

import keras
import numpy as np
import pytest
from support.backends import array, train_step
from support.models import (
    DESCRIBED,
    IMAGE,
    MODES,
    UNDESCRIBED,
    assert_equal_values,
    compile_model,
    conv,
    custom_layer,
    images,
    make,
    multiple,
    nested,
    nested_subclass,
    sequential,
    shared_across,
    skip,
    state,
    targets,
    tie,
    train,
    unbuilt,
    values,
)

import kernel_tying as kt
from kernel_tying.testing import assert_same_function, assert_tied

in_both_modes = pytest.mark.parametrize("mode", MODES)
for_all_models = pytest.mark.parametrize("builder", DESCRIBED + UNDESCRIBED)
for_described_models = pytest.mark.parametrize("builder", DESCRIBED)


def mirrored(model):
    """Makes the 3x3 kernels of a model left-right symmetric."""
    for variable in model.variables:
        if variable.shape[:2] == (3, 3):
            kernel = array(variable)
            variable.assign((kernel + kernel[:, ::-1]) / 2)
    return model


@in_both_modes
@for_all_models
def test_a_model_is_tied_at_once(builder, mode):
    assert kt.tying_error(tie(make(builder), mode)) == 0.0


@in_both_modes
@for_all_models
def test_a_model_that_was_fitted_before_stays_tied_through_fit(builder, mode):
    model = make(builder, compiled=True, run_eagerly=False)
    train(model)
    tied = tie(model, mode)
    before = values(tied.trainable_variables)

    train(tied)

    assert_tied(tied)
    assert all(np.any(old != new) for old, new in zip(before, values(tied.trainable_variables), strict=True))


@in_both_modes
def test_a_model_trained_on_batches_before_stays_tied_through_train_on_batch(mode):
    model = make(skip, compiled=True, run_eagerly=False)
    model.train_on_batch(images(model), targets(model))
    tied = tie(model, mode)

    tied.train_on_batch(images(tied), targets(tied))

    assert_tied(tied)


@in_both_modes
def test_a_model_stays_tied_through_a_training_step_written_by_hand(mode):
    tied = tie(make(skip), mode)
    optimizer = keras.optimizers.Adam(0.1)

    def loss():
        return keras.ops.mean(keras.losses.mean_squared_error(targets(tied), tied(images(tied), training=True)))

    train_step(loss, tied.trainable_variables, optimizer)

    assert_tied(tied)


@in_both_modes
@for_all_models
def test_tying_tied_kernels_leaves_the_function_as_it_was(builder, mode):
    tied = tie(mirrored(make(builder)), mode)

    assert_same_function(tied, mirrored(make(builder)), images(tied))


@for_all_models
def test_both_modes_compute_the_same_function(builder):
    first, second = (tie(make(builder), mode) for mode in MODES)

    assert_same_function(first, second, images(first))


@in_both_modes
@for_described_models
def test_stripping_gives_back_the_config(builder, mode):
    model = make(builder)
    config = model.get_config()

    stripped = kt.strip_tying(tie(model, mode))

    assert stripped.get_config() == config
    assert "kernel_tying" not in json.dumps(keras.saving.serialize_keras_object(stripped))


@in_both_modes
@for_all_models
def test_stripping_leaves_the_function_as_it_was(builder, mode):
    tied = tie(make(builder), mode)
    expected = keras.tree.map_structure(array, tied(images(tied)))

    outputs = kt.strip_tying(tied)(images(tied))

    np.testing.assert_equal(keras.tree.map_structure(array, outputs), expected)


@in_both_modes
@for_all_models
def test_stripping_leaves_no_trace(builder, mode):
    def traces(model):
        set_on_loading = {"is_gptq_calibrated", "is_awq_calibrated"}  # by Dense
        inner = model._flatten_layers(include_self=False)
        return [
            *[(type(layer), layer.name, layer.trainable, set(vars(layer)) - set_on_loading) for layer in inner],
            *[(type(one), one.trainable, one.constraint, one.regularizer) for one in model.variables],
        ]

    model = make(builder)
    before = traces(model)

    stripped = kt.strip_tying(tie(model, mode))

    assert traces(stripped) == before


@in_both_modes
@for_all_models
def test_a_stripped_model_trains_on_untied(builder, mode):
    stripped = kt.strip_tying(tie(make(builder, compiled=True, optimizer="sgd"), mode))
    twin = compile_model(mirrored(make(builder)), optimizer="sgd")
    for one in (stripped, twin):
        train(one)

    for one, other in zip(stripped.variables, twin.variables, strict=True):
        np.testing.assert_allclose(array(one), array(other), atol=1e-5)


@for_described_models
def test_rebuilding_leaves_the_given_model_as_it_was(builder):
    model = make(builder, compiled=True)
    train(model)
    before = state(model)

    train(tie(model, "parameterization"))

    before["attributes"][0] = sorted([*before["attributes"][0], "_kernel_tying", "make_train_function"])  # a note of the copy
    np.testing.assert_equal(state(model), before)


@for_described_models
def test_the_given_model_of_a_rebuilt_one_trains_like_an_untouched_twin(builder):
    model, twin = make(builder, compiled=True), make(builder, compiled=True)
    for one in (model, twin):
        train(one)
    train(tie(model, "parameterization"))

    for one in (model, twin):
        train(one)

    assert_equal_values(model.variables, twin.variables)
    assert_equal_values(model.optimizer.variables, twin.optimizer.variables)


@for_described_models
def test_stripping_a_rebuilt_model_leaves_it_as_it_was(builder):
    tied = tie(make(builder, compiled=True), "parameterization")
    before = state(tied)

    train(kt.strip_tying(tied))

    np.testing.assert_equal(state(tied), before)


@in_both_modes
@pytest.mark.parametrize(
    ("builder", "name"),
    [(sequential, "first"), (sequential, "second"), (skip, "first"), (nested, "outer"), (multiple, "on_left")],
)
def test_features_of_a_tied_model_are_features_of_the_model_with_tied_kernels(builder, name, mode):
    stock = mirrored(make(builder))
    tied = tie(make(builder), mode)

    features = keras.Model(tied.inputs, tied.get_layer(name).output)

    assert_same_function(
        features,
        keras.Model(stock.inputs, stock.get_layer(name).output),
        keras.tree.flatten(images(tied)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_dropout_goes_on_with_the_seeds_of_the_given_model():
    model = make(skip, compiled=True)
    train(model)
    tied = tie(mirrored(model), "parameterization")

    outputs = [array(one(images(model), training=True)) for one in (model, tied)]

    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("builder", [sequential, skip, nested_subclass, shared_across, custom_layer])
def test_orthonormal_free_weights_take_the_steps_of_constrained_kernels(builder):
    constrained, rebuilt = (
        make(builder, compiled=True, optimizer=keras.optimizers.SGD(0.2, momentum=0.9), run_eagerly=True) for _ in range(2)
    )
    constrained = tie(constrained, "constraint")
    rebuilt = tie(rebuilt, "parameterization", scaling="orthonormal")

    for one in (constrained, rebuilt):
        train(one, epochs=3)

    assert_same_function(constrained, rebuilt, images(rebuilt), rtol=1e-4, atol=1e-5)


@in_both_modes
def test_an_unbuilt_sequential_is_tied_when_it_is_built(mode):
    tied = tie(make(unbuilt), mode)

    tied.build((None, *IMAGE))

    assert_tied(tied)
    assert np.ptp(array(tied.layers[0].kernel)) > 0


@in_both_modes
def test_stripping_an_unbuilt_sequential_gives_back_the_config(mode):
    model = make(unbuilt)
    config = model.get_config()

    stripped = kt.strip_tying(tie(model, mode))

    assert stripped.get_config() == config


@pytest.mark.parametrize("layer", [conv(), conv(groups=2, use_bias=False)])
@in_both_modes
def test_a_single_layer_is_tied_and_stripped(layer, mode):
    layer = type(layer).from_config(layer.get_config())
    layer.build((None, *IMAGE))
    config = layer.get_config()

    tied = kt.apply_tying(layer, "mirror", mode=mode)

    assert_tied(tied)
    assert kt.strip_tying(tied).get_config() == config


@in_both_modes
def test_projecting_starts_from_the_averaged_kernel(mode):
    layer = make(skip).get_layer("first")
    kernel = array(layer.kernel)

    tied = kt.apply_tying(layer, "mirror", mode=mode, init="project")

    np.testing.assert_allclose(array(tied.kernel), (kernel + kernel[:, ::-1]) / 2, rtol=1e-5, atol=1e-7)


@in_both_modes
def test_redrawing_keeps_what_a_constant_initializer_means(mode):
    layer = conv(kernel_initializer="ones")
    layer.build((None, *IMAGE))
    layer.kernel.assign(np.random.default_rng(0).normal(size=layer.kernel.shape))

    tied = kt.apply_tying(layer, "mirror", mode=mode, init="redraw")

    np.testing.assert_array_equal(array(tied.kernel), np.ones((3, 3, 2, 2)))


@in_both_modes
@pytest.mark.parametrize("builder", [sequential, nested, custom_layer])
def test_redrawing_leaves_untied_layers_as_they_are(builder, mode):
    model = make(builder)
    kernels = [one.shape[:2] == (3, 3) for one in model.variables]
    before = values(model.variables)

    tied = tie(model, mode, init="redraw")

    after = values(tied.variables)
    assert [not np.array_equal(one, other) for one, other in zip(before, after, strict=True)] == kernels
