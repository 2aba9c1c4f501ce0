"""`TiedConstraint` projects, alone or composed with another constraint."""

import copy
import pickle

import keras
import numpy as np
import pytest
from hypothesis import given
from support.backends import array
from support.errors import raises_tying_error
from support.oracles import dense_project

import kernel_tying as kt
from kernel_tying.patterns import registry
from kernel_tying.testing import tied_problems

SIGNED = kt.TyingPattern.parse("AB-A/.CC")
SERIALIZABLE = {
    "pattern": kt.TiedConstraint(SIGNED),
    "pattern of many groups": kt.TiedConstraint(kt.patterns.free((3, 20))),
    "name": kt.TiedConstraint("mirror"),
    "then a name": kt.TiedConstraint(SIGNED, then="non_neg"),
    "then an object": kt.TiedConstraint("mirror", then=keras.constraints.MaxNorm(0.5, axis=[0, 1, 2])),
    "then a tying": kt.TiedConstraint("mirror", then=kt.TiedConstraint("point")),
}


def random_kernel(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@given(tied_problems())
def test_constraint_projects(problem):
    pattern, kernel = problem

    constrained = kt.TiedConstraint(pattern)(kernel)

    np.testing.assert_allclose(constrained, dense_project(kernel, pattern), rtol=0, atol=1e-2)


@given(tied_problems())
def test_constraint_composed_with_another_projects_before_and_after_it(problem):
    pattern, kernel = problem
    expected = dense_project(np.maximum(dense_project(kernel, pattern), 0), pattern)

    constrained = kt.TiedConstraint(pattern, then="non_neg")(kernel)

    np.testing.assert_allclose(constrained, expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("size", [(5,), (3, 4), (2, 3, 2)])
def test_name_is_resolved_for_the_spatial_size_of_each_kernel(size):
    kernel = random_kernel(*size, 2, 3)

    constrained = array(kt.TiedConstraint("mirror")(kernel))

    axis = len(size) - 1
    np.testing.assert_allclose(constrained, (kernel + np.flip(kernel, axis)) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "size"), [(keras.layers.Conv1D, (5,)), (keras.layers.Conv2D, (3, 4)), (keras.layers.Conv3D, (2, 3, 2))]
)
def test_stock_layer_trained_with_the_constraint_keeps_its_kernel_tied(layer, size):
    conv = layer(2, size, kernel_constraint=kt.TiedConstraint("mirror"))
    model = keras.Sequential([keras.Input((*size, 1)), conv, keras.layers.Flatten()])
    model.compile("sgd", "mse", run_eagerly=True)

    model.train_on_batch(random_kernel(2, *size, 1), random_kernel(2, 2))

    kernel = array(conv.kernel)
    np.testing.assert_array_equal(kernel, np.flip(kernel, len(size) - 1))


def test_name_is_resolved_for_the_whole_of_a_matrix():
    kernel = random_kernel(4, 4)

    constrained = kt.TiedConstraint("transpose")(kernel)

    np.testing.assert_allclose(constrained, (kernel + kernel.T) / 2, atol=1e-6)


@pytest.mark.parametrize("name", SERIALIZABLE)
def test_constraint_serialized_by_keras_constrains_alike(name):
    constraint = SERIALIZABLE[name]
    shape = (*constraint.pattern.shape, 2, 2) if isinstance(constraint.pattern, kt.TyingPattern) else (3, 4, 2, 2)
    kernel = random_kernel(*shape)

    restored = keras.constraints.deserialize(keras.constraints.serialize(constraint))

    np.testing.assert_array_equal(restored(kernel), constraint(kernel))


@pytest.mark.parametrize("name", SERIALIZABLE)
def test_constraint_deserialized_has_the_same_config(name):
    config = SERIALIZABLE[name].get_config()

    assert kt.TiedConstraint.from_config(config).get_config() == config


@pytest.mark.parametrize("pattern", [None, 3, [[0, 1]], {"labels": [0, 1]}], ids=repr)
def test_what_is_no_pattern_is_refused(pattern):
    with raises_tying_error(repr(pattern)):
        kt.TiedConstraint(pattern)


def test_unknown_name_is_refused():
    with raises_tying_error("'AABCC/AABCC'"):
        kt.TiedConstraint("AABCC/AABCC")


def test_kernel_of_another_size_is_refused():
    with raises_tying_error("(5, 5, 1, 1)"):
        kt.TiedConstraint(SIGNED)(random_kernel(5, 5, 1, 1))


@pytest.fixture
def asked(monkeypatch):
    """The sizes for which the registered family "mine" was asked."""
    sizes = []
    monkeypatch.setattr(registry, "_families", dict(registry._families))
    kt.patterns.register("mine", lambda size: sizes.append(size) or kt.patterns.mirror(size))
    return sizes


@pytest.mark.parametrize("make", [kt.TiedConstraint, kt.TyingPenalty])
def test_a_family_is_asked_once_for_each_shape_of_kernels(asked, make):
    tying = make("mine")

    for size in ((3, 4), (5,), (3, 4), (5,)):
        tying(random_kernel(*size, 2, 2))

    assert asked == [(3, 4), (5,)]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda constraint: pickle.loads(pickle.dumps(constraint))])
def test_a_duplicate_of_a_constraint_that_was_called_constrains_alike(asked, duplicate):
    constraint, kernel = kt.TiedConstraint("mine"), random_kernel(3, 4, 2, 2)
    expected = array(constraint(kernel))

    np.testing.assert_array_equal(array(duplicate(constraint)(kernel)), expected)


def test_a_family_that_is_registered_again_counts_from_then_on(asked):
    constraint, kernel = kt.TiedConstraint("mine"), random_kernel(3, 4, 2, 2)
    constraint(kernel)

    kt.patterns.register("mine", kt.patterns.point)

    np.testing.assert_array_equal(array(constraint(kernel)), array(kt.project(kernel, kt.patterns.point((3, 4)))))
