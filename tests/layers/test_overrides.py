"""Methods of layers are overridden once."""

from keras import layers
from support.errors import raises_tying_error

from kernel_tying._layers import overrides
from kernel_tying._layers.attachment import override_methods


def test_methods_of_a_layer_are_overridden_once():
    layer = layers.Dense(2, name="twice")
    override_methods(layer, overrides.REFUSED_METHODS)

    with raises_tying_error("'twice'"):
        override_methods(layer, overrides.REFUSED_METHODS)
