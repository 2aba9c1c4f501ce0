"""Facts about graphs of layers of Keras 3.12 to 3.15 that private names build on; where one fails, Keras has changed."""

import inspect

import keras
import pytest
from keras import layers
from support.backends import KERAS
from support.facts import assert_has, built
from support.models import (
    IMAGE,
    Preset,
    Trunk,
    conv,
    make,
    nested_subclass,
    preset,
    skip,
    subclassed,
)

from kernel_tying import _keras


def functional_class(model):
    return next((cls for cls in type(model).__mro__ if cls.__name__ == "Functional"), None)


@pytest.mark.parametrize("builder", [skip, nested_subclass, preset])
def test_functional_models_have_a_class_named_functional_among_their_bases(builder):
    assert functional_class(make(builder)), "the base class of Functional models has another name"


def test_subclassed_models_have_no_class_named_functional_among_their_bases():
    assert functional_class(make(subclassed)) is None, "subclassed models count as Functional"


def test_a_config_describes_layers_where_get_config_and_constructor_are_those_of_functional():
    trunk, backbone = make(nested_subclass).get_layer("trunk"), make(preset)
    functional = functional_class(trunk)

    assert "layers" in trunk.get_config(), "the config of a Functional subclass does not describe its layers any more"
    assert Trunk.get_config is functional.get_config
    assert Preset.get_config is not functional.get_config
    assert "layers" not in backbone.get_config()
    assert Trunk.__init__ is functional.__init__
    arguments = ["self", "inputs", "outputs", "name"] if KERAS >= (3, 15) else []  # until 3.14, a decorator hides them
    assert inspect.getfullargspec(functional.__init__).args == arguments, "it takes more"


def test_a_functional_subclass_with_a_constructor_of_its_own_has_a_config_without_layers():
    class Own(keras.Model):
        def __init__(self, filters=2):
            x = keras.Input(IMAGE)
            super().__init__(x, conv(filters=filters)(x))

    assert "layers" not in Own().get_config(), "constructors do not decide any more whether a config describes layers"


def test_functional_models_keep_their_calls_by_depth():
    model = make(skip)
    calls = [node for depth in model._nodes_by_depth for node in model._nodes_by_depth[depth]]

    for call in calls:
        assert_has(call, "is_input", "operation", "arguments", "input_tensors", "outputs")
        assert call in call.operation._inbound_nodes, "operations keep their calls elsewhere than in `_inbound_nodes`"
    tensors = {id(tensor): "known" for call in calls for tensor in call.outputs}
    filled = [argument for call in calls if not call.is_input for argument in call.arguments.fill_in(tensors)[0]]
    assert "known" in keras.tree.flatten(filled), "the arguments of a call are not filled in by the ids of tensors any more"


def test_the_arguments_of_a_call_are_converted_leaf_by_leaf():
    layer = built(layers.Dense(3))
    call = keras.ops.multiply(keras.Input((3,)), layer.bias)._keras_history.operation._inbound_nodes[0]

    assert any(leaf is layer.bias for leaf in keras.tree.flatten((call.arguments.args, call.arguments.kwargs)))
    args, _ = call.arguments.convert(lambda leaf: leaf if isinstance(leaf, keras.KerasTensor) else "other")
    assert args[1] == "other", "the arguments of a call are converted otherwise"


def test_a_call_of_a_stock_model_runs_its_graph_and_that_of_a_subclass_with_code_does_not():
    class Coded(keras.Sequential):
        def call(self, inputs):
            return inputs

    x = keras.Input((2,))
    models = [keras.Model(x, keras.layers.Dense(1)(x)), keras.Sequential([x]), Coded([x])]

    assert [_keras.runs_graph(model) for model in models] == [True, True, False]


def test_output_names_are_those_of_the_last_layers():
    x = keras.Input((2,))
    model = keras.Model(x, [keras.layers.Dense(1, name="a")(x), keras.layers.Dense(1, name="b")(x)])

    assert _keras.output_names(model) == ["a", "b"]
