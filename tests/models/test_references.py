"""Functions and operations that hold layers or kernels of the given model are refused, or compiled again."""

import functools

import keras
import numpy as np
import pytest
from keras import layers, ops
from support.backends import array
from support.copies import DATA, PATTERN, apply, decode, dense
from support.errors import raises_tying_error

import kernel_tying as kt


def closure(encoder):
    return lambda hidden: decode(encoder, hidden)


def inner_closure(encoder):
    def outer(hidden):
        return (lambda value: decode(encoder, value))(hidden)

    return outer


def default(encoder):
    return lambda hidden, kernel=encoder.kernel: ops.einsum("bh,ih->bi", hidden, kernel)


def bound(encoder):
    class Decoder:
        def __init__(self):
            self.parts = {"encoder": [encoder]}

        def decode(self, hidden):
            return decode(self.parts["encoder"][0], hidden)

    return Decoder().decode


def features(encoder):
    part = keras.Model(encoder.input, encoder.output)
    return lambda hidden: part(hidden)


def global_variable(encoder):
    globals()["LAYER"] = encoder
    return lambda hidden: decode(LAYER, hidden)  # noqa: F821


FUNCTIONS = {
    "closure": closure,
    "inner closure": inner_closure,
    "default": default,
    "partial": lambda encoder: functools.partial(decode, encoder),
    "bound method": bound,
    "model of features": features,
    "global": global_variable,
}
for_all_functions = pytest.mark.parametrize("make", FUNCTIONS.values(), ids=FUNCTIONS)


@for_all_functions
def test_a_lambda_that_holds_a_layer_of_the_model_is_refused_and_the_model_left_alone(make):
    inputs, encoder = keras.Input((6,)), dense()
    hidden = encoder(inputs)
    model = keras.Model(inputs, layers.Lambda(make(encoder), (6,), name="odd")(hidden))
    weights, names = model.get_weights(), [layer.name for layer in model.layers]

    with raises_tying_error("'odd'"):
        apply(model)

    assert [layer.name for layer in model.layers] == names
    np.testing.assert_equal(model.get_weights(), weights)
    assert kt.tying_error(kt.apply_tying(model, PATTERN)) == 0.0  # the way out


@for_all_functions
def test_a_loss_that_holds_a_layer_of_the_model_is_to_be_compiled_again(make):
    inputs, encoder = keras.Input((6,)), dense()
    model = keras.Model(inputs, encoder(inputs))
    function = make(encoder)
    model.compile("sgd", lambda target, output: ops.mean(function(output) - target))

    with pytest.warns(UserWarning, match="Compile it before"):
        tied = apply(model)

    assert not tied.compiled


def test_functions_that_hold_other_layers_are_kept():
    teacher, inputs = dense("teacher"), keras.Input((6,))
    teacher.build((None, 6))
    model = keras.Model(inputs, layers.Lambda(lambda value: teacher(value), (6,))(dense()(inputs)))
    model.compile("sgd", lambda target, output: ops.mean(teacher(output) - target))

    tied = apply(model)

    assert tied.compiled
    np.testing.assert_allclose(array(tied(DATA)), array(kt.strip_tying(tied)(DATA)), rtol=1e-6, atol=1e-6)


def test_a_kernel_that_an_argument_holds_is_not_replaced_in_place():
    class Undescribed(keras.Model):
        def __init__(self):
            inputs, encoder = keras.Input((6,)), dense()
            super().__init__(inputs, decode(encoder, encoder(inputs)))

    model = Undescribed()
    kernel = model.get_layer("encoder").kernel

    with raises_tying_error("'encoder/kernel'"):
        apply(model)

    assert model.get_layer("encoder").kernel is kernel


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="elsewhere such a tensor is a constant")
def test_a_tensor_that_was_computed_from_a_kernel_is_refused():
    inputs, encoder = keras.Input((6,)), dense()
    model = keras.Model(inputs, ops.matmul(encoder(inputs), ops.transpose(encoder.kernel)))

    with raises_tying_error("(6, 6)"):
        apply(model)
