"""What is TensorFlow's alone: sparse gradients, traced functions, SavedModel and checkpoints that follow attributes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import array, gradient, raw_gradients, train_step
from keras import ops
from models import MODES, images, make, skip, subclassed, targets, tie, values

import kernel_tying as kt
from kernel_tying.testing import assert_tied

PATTERNS = {
    "rank 1": kt.TyingPattern.parse("AB-A."),
    "rank 2": kt.patterns.dihedral((3, 3)),
    "a free axis in the middle": kt.patterns.constant((3, 1, 2)),
    "a free axis first": kt.patterns.constant((1, 2)),
}
VARIANTS = {
    "constraint": {"mode": "constraint"},
    "values": {"mode": "parameterization", "scaling": "values"},
    "orthonormal": {"mode": "parameterization", "scaling": "orthonormal"},
}
in_all_variants = pytest.mark.parametrize("variant", VARIANTS)


def test_gradient_of_a_bare_take_is_sparse():
    found = gradient(lambda rows: ops.take(rows, [0, 0, 1], axis=0), np.ones((2, 3), "float32"))

    assert isinstance(found, tf.IndexedSlices), "`expand` need not reshape to two axes any more"


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("channels", [(), (2,), (2, 3)])
def test_gradient_of_expand_is_dense(pattern, channels):
    pattern = PATTERNS[pattern]
    sizes = (3 if size == 1 else size for size in pattern.shape)
    free = array(kt.average(np.ones((*sizes, *channels), "float32"), pattern))

    assert isinstance(gradient(lambda theta: kt.expand(theta, pattern), free), tf.Tensor)


@in_all_variants
def test_gradients_of_a_tied_model_are_dense(variant):
    tied = tie(make(skip), **VARIANTS[variant])

    found = raw_gradients(lambda: ops.sum(tied(images(tied))), tied.trainable_variables)

    assert all(isinstance(one, tf.Tensor) for one in found)


def steps_by_hand(mode, wrap):
    """Returns the weights after each of three steps of a loop by hand, whose step is `wrap`ped."""
    model, optimizer = tie(make(skip), mode), keras.optimizers.Adam(0.05)
    optimizer.build(model.trainable_variables)
    weights = []

    def step():
        train_step(
            lambda: keras.losses.mean_squared_error(targets(model), model(images(model))), model.trainable_variables, optimizer
        )

    wrapped = wrap(step)
    for _ in range(3):
        wrapped()
        assert_tied(model)
        weights += values(model.trainable_variables)
    return weights


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_step_by_hand_inside_a_function_is_the_step_outside(mode, jit_compile):
    expected = steps_by_hand(mode, lambda step: step)

    steps = steps_by_hand(mode, lambda step: tf.function(step, jit_compile=jit_compile))

    for one, other in zip(steps, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@in_all_variants
@pytest.mark.parametrize("builder", [skip, subclassed])
def test_an_exported_model_computes_the_same(builder, variant, tmp_path):
    tied = tie(make(builder), **VARIANTS[variant])
    tied.export(tmp_path / "exported", verbose=False)

    exported = tf.saved_model.load(tmp_path / "exported")

    np.testing.assert_allclose(exported.serve(images(tied)), array(tied(images(tied))), rtol=1e-5, atol=1e-6)


@in_all_variants
def test_a_checkpoint_finds_the_weights_by_attribute(variant, tmp_path):
    tied = tie(make(skip), **VARIANTS[variant])
    weights = tied.get_weights()
    checkpoint = tf.train.Checkpoint(tied)
    file = checkpoint.save(tmp_path / "checkpoint")
    tied.set_weights([np.zeros_like(weight) for weight in weights])

    checkpoint.restore(file)

    np.testing.assert_equal(tied.get_weights(), weights)
