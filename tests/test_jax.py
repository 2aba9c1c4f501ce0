"""What is JAX's alone: pure functions of a tied model under `jit`, `grad` and `vmap`, and buffers that training donates."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from support.backends import array, gradients, train_step
from support.models import (
    DESCRIBED,
    IMAGE,
    MODES,
    assert_equal_values,
    conv,
    images,
    make,
    nested,
    sequential,
    skip,
    targets,
    tie,
    train,
    values,
)
from support.oracles import dense_adjoint

import kernel_tying as kt
from kernel_tying.testing import assert_tied

QUESTION = kt.TyingPattern.parse("AABCC/AABCC/DDEFF/GGHII/GGHII")
SIGNED = kt.TyingPattern.parse("A B -A/B . B/-A C A")
in_both_modes = pytest.mark.parametrize("mode", MODES)


def random_array(*shape, dtype="float32"):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("pattern", [QUESTION, SIGNED, kt.patterns.dihedral((7, 7), antisymmetric=True)], ids=str)
def test_project_is_idempotent_to_the_bit_inside_one_compiled_function(pattern, dtype):
    kernel = jnp.asarray(random_array(*pattern.shape, 8, 8), dtype)

    once, twice = jax.jit(lambda one: (kt.project(one, pattern), kt.project(kt.project(one, pattern), pattern)))(kernel)

    np.testing.assert_array_equal(twice, once)
    np.testing.assert_array_equal(kt.project(once, pattern), once)


@pytest.mark.parametrize("verb", [kt.project, kt.average])
def test_verbs_map_over_stacked_kernels(verb):
    kernels = random_array(4, 3, 3, 2, 5)

    mapped = jax.vmap(lambda kernel: verb(kernel, SIGNED))(kernels)

    np.testing.assert_allclose(mapped, [array(verb(kernel, SIGNED)) for kernel in kernels], rtol=1e-6, atol=1e-6)


def test_expand_maps_over_stacked_free_weights_to_the_bit():
    free = random_array(4, 3, 1, 2, 5)

    mapped = jax.vmap(lambda one: kt.expand(one, SIGNED))(free)

    np.testing.assert_array_equal(mapped, [array(kt.expand(one, SIGNED)) for one in free])


def pure(model):
    """Returns a model as a function of its trainable variables alone."""
    non_trainable = [variable.value for variable in model.non_trainable_variables]
    return lambda trainable: model.stateless_call(trainable, non_trainable, images(model))[0]


def trained_values(model):
    return [variable.value for variable in model.trainable_variables]


@in_both_modes
def test_a_compiled_stateless_call_computes_what_the_model_does(mode):
    tied = tie(make(skip), mode)

    outputs = jax.jit(pure(tied))(trained_values(tied))

    np.testing.assert_allclose(outputs, tied(images(tied)), rtol=1e-5, atol=1e-6)


def test_a_stateless_call_depends_on_the_free_weights_that_it_gets():
    tied, other = (tie(make(skip, seed=seed), "parameterization") for seed in (7, 8))

    outputs = pure(tied)(trained_values(other))

    np.testing.assert_array_equal(outputs, other(images(other)))


def test_gradient_in_the_free_weights_is_b_transposed_times_the_gradient_in_the_kernel():
    stock = make(skip)
    conv = stock.get_layer("first")
    conv.kernel.assign(kt.project(conv.kernel, SIGNED))
    tied = kt.apply_tying(stock, SIGNED, mode="parameterization")

    (expected, *others), (found, *other_gradients) = (
        jax.jit(jax.grad(lambda trainable, model=model: jnp.sum(pure(model)(trainable) ** 2)))(trained_values(model))
        for model in (stock, tied)
    )

    np.testing.assert_allclose(found, dense_adjoint(expected, SIGNED), rtol=1e-4, atol=1e-5)
    for one, other in zip(other_gradients, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_an_ensemble_of_tied_models_is_one_mapped_call():
    models = [tie(make(skip, seed=seed), "parameterization") for seed in (7, 8, 9)]
    stacked = [jnp.stack(one) for one in zip(*map(trained_values, models), strict=True)]

    outputs = jax.vmap(pure(models[0]))(stacked)

    np.testing.assert_allclose(outputs, [array(model(images(model))) for model in models], rtol=1e-5, atol=1e-6)


def loss_of_a_layer(convolution):
    """Returns a curved loss of a tied layer as a function of its weights and inputs, and three sets of both, stacked."""
    layer = conv()
    layer.build((None, *IMAGE))
    layer = tie(layer, "parameterization", convolution=convolution)
    weights = [jnp.stack([value, 2 * value, -value]) for value in trained_values(layer)]
    return lambda own, x: jnp.sum(jnp.sin(layer.stateless_call(own, [], x)[0])), (weights, random_array(3, 2, *IMAGE))


def gradients_of(loss):
    return jax.grad(loss, (0, 1))


def second_derivatives_of(loss):
    return gradients_of(lambda *sets: sum(jnp.sum(jnp.cos(one)) for one in jax.tree.leaves(gradients_of(loss)(*sets))))


def one_by_one(function):
    """Returns a function of stacked sets of arguments that calls `function`, compiled, on each set."""
    return lambda *sets: jax.lax.map(lambda one: function(*one), sets)


@pytest.mark.parametrize(
    ("derivative", "transform"),
    [
        pytest.param(lambda loss: loss, jax.vmap, id="vmap"),
        pytest.param(gradients_of, jax.vmap, id="vmap of gradients"),
        pytest.param(lambda loss: gradients_of(jax.checkpoint(loss)), one_by_one, id="jit of rematerialized gradients"),
        pytest.param(second_derivatives_of, one_by_one, id="jit of second derivatives"),
    ],
)
def test_transformed_group_sums_are_the_transformed_stock_convolution(derivative, transform):
    (by_sums, sets), (by_kernel, _) = map(loss_of_a_layer, ["group_sums", "kernel"])

    found = transform(derivative(by_sums))(*sets)

    expected = one_by_one(derivative(by_kernel))(*sets)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * jnp.abs(other).max())


def test_jax_refuses_forward_mode_for_group_sums():
    loss, (weights, inputs) = loss_of_a_layer("group_sums")

    with pytest.raises(TypeError, match=r"can't apply forward-mode autodiff \(jvp\) to a custom_vjp function"):
        jax.jvp(partial(loss, [one[0] for one in weights]), (inputs[0],), (inputs[0],))


@in_both_modes
def test_a_compiled_stateless_training_step_takes_the_step_by_hand(mode):
    def loss(model):
        return jnp.mean((model(images(model)) - targets(model)) ** 2)

    tied, twin = (tie(make(skip), mode) for _ in range(2))
    optimizer, twin_optimizer = keras.optimizers.Adam(0.05), keras.optimizers.Adam(0.05)
    optimizer.build(tied.trainable_variables)

    @jax.jit
    def step(trainable, slots):
        found = jax.grad(lambda one: jnp.mean((pure(tied)(one) - targets(tied)) ** 2))(trainable)
        return optimizer.stateless_apply(slots, found, trainable)

    trainable, slots = trained_values(tied), [variable.value for variable in optimizer.variables]
    for _ in range(3):
        trainable, slots = step(trainable, slots)
        train_step(lambda: loss(twin), twin.trainable_variables, twin_optimizer)

    for variable, value in zip(tied.trainable_variables, trainable, strict=True):
        variable.assign(value)
    assert_tied(tied)
    for one, other in zip(values(tied.trainable_variables), values(twin.trainable_variables), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


# A compiled training step gives the buffers of the weights away: a model that shared them would hold deleted arrays.
@pytest.mark.parametrize("builder", DESCRIBED)
def test_training_a_rebuilt_model_leaves_the_buffers_of_the_given_one_alone(builder):
    model = make(builder, compiled=True, run_eagerly=False, jit_compile=True)
    before = values(model.variables)

    train(tie(model, "parameterization"))

    assert_equal_values(model.variables, before)


@pytest.mark.parametrize("builder", [sequential, nested])
def test_training_a_stripped_model_leaves_the_buffers_of_the_tied_one_alone(builder):
    tied = tie(make(builder, compiled=True, run_eagerly=False, jit_compile=True), "parameterization")
    before = values(tied.variables)

    train(kt.strip_tying(tied))

    assert_equal_values(tied.variables, before)


@pytest.mark.parametrize("pattern", [SIGNED, kt.patterns.free((3, 3))], ids=str)
def test_training_a_layer_leaves_the_buffer_that_was_assigned_to_its_kernel_alone(pattern):
    tied = kt.apply_tying(make(sequential), {"first": pattern}, mode="parameterization")
    value = jnp.asarray(random_array(3, 3, 2, 2))
    tied.get_layer("first").kernel.assign(value)
    tied.compile("sgd", "mse", jit_compile=True)

    train(tied)

    assert not value.is_deleted()


@in_both_modes
def test_compiled_training_takes_the_steps_of_eager_training(mode):
    compiled, eager = (
        tie(make(skip, compiled=True, optimizer="sgd", run_eagerly=run_eagerly, jit_compile=not run_eagerly), mode)
        for run_eagerly in (False, True)
    )

    for model in (compiled, eager):
        train(model, epochs=3)

    assert_tied(compiled)
    for one, other in zip(values(compiled.variables), values(eager.variables), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_tests_are_those_of_a_stateless_call():
    tied = tie(make(skip), "parameterization")
    expected = jax.grad(lambda trainable: jnp.sum(pure(tied)(trainable)))(trained_values(tied))

    found = gradients(lambda: keras.ops.sum(tied(images(tied))), tied.trainable_variables)

    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


WITH_NNX = """
import os
os.environ["KERAS_NNX_ENABLED"] = "true"
import keras, numpy, kernel_tying as kt

inputs = numpy.ones((2, 6, 5, 2), "float32")
model = keras.Sequential([keras.Input(inputs.shape[1:]), keras.layers.Conv2D(3, 3), keras.layers.Flatten()])
try:
    kt.apply_tying(model, "mirror", mode="parameterization")
except kt.TyingError as error:
    print(error)
kt.apply_tying(model, "mirror", mode="constraint")
start = model.get_weights()
model.compile("adam", "mse")
model.fit(inputs, numpy.ones((2, *model.output_shape[1:])), verbose=0)
print(kt.tying_error(model), any(map(numpy.array_equal, start, model.get_weights())))
"""


def test_nnx_trains_tied_kernels_in_constraint_mode_alone():
    pytest.importorskip("flax")

    output = subprocess.run([sys.executable, "-c", WITH_NNX], capture_output=True, text=True, check=True).stdout

    refusal, trained = output.splitlines()
    assert "while NNX is enabled" in refusal
    assert trained == "0.0 False", "trained kernels are untied, or training moved nothing"
