"""Facts about layers of Keras 3.12 to 3.15 that private names build on; where one fails, Keras has changed."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers, ops
from support.facts import assert_has, built, trained
from support.models import (
    IMAGE,
    conv,
    custom_layer,
    images,
    make,
    sequential,
    skip,
)

from kernel_tying import _keras


def test_the_dtype_policy_of_a_layer_is_a_property_that_can_be_set():
    layer = conv()

    keras.Layer.dtype_policy.fset(layer, "mixed_float16")

    assert layer.dtype_policy.name == "mixed_float16", "the property `dtype_policy` sets nothing, or takes no names any more"


def test_sublayers_are_listed_in_underscore_layers():
    block = make(custom_layer).get_layer("block")
    assert_has(block, "_layers")

    assert list(block._layers) == [block.inside], "layers inside a layer are kept elsewhere than in `_layers`"


def test_a_sequential_lists_its_input_layer_in_underscore_layers():
    names = [type(layer).__name__ for layer in make(sequential)._layers]

    assert names[:2] == ["InputLayer", "Conv2D"], "Sequential._layers does not begin with the InputLayer any more"


def test_seed_generators_are_listed_and_stay_out_of_files():
    layer = built(layers.Dropout(0.5))
    assert_has(layer, "_seed_generators")
    store = {}

    layer.save_own_variables(store)

    assert [id(one) for one in layer._seed_generators] == [id(layer.seed_generator)], "seed generators are kept elsewhere"
    assert not store, "layers save the state of their seed generators now; `copy_state` copies it twice"


def test_a_layer_opens_its_name_scope_in_open_name_scope():
    class Unnamed(layers.Wrapper):
        def _open_name_scope(self):
            return contextlib.nullcontext()

        def call(self, inputs):
            return self.layer(inputs)

    assert_has(conv(), "_open_name_scope")
    wrapper = Unnamed(conv("inner"), name="outer")
    wrapper(np.zeros((1, *IMAGE), "float32"))

    assert wrapper.layer.kernel.path == "inner/kernel", "paths of variables take the names of layers from elsewhere"


def test_lambda_layers_keep_what_they_were_made_of():
    layer = layers.Lambda(lambda x, a: a * x, output_shape=(3,), arguments={"a": 2})

    assert_has(layer, "function", "_output_shape", "mask", "arguments")
    assert (layer._output_shape, layer.arguments) == ((3,), {"a": 2}), "Lambda keeps its arguments in another form"


def test_only_the_constraint_of_the_layer_is_serialized():
    layer = built(conv(kernel_constraint="non_neg"))
    layer.kernel.constraint = None

    assert layer.get_config()["kernel_constraint"]["class_name"] == "NonNeg", "the config reads the variable's constraint now"


def test_keras_wraps_quantize_on_each_layer():
    assert "quantize" in vars(conv()), "layers have no `quantize` of their own any more: nothing has to be put back"


@pytest.mark.parametrize("cls", [layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D])
def test_convolutional_lstms_have_the_cell_that_is_not_exported(cls):
    cell = cls(2, 3).cell

    assert type(cell) is _keras.ConvLSTMCell, f"{cls.__name__} has a cell of another class"
    assert_has(cell, "kernel_size", "kernel_constraint", "recurrent_constraint")


def test_operations_keep_the_mode_of_their_remat_scope():
    with keras.RematScope(mode="full"):
        layer = conv()

    assert layer._remat_mode.mode == "full", "a RematScope is kept elsewhere than in `_remat_mode`"
    assert conv()._remat_mode is None


def test_paths_of_layers_and_variables_are_kept_in_underscore_path():
    layer = built()

    assert (layer._path, layer.kernel._path) == (layer.path, layer.kernel.path), "paths are kept elsewhere"


@pytest.mark.parametrize("build", [skip, sequential])
def test_attached_layers_are_listed_by_the_tracker(build):
    model = make(build)
    if build is sequential:
        model.add(layers.Dense(2, name="last"))  # from now on it tracks two Functional models of its layers
    model.extra = conv("extra")

    assert _keras.attached_layers(model) == [model.extra], "layers as attributes are listed elsewhere"
    assert _keras.attributes(model)["extra"] is model.extra, "the backend keeps layers elsewhere than in `_modules`"


def test_the_state_of_a_trained_model_has_known_names():
    model = trained()
    model.predict(images(model), verbose=0)

    names = [name for name in _keras.attributes(model) if not name.startswith("_")]

    assert set(names) <= {"name", "autocast", "supports_jit", "activity_regularizer"}, "Keras keeps more state in models"


def test_a_layer_made_inside_a_remat_scope_is_not_called_plainly():
    with keras.RematScope(mode="full"):
        layer = layers.Dense(2)

    assert not _keras.is_called_plainly(layer), "layers keep their RematScope elsewhere than in `_remat_mode`"
    assert _keras.is_called_plainly(layers.Dense(2))
    assert not _keras.is_called_plainly(layers.Dense(2, activity_regularizer="l2"))


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="hooks are torch's")
@pytest.mark.parametrize("kind", ["forward_pre", "forward", "full_backward_pre", "full_backward"])
def test_a_layer_with_a_hook_of_torch_is_not_called_plainly(kind):
    layer = layers.Dense(2)
    getattr(layer, f"register_{kind}_hook")(lambda *arguments: None)

    assert not _keras.is_called_plainly(layer), "torch keeps hooks elsewhere"


def test_batch_normalization_takes_mean_and_variance_of_each_channel_from_a_private_method(monkeypatch):
    norm = keras.layers.BatchNormalization(momentum=0.0)
    norm.build((None, 2))
    monkeypatch.setattr(norm, _keras.MOMENTS, lambda inputs, mask: (ops.ones(2) * 3, ops.ones(2) * 4))
    inputs = ops.convert_to_tensor(np.array([[1.0, 2.0], [5.0, 2.0]], "float32"))

    norm(inputs, training=True)

    np.testing.assert_array_equal(norm.moving_mean, [3, 3])
    np.testing.assert_array_equal(norm.moving_variance, [4, 4])
    np.testing.assert_allclose(_keras.moments(norm, inputs, None), [[3, 2], [4, 0]])


def test_states_that_no_file_holds_are_those_of_seed_generators():
    model = make(sequential)
    before, weights = len(model.non_trainable_variables), len(model.weights)
    assert_has(model, "_seed_generators")
    state = keras.Variable(1.0, trainable=False)

    _keras.track_state(model, state)

    assert any(variable is state for variable in model.non_trainable_variables), "states of generators are listed elsewhere"
    assert len(model.weights) == weights, "states of generators count as weights"
    _keras.untrack_states(model)
    assert len(model.non_trainable_variables) == before


def test_a_summary_prints_the_name_of_a_layers_class():
    class Labelled(_keras.LabelledLayer):
        @property
        def summary_label(self):
            return "a label"

    model, lines = keras.Sequential([keras.Input((2,)), Labelled(name="first")]), []

    model.summary(print_fn=lines.append)

    assert "first (a label)" in "\n".join(lines), "Keras prints another name than that of the class"
    assert isinstance(model.layers[0], Labelled)
    assert model.layers[0].__class__ is Labelled
