"""A stock layer tied in each mode and scaling in one model, and the steps that its kernels should take, by a dense `B`."""

import functools

import keras
import numpy as np
from keras import layers, ops

import kernel_tying as kt
from support.backends import array, gradients, raw_gradients
from support.oracles import dense_adjoint, dense_average, dense_expand, dense_project, root_sizes

# Repeated groups of unequal size, signs and a pinned position: what a sparse gradient with repeated rows would get wrong.
PATTERN = kt.TyingPattern.parse("A B -A/B . B/-A C A")
VARIANTS = {
    "constraint": {"mode": "constraint"},
    "values": {"mode": "parameterization", "scaling": "values"},
    "orthonormal": {"mode": "parameterization", "scaling": "orthonormal"},
}


def conv(name, dtype=None):
    return layers.Conv2D(3, 3, name=name, dtype=dtype)


def dense(name, dtype=None):
    return layers.Dense(4, name=name, dtype=dtype)


class Problem:
    """Copies of a stock layer, each in one variant of tying, under losses that are linear in their outputs.

    So the gradient in a kernel does not depend on the kernel, each copy trains as if it were alone, and what the optimizer
    is to see is known before the first step.

    Args:
        make_layer: returns a stock layer of a given name and dtype.
        shape: the shape of an input.
        pattern: the tying pattern.
        steps: the number of training steps.
        scale: the scale of the gradients.
        dtype: the dtype policy of the layers.
    """

    def __init__(self, make_layer=conv, shape=(5, 5, 2), pattern=PATTERN, steps=3, scale=1.0, dtype=None):
        self.make_layer, self.pattern, self.dtype = make_layer, pattern, dtype
        self.inputs = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
        self.steps, self.scale = steps, scale

    @functools.cached_property
    def kernel(self):
        """The kernel to begin with, tied."""
        kernel = np.random.default_rng(1).normal(size=self.stock("stock").kernel.shape)
        return dense_project(kernel, self.pattern).astype("float32")

    @functools.cached_property
    def bias(self):
        return np.random.default_rng(2).normal(size=self.kernel.shape[-1]).astype("float32")

    @functools.cached_property
    def upstreams(self):
        """The gradients in the output of a layer at each step."""
        shape = self.stock("stock").compute_output_shape(self.inputs.shape)
        return (np.random.default_rng(3).normal(size=(self.steps, *shape)) * self.scale).astype("float32")

    @functools.cached_property
    def gradients(self):
        """The gradients in kernel and bias at each step, by differentiating the stock layer."""
        stock = self.stock("stock")
        return [
            gradients(lambda u=upstream: ops.mean(linear(u, stock(self.inputs))), stock.trainable_variables)
            for upstream in self.upstreams
        ]

    def stock(self, name):
        layer = self.make_layer(name, self.dtype)
        layer.build(self.inputs.shape)
        return layer

    def tied(self, variant):
        layer = self.stock(variant)
        layer.kernel.assign(self.kernel)
        layer.bias.assign(self.bias)
        return kt.apply_tying(layer, {variant: self.pattern}, **VARIANTS[variant])

    def model(self):
        """Returns a model of all variants, with their outputs side by side."""
        inputs = keras.Input(self.inputs.shape[1:])
        outputs = [self.tied(variant)(inputs) for variant in VARIANTS]
        return keras.Model(inputs, ops.concatenate(outputs, axis=-1))

    def targets(self):
        return np.concatenate([self.upstreams] * len(VARIANTS), axis=-1)


def linear(upstream, output):
    """Returns the loss of each sample, the inner product of the output with `upstream`."""
    product = ops.multiply(ops.cast(output, "float32"), ops.cast(upstream, "float32"))
    return ops.sum(product, axis=list(range(1, len(product.shape))))


def step(model, problem, index, optimizer):
    """Takes a step by hand."""
    upstream, variables = problem.targets()[index], model.trainable_variables

    def loss():
        return optimizer.scale_loss(ops.mean(linear(upstream, model(problem.inputs))))

    apply(optimizer, raw_gradients(loss, variables), variables)


def apply(optimizer, gradients, variables):
    """Applies gradients; statelessly where Keras has no other method: on JAX, LossScaleOptimizer.apply leaks a tracer."""
    if keras.backend.backend() != "jax" or not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer.apply(gradients, variables)
        return
    if not optimizer.built:
        optimizer.build(variables)
    state, values = [variable.value for variable in optimizer.variables], [variable.value for variable in variables]
    new_values, new_state = optimizer.stateless_apply(state, gradients, values)
    for variable, value in zip([*variables, *optimizer.variables], [*new_values, *new_state], strict=True):
        variable.assign(value)


def look(model):
    """Returns the kernels as they are now, by variant."""
    if hasattr(model, "jax_state_sync"):  # while JAX fits, the weights are not in the variables
        model.jax_state_sync()
    return {variant: array(model.get_layer(variant).kernel) for variant in VARIANTS}


def seen(kernel, pattern, variant):
    """Returns the variable that the optimizer sees for a tied kernel, by a dense `B`."""
    if variant == "constraint":
        return kernel
    free = dense_average(kernel, pattern)
    return free * root_sizes(pattern, free) if variant == "orthonormal" else free


def seen_gradient(gradient, pattern, variant):
    """Returns the gradient that the optimizer sees for a gradient in the kernel, by a dense `B`."""
    if variant == "constraint":
        return gradient
    adjoint = dense_adjoint(gradient, pattern)
    return adjoint / root_sizes(pattern, adjoint) if variant == "orthonormal" else adjoint


def kernel_of(variable, pattern, variant):
    """Returns the tied kernel for what the optimizer made of its variable, by a dense `B`."""
    if variant == "constraint":
        return dense_project(variable, pattern)
    scale = root_sizes(pattern, variable) if variant == "orthonormal" else 1
    return dense_expand(variable / scale, pattern)


class Looking(keras.callbacks.Callback):
    """Records the kernels after each step of `fit`."""

    def __init__(self):
        super().__init__()
        self.kernels = []

    def on_train_batch_end(self, batch, logs=None):
        self.kernels.append(look(self.model))


def fit(model, problem, optimizer, callbacks=(), is_built=False):
    """Fits the steps of `problem` in one epoch, compiled in each backend's usual mode, if need be with a built optimizer."""
    model.compile(optimizer, linear, jit_compile=keras.backend.backend() == "jax")
    if is_built:
        optimizer.build(model.trainable_variables)
    inputs, targets = np.concatenate([problem.inputs] * problem.steps), np.concatenate(list(problem.targets()))
    model.fit(inputs, targets, batch_size=len(problem.inputs), shuffle=False, verbose=0, callbacks=list(callbacks))


def assert_bit_tied(kernels, pattern=PATTERN):
    """Raises unless each kernel equals its projection bit for bit."""
    for kernel in kernels:
        np.testing.assert_array_equal(kernel, array(kt.project(kernel, pattern)))


def assert_tied(kernels, pattern=PATTERN):
    """Raises unless each kernel is tied to the bit, and the last differs from the first."""
    assert_bit_tied(kernels, pattern)
    assert not np.array_equal(kernels[0], kernels[-1])
