"""`TyingPenalty` is the squared distance from the tied kernels."""

import keras
import numpy as np
import pytest
from hypothesis import given
from support.backends import array, gradient
from support.errors import raises_tying_error
from support.oracles import dense_project

import kernel_tying as kt
from kernel_tying.testing import tied_problems

SIGNED = kt.TyingPattern.parse("AB-A/.CC")
SERIALIZABLE = {
    "pattern": kt.TyingPenalty(SIGNED, 0.3),
    "name": kt.TyingPenalty("mirror", 2),
    "with another": kt.TyingPenalty("mirror", 2, "l1"),
}


def random_kernel(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@given(tied_problems())
def test_penalty_is_strength_times_the_squared_distance_from_the_tied_kernels(problem):
    pattern, kernel = problem
    expected = 0.3 * np.sum((kernel - dense_project(kernel, pattern)) ** 2)

    penalty = kt.TyingPenalty(pattern, 0.3)(kernel)

    np.testing.assert_allclose(penalty, expected, rtol=1e-3, atol=1e-6 * np.sum(kernel.astype("float64") ** 2))


@given(tied_problems())
def test_gradient_of_the_penalty_is_twice_strength_times_the_residual(problem):
    pattern, kernel = problem
    expected = 2 * 0.3 * (kernel - dense_project(kernel, pattern))

    found = gradient(kt.TyingPenalty(pattern, 0.3), kernel)

    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, np.abs(kernel).max()))


@given(tied_problems())
def test_penalty_of_a_tied_kernel_is_exactly_zero(problem):
    pattern, kernel = problem

    assert float(kt.TyingPenalty(pattern, 1e6)(kt.project(kernel, pattern))) == 0.0


@pytest.mark.parametrize("shape", [(5, 2, 3), (3, 4, 2, 3), (2, 3, 2, 1, 2)])
def test_name_is_resolved_for_the_spatial_size_of_the_kernel(shape):
    kernel = random_kernel(*shape)
    expected = np.sum((kernel - np.flip(kernel, len(shape) - 3)) ** 2) / 4

    penalty = kt.TyingPenalty("mirror", 1.0)(kernel)

    np.testing.assert_allclose(penalty, expected, rtol=1e-5)


def test_the_penalty_of_another_regularizer_is_added():
    kernel = random_kernel(2, 3, 2, 2)
    expected = float(kt.TyingPenalty("mirror", 0.5)(kernel)) + 0.01 * np.abs(kernel).sum()

    penalty = kt.TyingPenalty("mirror", 0.5, regularizer="l1")(kernel)

    np.testing.assert_allclose(penalty, expected, rtol=1e-5)


def test_strength_may_be_a_variable_that_changes():
    strength, kernel = keras.Variable(1.0, trainable=False), random_kernel(2, 3, 2, 2)
    penalty = kt.TyingPenalty("mirror", strength)
    before = float(array(penalty(kernel)))

    strength.assign(3.0)

    assert float(array(penalty(kernel))) == pytest.approx(3 * before, rel=1e-6)
    assert penalty.get_config()["strength"] == 3.0


def test_penalty_of_a_stock_layer_is_among_its_losses():
    layer = keras.layers.Conv2D(2, 3, kernel_regularizer=kt.TyingPenalty("mirror", 0.5))
    layer.build((None, 5, 5, 1))
    kernel = array(layer.kernel)

    (loss,) = layer.losses

    np.testing.assert_allclose(array(loss), 0.5 * np.sum((kernel - np.flip(kernel, 1)) ** 2) / 4, rtol=1e-5)


@pytest.mark.parametrize("name", SERIALIZABLE)
def test_penalty_serialized_by_keras_penalizes_alike(name):
    penalty = SERIALIZABLE[name]
    kernel = random_kernel(2, 3, 2, 2)

    restored = keras.regularizers.deserialize(keras.regularizers.serialize(penalty))

    assert float(restored(kernel)) == float(penalty(kernel))


@pytest.mark.parametrize("name", SERIALIZABLE)
def test_penalty_deserialized_has_the_same_config(name):
    config = SERIALIZABLE[name].get_config()

    assert kt.TyingPenalty.from_config(config).get_config() == config


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf"), "0.1", None], ids=repr)
def test_strength_that_is_no_finite_number_from_zero_is_refused(strength):
    with raises_tying_error(f"strength={strength!r}"):
        kt.TyingPenalty("mirror", strength)


@pytest.mark.parametrize("strength", [0, 1, np.float32(0.5)])
def test_strength_may_be_any_number_from_zero(strength):
    assert kt.TyingPenalty("mirror", strength).get_config()["strength"] == float(strength)


@pytest.mark.parametrize("pattern", [None, "miror", [[0, 1]]], ids=repr)
def test_what_is_no_tying_is_refused(pattern):
    with raises_tying_error(repr(pattern)):
        kt.TyingPenalty(pattern)


def test_what_is_no_regularizer_is_refused():
    with raises_tying_error("regularizer='tiny'"):
        kt.TyingPenalty("mirror", 0.1, regularizer="tiny")


def test_kernel_of_another_size_is_refused():
    with raises_tying_error("(5, 5, 1, 1)"):
        kt.TyingPenalty(SIGNED)(random_kernel(5, 5, 1, 1))
