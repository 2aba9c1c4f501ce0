"""Facts about Keras 3.15 that `kernel_tying/keras_private.py` builds on; where one fails, Keras has changed, not we."""

import contextlib
import inspect

import keras
import numpy as np
import pytest
from helpers import array
from keras import layers
from models import IMAGE, Preset, Trunk, conv, custom_layer, make, nested_subclass, preset, sequential, skip, subclassed, train

from kernel_tying import keras_private


def built(layer=None):
    layer = layer or conv()
    layer.build((None, *IMAGE))
    return layer


def trained(**options):
    model = make(skip)
    model.compile(keras.optimizers.Adam(0.1, **options), "mse", run_eagerly=True)
    train(model)
    return model


def assert_has(holder, *names):
    missing = [name for name in names if not hasattr(holder, name)]
    assert not missing, f"Keras {keras.__version__}: {type(holder).__name__} has no {missing} any more"


def test_these_facts_are_the_first_tests(request):
    names = [item.path.name for item in request.session.items]

    assert set(names[: names.count("test_keras_private.py")]) == {"test_keras_private.py"}


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


def test_the_path_of_a_variable_can_be_set():
    variable = keras.Variable([1.0])
    variable._path = "somewhere/else"

    assert variable.path == "somewhere/else", "the path of a variable is kept elsewhere than in `_path`"


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
    assert inspect.getfullargspec(functional.__init__).args == ["self", "inputs", "outputs", "name"], "it takes more"


def test_a_functional_subclass_with_a_constructor_of_its_own_has_a_config_without_layers():
    class Own(keras.Model):
        def __init__(self, filters=2):
            x = keras.Input(IMAGE)
            super().__init__(x, conv(filters=filters)(x))

    assert "layers" not in Own().get_config(), "constructors do not decide any more whether a config describes layers"


def test_the_arguments_of_compile_are_kept_as_objects():
    def loss(target, output):
        return output

    optimizer, metric = keras.optimizers.SGD(), keras.metrics.MeanSquaredError()
    model = make(skip)
    model.compile(optimizer, loss, metrics=[metric], loss_weights=2.0, run_eagerly=True, steps_per_execution=3)

    assert_has(model, "_compile_config")
    config = model._compile_config.config
    assert config["loss"] is loss, "compile keeps its loss in another form"
    assert config["optimizer"] is optimizer, "compile keeps its optimizer in another form"
    assert config["metrics"] == [metric], "compile keeps its metrics in another form"
    assert set(config) <= set(inspect.signature(keras.Model.compile).parameters), "it keeps more than compile takes"
    assert set(inspect.signature(keras.Model.compile).parameters) - {"self", "auto_scale_loss"} <= set(config), (
        "it forgets arguments"
    )


def test_the_train_function_is_cached_and_made_anew_if_it_is_none():
    model = trained()
    cached = model.train_function
    model.train_function = None

    train(model)

    assert cached is not None, "fit caches its step elsewhere than in `train_function`"
    assert model.train_function is not None
    assert model.train_function is not cached


def test_weight_decay_exclusions_are_kept_by_variable_key_and_by_pattern():
    model = make(skip)
    optimizer = keras.optimizers.AdamW(weight_decay=0.1)
    bias = model.get_layer("head").bias
    optimizer.exclude_from_weight_decay(var_list=[bias], var_names=["gamma"])

    assert_has(optimizer, "_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern", "_var_key")
    assert optimizer._exclude_from_weight_decay == {optimizer._var_key(bias)}, "excluded variables are kept in another form"
    assert optimizer._exclude_from_weight_decay_pattern.pattern == "gamma", "excluded names are kept in another form"


def test_wrapping_optimizers_keep_the_wrapped_one_in_inner_optimizer():
    inner = keras.optimizers.SGD()

    assert keras.optimizers.LossScaleOptimizer(inner).inner_optimizer is inner, "what is wrapped is kept elsewhere"


def test_moving_averages_stand_beside_the_trained_variables():
    optimizer = trained(use_ema=True, ema_overwrite_frequency=100).optimizer

    assert_has(optimizer, "_model_variables_moving_average", "_trainable_variables")
    stores = optimizer._trainable_variables, optimizer._model_variables_moving_average
    shapes = [[tuple(one.shape) for one in store] for store in stores]
    assert shapes[0] == shapes[1], "moving averages do not line up with the trained variables any more"


def test_only_the_constraint_of_the_variable_is_run():
    layer = built(conv(kernel_constraint="non_neg"))
    assert layer.kernel.constraint is layer.kernel_constraint, "build does not hand the constraint to the variable any more"
    layer.kernel_constraint = None
    layer.kernel.assign(-array(keras.ops.ones(layer.kernel.shape)))

    keras.optimizers.SGD(0.1).apply([keras.ops.zeros(layer.kernel.shape)], [layer.kernel])

    np.testing.assert_array_equal(array(layer.kernel), 0.0, "optimizers run another constraint than the variable's")


def test_only_the_constraint_of_the_layer_is_serialized():
    layer = built(conv(kernel_constraint="non_neg"))
    layer.kernel.constraint = None

    assert layer.get_config()["kernel_constraint"]["class_name"] == "NonNeg", "the config reads the variable's constraint now"


def test_keras_wraps_quantize_on_each_layer():
    assert "quantize" in vars(conv()), "layers have no `quantize` of their own any more: nothing has to be put back"


def test_the_count_of_accumulating_optimizers_is_kept_in_underscore_iterations():
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=2)

    assert_has(optimizer, "_iterations")
    optimizer._iterations.assign(4)
    assert int(optimizer.iterations) == 2, "`iterations` is no quotient of `_iterations` any more"


def test_functional_models_keep_their_calls_by_depth():
    model = make(skip)
    calls = [node for depth in model._nodes_by_depth for node in model._nodes_by_depth[depth]]

    for call in calls:
        assert_has(call, "is_input", "operation", "arguments", "input_tensors", "outputs")
        assert call in call.operation._inbound_nodes, "operations keep their calls elsewhere than in `_inbound_nodes`"
    tensors = {id(tensor): "known" for call in calls for tensor in call.outputs}
    filled = [argument for call in calls if not call.is_input for argument in call.arguments.fill_in(tensors)[0]]
    assert "known" in keras.tree.flatten(filled), "the arguments of a call are not filled in by the ids of tensors any more"


def test_lambda_layers_keep_their_output_shape():
    assert_has(layers.Lambda(lambda value: value, output_shape=(3,)), "_output_shape", "function", "mask", "arguments")


def test_an_initializer_is_called_while_its_layer_is_the_innermost_name_scope():
    callers = []

    def initializer(shape, dtype=None):
        callers.append(keras_private.weight_adder())
        return keras.ops.zeros(shape, dtype)

    layer = built(conv(kernel_initializer=initializer))

    assert callers == [layer], "initializers cannot find out any more which layer they are called for"
    assert keras_private.weight_adder() is None


def test_name_scopes_are_kept_in_a_stack_of_the_global_state():
    assert_has(keras_private._global_state, "get_global_attribute")
    with keras.name_scope("one", caller="someone"):
        (scope,) = keras_private._global_state.get_global_attribute("name_scope_stack")

    assert (scope.name, scope.caller) == ("one", "someone"), "name scopes keep who opened them elsewhere"


@pytest.mark.parametrize("cls", [layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D])
def test_convolutional_lstms_have_the_cell_that_is_not_exported(cls):
    cell = cls(2, 3).cell

    assert type(cell) is keras_private.ConvLSTMCell, f"{cls.__name__} has a cell of another class"
    assert_has(cell, "kernel_size", "kernel_constraint", "recurrent_constraint")


def test_exporters_live_in_modules_of_keras_src_export():
    assert keras.export.ExportArchive.__module__.startswith("keras.src.export."), "Keras keeps its exporters elsewhere"


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX exports with TensorFlow alone: see tests/deployment")
def test_a_model_is_exported_by_modules_of_keras_src_export(tmp_path):
    seen = []

    class Probe(layers.Layer):
        def call(self, inputs):
            seen.append(keras_private.is_exporting())
            return inputs

    model = keras.Sequential([keras.Input((2,)), Probe()])
    model(np.zeros((1, 2), "float32"))
    seen_by_calls = seen.copy()
    seen.clear()
    model.export(tmp_path / "model.pt2", format={"tensorflow": "tf_saved_model", "torch": "torch"}[keras.backend.backend()])

    assert not any(seen_by_calls), "modules of keras.src.export call models that are not exported"
    assert set(seen) == {True}, "no module of keras.src.export is among the callers of an exported model"
