"""A tied model is compiled like the given one, or told to be compiled again."""

import keras
import numpy as np
import pytest
from keras import layers
from support.backends import array
from support.copies import autoencoder, in_both_directions
from support.models import (
    MODES,
    assert_equal_values,
    images,
    make,
    multiple,
    sequential,
    skip,
    subclassed,
    targets,
    tie,
    train,
    two_sizes,
    values,
)

import kernel_tying as kt
from kernel_tying._keras import inner_optimizers
from kernel_tying.testing import assert_tied


@in_both_directions
def test_the_way_of_running_that_was_set_after_compiling_is_kept(copier):
    model = autoencoder()
    model.compile("sgd", "mse", jit_compile=False)
    model.run_eagerly, model.steps_per_execution = True, 3

    copy = copier(model)

    assert (copy.run_eagerly, copy.steps_per_execution) == (True, 3)


in_both_modes = pytest.mark.parametrize("mode", MODES)


class CompilesItself(keras.Sequential):
    def compile(self, learning_rate=0.1):
        super().compile(keras.optimizers.SGD(learning_rate), "mse")


def test_a_model_with_a_compile_of_its_own_is_to_be_compiled_again():
    model = CompilesItself([keras.Input((9, 9, 2)), layers.Conv2D(2, 3)])
    model.compile()

    with pytest.warns(UserWarning, match="its own `compile`"):
        tied = kt.apply_tying(model, "mirror", mode="parameterization")

    assert isinstance(tied, CompilesItself)
    assert not tied.compiled


@in_both_modes
def test_an_optimizer_that_accumulates_gradients_goes_on_counting(mode):
    model = two_sizes()
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), "mse", run_eagerly=True)
    model.fit(np.ones((6, 9, 9, 2)), np.ones((6, 3, 3, 2)), batch_size=1, verbose=0)

    tied = kt.apply_tying(model, "mirror", mode=mode)

    assert int(tied.optimizer.iterations) == int(model.optimizer.iterations) == 3


class Above(keras.metrics.Mean):
    """A metric whose config leaves its argument out."""

    def __init__(self, threshold, **kwargs):
        super().__init__(**kwargs)
        self.threshold = threshold


class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule without a config."""

    def __call__(self, step):
        return 0.1


@pytest.mark.parametrize(
    "options",
    [{"metrics": [Above(0.9)]}, {"optimizer": keras.optimizers.SGD(Warmup())}],
    ids=["metric without config", "schedule without config"],
)
def test_what_no_config_describes_is_to_be_compiled_again(options):
    model = two_sizes()
    model.compile(**{"optimizer": "sgd", "loss": "mse", **options})

    with pytest.warns(UserWarning, match="does not describe"):
        tied = kt.apply_tying(model, "mirror", mode="parameterization")

    assert not tied.compiled
    assert kt.tying_error(tied) == 0.0


@in_both_modes
def test_predictions_that_were_traced_before_see_the_tied_kernels(mode):
    model = make(subclassed)
    model.predict(images(model), verbose=0)

    tied = tie(model, mode)

    np.testing.assert_allclose(tied.predict(images(tied), verbose=0), array(tied(images(tied))), rtol=1e-5, atol=1e-6)


@in_both_modes
def test_predictions_that_were_traced_before_see_the_stripped_kernels(mode):
    tied = tie(make(subclassed), mode)
    tied.predict(images(tied), verbose=0)

    stripped = kt.strip_tying(tied)
    stripped.set_weights([2 * weight for weight in stripped.get_weights()])

    expected = array(stripped(images(stripped)))
    np.testing.assert_allclose(stripped.predict(images(stripped), verbose=0), expected, rtol=1e-5, atol=1e-6)


class TestCompilation:
    """A tied model is compiled like the given one."""

    def schedule(self):
        return keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=1, decay_rate=0.5)

    @in_both_modes
    def test_learning_rate_schedules_go_on(self, mode):
        model = make(skip, compiled=True, optimizer=keras.optimizers.Nadam(self.schedule(), beta_1=0.8))
        train(model, epochs=3)

        optimizer = tie(model, mode).optimizer

        assert type(optimizer) is type(model.optimizer)
        assert optimizer.get_config() == model.optimizer.get_config()
        np.testing.assert_allclose(optimizer.learning_rate, 0.1 * 0.5**3)

    def test_constraint_mode_keeps_the_state_of_the_optimizer(self):
        model, twin = make(skip, compiled=True), make(skip, compiled=True)
        for one in (model, twin):
            train(one)

        assert_equal_values(tie(model, "constraint").optimizer.variables, twin.optimizer.variables)

    def test_a_rebuilt_model_has_an_optimizer_of_its_own(self):
        model = make(skip, compiled=True)
        train(model)
        before = values(model.optimizer.variables)

        train(tie(model, "parameterization"))

        assert_equal_values(model.optimizer.variables, before)

    @in_both_modes
    def test_a_loss_that_no_config_can_hold_is_kept(self, mode):
        def loss(target, output):
            return keras.ops.mean(keras.ops.abs(target - output)) + 7.0

        tied = tie(make(skip, compiled=True, loss=loss, metrics=[lambda target, output: target - output]), mode)

        expected = np.abs(targets(tied) - array(tied(images(tied)))).mean() + 7
        np.testing.assert_allclose(tied.evaluate(images(tied), targets(tied), verbose=0)[0], expected, rtol=1e-5)

    def test_metric_objects_are_not_shared(self):
        model = make(skip, compiled=True, metrics=[keras.metrics.MeanAbsoluteError(name="mine")])
        train(model)
        before = values(model.metrics[1].variables)[1] if len(model.metrics) > 1 else None

        tied = tie(model, "parameterization")
        tied.evaluate(images(tied), targets(tied), verbose=0)

        assert [metric.name for metric in tied.metrics] == [metric.name for metric in model.metrics]
        assert_equal_values(values(model.metrics[1].variables)[1:], [before])
        assert not {id(one) for one in tied._compile_config.config["metrics"]} & {
            id(one) for one in model._compile_config.config["metrics"]
        }

    @in_both_modes
    def test_losses_of_several_outputs_keep_their_weights(self, mode):
        options = {"loss": {"one": "mse", "two": "mae"}, "loss_weights": {"one": 0.5, "two": 2.0}}
        tied = tie(make(multiple, compiled=True, **options), mode)

        outputs, expected = [array(one) for one in tied(images(tied))], targets(tied)
        loss = tied.evaluate(images(tied), dict(zip(["one", "two"], expected, strict=True)), verbose=0)

        one, two = np.square(outputs[0] - expected[0]).mean(), np.abs(outputs[1] - expected[1]).mean()
        np.testing.assert_allclose(np.ravel(loss)[0], 0.5 * one + 2.0 * two, rtol=1e-5)

    @pytest.fixture
    def mixed_precision(self):
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy("mixed_float16")
        yield
        keras.config.set_dtype_policy(before)

    @pytest.mark.usefixtures("mixed_precision")
    @pytest.mark.parametrize("is_scaled", [True, False])
    @in_both_modes
    def test_loss_scaling_is_kept_as_it_was(self, is_scaled, mode):
        model = make(skip, compiled=True, optimizer=keras.optimizers.SGD(0.1), auto_scale_loss=is_scaled)
        train(model)

        tied = tie(model, mode)
        train(tied)

        optimizers = list(inner_optimizers(tied.optimizer))
        assert [type(one).__name__ for one in optimizers] == ["LossScaleOptimizer"] * is_scaled + ["SGD"]
        assert optimizers[-1].iterations == 2
        assert_tied(tied)

    @pytest.mark.parametrize(
        "options", [{"run_eagerly": True}, {"run_eagerly": False}, {"jit_compile": True, "run_eagerly": False}]
    )
    @in_both_modes
    def test_the_way_of_running_is_kept(self, options, mode):
        tied = tie(make(skip, compiled=True, steps_per_execution=2, **options), mode)

        assert {name: getattr(tied, name) for name in options} == options
        assert tied.steps_per_execution == 2

    @in_both_modes
    def test_a_model_that_is_compiled_by_default_stays_tied(self, mode):
        tied = tie(make(sequential, compiled=True, run_eagerly=False, jit_compile="auto"), mode)

        train(tied)

        assert_tied(tied)

    @in_both_modes
    def test_weight_decay_exclusions_are_kept(self, mode):
        model = make(skip, compiled=True, optimizer=keras.optimizers.AdamW(1.0, weight_decay=0.1), loss=lambda y, p: 0.0 * p)
        model.optimizer.exclude_from_weight_decay(var_names=["kernel"])
        tied = tie(model, mode)
        before = values(tied.trainable_variables)

        train(tied)

        kernels = [index for index, one in enumerate(tied.trainable_variables) if one.name == "kernel"]
        assert kernels
        assert_equal_values([tied.trainable_variables[index] for index in kernels], [before[index] for index in kernels])

    @in_both_modes
    def test_a_model_that_was_not_compiled_stays_so(self, mode):
        assert not tie(make(skip), mode).compiled
