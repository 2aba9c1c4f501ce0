"""Laws of training whole models: kernels stay tied through moving averages, loaded weights and loops written by hand."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers, ops, optimizers
from keras.callbacks import Callback, EarlyStopping, ModelCheckpoint, SwapEMAWeights
from support.backends import KERAS, array, gradients, train_step
from support.oracles import dense_adjoint, dense_expand, dense_project

import kernel_tying as kt

PATTERN = kt.TyingPattern.parse("A B -A/B . B/-A C A")
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.normal(size=(6, 5, 5, 2)).astype("float32")
TARGETS = GENERATOR.normal(size=(6, 3, 3, 3)).astype("float32")
MODES = ["constraint", "parameterization"]

EMA = {"learning_rate": 0.2, "use_ema": True, "ema_momentum": 0.5}
AVERAGING = {
    "plain": lambda: optimizers.SGD(**EMA),
    "overwriting": lambda: optimizers.SGD(**EMA, ema_overwrite_frequency=2),
    "scaled loss": lambda: optimizers.LossScaleOptimizer(optimizers.SGD(**EMA), initial_scale=8.0),
}
if KERAS >= (3, 15):
    AVERAGING["several"] = lambda: optimizers.MultiOptimizer(
        optimizers.OptimizerMap(optimizers.SGD(**EMA), {".*bias": optimizers.SGD(**EMA)})
    )


def stock_model():
    """Returns a stock model whose kernel is tied to the bit."""
    model = keras.Sequential([keras.Input(IMAGES.shape[1:]), layers.Conv2D(3, 3, name="conv")])
    values = np.random.default_rng(1).normal(size=(3, 3, 2, 3)) * 0.3
    model.get_layer("conv").kernel.assign(dense_project(values, PATTERN))
    return model


def averaged_model(mode="constraint", optimizer="plain", **compile_options):
    """Returns a tied model, compiled with an optimizer that averages weights."""
    model = kt.apply_tying(stock_model(), PATTERN, mode=mode)
    # Eager steps spare each test a trace; one test below runs the compiled steps.
    model.compile(AVERAGING[optimizer](), "mse", **{"run_eagerly": True, **compile_options})
    return model


def fit(model, callbacks=(), epochs=2, **options):
    model.fit(IMAGES, TARGETS, batch_size=2, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks), **options)
    return model


class Observer(Callback):
    """Records the tying error that predictions, tests and other callbacks meet."""

    def __init__(self):
        super().__init__()
        self.errors = []

    def _observe(self, *_, **__):
        self.errors.append(kt.tying_error(self.model))

    on_epoch_end = on_test_batch_begin = on_predict_batch_begin = on_train_end = _observe


@pytest.mark.parametrize("optimizer", AVERAGING)
def test_moving_averages_untie_kernels_in_constraint_mode_without_the_callback(optimizer):
    model = fit(averaged_model(optimizer=optimizer))

    assert kt.tying_error(model) > 1e-3


@pytest.mark.parametrize("optimizer", AVERAGING)
def test_moving_averages_stay_tied_with_the_callback(optimizer):
    model = fit(averaged_model(optimizer=optimizer), [kt.KeepTied()])

    assert kt.tying_error(model) == 0.0


@pytest.mark.parametrize("optimizer", [name for name in AVERAGING if name != "overwriting"])
def test_callback_projects_the_average_that_keras_would_write(optimizer):
    untied = fit(averaged_model(optimizer=optimizer)).get_layer("conv").kernel

    tied = fit(averaged_model(optimizer=optimizer), [kt.KeepTied()]).get_layer("conv").kernel

    np.testing.assert_allclose(tied, dense_project(untied, PATTERN), rtol=1e-4, atol=1e-6)


def test_moving_averages_stay_tied_in_compiled_steps():
    model = fit(averaged_model(run_eagerly=False), [kt.KeepTied(), SwapEMAWeights()])

    assert kt.tying_error(model) == 0.0


def swapping(order, swap_on_epoch):
    return {"before": [kt.KeepTied(), SwapEMAWeights(swap_on_epoch)], "after": [SwapEMAWeights(swap_on_epoch), kt.KeepTied()]}[
        order
    ]


@pytest.mark.parametrize("optimizer", [name for name in AVERAGING if name != "overwriting"])
@pytest.mark.parametrize("swap_on_epoch", [False, True])
@pytest.mark.parametrize("order", ["before", "after"])
def test_swapped_averages_are_tied_whenever_they_are_used(order, swap_on_epoch, optimizer):
    model, observer = averaged_model(optimizer=optimizer), Observer()

    fit(model, [*swapping(order, swap_on_epoch), observer], validation_data=(IMAGES, TARGETS))

    assert observer.errors
    assert set(observer.errors) == {0.0}


VERBS = {
    "evaluate": lambda model, callbacks: model.evaluate(IMAGES, TARGETS, verbose=0, callbacks=callbacks),
    "predict": lambda model, callbacks: model.predict(IMAGES, verbose=0, callbacks=callbacks),
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("verb", VERBS)
def test_kernels_are_tied_when_a_trained_model_is_used(verb, order):
    model, observer = fit(averaged_model()), Observer()

    VERBS[verb](model, [*swapping(order, False), observer])

    assert set(observer.errors) == {0.0}
    assert kt.tying_error(model) == 0.0


@pytest.mark.parametrize("order", ["before", "after"])
def test_checkpoints_of_swapped_averages_are_tied(order, tmp_path):
    callbacks = [*swapping(order, True), ModelCheckpoint(str(tmp_path / "{epoch}.keras"))]

    fit(averaged_model(), callbacks)

    assert [kt.tying_error(keras.saving.load_model(file)) for file in sorted(tmp_path.iterdir())] == [0.0, 0.0]


def test_weights_that_another_callback_restores_at_the_end_are_tied():
    best = EarlyStopping("loss", restore_best_weights=True)

    model = fit(averaged_model(), [SwapEMAWeights(swap_on_epoch=True), best, kt.KeepTied()])

    assert kt.tying_error(model) == 0.0


@pytest.mark.parametrize("optimizer", AVERAGING)
def test_parameterization_needs_no_callback(optimizer):
    model, observer = averaged_model("parameterization", optimizer), Observer()

    fit(model, [SwapEMAWeights(swap_on_epoch=True), observer], validation_data=(IMAGES, TARGETS))

    assert set(observer.errors) == {0.0}


@pytest.mark.parametrize("optimizer", AVERAGING)
@pytest.mark.parametrize("mode", MODES)
def test_apply_tying_warns_of_moving_averages_in_constraint_mode(mode, optimizer):
    model = stock_model()
    model.compile(AVERAGING[optimizer](), "mse")

    with pytest.warns(UserWarning, match="KeepTied") if mode == "constraint" else contextlib.nullcontext():
        tied = kt.apply_tying(model, PATTERN, mode=mode)

    assert kt.tying_error(tied) == 0.0


def test_callback_leaves_training_without_averages_as_it_is():
    kernels = []

    for callbacks in ([], [kt.KeepTied()]):
        model = kt.apply_tying(stock_model(), PATTERN)
        model.compile(optimizers.SGD(0.1, momentum=0.9), "mse", run_eagerly=True)
        kernels.append(array(fit(model, callbacks).get_layer("conv").kernel))

    np.testing.assert_array_equal(*kernels)


def untied_values(model):
    return [np.random.default_rng(4).normal(size=weight.shape).astype("float32") for weight in model.weights]


def set_weights(model, values, tmp_path):
    model.set_weights(values)


def load_weights(model, values, tmp_path):
    stock = stock_model()
    stock.set_weights(values)
    stock.save_weights(tmp_path / "stock.weights.h5")
    model.load_weights(tmp_path / "stock.weights.h5")


@pytest.mark.parametrize("is_trainable", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("write", [set_weights, load_weights])
def test_project_kernels_ties_weights_that_were_written(write, is_trainable, tmp_path):
    model = kt.apply_tying(stock_model(), PATTERN)
    model.trainable = is_trainable
    kernel, bias = untied_values(model)
    write(model, [kernel, bias], tmp_path)

    kt.project_kernels(model)

    assert kt.tying_error(model) == 0.0
    np.testing.assert_allclose(model.get_layer("conv").kernel, dense_project(kernel, PATTERN), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.get_layer("conv").bias, bias)


@pytest.mark.parametrize(("write", "is_tied"), [(set_weights, False), (load_weights, True)])
def test_weights_that_were_written_are_tied_if_they_come_from_a_file(write, is_tied, tmp_path):
    model = kt.apply_tying(stock_model(), PATTERN)

    write(model, untied_values(model), tmp_path)

    assert (kt.tying_error(model) == 0.0) == is_tied


def test_project_kernels_leaves_a_parameterized_model_as_it_is():
    model = kt.apply_tying(stock_model(), PATTERN, mode="parameterization")
    before = model.get_weights()

    kt.project_kernels(model)

    np.testing.assert_array_equal(before[0], model.get_weights()[0])


@pytest.mark.parametrize("mode", MODES)
def test_frozen_kernel_is_tied_at_once_and_stays_as_it_is(mode):
    model = stock_model()
    values = untied_values(model)
    model.set_weights(values)
    model.add(layers.Conv2D(3, 1, name="head"))
    model.get_layer("conv").trainable = False
    tied = kt.apply_tying(model, {"conv": PATTERN}, mode=mode)
    tied.compile(optimizers.Adam(0.1), "mse", run_eagerly=True)
    head = array(tied.get_layer("head").kernel)

    fit(tied, [kt.KeepTied()])

    assert kt.tying_error(tied) == 0.0
    np.testing.assert_allclose(tied.get_layer("conv").kernel, dense_project(values[0], PATTERN), rtol=1e-5, atol=1e-6)
    assert not np.array_equal(tied.get_layer("head").kernel, head)


def test_callback_projects_a_frozen_kernel():
    model = kt.apply_tying(stock_model(), PATTERN)
    model.set_weights(untied_values(model))
    model.trainable = False
    model.compile(loss="mse", run_eagerly=True)

    model.evaluate(IMAGES, TARGETS, verbose=0, callbacks=[kt.KeepTied()])

    assert kt.tying_error(model) == 0.0


RATE = 0.1


def loss_of(model):
    return ops.mean(keras.losses.mean_squared_error(TARGETS, model(IMAGES)))


def expected_kernels(mode, steps):
    """Returns the kernels of SGD by hand on the stock model: the kernel's step, projected or through `B B^T`."""
    model = stock_model()
    kernel, bias = model.trainable_variables
    for _ in range(steps):
        kernel_gradient, bias_gradient = gradients(lambda: loss_of(model), [kernel, bias])
        bias.assign(array(bias) - RATE * bias_gradient)
        if mode == "parameterization":
            kernel_gradient = through_b(kernel_gradient)
        kernel.assign(dense_project(array(kernel) - RATE * kernel_gradient, PATTERN))
        yield array(kernel)


def through_b(kernel_gradient):
    """Returns `B B^T` times a gradient in the kernel: what a step in `theta` does to the kernel."""
    return dense_expand(dense_adjoint(kernel_gradient, PATTERN), PATTERN)


@pytest.mark.parametrize("mode", MODES)
def test_training_loop_by_hand_takes_the_tied_steps(mode):
    model, optimizer = kt.apply_tying(stock_model(), PATTERN, mode=mode), optimizers.SGD(RATE)
    optimizer.build(model.trainable_variables)

    def step():
        train_step(lambda: loss_of(model), model.trainable_variables, optimizer)

    kernels, errors = zip(*(step_and_look(step, model) for _ in range(3)), strict=True)

    assert set(errors) == {0.0}
    np.testing.assert_allclose(kernels, list(expected_kernels(mode, 3)), rtol=1e-4, atol=1e-5)


def step_and_look(run, model):
    run()
    return array(model.get_layer("conv").kernel), kt.tying_error(model)
