"""The walk over a model finds every layer, and tells which models are tied in place."""

import keras
import pytest
from keras import layers
from support.models import (
    MODES,
    UNDESCRIBED,
    Trunk,
    make,
    nested_subclass,
    shared_across,
    tie,
)

import kernel_tying as kt


def test_an_earlier_tying_inside_a_custom_layer_survives_a_second_one():
    class Block(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.conv = layers.Conv2D(2, 3, padding="same", name="inside")

        def build(self, input_shape):
            self.conv.build(input_shape)

        def call(self, inputs):
            return inputs + self.conv(inputs)

    model = keras.Sequential([keras.Input((9, 9, 2)), Block(name="block"), layers.Conv2D(2, 3, name="outside")])
    with pytest.warns(UserWarning, match="does not describe"):
        model = kt.apply_tying(model, {"block/inside": "mirror"}, mode="parameterization")

    model = kt.apply_tying(model, {"outside": "mirror"}, mode="parameterization")

    assert [row.layer for row in kt.tying_report(model).rows if row.pattern] == ["block/inside", "outside"]


class Scaled(keras.Model):
    """A Functional subclass with an argument that a rebuilt model would lose."""

    def __init__(self, *args, factor=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.factor = factor

    def call(self, inputs, **kwargs):
        return self.factor * super().call(inputs, **kwargs)


def test_a_functional_subclass_with_arguments_of_its_own_is_tied_in_place():
    inputs = keras.Input((9, 9, 2))
    model = Scaled(inputs, layers.Conv2D(2, 3)(inputs), factor=3.0)

    with pytest.warns(UserWarning, match="does not describe"):
        tied = kt.apply_tying(model, "mirror", mode="parameterization")

    assert tied is model
    assert kt.tying_error(tied) == 0.0


in_both_modes = pytest.mark.parametrize("mode", MODES)


@pytest.mark.parametrize("builder", UNDESCRIBED)
@in_both_modes
def test_a_model_whose_config_leaves_layers_out_is_tied_in_place(builder, mode):
    model = make(builder)

    assert tie(model, mode) is model


@in_both_modes
def test_a_nested_functional_subclass_keeps_its_class(mode):
    trunk = tie(make(nested_subclass), mode).get_layer("trunk")

    assert type(trunk) is Trunk
    assert trunk.parts() == 3


@in_both_modes
def test_a_layer_shared_with_a_nested_model_stays_shared(mode):
    tied = tie(make(shared_across), mode)

    assert tied.get_layer("shared") is tied.get_layer("trunk").get_layer("shared")
