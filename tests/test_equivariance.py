"""Networks that a plan makes equivariant: turn the input, and the output turns or stays, wherever the network has been."""

import functools

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers
from support.backends import array
from support.errors import raises_tying_error
from support.models import IMAGE, MODES, Subclassed

import kernel_tying as kt
from kernel_tying._equivariance import table
from kernel_tying.testing import assert_equivariant

COMPLEMENT = [np.eye(4, dtype=int)[::-1]]  # ACGT to TGCA
TURN = [[[0, -1], [1, 0]]]  # of vectors (y, x)
EAGERLY = {"loss": "mse", "run_eagerly": True, "jit_compile": False}


def image(size=9, channels=2, name="image"):
    return keras.Input((size, size, channels), name=name)


def conv(filters=8, size=3, **options):
    return layers.Conv2D(filters, size, **{"padding": "same", **options})


def logits(features, units=3):
    return layers.Dense(units, activation="softmax")(layers.GlobalAveragePooling2D()(features))


def residual():
    x = image()
    h = layers.BatchNormalization()(conv(activation="relu")(x))
    h = keras.ops.relu(h + layers.BatchNormalization()(conv(strides=1)(h)))
    h = layers.MaxPooling2D(3, strides=2, padding="same")(h)
    return keras.Model(x, logits(layers.Concatenate()([h, conv()(h)])))


def nested():
    x, inner_x = image(), image(9, 8, "inner")
    shared = conv(name="shared")
    block = keras.Model(inner_x, layers.add([shared(shared(inner_x)), inner_x]), name="block")
    tail = keras.Sequential([layers.Conv2D(16, 3, strides=2), layers.PReLU(shared_axes=[1, 2]), layers.GlobalMaxPooling2D()])
    h = tail(block(block(conv(name="first")(x))))
    return keras.Model(x, layers.Dense(2, name="second")(layers.Dense(5, activation="relu")(h)))


def separable():
    x = image()
    h = layers.SeparableConv2D(8, 3, padding="same", activation="relu")(conv()(x))
    h = layers.GroupNormalization(1, epsilon=1e-2)(
        layers.DepthwiseConv2D(3, padding="same", strides=2)(layers.UpSampling2D(1)(h))
    )
    h = layers.LayerNormalization(epsilon=1e-2)(conv(16, groups=2)(layers.Concatenate()([h, h])))
    gate = layers.Reshape((1, 1, 16))(layers.Dense(16, activation="sigmoid")(layers.GlobalAveragePooling2D()(h)))
    return keras.Model(x, logits(conv(activation="relu")(h * gate)))


def unet():
    x = image(8)
    skip = conv(activation="relu")(layers.ZeroPadding2D()(x))
    h = conv(16, activation="relu")(layers.AveragePooling2D(2)(skip))
    h = layers.Conv2DTranspose(8, 2, strides=2, activation="relu")(h)
    h = layers.Cropping2D(1)(layers.Concatenate()([skip, h]))
    return keras.Model(x, conv(2, 1, name="maps")(layers.UpSampling2D(interpolation="bilinear")(h)))


def flat():
    x = image(5)
    h = layers.Activation("relu")(layers.Flatten()(conv(padding="valid")(x)))
    return keras.Model(x, layers.Dense(3)(h))


def volume():
    x = keras.Input((5, 5, 5, 1), name="volume")
    h = layers.MaxPooling3D(3, strides=2, padding="same")(layers.Conv3D(24, 3, padding="same", activation="relu")(x))
    return keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling3D()(layers.BatchNormalization()(h))))


def sequence():
    return keras.Sequential(
        [
            keras.Input((12, 4), name="letters"),
            layers.Conv1D(6, 5, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling1D(2),
            layers.Conv1D(4, 3, activation="relu"),
            layers.GlobalMaxPooling1D(),
            layers.Dense(1),
        ]
    )


def vectors():
    x = image(7, 2)
    return keras.Model(x, conv(2, name="flow", use_bias=False)(conv(4, activation="relu")(x)))


def several():
    left, right = image(name="left"), image(name="right")
    shared = conv(8)
    h = layers.multiply([shared(left), conv(1, activation="sigmoid")(right)])
    return keras.Model([left, right], {"map": conv(1, 1, name="map")(h), "vector": logits(layers.subtract([h, shared(right)]))})


CASES = {
    "residual-p4m": (residual, "p4m", {}),
    "residual-p2": (residual, "p2", {}),
    "nested-p4": (nested, "p4", {}),
    "separable-p4m": (separable, "p4m", {}),
    "unet-p4": (unet, "p4", {}),
    "unet-flip(1)": (unet, "flip(1)", {}),
    "flat-p4m": (flat, "p4m", {}),
    "flat-flip(0)": (flat, "flip(0)", {}),
    "volume-octahedral": (volume, "octahedral", {}),
    "sequence-reversal": (sequence, "reversal", {"inputs": COMPLEMENT}),
    "vectors-p4": (vectors, "p4", {"inputs": TURN, "outputs": {"flow": TURN}}),
    "several-p4": (several, "p4", {"inputs": ["trivial", "trivial"]}),
}
on_all = pytest.mark.parametrize("name", CASES)


def types(name):
    """Returns the types of a case as `equivariance_error` takes them."""
    renamed = {"inputs": "in_types", "outputs": "out_types"}
    return {renamed[key]: value for key, value in CASES[name][2].items()}


def data(model, rows=2):
    rng = np.random.default_rng(3)
    arrays = [rng.normal(size=(rows, *tensor.shape[1:])).astype("float32") for tensor in model.inputs]
    return arrays if len(arrays) > 1 else arrays[0]


@functools.cache
def stock(name):
    """Returns the stock model of a case, with weights of no particular values, its inputs and its plan."""
    keras.utils.set_random_seed(0)
    build, group, given = CASES[name]
    model = build()
    rng = np.random.default_rng(4)
    for variable in model.trainable_variables:
        variable.assign(array(variable) + rng.normal(size=variable.shape) * 0.1)
    return model, data(model), kt.equivariant_plan(model, group, **given)


def tied(name, mode="parameterization"):
    model, inputs, plan = stock(name)
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return kt.apply_tying(copy, plan, mode=mode), inputs


def errors(model, name, inputs):
    return [
        kt.equivariance_error(model, CASES[name][1], inputs, training=training, **types(name)) for training in (False, True)
    ]


@on_all
def test_a_tied_network_is_equivariant_in_both_modes_of_calls(name):
    model, inputs = tied(name)

    assert max(errors(model, name, inputs)) < 1e-5


@on_all
def test_the_output_of_a_tied_network_depends_on_its_input(name):
    model, inputs = tied(name)

    for output in keras.tree.flatten(model(inputs)):
        first, second = array(output)
        assert np.abs(first - second).max() > 1e-3 * np.abs(first).max()


@on_all
def test_the_stock_network_is_not_equivariant(name):
    model, inputs, _ = stock(name)

    assert errors(model, name, inputs)[0] > 1e-3


KEPT = {
    "dropout": (lambda: layers.SpatialDropout2D(0.5), "p4m"),
    "softmax": (lambda: layers.Softmax(), "p4m"),
    "activation over channels": (lambda: layers.Activation("softmax"), "p4m"),
    "unit norm": (lambda: layers.UnitNormalization(), "p4m"),
    "rescaling": (lambda: layers.Rescaling(2.0, 1.0), "p4m"),
    "scaling of all values": (lambda: layers.Normalization(axis=None, mean=1.0, variance=2.0), "p4m"),
    "adaptive pooling": (lambda: layers.AdaptiveAveragePooling2D(3), "p4"),
    "a layer at each position": (lambda: layers.Dense(8, activation="relu"), "p4m"),
    "each channel": (lambda: layers.Conv2D(8, 3, groups=8, padding="same"), "p4m"),
    "group normalization": (lambda: layers.GroupNormalization(1, center=False), "p4m"),
    "offset alone": (lambda: layers.BatchNormalization(scale=False), "p4m"),
    "elu": (lambda: layers.ELU(), "p4m"),
    "cropping": (lambda: layers.Cropping2D(((1, 1), (2, 2))), "p2"),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_layer_between_convolutions_keeps_a_network_equivariant(name):
    build, group = KEPT[name]
    if name == "adaptive pooling" and not hasattr(layers, "AdaptiveAveragePooling2D"):
        pytest.skip("Keras has the layer since 3.13")
    network = lifted(build(), conv(), layers.GlobalMaxPooling2D(), layers.Dense(2), shape=(9, 9, 1))

    assert_equivariant(planned(network, group), group, data(network))


def planned(network, group, **given):
    """Returns the network with weights of no particular values, tied by its plan."""
    random = np.random.default_rng(0)
    for variable in network.trainable_variables:
        variable.assign(random.normal(size=variable.shape))
    return kt.apply_tying(network, kt.equivariant_plan(network, group, **given))


def squared():
    x = image()
    h = conv()(x)
    return keras.Model(x, logits(h * h))


WHOLE = {
    "the product of a value with itself": squared,
    "fields of each channel": lambda: through(
        layers.DepthwiseConv2D(3, depth_multiplier=8, padding="same"), layers.GlobalMaxPooling2D(), layers.Dense(2)
    ),
    "flattened twice": lambda: lifted(layers.Flatten(), layers.Flatten(), layers.Dense(2)),
    "a flattened point": lambda: lifted(layers.GlobalMaxPooling2D(keepdims=True), layers.Flatten(), layers.Dense(2)),
    "factors of channels that stay": lambda: through(layers.Rescaling([1.0, 2.0]), conv(), layers.GlobalMaxPooling2D()),
    "statistics of each channel": lambda: lifted(layers.GroupNormalization(-1), layers.GlobalMaxPooling2D(), layers.Dense(2)),
}


@pytest.mark.parametrize("build", WHOLE.values(), ids=WHOLE)
def test_a_network_around_a_rare_layer_is_equivariant(build):
    network = build()

    assert_equivariant(planned(network, "p4m"), "p4m", data(network))


def depthwise(values):
    return layers.DepthwiseConv2D(3, padding="same", use_bias=False)(values)


@pytest.mark.parametrize("between", [keras.ops.tanh, depthwise], ids=["odd function", "depthwise"])
def test_fields_of_signed_channels_stay_equivariant(between):
    x = image(7, 2)
    network = keras.Model(x, conv(2, name="flow", use_bias=False)(between(conv(4, use_bias=False)(between(x)))))

    tied_network = planned(network, "p4", inputs=TURN, outputs=TURN)

    assert_equivariant(tied_network, "p4", data(network), in_types=TURN, out_types=TURN)


# Each network with one group: which group it is makes no difference to training and files.
TRAINED = [(name, "parameterization") for name in CASES if name not in ("residual-p2", "unet-flip(1)", "flat-flip(0)")]
TRAINED += [(name, "constraint") for name in ("residual-p4m", "nested-p4", "sequence-reversal", "vectors-p4")]


@pytest.mark.parametrize(("name", "mode"), TRAINED)
def test_a_network_stays_equivariant_while_it_is_trained_saved_and_stripped(name, mode, tmp_path):
    model, inputs = tied(name, mode)
    targets = keras.tree.map_structure(lambda output: np.ones(output.shape, "float32"), model(inputs))
    model.compile("adam", **EAGERLY)

    model.train_on_batch(inputs, targets)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)

    for network in (model, loaded, kt.strip_tying(loaded)):
        assert max(errors(network, name, inputs)) < 1e-5


def through(*stack, shape=(8, 8, 2)):
    return keras.Sequential([keras.Input(shape), *stack])


def lifted(*stack, **options):
    return through(layers.Conv2D(8, 3, padding="same"), *stack, **options)


def relu(x):
    """An activation with the name of a stock one."""
    return x * keras.ops.arange(8, dtype="float32")[:, None]


class Scaled(layers.Conv2D):
    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel) * 2


def joined(operation):
    x = image(8, 8)
    return keras.Model(x, conv()(operation(x, conv()(x))))


def shared_by_sizes():
    wide, deep, shared = keras.Input((4, 4, 2)), keras.Input((2, 2, 8)), layers.Dense(3, name="shared")
    return keras.Model([wide, deep], [shared(layers.Flatten()(value)) for value in (wide, deep)])


REFUSED = {
    "even size, stride 2": (lambda: through(conv(strides=2, name="down")), "size 8 along axis 0, window 3, stride 2"),
    "remainder": (lambda: through(layers.Conv2D(8, 3, strides=2)), "padding='valid'"),
    "even window": (lambda: through(conv(size=2), conv()), "window 2, stride 1, padding='same'"),
    "pooling": (lambda: lifted(layers.MaxPooling2D(3, 2, padding="same")), "MaxPooling2D"),
    "unknown size": (lambda: through(conv(strides=2), shape=(None, None, 1)), "size None along axis 0"),
    "one-sided padding": (lambda: through(layers.ZeroPadding2D(((0, 1), (0, 1)))), "padding=((0, 1), (0, 1))"),
    "transposed": (lambda: through(layers.Conv2DTranspose(8, 3, strides=2, padding="same")), "window 3, stride 2"),
    "transposed, stride past the window": (lambda: through(layers.Conv2DTranspose(8, 1, strides=2)), "window 1, stride 2"),
    "oblong input": (lambda: through(conv(), shape=(8, 6, 1)), "sizes=(8, 6)"),
    "oblong kernel": (lambda: through(conv(size=(1, 3))), "window=(1, 3)"),
    "too few axes": (lambda: through(layers.Conv1D(8, 3), shape=(8, 1)), "sizes=(8,)"),
    "width": (lambda: through(conv(6), conv()), "filters=6"),
    "width of a group": (lambda: lifted(conv(groups=4), conv()), "channels / groups=2"),
    "multiplier": (lambda: lifted(layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")), "depth_multiplier=2"),
    "reshape": (lambda: lifted(layers.Reshape((4, 16, 8))), "shape (8, 8, 8) to (4, 16, 8)"),
    "permute": (lambda: through(layers.Permute((2, 1, 3))), "it treats positions differently"),
    "lambda": (lambda: through(layers.Lambda(lambda x: x), conv()), "Lambda"),
    "flat output": (lambda: lifted(layers.Flatten()), "flattened values"),
    "glu": (lambda: lifted(layers.Activation("glu"), layers.Conv2D(8, 1)), "activation='glu'"),
    "softmax over rows": (lambda: lifted(layers.Softmax(axis=1)), "axis=1"),
    "normalization of rows": (lambda: lifted(layers.LayerNormalization(axis=[1, 2, 3])), "axis=[1, 2, 3]"),
    "bare normalization": (lambda: lifted(layers.BatchNormalization(center=False, scale=False), conv()), "scale=False"),
    "slopes of positions": (lambda: lifted(layers.PReLU()), "shared_axes=None"),
    "mixed concatenation": (lambda: joined(lambda x, y: layers.concatenate([x, y])), "'trivial', 'regular'"),
    "a shared layer": (shared_by_sizes, "calls that need different patterns"),
    "a factor of each channel": (lambda: joined(lambda x, y: y * layers.GlobalAveragePooling2D()(y)), "(8,)"),
    "two data formats": (lambda: lifted(layers.MaxPooling2D(2, data_format="channels_first")), "'channels_first'"),
    "normalization of flat values": (lambda: lifted(layers.Flatten(), layers.BatchNormalization()), "flattened values"),
    "code": (lambda: through(Subclassed(name="code"), shape=IMAGE), "'code' of class Subclassed"),
    "an array": (lambda: joined(lambda x, y: x * np.arange(8, dtype="float32")), "arrays of [8] values"),
    "mean over rows": (lambda: joined(lambda x, y: keras.ops.mean(y, axis=1, keepdims=True)), "Mean"),
    "nothing to tie": (lambda: through(layers.ReLU()), "nothing needs tying"),
    "unbuilt": (lambda: keras.Sequential([conv()]), "not built"),
    "a layer": (conv, "Conv2D"),
    "tied": (lambda: through(kt.Tied(conv(), "dihedral")), "a tied layer"),
    "tied by constraint": (lambda: kt.apply_tying(through(conv(name="first")), "dihedral"), "'first', which is tied"),
    "factors of fields": (lambda: lifted(layers.Rescaling(np.arange(8.0)), conv()), "factors of each channel"),
    "factors of positions": (lambda: through(layers.Rescaling(np.ones((8, 8, 1)) * 2), conv()), "scale of shape (8, 8, 1)"),
    "offsets of rows": (lambda: through(layers.Rescaling(1.0, [[[1.0], [2.0]]] * 8), conv()), "offset of shape (8, 2, 1)"),
    "factors of flat values": (lambda: lifted(layers.Flatten(), layers.Rescaling([2.0] * 512)), "scale of shape (512,)"),
    "statistics of flat values": (
        lambda: lifted(layers.Flatten(), layers.Normalization(mean=[1.0] * 512, variance=[1.0] * 512)),
        "flattened values",
    ),
    "an activation of the user": (lambda: through(conv(activation=relu), conv()), "activation='relu'"),
    "a convolution of the user": (lambda: through(Scaled(8, 3, padding="same"), conv()), "Scaled"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_breaks_equivariance_is_refused_with_the_way_out(name):
    build, received = REFUSED[name]
    model = build()

    with raises_tying_error(received):
        kt.equivariant_plan(model, "p4m")


@pytest.mark.parametrize(
    ("stack", "received"),
    [
        pytest.param([conv(4, use_bias=True)], "fixes only zero", id="bias"),
        pytest.param([conv(4, activation="relu", use_bias=False)], "activation='relu'", id="relu"),
        pytest.param([conv(4, use_bias=False), layers.MaxPooling2D(2)], "a maximum", id="maximum"),
        pytest.param([conv(4, use_bias=False), layers.BatchNormalization()], "BatchNormalization", id="normalization"),
    ],
)
def test_what_commutes_with_no_signs_is_refused(stack, received):
    with raises_tying_error(received):
        kt.equivariant_plan(through(*stack), "p4", outputs=TURN)


MALFORMED = [["trivial"] * 2, {"other": "trivial"}, "vector", [[[1]]], [[np.eye(2), np.eye(3)]], None]


@pytest.mark.parametrize("given", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_types_are_refused(given):
    with raises_tying_error("inputs="):
        kt.equivariant_plan(stock("flat-p4m")[0], "p4m", inputs=given)


def test_a_product_of_two_signed_values_changes_its_sign_no_more():
    first, second, gate = keras.Input((8, 2)), keras.Input((8, 2)), keras.Input((8, 1))
    product = layers.Multiply()([first, second, gate])
    model = keras.Model([first, second, gate], layers.Conv1D(2, 3, use_bias=False)(product))

    with raises_tying_error("Multiply"):
        kt.equivariant_plan(model, "reversal", inputs=[[[[-1]]], [[[-1]]], "trivial"], outputs=[[[-1]]])


def test_masks_are_refused():
    x, mask = keras.Input((8, 4)), keras.Input((8,), dtype="bool")
    h = layers.GlobalAveragePooling1D()(layers.Conv1D(4, 3)(x), mask=mask)

    with raises_tying_error("a call with 2 values"):
        kt.equivariant_plan(keras.Model([x, mask], layers.Dense(3)(h)), "reversal")


def test_groups_that_do_more_than_turn_and_mirror_are_refused():
    def swap_ends(grid):
        return np.concatenate([grid[-1:], grid[1:-1], grid[:1]])

    with raises_tying_error("Group order=2"):
        kt.equivariant_plan(sequence(), kt.Group([swap_ends]), inputs=COMPLEMENT)


@pytest.mark.parametrize("shared_axes", [[2, 3], [1, 2, 3]])
def test_slopes_of_channels_in_front_are_tied(shared_axes):
    options = {"data_format": "channels_first"}
    network = keras.Sequential(
        [
            keras.Input((1, 7, 7)),
            layers.Conv2D(16, 3, padding="same", **options),
            layers.PReLU(alpha_initializer=keras.initializers.RandomUniform(seed=1), shared_axes=shared_axes),
            layers.GlobalMaxPooling2D(**options),
            layers.Dense(2),
        ]
    )
    tied = kt.apply_tying(network, kt.equivariant_plan(network, "p4m"))

    if keras.backend.backend() != "tensorflow":  # which computes channels in front on some machines only
        assert_equivariant(tied, "p4m", data(network))


MISUSED = {
    "a group of more axes": ("octahedral", (2, 9, 9, 2), {}, "(2, 9, 9, 2)"),
    "types that do not fit": ("p4", (2, 9, 9, 2), {"in_types": "regular"}, "2 channels"),
    "outputs that do not fit": ("p4", (2, 9, 9, 2), {"out_types": "regular"}, "3 channels"),
    "no batch": ("p4", (0, 9, 9, 2), {}, "array"),
}


@pytest.mark.parametrize("name", MISUSED)
def test_what_cannot_be_measured_is_refused(name):
    group, shape, options, received = MISUSED[name]

    with raises_tying_error(received):
        kt.equivariance_error(stock("residual-p4m")[0], group, np.ones(shape, "float32"), **options)


@pytest.mark.parametrize("inputs", [None, "abc", [np.ones((2, 9, 9, 2))] * 2])
def test_what_is_no_input_of_the_model_is_refused(inputs):
    with raises_tying_error(""):
        kt.equivariance_error(stock("residual-p4m")[0], "p4", inputs)


def test_what_is_no_model_has_no_error():
    with raises_tying_error("'model'"):
        kt.equivariance_error("model", "p4", np.ones((2, 9, 9, 2)))


def test_inputs_of_a_layer_are_named_by_number():
    layer = conv()
    layer.build((None, 9, 9, 2))

    with raises_tying_error("input 0"):
        kt.equivariance_error(layer, "p4", np.ones((2, 9, 9, 2), "float32"), in_types=["trivial"] * 2)


def test_every_layer_class_of_keras_is_in_the_table():
    names = {name for name in dir(layers) if isinstance(getattr(layers, name), type)}
    sorted_names = [*table.CHANGES, *table.KEEPS, *table.BREAKS, *table.UNKNOWN]

    assert {getattr(layers, name) for name in names} <= {getattr(layers, name, None) for name in sorted_names}
    assert len(sorted_names) == len(set(sorted_names))


def test_the_plan_names_kernels_and_biases_by_path():
    plan = kt.equivariant_plan(nested(), "p4")

    assert {path: sorted(kernels) for path, kernels in plan.items() if "/" in path or path == "first"} == {
        "first": ["bias", "kernel"],
        "block/shared": ["bias", "kernel"],
        **{path: sorted(kernels) for path, kernels in plan.items() if path.startswith("sequential")},
    }
    assert plan["first"]["kernel"] == kt.patterns.equivariant((3, 3), "p4")
    assert plan["first"]["bias"] == kt.patterns.constant((4,))


def test_planning_leaves_the_model_as_it_is():
    model = residual()
    before = model.to_json(), model.get_weights()

    kt.equivariant_plan(model, "p4")

    np.testing.assert_equal((model.to_json(), model.get_weights()), before)


def test_measuring_in_training_mode_leaves_statistics_and_random_states_as_they_are():
    model = through(layers.Dropout(0.5, seed=1), layers.BatchNormalization())
    before = [array(variable) for variable in model.variables]

    assert kt.equivariance_error(model, "p4", data(model), training=True) > 0
    np.testing.assert_equal([array(variable) for variable in model.variables], before)


def test_the_error_of_a_gradient_is_that_of_numpy():
    model = through(conv(1, 3, use_bias=False), shape=(6, 6, 1))
    inputs = data(model)
    outputs = array(model(inputs))
    turned = np.rot90(array(model(np.rot90(inputs, axes=(1, 2)).copy())), -1, axes=(1, 2))

    measured = kt.equivariance_error(model, "p4", inputs)

    assert measured >= np.abs(turned - outputs).max() / np.abs(outputs).max() - 1e-6


def test_assert_equivariant_raises_for_a_stock_network_alone():
    assert_equivariant(tied("flat-p4m")[0], "p4m", stock("flat-p4m")[1])

    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(*stock("flat-p4m")[:1], "p4m", stock("flat-p4m")[1])


def test_flattened_values_of_both_data_formats_are_planned_alike():
    def build(data_format, shape):
        first = layers.Conv2D(8, 3, data_format=data_format)
        return through(first, layers.Flatten(data_format=data_format), layers.Dense(2, name="head"), shape=shape)

    plans = [kt.equivariant_plan(build(*case), "p4m") for case in [("channels_last", (5, 5, 1)), ("channels_first", (1, 5, 5))]]

    assert plans[0]["head"] == plans[1]["head"]


@pytest.fixture(params=["mixed_float16", "mixed_bfloat16"])
def mixed_precision(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    stock.cache_clear()
    yield {"mixed_float16": 2**-10, "mixed_bfloat16": 2**-7}[request.param]
    keras.config.set_dtype_policy(before)
    stock.cache_clear()


@pytest.mark.parametrize("name", ["residual-p4m", "unet-p4"])
def test_in_mixed_precision_a_tied_network_is_equivariant_to_rounding(name, mixed_precision):
    model, inputs = tied(name)

    assert max(errors(model, name, inputs)) < 4 * mixed_precision


@given(data=st.data())
def test_networks_of_drawn_layers_are_equivariant(data):
    group = data.draw(st.sampled_from([kt.groups.p4, kt.groups.p2, kt.groups.flip(0), kt.groups.flip(1)]))
    network = keras.Sequential([keras.Input((9, 9, data.draw(st.integers(1, 2))))])
    network.add(layers.Conv2D(group.order, 3))
    for cls, options in data.draw(st.lists(layers_and_options(group.order), max_size=3)):
        network.add(cls(**options))
    network.add(layers.GlobalAveragePooling2D() if data.draw(st.booleans()) else layers.Flatten())
    network.add(layers.Dense(2))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    for variable in network.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))

    model = kt.apply_tying(network, kt.equivariant_plan(network, group), mode=data.draw(st.sampled_from(MODES)))

    images = rng.normal(size=(2, *network.input_shape[1:])).astype("float32")
    for training in (False, True):
        assert_equivariant(model, group, images, training=training)


@st.composite
def layers_and_options(draw, order):
    """Returns a strategy for classes and options of layers that keep the positions, and have fields of `order` channels."""
    classes = [layers.Conv2D, layers.SeparableConv2D, layers.BatchNormalization, layers.MaxPooling2D, layers.AveragePooling2D]
    cls = draw(st.sampled_from(classes))
    if cls is layers.BatchNormalization:
        return cls, {"center": draw(st.booleans())}
    if cls in (layers.MaxPooling2D, layers.AveragePooling2D):
        return cls, {"pool_size": 3, "strides": 1, "padding": "same"}
    return cls, {
        "filters": order * draw(st.integers(1, 2)),
        "kernel_size": draw(st.sampled_from([1, 3, 5])),
        "padding": "same",
        "dilation_rate": draw(st.sampled_from([1, 2])),
        "activation": draw(st.sampled_from([None, "relu", "tanh"])),
        "use_bias": draw(st.booleans()),
    }
