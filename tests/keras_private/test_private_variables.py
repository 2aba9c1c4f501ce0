"""Facts about variables of Keras 3.12 to 3.15 that private names build on; where one fails, Keras has changed."""

import keras
import numpy as np
import pytest
from keras import layers
from support.backends import KERAS, array
from support.facts import assert_has, built
from support.models import (
    conv,
)

from kernel_tying import _keras
from kernel_tying._keras import views


def test_a_variable_keeps_its_value_in_underscore_value():
    variable = keras.Variable([1.0, 2.0], name="one")

    assert_has(variable, "_value")
    assert variable._value is not None, "a built variable keeps its storage elsewhere than in `_value`"


def test_a_variable_is_read_through_the_property_value():
    class Doubled(keras.Variable):
        @property
        def value(self):
            return 2 * super().value

    read = array(keras.ops.add(Doubled([1.0, 2.0]), 0.0))

    np.testing.assert_array_equal(read, [2.0, 4.0], "keras.ops read the storage of a variable past its property `value`")


def test_a_copy_of_the_attributes_of_a_variable_has_its_name_path_shape_and_dtype():
    variable = built().kernel
    copy = object.__new__(type(variable))
    copy.__dict__.update({name: value for name, value in vars(variable).items() if name != "_value"})

    found = (copy.name, copy.path, tuple(copy.shape), copy.dtype, copy.regularizer)

    assert found == (variable.name, variable.path, tuple(variable.shape), variable.dtype, variable.regularizer), (
        "name, path, shape or dtype of a variable are kept elsewhere than among its attributes"
    )


def test_maybe_autocast_casts_inside_an_autocast_scope_alone():
    variable = keras.Variable([1.0])
    assert_has(variable, "_maybe_autocast")
    casts = []

    class Probe(layers.Layer):
        def call(self, inputs):
            casts.append(variable._maybe_autocast(keras.ops.ones(1)).dtype)
            return inputs

    Probe(dtype="mixed_float16")(np.ones((1, 1)))
    casts.append(variable._maybe_autocast(keras.ops.ones(1)).dtype)

    assert [keras.backend.standardize_dtype(dtype) for dtype in casts] == ["float16", "float32"], "it casts otherwise"


def test_the_private_dtype_of_a_variable_is_that_of_its_storage():
    variable = keras.Variable([1.0])
    seen = []

    class Probe(layers.Layer):
        def call(self, inputs):
            seen.append((variable.dtype, variable._dtype))
            return inputs

    Probe(dtype="mixed_float16")(np.ones((1, 1)))

    assert seen == [("float16", "float32")], "`_dtype` follows the autocast scope, or `dtype` does not"


def test_convert_to_tensor_of_a_variable_casts_to_a_dtype():
    assert_has(keras.Variable([1.0]), "_convert_to_tensor")

    converted = keras.Variable([1.0])._convert_to_tensor(np.ones(1, "float64"), dtype="float16")

    assert keras.backend.standardize_dtype(converted.dtype) == "float16", "_convert_to_tensor leaves the dtype as it was"


def test_a_variable_keeps_regularizer_and_constraint_in_private_attributes():
    variable = keras.Variable([1.0])
    variable._regularizer, variable._constraint = abs, max

    assert (variable.regularizer, variable.constraint) == (abs, max), "regularizer or constraint are kept elsewhere"


def test_the_path_of_a_variable_can_be_set():
    variable = keras.Variable([1.0])
    variable._path = "somewhere/else"

    assert variable.path == "somewhere/else", "the path of a variable is kept elsewhere than in `_path`"


@pytest.mark.skipif(
    KERAS < (3, 15) and keras.backend.backend() != "jax", reason="until Keras 3.14, variables of JAX alone have layouts"
)
def test_a_variable_keeps_its_layout_and_a_distribution_returns_it():
    mesh = keras.distribution.DeviceMesh((1,), ("model",), ["cpu:0"])
    own, by_path = (keras.distribution.TensorLayout(axes, mesh) for axes in [("model",), (None,)])
    layout_map = keras.distribution.LayoutMap(mesh)
    layout_map[".*"] = by_path
    distribution = keras.distribution.ModelParallel(layout_map=layout_map)
    placed, plain = keras.Variable([1.0, 2.0], layout=own), keras.Variable([1.0, 2.0])
    assert_has(placed, "_layout")

    found = [placed._layout, plain._layout, *map(distribution.get_variable_layout, [placed, plain])]

    assert list(map(id, found)) == list(map(id, [own, None, own, by_path])), "layouts of variables are kept or found otherwise"
    assert by_path.axes == (None,), "the axes of a layout are kept otherwise"
    assert keras.distribution.distribution() is None, "the distribution of now is asked for otherwise"


def test_a_layer_lists_its_own_variables_trainable_first():
    layer = built(layers.BatchNormalization())
    assert_has(layer, "_trainable_variables", "_non_trainable_variables")
    store = {}

    layer.save_own_variables(store)

    own = layer._trainable_variables + layer._non_trainable_variables
    assert [id(one) for one in store.values()] == [id(one) for one in own], "layers save other variables, or in another order"


def test_the_weights_of_a_layer_follow_the_order_of_its_private_lists():
    layer = built()
    layer._trainable_variables.insert(0, layer._trainable_variables.pop())

    assert [one.name for one in layer.weights] == ["bias", "kernel"], "`weights` has an order of its own now"


def test_a_variable_is_tracked_anew_while_the_tracker_is_unlocked():
    layer, variable = built(), keras.Variable([1.0])
    assert_has(layer, "_tracker", "_track_variable", "_untrack_variable")
    assert_has(layer._tracker, "locked")
    assert layer._tracker.locked, "a built layer does not lock its tracker any more"

    layer._untrack_variable(layer.bias)
    layer._tracker.locked = False
    layer._track_variable(variable)

    assert [id(one) for one in layer._trainable_variables] == [id(layer.kernel), id(variable)], (
        "_track_variable appends, _untrack_variable removes by identity, no more"
    )


def test_a_locked_tracker_refuses_variables():
    with pytest.raises(ValueError, match="cannot add new elements of state"):
        built()._track_variable(keras.Variable([1.0]))


@pytest.mark.parametrize(
    ("layer", "attribute"),
    [(layers.Conv1D(2, 3), "_kernel"), (layers.Conv2D(2, 3), "_kernel"), (layers.Conv3D(2, 3), "_kernel")],
    ids=["Conv1D", "Conv2D", "Conv3D"],
)
def test_convolutions_keep_their_kernel_in_one_attribute(layer, attribute):
    layer.build((None, *[5] * layer.rank, 2))

    kept = [name for name, value in vars(layer).items() if value is layer.kernel]

    assert kept == [attribute], f"{type(layer).__name__} keeps its kernel elsewhere than in {attribute!r}"


def test_an_attribute_set_past_setattr_is_not_tracked():
    layer = built()
    super(keras.Layer, layer).__delattr__("_kernel")
    vars(layer)["_kernel"] = keras.Variable(np.zeros((3, 3, 2, 2)))

    assert layer.kernel is vars(layer)["_kernel"], "`kernel` is no property over `_kernel` any more"
    assert id(layer.kernel) not in map(id, layer.variables), "what is put into `vars(layer)` is tracked now"


def test_an_initializer_is_called_while_its_layer_is_the_innermost_name_scope():
    callers = []

    def initializer(shape, dtype=None):
        callers.append(_keras.weight_adder())
        return keras.ops.zeros(shape, dtype)

    layer = built(conv(kernel_initializer=initializer))

    assert callers == [layer], "initializers cannot find out any more which layer they are called for"
    assert _keras.weight_adder() is None


def test_name_scopes_are_kept_in_a_stack_of_the_global_state():
    with keras.name_scope("one", caller="someone"):
        (scope,) = _keras.variables._get_global_attribute("name_scope_stack")

    assert (scope.name, scope.caller) == ("one", "someone"), "name scopes keep who opened them elsewhere"


def test_layers_ask_their_tracker_for_whatever_they_keep():
    layer, variable = layers.Layer(), keras.Variable([1.0])
    seen, tracker = [], layer._tracker
    assert type(tracker) is views._tracking.Tracker, "layers have another tracker"
    assert {"track", "untrack"} <= set(vars(type(tracker))), "trackers track by methods of other names"

    class Probe(type(tracker)):
        def track(self, value):
            seen.append(value)
            return super().track(value)

        def untrack(self, value):
            seen.append(value)
            return super().untrack(value)

    tracker.__class__ = Probe
    for keep in (
        lambda: setattr(layer, "kept", variable),
        lambda: setattr(layer, "listed", [variable]),
        lambda: layer.listed.append(variable),
        lambda: layer.listed.pop(),
    ):
        seen.clear()
        keep()
        assert any(one is variable for one in seen), "layers and lists track what they keep without asking"


def test_trackers_take_whatever_is_a_variable():
    class Own(keras.Variable):
        pass

    layer, variable = layers.Layer(), Own([1.0])
    layer.kept = variable

    assert [id(one) for one in layer.variables] == [id(variable)], "a tracker tells subclasses apart: patch it no more"


@pytest.mark.parametrize("cls", [keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.Muon])
def test_optimizers_ask_for_the_key_of_each_variable_before_they_use_it(cls, monkeypatch):
    variable = keras.Variable(np.ones((2, 2)), name="one")

    def refuse(optimizer, received):
        raise KeyError(id(received))

    optimizer = cls(weight_decay=0.1)
    optimizer.build([variable])
    monkeypatch.setattr(keras.optimizers.Optimizer, "_var_key", refuse)

    for use in (
        lambda: cls().build([variable]),
        lambda: cls().apply([keras.ops.ones((2, 2))], [variable]),
        lambda: optimizer.apply([keras.ops.ones((2, 2))], [variable]),
        lambda: cls(weight_decay=0.1).exclude_from_weight_decay(var_list=[variable]),
    ):
        with pytest.raises(KeyError, match=str(id(variable))):
            use()


def test_a_stateless_scope_is_kept_in_the_global_state():
    variable, other = keras.Variable([1.0]), keras.Variable([1.0])

    with keras.StatelessScope([(variable, keras.ops.ones(1))]):
        found = [_keras.value_in_scope(one) is None for one in (variable, other)]

    assert found == [False, True], "values of a stateless scope are kept elsewhere"
    assert _keras.value_in_scope(variable) is None


def test_regularizer_and_constraint_of_a_variable_are_properties_over_its_attributes():
    variable, regularizer, constraint = keras.Variable([1.0]), keras.regularizers.L2(), keras.constraints.NonNeg()
    keras.Variable.regularizer.fset(variable, regularizer)
    keras.Variable.constraint.fset(variable, constraint)

    assert (variable._regularizer, variable._constraint) == (regularizer, constraint), "a variable keeps them elsewhere"


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="what TensorFlow saves of a variable")
def test_tensorflow_saves_a_variable_through_methods_of_its_own():
    assert_has(
        keras.Variable([1.0]),
        "handle",
        "_trackable_children",
        "_serialize_to_tensors",
        "_export_to_saved_model_graph",
        "_write_object_proto",
    )


def test_variables_keep_their_value_and_whether_they_autocast():
    variable = keras.Variable(1.0, autocast=False)

    assert_has(variable, "_value", "_autocast")
    assert variable._autocast is False
