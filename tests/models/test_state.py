"""Copies of a model have its variables: values, paths, flags, regularizers and states."""

import pathlib

import keras
import numpy as np
import pytest
from keras import layers, ops
from support.backends import array
from support.copies import dense, in_both_directions
from support.models import (
    DESCRIBED,
    MODES,
    UNDESCRIBED,
    compile_model,
    custom_layer,
    make,
    nested,
    nested_subclass,
    sequential,
    tie,
    train,
)

import kernel_tying as kt


@in_both_directions
def test_regularizers_are_those_of_the_variables(copier):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, dense("last", kernel_regularizer="l2")(dense(kernel_initializer="ones")(inputs)))
    model.get_layer("encoder").kernel.regularizer = keras.regularizers.L1(0.5)
    model.get_layer("last").kernel.regularizer = None

    copy = copier(model)

    np.testing.assert_allclose([array(loss) for loss in copy.losses], [18.0], rtol=1e-6)


@in_both_directions
def test_states_of_a_recurrent_layer_are_carried_over(copier):
    inputs = keras.Input(batch_shape=(2, 3, 6))
    model = keras.Model(inputs, dense()(layers.SimpleRNN(6, stateful=True, name="rnn")(inputs)))
    model(np.ones((2, 3, 6), "float32"))

    states, expected = (array(one.get_layer("rnn").states[0]) for one in (copier(model), model))

    assert np.abs(expected).max() > 0
    np.testing.assert_array_equal(states, expected)


@in_both_directions
def test_variables_keep_their_paths_inside_layers_with_layers(copier):
    inputs = keras.Input((3, 6))
    hidden = layers.RNN([layers.GRUCell(4), layers.GRUCell(4)])(layers.Bidirectional(layers.LSTM(3))(inputs)[:, None])
    model = keras.Model(inputs, dense("last")(layers.MultiHeadAttention(2, 2)(hidden[:, None], hidden[:, None])))
    model = keras.Model(inputs, dense()(layers.Dense(6)(model.output)))

    def paths(one):
        return [variable.path for variable in one.variables if "seed" not in variable.path]

    assert paths(copier(model)) == paths(model)


class Lookup(layers.Layer):
    """A layer whose table is an asset, as the table of IntegerLookup is: neither weights nor config hold it."""

    table = (0, 0, 0)

    def call(self, inputs):
        return ops.take(np.array(self.table), inputs)

    def save_assets(self, path):
        np.save(pathlib.Path(path, "table.npy"), self.table)

    def load_assets(self, path):
        self.table = np.load(pathlib.Path(path, "table.npy"))


def test_a_rebuilt_model_keeps_its_lookup_tables():
    lookup = Lookup()
    lookup.table = (7, 8, 9)
    numbers, inputs = keras.Input((1,), dtype="int32"), keras.Input((9, 9, 2))
    model = keras.Model([numbers, inputs], [lookup(numbers), layers.Conv2D(2, 3)(inputs)])

    tied = kt.apply_tying(model, "mirror", mode="parameterization")

    assert array(tied([np.array([[1]]), np.ones((1, 9, 9, 2), "float32")])[0]).tolist() == [[8]]


in_both_modes = pytest.mark.parametrize("mode", MODES)
for_all_models = pytest.mark.parametrize("builder", DESCRIBED + UNDESCRIBED)


@in_both_modes
@for_all_models
def test_variables_keep_their_names_paths_order_and_flags(builder, mode):
    model = make(builder)

    def identity(one):
        seeded = (
            variable for variable in one.variables if variable.name != "seed_generator_state"
        )  # each has a path of its own
        return [(variable.name, variable.path, variable.dtype, variable.trainable) for variable in seeded]

    before = identity(model)

    assert identity(tie(model, mode)) == before


@in_both_modes
@pytest.mark.parametrize("builder", [sequential, nested_subclass, custom_layer])
def test_frozen_layers_stay_frozen(builder, mode):
    model = make(builder)
    frozen = next(layer for layer in model._flatten_layers(include_self=False) if isinstance(layer, layers.Conv2D))
    frozen.trainable = False
    compile_model(model)
    flags = [one.trainable for one in model.variables]
    tied = tie(model, mode)
    kernel = next(one for one in tied.variables if one.path.endswith(f"{frozen.name}/kernel"))
    before = array(kernel)

    train(tied)

    np.testing.assert_array_equal(array(kernel), before)
    assert [one.trainable for one in tied.variables] == flags


@in_both_modes
def test_a_frozen_model_stays_frozen_and_thaws(mode):
    model = make(nested)
    model.trainable = False
    tied = tie(model, mode)
    counts = [len(tied.trainable_variables)]

    tied.trainable = True
    counts.append(len(tied.trainable_variables))

    assert counts == [0, len(make(nested).trainable_variables)]
