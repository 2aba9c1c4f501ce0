"""A tied layer is the custom layer of the answers to the question about tied kernels, with every option of the stock layer."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from support.backends import array, gradients, train_step
from support.errors import is_refused_alike
from support.layers import SCALINGS, constrained, constrained_free, free_gradient, randomize, stock_twin, total_loss

import kernel_tying as kt
from kernel_tying import testing

IMAGES = np.random.default_rng(0).normal(size=(2, 9, 9, 2)).astype("float32")


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


@pytest.mark.machine
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
@pytest.mark.parametrize(("answer", "scaling"), list(zip(ANSWERS, SCALINGS, strict=True)), ids=["stacked", "tiled"])
def test_tied_layer_trains_with_every_option_that_the_answers_lacked(answer, options, scaling):
    _, pattern = answer.values
    tied = kt.Tied(layers.Conv2D(4, 5, **options), pattern, scaling=scaling)
    tied.build(IMAGES.shape if tied.layer.data_format == "channels_last" else np.moveaxis(IMAGES, -1, 1).shape)
    randomize(tied)
    stock, rate = stock_twin(tied), 0.1
    inputs = IMAGES if tied.layer.data_format == "channels_last" else np.moveaxis(IMAGES, -1, 1)
    if is_refused_alike(stock, tied, inputs):
        return
    kernel_gradient, *bias_gradient = gradients(lambda: total_loss(stock, inputs), stock.trainable_variables)
    theta = array(tied.free_weights["kernel"]) - rate * free_gradient(kernel_gradient, tied)
    bias = [constrained(stock.bias_constraint, stock.bias - rate * one) for one in bias_gradient]

    trained = trained_weights(tied, keras.optimizers.SGD(rate), inputs)

    expected = constrained_free(stock.kernel_constraint, theta, tied)
    np.testing.assert_allclose(trained[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trained[1:], bias, rtol=1e-4, atol=1e-5)
