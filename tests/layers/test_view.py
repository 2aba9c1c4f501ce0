"""Laws of a tied kernel as a variable: who keeps it, what is set on it, and who may not train it."""

import copy
import pickle
import re

import keras
import numpy as np
import pytest
from keras import layers, ops
from support.backends import array, gradients
from support.errors import raises_tying_error
from support.keepers import INPUTS, PLACES, RATE, SKEW, Decoder, autoencoder, theta_of, tied_dense
from support.oracles import dense_adjoint, dense_average, dense_expand, dense_project, root_sizes

import kernel_tying as kt

in_both_scalings = pytest.mark.parametrize("scaling", ["values", "orthonormal"])
every_place = pytest.mark.parametrize("place", PLACES)


def stock_dense(tied):
    """Returns a stock layer with the expanded kernel of `tied`, from the dense matrix B."""
    stock = layers.Dense(4, use_bias=False, name="encoder")
    stock.build(INPUTS.shape)
    stock.kernel.assign(dense_expand(array(theta_of(tied)) / roots(tied), SKEW))
    return stock


def roots(tied):
    return 1 if tied.scaling == "values" else root_sizes(SKEW, array(theta_of(tied)))


def stepped(tied, kernel_gradient):
    """Returns the free weights after a step of SGD, by the gradient in the kernel."""
    return array(theta_of(tied)) - RATE * dense_adjoint(kernel_gradient, SKEW) / roots(tied)


def is_same(variables, expected):
    return list(map(id, variables)) == list(map(id, expected))


@every_place
@in_both_scalings
def test_a_layer_that_keeps_a_kernel_has_its_free_weights(place, scaling):
    tied = tied_dense(scaling)

    decoder = Decoder(tied.kernel, place)

    assert is_same(decoder.trainable_variables, [theta_of(tied)])
    assert decoder.get(decoder.kept) is tied.kernel


def test_a_layer_that_was_called_refuses_a_kernel_as_it_refuses_a_variable():
    tied, variable = tied_dense(), keras.Variable(np.eye(4))
    decoder = Decoder(variable, "list")
    decoder(INPUTS)

    for kernel in (keras.Variable(np.eye(4)), tied.kernel):
        with pytest.raises(ValueError, match="cannot add new elements of state"):
            decoder.kept.append(kernel)
    assert is_same(decoder.variables, [variable])


def test_a_layer_that_keeps_a_kernel_no_more_loses_its_free_weights():
    decoder = Decoder(tied_dense().kernel, "list")

    decoder.kept.pop()

    assert decoder.variables == []


def test_a_frozen_layer_freezes_the_free_weights_that_it_keeps():
    tied = tied_dense()

    Decoder(tied.kernel).trainable = False

    assert not theta_of(tied).trainable


@every_place
@in_both_scalings
def test_training_sums_the_gradients_of_all_layers_that_keep_a_kernel(place, scaling):
    tied = tied_dense(scaling)
    stock = autoencoder(stock_dense(tied))
    (gradient,) = gradients(lambda: ops.mean(ops.square(ops.subtract(stock(INPUTS), INPUTS))), stock.trainable_variables)
    expected = stepped(tied, gradient)
    model = autoencoder(tied, place)

    model.train_on_batch(INPUTS, INPUTS)

    assert is_same(model.trainable_variables, [theta_of(tied)])
    np.testing.assert_allclose(array(theta_of(tied)), expected, rtol=1e-4, atol=1e-5)


@in_both_scalings
def test_a_model_without_the_tied_layer_trains_the_free_weights_that_it_keeps(scaling):
    tied = tied_dense(scaling)
    stock = Decoder(stock_dense(tied).kernel)
    (gradient,) = gradients(lambda: ops.mean(ops.square(stock(INPUTS))), stock.trainable_variables)
    expected = stepped(tied, gradient)
    model = keras.Sequential([keras.Input((4,)), Decoder(tied.kernel)])
    model.compile(keras.optimizers.SGD(RATE, use_ema=True), "mse")

    model.train_on_batch(INPUTS, np.zeros_like(INPUTS))

    np.testing.assert_allclose(array(theta_of(tied)), expected, rtol=1e-4, atol=1e-5)


@in_both_scalings
def test_weights_of_a_model_that_keeps_a_kernel_twice_are_the_free_weights_once(scaling, tmp_path):
    models = [autoencoder(tied_dense(scaling)) for _ in range(3)]
    value = np.arange(4.0, dtype="float32").reshape(4, 1)

    models[0].set_weights([value])
    models[0].save_weights(tmp_path / "kept.weights.h5")
    models[1].load_weights(tmp_path / "kept.weights.h5")
    outputs, _ = models[2].stateless_call([ops.convert_to_tensor(value)], [], INPUTS)

    assert models[0].count_params() == 4
    np.testing.assert_array_equal(models[1].get_weights(), [value])
    np.testing.assert_allclose(array(models[1](INPUTS)), array(outputs), rtol=1e-5)


@in_both_scalings
def test_spectral_normalization_of_a_tied_layer_is_that_of_the_stock_layer(scaling):
    tied = tied_dense(scaling)
    normalized = [layers.SpectralNormalization(layer) for layer in (stock_dense(tied), tied)]
    for layer in normalized:
        layer.build(INPUTS.shape)
        layer.vector_u.assign(np.ones((1, 4)) / 2)

    outputs = [array(layer(INPUTS, training=True)) for layer in normalized]

    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    assert is_same(normalized[1].trainable_variables, [theta_of(tied)])


def sgd(**options):
    return keras.optimizers.SGD(1.0, **options)


def ones(kernel):
    return [ops.ones(kernel.shape)]


def apply_known(kernel):
    optimizer = sgd()
    optimizer.build([kernel.source])
    optimizer.apply(ones(kernel), [kernel])


TARGETS = {
    "build": lambda kernel: sgd().build([kernel]),
    "build with moments": lambda kernel: keras.optimizers.Adam().build([kernel]),
    "apply": lambda kernel: sgd().apply(ones(kernel), [kernel]),
    "apply, built for the free weights": apply_known,
    "apply_gradients": lambda kernel: sgd(momentum=0.9).apply_gradients([(ones(kernel)[0], kernel)]),
    "apply with moving averages": lambda kernel: sgd(use_ema=True).apply(ones(kernel), [kernel]),
    "apply, accumulated": lambda kernel: sgd(gradient_accumulation_steps=2).apply(ones(kernel), [kernel]),
    "apply, scaled": lambda kernel: keras.optimizers.LossScaleOptimizer(sgd()).apply(ones(kernel), [kernel]),
    "exclude from weight decay": lambda kernel: sgd(weight_decay=0.1).exclude_from_weight_decay(var_list=[kernel]),
    "overwrite with a gradient": lambda kernel: setattr(kernel, "overwrite_with_gradient", True),
}


@pytest.mark.parametrize("target", TARGETS)
@in_both_scalings
def test_what_trains_variables_refuses_a_tied_kernel(target, scaling):
    kernel = tied_dense(scaling).kernel
    before = array(kernel.source)

    with raises_tying_error("'encoder/kernel'"):
        TARGETS[target](kernel)

    np.testing.assert_array_equal(array(kernel.source), before)


@pytest.mark.parametrize("read", [lambda kernel: kernel.value, lambda kernel: kernel.free_values], ids=["value", "free"])
def test_a_tied_kernel_that_a_stateless_scope_maps_is_refused_when_it_is_read(read):
    kernel = tied_dense().kernel

    with keras.StatelessScope([(kernel, ones(kernel)[0])]), raises_tying_error("'encoder/kernel'"):
        read(kernel)


@pytest.mark.parametrize("sign", [1, -1])
@in_both_scalings
def test_adding_to_a_tied_kernel_adds_the_nearest_tied_kernel(sign, scaling):
    kernel = tied_dense(scaling).kernel
    step = np.random.default_rng(2).normal(size=(4, 4)).astype("float32")
    expected = array(kernel) + sign * dense_project(step, SKEW)

    (kernel.assign_add if sign == 1 else kernel.assign_sub)(step)

    np.testing.assert_allclose(array(kernel), expected, rtol=1e-5, atol=1e-6)


@in_both_scalings
def test_a_tied_kernel_is_read_as_a_stock_kernel_is(scaling):
    tied = tied_dense(scaling)
    kernel, stock = tied.kernel, stock_dense(tied).kernel

    for read in (array, np.array, lambda one: array(one[1:, 0]), lambda one: array(one + one), lambda one: array(abs(one))):
        np.testing.assert_allclose(read(kernel), read(stock), rtol=1e-6)
    np.testing.assert_array_equal(array(kernel == kernel.value), np.ones((4, 4), bool))


def assign_item(variable):
    variable[...] = 0


@pytest.mark.parametrize("use", [assign_item, hash, bool, float, lambda one: setattr(one, "name", "new")])
def test_a_tied_kernel_refuses_what_a_stock_kernel_refuses(use):
    tied = tied_dense()
    stock = stock_dense(tied).kernel

    with pytest.raises(Exception) as refused:  # noqa: PT011
        use(stock)
    with pytest.raises(refused.type):
        use(tied.kernel)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda kernel: pickle.loads(pickle.dumps(kernel))], ids=["copy", "pickle"]
)
@in_both_scalings
def test_a_copy_of_a_tied_kernel_has_free_weights_of_its_own(duplicate, scaling):
    kernel = tied_dense(scaling, kernel_regularizer="l2", kernel_constraint="non_neg").kernel
    before, penalty = array(kernel), array(kernel.source.regularizer(kernel.source))

    copied = duplicate(kernel)
    copied.assign(2 * copied)

    np.testing.assert_array_equal(array(kernel), before)
    np.testing.assert_allclose(array(copied), 2 * before, rtol=1e-6)
    np.testing.assert_allclose(array(copied.source.regularizer(copied.source)), 4 * penalty, rtol=1e-5)
    assert copied.source.constraint.__self__ is copied


class SumOfFirstRow(keras.regularizers.Regularizer):
    def __call__(self, kernel):
        return ops.sum(kernel[0])


class Half(keras.constraints.Constraint):
    def __call__(self, kernel):
        return kernel / 2


PENALTIES = {"l2": keras.regularizers.L2(0.1), "own": SumOfFirstRow(), "none": None}


@pytest.mark.parametrize("name", PENALTIES)
@in_both_scalings
def test_a_regularizer_set_on_a_tied_kernel_penalizes_the_kernel(name, scaling):
    tied = tied_dense(scaling, kernel_regularizer="l1")
    stock = stock_dense(tied)
    for layer in (tied, stock):
        layer.kernel.regularizer = PENALTIES[name]
    losses = [sum(layer.losses) for layer in (stock, tied)]

    assert tied.kernel.regularizer is PENALTIES[name]
    np.testing.assert_allclose(*[array(ops.convert_to_tensor(loss)) for loss in losses], rtol=1e-5)
    if PENALTIES[name] is not None:
        (expected,) = gradients(lambda: sum(stock.losses), [stock.kernel])
        (gradient,) = gradients(lambda: sum(tied.losses), [theta_of(tied)])
        np.testing.assert_allclose(gradient, dense_adjoint(expected, SKEW) / roots(tied), rtol=1e-4, atol=1e-5)


CONSTRAINTS = {"non_neg": keras.constraints.NonNeg(), "own": Half(), "none": None}


@pytest.mark.parametrize("name", CONSTRAINTS)
@in_both_scalings
def test_a_constraint_set_on_a_tied_kernel_is_composed_with_the_tying(name, scaling):
    tied = tied_dense(scaling, kernel_constraint="unit_norm")
    tied.kernel.constraint = CONSTRAINTS[name]
    free = array(theta_of(tied)) - 0.2
    kernel = dense_expand(free / roots(tied), SKEW)
    constrained = kernel if name == "none" else array(CONSTRAINTS[name](ops.convert_to_tensor(kernel, "float32")))

    keras.optimizers.SGD(0.2).apply([ops.ones(free.shape)], [theta_of(tied)])

    assert tied.kernel.constraint is CONSTRAINTS[name]
    expected = dense_average(constrained, SKEW) * roots(tied)
    np.testing.assert_allclose(array(theta_of(tied)), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("what", ["regularizer", "constraint"])
def test_a_tied_kernel_refuses_settings_that_a_stock_kernel_refuses(what):
    tied = tied_dense()
    with pytest.raises(ValueError, match=what) as refusal:
        setattr(stock_dense(tied).kernel, what, "l2")

    with pytest.raises(ValueError, match=re.escape(str(refusal.value))):
        setattr(tied.kernel, what, "l2")


@in_both_scalings
def test_settings_of_a_tied_kernel_stay_when_it_is_stripped(scaling):
    tied = tied_dense(scaling)
    tied.kernel.regularizer, tied.kernel.constraint = PENALTIES["l2"], CONSTRAINTS["non_neg"]

    in_place = kt.strip_tying(tied.layer)

    assert (in_place.kernel.regularizer, in_place.kernel.constraint) == (PENALTIES["l2"], CONSTRAINTS["non_neg"])


class Autoencoder(keras.Model):
    """A model that is tied in place; its decoder keeps the kernel once that is tied."""

    def __init__(self):
        super().__init__(name="autoencoder")
        self.encoder = layers.Dense(4, use_bias=False, name="encoder")

    def call(self, inputs):
        return self.encoder(inputs)


@in_both_scalings
def test_a_kernel_that_another_layer_keeps_is_not_stripped_in_place(scaling):
    model = Autoencoder()
    model(INPUTS)
    with pytest.warns(UserWarning, match="does not describe"):
        kt.apply_tying(model, {"encoder": SKEW}, mode="parameterization", scaling=scaling)
    kernel = model.encoder.kernel
    model._tracker.unlock()
    model.decoder = Decoder(kernel)

    with raises_tying_error("['encoder']"):
        kt.strip_tying(model)

    assert model.encoder.kernel is kernel
