"""Facts about training of Keras 3.12 to 3.15 that private names build on; where one fails, Keras has changed."""

import inspect

import keras
import numpy as np
from support.backends import array
from support.facts import assert_has, built, trained
from support.models import (
    conv,
    make,
    skip,
    train,
)


def test_the_arguments_of_compile_are_kept_as_objects():
    def loss(target, output):
        return output

    optimizer, metric = keras.optimizers.SGD(), keras.metrics.MeanSquaredError()
    model = make(skip)
    model.compile(optimizer, loss, metrics=[metric], loss_weights=2.0, run_eagerly=True, steps_per_execution=3)

    assert_has(model, "_compile_config")
    config = model._compile_config.config
    assert config["loss"] is loss, "compile keeps its loss in another form"
    assert config["optimizer"] is optimizer, "compile keeps its optimizer in another form"
    assert config["metrics"] == [metric], "compile keeps its metrics in another form"
    assert set(config) <= set(inspect.signature(keras.Model.compile).parameters), "it keeps more than compile takes"
    assert set(inspect.signature(keras.Model.compile).parameters) - {"self", "auto_scale_loss"} <= set(config), (
        "it forgets arguments"
    )


def test_the_train_function_is_cached_and_made_anew_if_it_is_none():
    model = trained()
    cached = model.train_function
    model.train_function = None

    train(model)

    assert cached is not None, "fit caches its step elsewhere than in `train_function`"
    assert model.train_function is not None
    assert model.train_function is not cached


def test_weight_decay_exclusions_are_kept_by_variable_key_and_by_pattern():
    model = make(skip)
    optimizer = keras.optimizers.AdamW(weight_decay=0.1)
    bias = model.get_layer("head").bias
    optimizer.exclude_from_weight_decay(var_list=[bias], var_names=["gamma"])

    assert_has(optimizer, "_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern", "_var_key")
    assert optimizer._exclude_from_weight_decay == {optimizer._var_key(bias)}, "excluded variables are kept in another form"
    assert optimizer._exclude_from_weight_decay_pattern.pattern == "gamma", "excluded names are kept in another form"


def test_wrapping_optimizers_keep_the_wrapped_one_in_inner_optimizer():
    inner = keras.optimizers.SGD()

    assert keras.optimizers.LossScaleOptimizer(inner).inner_optimizer is inner, "what is wrapped is kept elsewhere"


def test_moving_averages_stand_beside_the_trained_variables():
    optimizer = trained(use_ema=True, ema_overwrite_frequency=100).optimizer

    assert_has(optimizer, "_model_variables_moving_average", "_trainable_variables")
    stores = optimizer._trainable_variables, optimizer._model_variables_moving_average
    shapes = [[tuple(one.shape) for one in store] for store in stores]
    assert shapes[0] == shapes[1], "moving averages do not line up with the trained variables any more"


def test_only_the_constraint_of_the_variable_is_run():
    layer = built(conv(kernel_constraint="non_neg"))
    assert layer.kernel.constraint is layer.kernel_constraint, "build does not hand the constraint to the variable any more"
    layer.kernel_constraint = None
    layer.kernel.assign(-array(keras.ops.ones(layer.kernel.shape)))

    keras.optimizers.SGD(0.1).apply([keras.ops.zeros(layer.kernel.shape)], [layer.kernel])

    np.testing.assert_array_equal(array(layer.kernel), 0.0, "optimizers run another constraint than the variable's")


def test_the_count_of_accumulating_optimizers_is_kept_in_underscore_iterations():
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=2)

    assert_has(optimizer, "_iterations")
    optimizer._iterations.assign(4)
    assert int(optimizer.iterations) == 2, "`iterations` is no quotient of `_iterations` any more"


def test_metrics_know_whether_higher_values_are_better():
    model = make(skip)
    model.compile("sgd", "mse", metrics=["mae", "cosine_similarity"], run_eagerly=True)
    train(model)

    directions = {metric.name: getattr(metric, "_direction", None) for outer in model.metrics[1:] for metric in outer.metrics}
    assert directions == {"mae": "down", "cosine_similarity": "up"}, "Keras notes the direction of a metric elsewhere"


def test_loops_on_jax_keep_their_state_in_an_attribute_until_it_is_synced():
    model = trained()

    if keras.backend.backend() == "jax":
        assert_has(model, "_jax_state", "jax_state_sync")
        assert model._jax_state is None
    else:
        assert not hasattr(model, "jax_state_sync"), "loops of other backends have state too"
