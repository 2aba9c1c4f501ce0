"""Regularizers, constraints and weight decay of tied kernels: the stock model is the oracle, through the dense matrix B."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from support.backends import array, gradients
from support.layers import SCALINGS, constrained_free, free_gradient, randomize
from support.oracles import dense_project

import kernel_tying as kt

SIGNED = kt.TyingPattern.parse("A B -A/B . B/-A C A")
IMAGES = np.random.default_rng(0).normal(size=(2, 9, 9, 2)).astype("float32")


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


STOCK_MODELS = {
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
@pytest.mark.parametrize("name", STOCK_MODELS)
def test_losses_of_a_tied_model_equal_those_of_the_stock_model(name, scaling, is_reloaded, tmp_path):
    stock = regularized_model(**STOCK_MODELS[name])
    tied = tied_model(stock, scaling, tmp_path, is_reloaded)

    for model in (stock, tied):
        model(IMAGES)

    expected, losses = ([array(ops.cast(loss, "float32")) for loss in model.losses] for model in (stock, tied))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("is_reloaded", [False, True], ids=["made", "reloaded"])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("name", [name for name in STOCK_MODELS if name != "frozen"])
def test_gradients_of_the_losses_equal_those_of_the_stock_model_through_b(name, scaling, is_reloaded, tmp_path):
    stock = regularized_model(**STOCK_MODELS[name])
    tied = tied_model(stock, scaling, tmp_path, is_reloaded)
    kernel_gradient, bias_gradient = gradients(lambda: summed_losses(stock), stock.trainable_variables)

    gradient, tied_bias_gradient = gradients(lambda: summed_losses(tied), tied.trainable_variables)

    expected = free_gradient(kernel_gradient, tied.get_layer("conv"))
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if name in ("plain", "shared") else {"rtol": 2e-2, "atol": 2e-2}
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
