"""Copies of a model have the attributes of the given one, whether or not configs describe them."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from support.backends import array
from support.copies import apply, autoencoder, dense, in_both_directions

import kernel_tying as kt
from kernel_tying import _keras


class Plain(keras.Model):
    """A Functional subclass without a constructor."""


class Opaque:
    """Something that nobody knows how to copy."""


def attributed(name="given"):
    inputs, encoder = keras.Input((6,)), dense()
    model = Plain(inputs, encoder(inputs), name=name)
    model.weight, model.table, model.options = 2.5, np.arange(3), {"sizes": [1, (2, 3)], "name": "x"}
    model.shortcut, model.function, model.threshold = encoder, ops.relu, keras.Variable(3.0, name="threshold")
    model.distance, model.seen = keras.losses.Huber(delta=0.3), keras.metrics.Mean(name="seen")
    model.extra = layers.Dense(2, name="extra")
    model.extra.build((None, 6))
    return model


def sequential_with_attribute():
    class Own(keras.Sequential):
        pass

    model = Own([keras.Input((6,)), dense()], name="given")
    model.weight, model.extra = 2.5, layers.Dense(2, name="extra")
    model.extra.build((None, 6))
    return model


def nested_with_attribute():
    inputs = keras.Input((6,))
    return keras.Model(inputs, attributed("inner")(inputs))


@in_both_directions
@pytest.mark.parametrize("builder", [attributed, nested_with_attribute])
def test_attributes_of_a_functional_model_are_carried_over(builder, copier):
    model = builder()
    copy = copier(model)
    model, copy = (one.get_layer("inner") if builder is nested_with_attribute else one for one in (model, copy))

    assert (copy.weight, copy.table.tolist(), copy.function) == (2.5, [0, 1, 2], ops.relu)
    assert (list(copy.options["sizes"]), copy.options["name"]) == ([1, (2, 3)], "x")
    assert copy.shortcut is copy.get_layer("encoder")
    assert float(array(copy.threshold)) == 3.0
    assert float(array(copy.distance([[0.0]], [[9.0]]))) == float(array(model.distance([[0.0]], [[9.0]])))
    np.testing.assert_equal(copy.extra.get_weights(), model.extra.get_weights())
    shared = ("table", "options", "shortcut", "threshold", "distance", "seen", "extra")
    assert [name for name in shared if getattr(copy, name) is getattr(model, name)] == []
    assert [variable.path for variable in copy.variables] == [variable.path for variable in model.variables]


@in_both_directions
def test_attributes_of_a_sequential_subclass_are_carried_over(copier):
    model = sequential_with_attribute()
    copy = copier(model)

    assert copy.weight == 2.5
    assert copy.extra is not model.extra
    np.testing.assert_equal(copy.extra.get_weights(), model.extra.get_weights())


def test_attributes_that_cannot_be_copied_are_warned_about_by_name():
    model = attributed()
    model.odd, model.latent = Opaque(), model.get_layer("encoder").output

    with pytest.warns(UserWarning, match=r"\['given.odd', 'given.latent'\]"):
        tied = apply(model)

    assert not hasattr(tied, "odd")


def test_stripping_warns_about_attributes_too():
    tied = apply(attributed())
    tied.odd = Opaque()

    with pytest.warns(UserWarning, match=r"\['given.odd'\]"):
        kt.strip_tying(tied)


@in_both_directions
def test_what_is_set_on_a_layer_after_its_construction_is_carried_over(copier):
    model = autoencoder()
    encoder = model.get_layer("encoder")
    encoder.supports_masking, encoder.note, encoder.activation = True, "mine", keras.activations.tanh

    copy = copier(model).get_layer("encoder")

    stock = copy.layer if isinstance(copy, kt.Tied) else copy
    assert (copy.supports_masking, stock.note, stock.activation) == (True, "mine", keras.activations.tanh)


@in_both_directions
def test_names_remat_modes_and_policies_are_kept_where_configs_leave_them_out(copier):
    class Scale(layers.Layer):
        def __init__(self, factor, **kwargs):
            super().__init__(**kwargs)
            self.factor = factor

        def call(self, inputs):
            return self.factor * inputs

        def get_config(self):
            return {"factor": self.factor}

    class Mine(layers.Dense):
        def get_config(self):
            return {"units": self.units, "use_bias": self.use_bias}

    with keras.RematScope(mode="full"):
        inputs = keras.Input((6,))
        hidden = Mine(6, use_bias=False, activation="tanh", name="encoder", dtype="mixed_bfloat16")(inputs)
        model = keras.Model(inputs, Scale(2.0, name="gain")(ops.abs(hidden)))
    copy = copier(model)

    stock = [layer.layer if isinstance(layer, kt.Tied) else layer for layer in copy.layers]
    assert [layer.name for layer in copy.layers] == [layer.name for layer in model.layers]
    (given,) = _keras.operations(model)
    (copied,) = _keras.operations(copy)
    assert {layer._remat_mode.mode for layer in stock} == {"full"}
    assert getattr(copied, "_remat_mode", None) == getattr(given, "_remat_mode", None)  # absent on Keras 3.12
    assert stock[1].dtype_policy.name == "mixed_bfloat16"
    assert stock[1].activation is keras.activations.tanh
