"""Laws of training: every optimizer steps tied kernels as it steps a layer that computes its kernel with an explicit `B`."""

import inspect

import numpy as np
import pytest
import tensorflow as tf
from helpers import array, dense_expand, dense_project, gradients, train_step
from keras import layers, optimizers

import kernel_tying as kt
from kernel_tying.testing import dense_basis

# Repeated groups, signs and a pinned position: what a sparse gradient with repeated rows would get wrong.
PATTERN = kt.TyingPattern.parse("A B -A/B . B/-A C A")
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.normal(size=(2, 5, 5, 2)).astype("float32")
UPSTREAMS = GENERATOR.normal(size=(3, 2, 3, 3, 3)).astype("float32")

WRAPPERS = {
    optimizers.LossScaleOptimizer: lambda **options: optimizers.LossScaleOptimizer(optimizers.Adam(**options)),
    optimizers.MultiOptimizer: lambda **options: optimizers.MultiOptimizer(
        optimizers.OptimizerMap(optimizers.Adam(**options), {".*bias": optimizers.SGD(**options)})
    ),
}
OPTIMIZERS = [
    one
    for one in vars(optimizers).values()
    if inspect.isclass(one) and issubclass(one, optimizers.Optimizer) and one is not optimizers.Optimizer
]
MODES = [
    {"mode": "constraint"},
    {"mode": "parameterization", "scaling": "values"},
    {"mode": "parameterization", "scaling": "orthonormal"},
]
every_optimizer = pytest.mark.parametrize("optimizer_class", OPTIMIZERS, ids=lambda one: one.__name__)
in_every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(mode.values()))


def make_optimizer(optimizer_class, **options):
    return WRAPPERS.get(optimizer_class, optimizer_class)(**{"learning_rate": 0.1, **options})


class DenseBasisConv2D(layers.Layer):
    """A convolution that computes its kernel from free weights with the dense matrix `B`."""

    def build(self, input_shape):
        self.theta = self.add_weight(shape=(PATTERN.num_free, 1, input_shape[-1], 3), name="kernel")
        self.bias = self.add_weight(shape=(3,), name="bias")

    def call(self, inputs):
        kernel = tf.tensordot(tf.constant(dense_basis(PATTERN), "float32"), self.theta[:, 0], axes=1)
        return tf.nn.conv2d(inputs, tf.reshape(kernel, (3, 3, *kernel.shape[1:])), strides=1, padding="VALID") + self.bias


def stock_conv():
    """Returns a stock layer with a bias and a kernel that is tied to the bit."""
    generator, conv = np.random.default_rng(1), layers.Conv2D(3, 3, name="conv")
    conv.build(IMAGES.shape)
    conv.kernel.assign(dense_expand(generator.normal(size=(PATTERN.num_free, 1, 2, 3)), PATTERN))
    conv.bias.assign(generator.normal(size=3))
    return conv


def tied_conv(**mode):
    return kt.apply_tying(stock_conv(), PATTERN, **mode)


def train(layer, optimizer, scale=1.0):
    """Takes a step for each of `UPSTREAMS`, random gradients in the layer's output. Yields the weights after each."""
    for upstream in UPSTREAMS:
        step(layer, optimizer, upstream * scale)
        yield [array(weight) for weight in layer.trainable_variables]


def step(layer, optimizer, upstream):
    train_step(lambda: tf.reduce_sum(layer(IMAGES) * upstream), layer.trainable_variables, optimizer)


@every_optimizer
def test_optimizer_steps_free_weights_as_with_an_explicit_dense_basis(optimizer_class):
    tied, dense = tied_conv(mode="parameterization"), DenseBasisConv2D()
    dense.build(IMAGES.shape)
    for mine, theirs in zip(dense.weights, tied.weights, strict=True):
        mine.assign(theirs)
    expected = list(train(dense, make_optimizer(optimizer_class)))

    steps = list(train(tied, make_optimizer(optimizer_class)))

    for weights, expected_weights in zip(steps, expected, strict=True):
        for weight, expected_weight in zip(weights, expected_weights, strict=True):
            np.testing.assert_allclose(weight, expected_weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str)
def test_orthonormal_free_weights_take_the_sgd_steps_of_constraint_mode(options):
    layer_of = {mode: tied_conv(**MODES[index]) for mode, index in (("constrained", 0), ("orthonormal", 2))}
    kernels = {}

    for mode, layer in layer_of.items():
        optimizer = optimizers.SGD(0.1, **options)
        kernels[mode] = [array(layer.kernel) for _ in train(layer, optimizer)]

    scale = np.abs(kernels["constrained"]).max()
    np.testing.assert_allclose(kernels["orthonormal"], kernels["constrained"], rtol=1e-6, atol=1e-6 * scale)


def test_values_take_sgd_steps_of_the_sum_of_each_group_of_gradients():
    tied = tied_conv(mode="parameterization", scaling="values")
    stock, rate = stock_conv(), 0.1
    kernel_gradient, _ = gradients(lambda: tf.reduce_sum(stock(IMAGES) * UPSTREAMS[0]), stock.trainable_variables)
    basis = dense_basis(PATTERN)
    before = array(tied.free_weights["kernel"])

    step(tied, optimizers.SGD(rate), UPSTREAMS[0])

    summed = (basis.T @ kernel_gradient.reshape(9, -1)).reshape(before.shape)
    np.testing.assert_allclose(tied.free_weights["kernel"], before - rate * summed, rtol=1e-4, atol=1e-5)


def test_constraint_mode_takes_the_projected_sgd_step():
    tied, stock, rate = tied_conv(mode="constraint"), stock_conv(), 0.1
    kernel_gradient, _ = gradients(lambda: tf.reduce_sum(stock(IMAGES) * UPSTREAMS[0]), stock.trainable_variables)

    step(tied, optimizers.SGD(rate), UPSTREAMS[0])

    np.testing.assert_allclose(
        tied.kernel, dense_project(array(stock.kernel) - rate * kernel_gradient, PATTERN), rtol=1e-4, atol=1e-5
    )


def assert_trains_tied(layer, optimizer, scale=1.0):
    """Raises unless the kernel is tied to the bit after every step, and moved."""
    before = array(layer.kernel)
    errors = [kt.tying_error(layer) for _ in train(layer, optimizer, scale)]

    assert errors == [0.0] * len(UPSTREAMS)
    assert not np.array_equal(layer.kernel, before)


@in_every_mode
@every_optimizer
def test_groups_stay_bit_equal_under_every_optimizer(optimizer_class, mode):
    assert_trains_tied(tied_conv(**mode), make_optimizer(optimizer_class))


OPTIONS = [
    {"gradient_accumulation_steps": 2},
    {"clipnorm": 0.1},
    {"global_clipnorm": 0.1},
    {"clipvalue": 0.01},
    {"weight_decay": 0.1},
    {"loss_scale_factor": 64.0},
    {"clipnorm": 0.5, "weight_decay": 0.1, "gradient_accumulation_steps": 2},
    {"use_ema": True, "ema_overwrite_frequency": 2},
]


@in_every_mode
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("optimizer_class", [optimizers.SGD, optimizers.Adam, optimizers.RMSprop], ids=lambda one: one.__name__)
def test_groups_stay_bit_equal_under_every_option_of_an_optimizer(optimizer_class, options, mode):
    assert_trains_tied(tied_conv(**mode), make_optimizer(optimizer_class, **options))


@in_every_mode
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_groups_stay_bit_equal_in_tiny_and_huge_steps(scale, mode):
    layer = tied_conv(**mode)

    errors = [kt.tying_error(layer) for _ in train(layer, optimizers.SGD(1.0), scale)]

    assert errors == [0.0] * len(UPSTREAMS)


@in_every_mode
def test_loss_scaling_skips_an_overflow_and_stays_tied(mode):
    layer = tied_conv(**mode)
    optimizer = optimizers.LossScaleOptimizer(optimizers.SGD(0.1), initial_scale=4.0)
    before = array(layer.kernel)

    step(layer, optimizer, UPSTREAMS[0] * np.inf)

    assert kt.tying_error(layer) == 0.0
    np.testing.assert_array_equal(layer.kernel, before)
