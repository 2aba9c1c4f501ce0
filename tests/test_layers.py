"""Laws of tied layers: the stock layer that holds the expanded kernel is the oracle, through the dense matrix B."""

import json

import keras
import numpy as np
import pytest
from helpers import (
    array,
    dense_adjoint,
    dense_average,
    dense_expand,
    dense_project,
    gradients,
    raises_tying_error,
    root_sizes,
    train_step,
)
from keras import layers, ops

import kernel_tying as kt
from kernel_tying import testing

SCALINGS = ["values", "orthonormal"]
SIGNED = kt.TyingPattern.parse("A B -A/B . B/-A C A")
IMAGES = np.random.default_rng(0).normal(size=(2, 9, 9, 2)).astype("float32")


def free_values(tied):
    """Returns the values of the groups that a layer's free weights stand for, `theta` in scaling "values"."""
    theta = array(tied.free_weights["kernel"]).astype("float64")
    return theta if tied.scaling == "values" else theta / root_sizes(tied.pattern, theta.ndim)


def free_gradient(kernel_gradient, tied):
    """Returns `B^T` times a gradient in the kernel, with columns of `B` of norm 1 in orthonormal scaling."""
    adjoint = dense_adjoint(kernel_gradient, tied.pattern)
    return adjoint if tied.scaling == "values" else adjoint / root_sizes(tied.pattern, adjoint.ndim)


def stock_twin(tied):
    """Returns a stock layer of the same configuration that holds the expanded kernel."""
    stock = type(tied.layer).from_config(tied.layer.get_config())
    stock.build_from_config(tied.get_build_config())
    stock.kernel.assign(dense_expand(free_values(tied), tied.pattern))
    if stock.use_bias:
        stock.bias.assign(tied.bias)
    return stock


def randomize(layer, seed=0):
    """Gives random values to all weights of a layer."""
    generator = np.random.default_rng(seed)
    for weight in layer.weights:
        weight.assign(generator.normal(size=weight.shape))


def total_loss(layer, inputs):
    """Returns a loss that no symmetry of the kernel leaves alone, with the losses of the layer itself."""
    return ops.mean(ops.square(ops.cast(layer(inputs), "float32") - 0.3)) + sum(layer.losses)


class SmallKernelConv2D(layers.Layer):
    """What both answers to the question share: a convolution with a full kernel made of a small one, and nothing else."""

    small_size = None

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(*self.small_size, input_shape[-1], self.filters), name="kernel")

    def call(self, inputs):
        return ops.conv(inputs, self.full_kernel(ops.convert_to_tensor(self.kernel)))


class StackedConv2D(SmallKernelConv2D):
    """The first answer: first and last row, then first and last column, are stacked twice."""

    small_size = (3, 3)

    def full_kernel(self, kernel):
        rows = ops.stack([kernel[0], kernel[0], kernel[1], kernel[2], kernel[2]], axis=0)
        return ops.stack([rows[:, 0], rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 2]], axis=1)


class TiledConv2D(SmallKernelConv2D):
    """The second answer: a row is tiled into a square."""

    small_size = (1, 5)

    def full_kernel(self, kernel):
        return ops.tile(kernel, (5, 1, 1, 1))


ANSWERS = [
    pytest.param(StackedConv2D, kt.patterns.blocks((2, 1, 2), (2, 1, 2)), id="stacked"),
    pytest.param(TiledConv2D, kt.patterns.tile((1, 5), (5, 1)), id="tiled"),
]


def answer_and_tied(answer_class, pattern):
    """Returns the custom layer of an answer, and a tied stock layer that starts with its weights."""
    answer, tied = answer_class(3), kt.Tied(layers.Conv2D(3, 5, use_bias=False), pattern)
    for layer in (answer, tied):
        layer.build(IMAGES.shape)
    tied.free_weights["kernel"].assign(as_free(answer.kernel, pattern))
    return answer, tied


def as_free(small_kernel, pattern):
    return array(small_kernel).reshape(pattern.num_free, 1, *small_kernel.shape[2:])


@pytest.mark.parametrize(("answer_class", "pattern"), ANSWERS)
def test_tied_layer_is_the_same_function_as_the_answer(answer_class, pattern):
    answer, tied = answer_and_tied(answer_class, pattern)

    testing.assert_same_function(tied, answer, IMAGES, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("answer_class", "pattern"), ANSWERS)
def test_tied_layer_has_the_gradients_of_the_answer(answer_class, pattern):
    answer, tied = answer_and_tied(answer_class, pattern)
    (expected,) = gradients(lambda: total_loss(answer, IMAGES), [answer.kernel])

    (gradient,) = gradients(lambda: total_loss(tied, IMAGES), [tied.free_weights["kernel"]])

    np.testing.assert_allclose(gradient, as_free(expected, pattern), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "optimizer", [keras.optimizers.SGD(0.1, momentum=0.9), keras.optimizers.Adam(0.05)], ids=["sgd", "adam"]
)
@pytest.mark.parametrize(("answer_class", "pattern"), ANSWERS)
def test_tied_layer_has_the_training_trajectory_of_the_answer(answer_class, pattern, optimizer):
    answer, tied = answer_and_tied(answer_class, pattern)
    trajectories = []

    for layer in (answer, tied):
        own_optimizer = type(optimizer).from_config(optimizer.get_config())
        trajectories.append([trained_weights(layer, own_optimizer, IMAGES) for _ in range(5)])

    expected = [[as_free(kernel, pattern)] for (kernel,) in trajectories[0]]
    np.testing.assert_allclose(trajectories[1], expected, rtol=1e-4, atol=1e-5)


def trained_weights(layer, optimizer, inputs):
    """Takes one step by hand. Returns the trained weights after it."""
    train_step(lambda: total_loss(layer, inputs), layer.trainable_variables, optimizer)
    return [array(weight) for weight in layer.trainable_variables]


OPTIONS = [
    {"use_bias": False},
    {"use_bias": True, "bias_regularizer": "l2"},
    {"bias_constraint": "non_neg"},
    {"padding": "same"},
    {"strides": 2},
    {"strides": (2, 1), "padding": "same"},
    {"dilation_rate": 2},
    {"groups": 2},
    {"activation": "tanh"},
    {"data_format": "channels_first"},
    {"kernel_regularizer": keras.regularizers.L1L2(0.1, 0.2)},
    {"activity_regularizer": "l2"},
    {"kernel_constraint": "non_neg"},
    {"kernel_constraint": keras.constraints.MaxNorm(0.5, axis=[0, 1, 2])},
    {"kernel_constraint": "unit_norm", "kernel_regularizer": "l1", "strides": 2, "groups": 2},
]


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
@pytest.mark.parametrize(("answer_class", "pattern"), ANSWERS)
def test_tied_layer_trains_with_every_option_that_the_answers_lacked(answer_class, pattern, options, scaling):
    tied = kt.Tied(layers.Conv2D(4, 5, **options), pattern, scaling=scaling)
    tied.build(IMAGES.shape if tied.layer.data_format == "channels_last" else np.moveaxis(IMAGES, -1, 1).shape)
    randomize(tied)
    stock, rate = stock_twin(tied), 0.1
    inputs = IMAGES if tied.layer.data_format == "channels_last" else np.moveaxis(IMAGES, -1, 1)
    kernel_gradient, *bias_gradient = gradients(lambda: total_loss(stock, inputs), stock.trainable_variables)
    theta = array(tied.free_weights["kernel"]) - rate * free_gradient(kernel_gradient, tied)
    bias = [constrained(stock.bias_constraint, stock.bias - rate * one) for one in bias_gradient]

    trained = trained_weights(tied, keras.optimizers.SGD(rate), inputs)

    expected = constrained_free(stock.kernel_constraint, theta, tied)
    np.testing.assert_allclose(trained[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trained[1:], bias, rtol=1e-4, atol=1e-5)


def constrained(constraint, value):
    return array(value if constraint is None else constraint(ops.convert_to_tensor(value, "float32")))


def constrained_free(constraint, theta, tied):
    """Returns `average(constraint(expand(theta)))`, in the scaling of `tied`."""
    roots = 1 if tied.scaling == "values" else root_sizes(tied.pattern, theta.ndim)
    kernel = dense_expand(theta / roots, tied.pattern)
    return dense_average(constrained(constraint, kernel), tied.pattern) * roots


def regularized_model(dtype="float32", shared=False, frozen=False, **options):
    """Returns a stock model of one convolution, tied to the bit, with penalties on kernel, bias and activity."""
    penalties = {
        "kernel_regularizer": keras.regularizers.L1L2(0.1, 0.2),
        "bias_regularizer": "l2",
        "activity_regularizer": keras.regularizers.L1L2(0.3, 0.1),
    }
    conv = layers.Conv2D(2, 3, padding="same", name="conv", dtype=dtype, **{**penalties, **options})
    inputs = keras.Input(IMAGES.shape[1:])
    outputs = conv(conv(inputs)) if shared else conv(inputs)
    model = keras.Model(inputs, layers.Activation("tanh", dtype=dtype)(outputs))
    randomize(conv)
    conv.kernel.assign(dense_project(conv.kernel, SIGNED))
    conv.trainable = not frozen
    return model


WAYS = {
    "plain": {},
    "shared": {"shared": True},
    "mixed_float16": {"dtype": "mixed_float16"},
    "mixed_bfloat16": {"dtype": "mixed_bfloat16", "shared": True},
    "frozen": {"frozen": True},
}


def tied_model(model, scaling, tmp_path, is_reloaded):
    tied = kt.apply_tying(model, SIGNED, mode="parameterization", scaling=scaling)
    if not is_reloaded:
        return tied
    tied.save(tmp_path / "tied.keras")
    return keras.saving.load_model(tmp_path / "tied.keras")


@pytest.mark.parametrize("is_reloaded", [False, True], ids=["made", "reloaded"])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("way", WAYS)
def test_losses_of_a_tied_model_equal_those_of_the_stock_model(way, scaling, is_reloaded, tmp_path):
    stock = regularized_model(**WAYS[way])
    tied = tied_model(stock, scaling, tmp_path, is_reloaded)

    for model in (stock, tied):
        model(IMAGES)

    expected, losses = ([array(ops.cast(loss, "float32")) for loss in model.losses] for model in (stock, tied))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("is_reloaded", [False, True], ids=["made", "reloaded"])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("way", [way for way in WAYS if way != "frozen"])
def test_gradients_of_the_losses_equal_those_of_the_stock_model_through_b(way, scaling, is_reloaded, tmp_path):
    stock = regularized_model(**WAYS[way])
    tied = tied_model(stock, scaling, tmp_path, is_reloaded)
    kernel_gradient, bias_gradient = gradients(lambda: summed_losses(stock), stock.trainable_variables)

    gradient, tied_bias_gradient = gradients(lambda: summed_losses(tied), tied.trainable_variables)

    expected = free_gradient(kernel_gradient, tied.get_layer("conv"))
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if way in ("plain", "shared") else {"rtol": 2e-2, "atol": 2e-2}
    np.testing.assert_allclose(gradient, expected, **tolerance)
    np.testing.assert_allclose(tied_bias_gradient, bias_gradient, **tolerance)


def summed_losses(model):
    model(IMAGES)
    return sum(ops.cast(loss, "float32") for loss in model.losses)


OPTIMIZERS_WITH_DECAY = [keras.optimizers.AdamW, keras.optimizers.SGD]
EXCLUSIONS = {
    "nothing": lambda optimizer, model: None,
    "kernels by name": lambda optimizer, model: optimizer.exclude_from_weight_decay(var_names=["kernel"]),
    "biases by name": lambda optimizer, model: optimizer.exclude_from_weight_decay(var_names=["bias"]),
    "a kernel": lambda optimizer, model: optimizer.exclude_from_weight_decay(var_list=[model.get_layer("conv").kernel]),
    "a bias and names": lambda optimizer, model: optimizer.exclude_from_weight_decay(
        [model.get_layer("conv").bias], ["no such"]
    ),
}


@pytest.mark.parametrize("options", [{"mode": "constraint"}, {"mode": "parameterization", "scaling": "orthonormal"}], ids=str)
@pytest.mark.parametrize("exclusion", EXCLUSIONS)
@pytest.mark.parametrize("optimizer_class", OPTIMIZERS_WITH_DECAY)
def test_weight_decay_of_a_compiled_model_stays_as_it_was(optimizer_class, exclusion, options):
    stock, tied = (compiled_with_decay(optimizer_class, exclusion) for _ in range(2))
    tied = kt.apply_tying(tied, SIGNED, **options)

    for model in (stock, tied):
        for _ in range(2):
            variables = model.trainable_variables
            model.optimizer.apply([ops.zeros(variable.shape) for variable in variables], variables)

    stock_layer, tied_layer = stock.get_layer("conv"), tied.get_layer("conv")
    np.testing.assert_allclose(tied_layer.kernel, stock_layer.kernel, rtol=1e-5)
    np.testing.assert_allclose(tied_layer.bias, stock_layer.bias, rtol=1e-5)


def compiled_with_decay(optimizer_class, exclusion):
    model = regularized_model()
    optimizer = optimizer_class(0.5, weight_decay=0.2)
    EXCLUSIONS[exclusion](optimizer, model)
    model.compile(optimizer, "mse")
    return model


@pytest.mark.parametrize("is_reloaded", [False, True], ids=["made", "reloaded"])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("constraint", ["non_neg", "unit_norm", keras.constraints.MinMaxNorm(0.4, 0.6, axis=[0, 1])])
def test_constraint_of_a_tied_model_acts_on_the_kernel(constraint, scaling, is_reloaded, tmp_path):
    tied = tied_model(regularized_model(kernel_constraint=constraint), scaling, tmp_path, is_reloaded)
    tied_layer = tied.get_layer("conv")
    theta = tied_layer.free_weights["kernel"]
    stepped = array(theta) - 0.1
    expected = constrained_free(keras.constraints.get(constraint), stepped, tied_layer)

    keras.optimizers.SGD(0.1).apply([ops.ones(theta.shape)], [theta])

    np.testing.assert_allclose(theta, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pattern", [SIGNED, kt.patterns.dihedral((3, 3))], ids=str)
def test_constraint_in_constraint_mode_is_composed_between_two_projections(pattern):
    model = kt.apply_tying(regularized_model(kernel_constraint="non_neg"), pattern)
    kernel = model.get_layer("conv").kernel
    upstream = np.random.default_rng(3).normal(size=kernel.shape).astype("float32")
    projected = dense_project(array(kernel) - upstream, pattern)

    keras.optimizers.SGD(1.0).apply([ops.convert_to_tensor(upstream)], [kernel])

    np.testing.assert_allclose(kernel, dense_project(np.maximum(projected, 0), pattern), rtol=1e-5, atol=1e-6)


def tied_conv(pattern=SIGNED, **options):
    tied = kt.Tied(layers.Conv2D(3, 3, name="conv", **options), pattern)
    tied.build(IMAGES.shape)
    return tied


def test_pattern_of_a_tied_layer_is_the_family_at_its_kernel_size():
    assert kt.Tied(layers.Conv2D(3, (3, 5)), "mirror").pattern == kt.patterns.mirror((3, 5))


def test_pattern_by_kernel_name_means_the_pattern():
    assert kt.Tied(layers.Conv2D(3, 3), {"kernel": SIGNED}).pattern == SIGNED


def test_kernel_assign_averages():
    tied = tied_conv()
    value = np.random.default_rng(5).normal(size=tied.kernel.shape).astype("float32")

    tied.kernel.assign(value)

    np.testing.assert_allclose(tied.free_weights["kernel"], dense_average(value, SIGNED), rtol=1e-5, atol=1e-6)


def test_free_weights_have_the_rank_of_the_kernel():
    assert {name: tuple(free.shape) for name, free in tied_conv().free_weights.items()} == {"kernel": (3, 1, 2, 3)}


def test_free_weights_are_empty_before_the_layer_is_built():
    assert kt.Tied(layers.Conv2D(3, 3), SIGNED).free_weights == {}


@pytest.mark.parametrize("use_bias", [False, True])
def test_bias_is_the_bias_of_the_stock_layer(use_bias):
    tied = tied_conv(use_bias=use_bias)

    assert tied.bias is tied.layer.bias
    assert (tied.bias is not None) == use_bias


def described(layer):
    return [(weight.name, weight.path, weight.trainable) for weight in layer.weights]


def built_first(trainable=True):
    conv = layers.Conv2D(3, 3, name="conv")
    conv.build(IMAGES.shape)
    conv.trainable = trainable
    return kt.Tied(conv, SIGNED)


def from_config():
    tied = kt.Tied.from_config(tied_conv().get_config())
    tied.build(IMAGES.shape)
    return tied


@pytest.mark.parametrize("make", [tied_conv, built_first, from_config])
def test_weights_have_names_paths_and_order_of_the_stock_layer(make):
    stock = layers.Conv2D(3, 3, name="conv")
    stock.build(IMAGES.shape)

    assert described(make()) == described(stock)


@pytest.mark.parametrize("mode", ["constraint", "parameterization"])
def test_weights_of_a_tied_model_have_names_paths_and_order_of_the_stock_model(mode):
    def make():
        return keras.Sequential(
            [
                keras.Input((9, 9, 2)),
                layers.Conv2D(3, 3, name="a"),
                layers.BatchNormalization(name="n"),
                layers.Conv2D(3, 3, name="b"),
            ],
            name="model",
        )

    assert described(kt.apply_tying(make(), SIGNED, mode=mode)) == described(make())


def test_trainable_passes_through_to_the_free_weights():
    tied = tied_conv()

    tied.trainable = False

    assert tied.trainable_weights == []
    assert not tied.layer.trainable
    assert not tied.free_weights["kernel"].trainable


@pytest.mark.parametrize("is_built_first", [False, True])
def test_tied_layer_around_a_frozen_layer_is_frozen(is_built_first):
    tied = built_first(trainable=False) if is_built_first else tied_conv(trainable=False)

    assert (tied.trainable, tied.trainable_weights, len(tied.non_trainable_weights)) == (False, [], 2)
    assert not any(weight.trainable for weight in [*tied.weights, tied.kernel])


def test_kernel_that_is_frozen_by_itself_stays_frozen():
    conv = layers.Conv2D(3, 3)
    conv.build(IMAGES.shape)
    conv.kernel.trainable = False

    tied = kt.Tied(conv, SIGNED)

    assert [weight.path for weight in tied.trainable_weights] == [conv.bias.path]


def test_unfrozen_tied_layer_trains():
    tied = built_first(trainable=False)

    tied.trainable = True

    assert described(tied) == described(built_first())


def test_input_spec_is_that_of_the_built_stock_layer():
    assert tied_conv().input_spec.axes == {-1: 2}


def test_input_spec_refuses_what_the_stock_layer_refuses():
    with pytest.raises(ValueError, match="expected axis -1 of input shape to have value 2"):
        tied_conv()(np.zeros((1, 9, 9, 3), "float32"))


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_float16", "mixed_bfloat16"])
def test_dtypes_are_those_of_the_stock_layer(dtype):
    stock = layers.Conv2D(3, 3, dtype=dtype)
    output = stock(IMAGES)

    tied = tied_conv(dtype=dtype)

    assert tied.dtype_policy == stock.dtype_policy
    assert tied(IMAGES).dtype == output.dtype
    assert [weight.dtype for weight in tied.weights] == [weight.dtype for weight in stock.weights]
    assert tied.kernel.dtype == stock.kernel.dtype


@pytest.mark.parametrize("options", [{}, {"strides": 2, "padding": "same"}, {"data_format": "channels_first"}], ids=str)
def test_output_shape_is_that_of_the_stock_layer(options):
    stock = layers.Conv2D(3, 3, **options)

    assert kt.Tied(layers.Conv2D(3, 3, **options), SIGNED).compute_output_shape((None, 7, 7, 7)) == stock.compute_output_shape(
        (None, 7, 7, 7)
    )


def test_config_survives_json():
    options = {
        "kernel_regularizer": "l2",
        "kernel_constraint": "non_neg",
        "strides": 2,
        "dtype": "mixed_float16",
        "trainable": False,
    }
    tied = kt.Tied(layers.Conv2D(3, 3, **options), SIGNED, scaling="orthonormal", convolution="kernel")

    copy = layers.deserialize(json.loads(json.dumps(layers.serialize(tied))))

    assert copy.get_config() == tied.get_config()
    assert (copy.pattern, copy.scaling, copy.convolution) == (SIGNED, "orthonormal", "kernel")


def test_copy_of_a_built_tied_layer_draws_a_kernel_of_full_variance():
    normal = keras.initializers.RandomNormal(stddev=1.0, seed=3)
    tied = kt.Tied(layers.Conv2D(100, 3, kernel_initializer=normal), kt.patterns.constant((3, 3)))
    tied.build((None, 9, 9, 100))

    copy = layers.deserialize(layers.serialize(tied))

    assert np.std(copy.kernel) == pytest.approx(1, rel=0.05)


def test_config_of_the_wrapped_layer_is_that_of_the_stock_layer():
    stock = layers.Conv2D(3, 3, name="conv", kernel_constraint="non_neg", kernel_initializer="he_normal")

    tied = tied_conv(kernel_constraint="non_neg", kernel_initializer="he_normal")

    assert tied.layer.get_config() == stock.get_config()


def test_clone_of_a_model_with_a_tied_layer_is_tied_alike():
    model = keras.Sequential([keras.Input((9, 9, 2)), kt.Tied(layers.Conv2D(3, 3, name="conv"), SIGNED)])

    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())

    assert clone.get_layer("conv").pattern == SIGNED
    testing.assert_same_function(clone, model, IMAGES)


def lora_conv():
    conv = layers.Conv2D(3, 3, name="conv")
    conv.build(IMAGES.shape)
    conv.enable_lora(2)
    return conv


def quantized_dense():
    dense = layers.Dense(3, name="dense")
    dense.build((None, 2))
    dense.quantize("int8")
    return dense


def overriding_conv():
    class Overriding(layers.Conv2D):
        def build(self, input_shape):
            super().build(input_shape)

    return Overriding(3, 3, name="own")


def built_with_channels():
    conv = layers.Conv2D(3, 3, name="conv")
    conv.build((None, 9, 9, 2))
    return kt.Tied(conv, kt.patterns.constant((3, 3, 2, 4)))


REFUSED = {
    "a tied layer": (lambda: kt.Tied(tied_conv(), SIGNED), "'conv'"),
    "a layer inside a tied layer": (lambda: kt.Tied(tied_conv().layer, SIGNED), "'conv'"),
    "a layer with LoRA": (lambda: kt.Tied(lora_conv(), SIGNED), "LoRA is enabled"),
    "a quantized layer": (lambda: kt.Tied(quantized_dense(), SIGNED), "'dense'"),
    "a layer of another class": (lambda: kt.Tied(layers.BatchNormalization(), SIGNED), "keeps no kernel"),
    "a class with a build of its own": (lambda: kt.Tied(overriding_conv(), SIGNED), "overrides `build`"),
    "no layer": (lambda: kt.Tied("conv", SIGNED), "'conv'"),
    "another kernel size": (lambda: kt.Tied(layers.Conv2D(3, 5, name="conv"), SIGNED), "(3, 3) for a kernel of shape (5, 5)"),
    "another number of filters": (built_with_channels, "(3, 3, 2, 4) for a kernel of shape (3, 3, 2, 3)"),
    "some channel axes": (lambda: kt.Tied(layers.Conv2D(3, 3), kt.patterns.constant((3, 3, 2))), "(3, 3, 2)"),
    "an unknown family": (lambda: kt.Tied(layers.Conv2D(3, 3), "mirrored"), "'mirrored'"),
    "a family that is not defined": (lambda: kt.Tied(layers.Conv2D(3, (3, 5)), "dihedral"), "(3, 5)"),
    "an unknown kernel": (lambda: kt.Tied(layers.Conv2D(3, 3), {"bias": SIGNED}), "['bias']"),
    "no kernel": (lambda: kt.Tied(layers.Conv2D(3, 3), {}), "[]"),
    "no pattern": (lambda: kt.Tied(layers.Conv2D(3, 3), 7), "7"),
    "an unknown scaling": (lambda: kt.Tied(layers.Conv2D(3, 3), SIGNED, scaling="unit"), "scaling='unit'"),
    "an unknown convolution": (lambda: kt.Tied(layers.Conv2D(3, 3), SIGNED, convolution="fft"), "convolution='fft'"),
    "LoRA later": (lambda: tied_conv().layer.enable_lora(2), "'conv'"),
    "quantization later": (lambda: tied_conv().layer.quantize("int8"), "'conv'"),
    "LoRA through the wrapper": (lambda: tied_conv().enable_lora(2), "'conv'"),
    "quantization through the wrapper": (lambda: tied_conv().quantize("int8"), "'conv'"),
    "quantization of the shell": (lambda: tied_conv().quantize("int8"), "'conv'"),
    "a value of another shape": (lambda: tied_conv().kernel.assign(np.zeros((3, 3, 2, 5))), "(3, 3, 2, 5)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_tied_refuses(case):
    act, received = REFUSED[case]

    with raises_tying_error(received):
        act()


def test_pattern_over_channels_that_does_not_fit_is_refused_at_build():
    tied = kt.Tied(layers.Conv2D(3, 3, name="conv"), kt.patterns.constant((3, 3, 4, 3)))

    with raises_tying_error("(3, 3, 4, 3)"):
        tied.build(IMAGES.shape)


def test_building_a_tied_layer_again_leaves_its_weights_alone():
    tied = tied_conv()
    weights = tied.weights

    tied.build(IMAGES.shape)

    assert [id(weight) for weight in tied.weights] == [id(weight) for weight in weights]
