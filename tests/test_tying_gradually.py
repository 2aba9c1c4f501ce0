"""`TieGradually` trains with a penalty whose strength follows the epoch, and then ties for good."""

import csv

import keras
import numpy as np
import pytest
from keras import layers, optimizers
from keras.callbacks import BackupAndRestore, Callback, CSVLogger, EarlyStopping, ModelCheckpoint, SwapEMAWeights
from support.backends import array
from support.errors import raises_tying_error
from support.models import IMAGE, MODES, compile_model, conv, make, subclassed, train

import kernel_tying as kt

MIRROR = kt.patterns.mirror((3, 3))
EMA = {"learning_rate": 0.05, "use_ema": True, "ema_momentum": 0.5}
OPTIMIZERS = {
    "momentum": lambda: optimizers.SGD(0.05, momentum=0.9),
    "adam": lambda: optimizers.Adam(0.05),
    "averaging": lambda: optimizers.SGD(**EMA),
    "overwriting": lambda: optimizers.SGD(**EMA, ema_overwrite_frequency=2),
}


def small(**options):
    pool = layers.GlobalAveragePooling2D(name="pool")
    return keras.Sequential([keras.Input(IMAGE), conv("first", 3, **options), pool])


def model(optimizer="momentum", *, builder=small, is_compiled=False):
    # Eager steps spare each test a trace. Where steps are compiled, JAX compiles them with XLA.
    options = {"run_eagerly": not is_compiled, "jit_compile": is_compiled and keras.backend.backend() == "jax"}
    return compile_model(make(builder), optimizer=OPTIMIZERS[optimizer](), **options)


def fit(trained, *callbacks, epochs=4, **options):
    """Fits a step an epoch."""
    return train(trained, epochs=epochs, callbacks=list(callbacks), **options)


def assert_same(first, second):
    for one, other in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(array(one), array(other))


@pytest.mark.parametrize(
    ("schedule", "is_compiled"),
    [(2.0, False), (2.0, True), (lambda epoch: [0.1, 0.0, 3.0][epoch], False)],
    ids=["ramp", "compiled ramp", "function"],
)
def test_each_epoch_trains_with_its_strength_and_the_last_ties(schedule, is_compiled):
    expected, found = (model(is_compiled=is_compiled) for _ in range(2))
    for epoch in range(3):
        kt.penalize(expected, "mirror", schedule(epoch) if callable(schedule) else schedule * (epoch + 1) / 3)
        fit(expected, epochs=epoch + 1, initial_epoch=epoch)
    fit(kt.apply_tying(kt.strip_tying(expected), "mirror"), epochs=5, initial_epoch=3)

    fit(found, kt.TieGradually("mirror", 3, schedule), epochs=5)

    assert kt.tying_error(found) == 0.0
    for one, other in zip(found.variables, expected.variables, strict=True):
        np.testing.assert_allclose(array(one), array(other), rtol=2e-4, atol=2e-6)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="torch steps are not traced")
def test_the_strength_changes_without_another_trace(monkeypatch):
    calls = []
    penalty = kt.TyingPenalty.__call__
    monkeypatch.setattr(kt.TyingPenalty, "__call__", lambda self, kernel: calls.append(1) or penalty(self, kernel))

    class Count(Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["calls"] = len(calls)

    history = fit(model(is_compiled=True), Count(), kt.TieGradually("mirror", 4), epochs=5).history

    assert len(set(history["calls"])) == 1


@pytest.mark.parametrize(
    ("epochs", "optimizer"),
    [
        (None, "momentum"),
        (1, "adam"),
        (9, "momentum"),
        (2, "averaging"),
        (9, "overwriting"),
    ],
)
def test_training_ends_tied_to_the_bit(epochs, optimizer):
    trained = model(optimizer)

    history = fit(trained, kt.TieGradually("mirror", epochs), SwapEMAWeights() if "ing" in optimizer else Callback()).history

    assert kt.tying_error(trained) == 0.0
    assert [error == 0.0 for error in history["tying_error"]] == [epoch + 1 >= (epochs or 4) for epoch in range(4)]


def test_the_tying_error_is_logged_and_falls(tmp_path):
    trained = model()
    kernel = trained.get_layer("first").kernel

    class Distance(Callback):
        def on_epoch_end(self, epoch, logs=None):
            values = array(kernel)
            logs["distance"] = np.linalg.norm(values - values[:, ::-1]) / 2 / np.linalg.norm(values)

    history = fit(
        trained, kt.TieGradually("mirror", strength=5.0), Distance(), CSVLogger(tmp_path / "log.csv"), epochs=9
    ).history

    assert history["tying_error"] == pytest.approx(history["distance"], rel=1e-4, abs=1e-7)
    assert history["tying_error"][-2] < 0.5 * history["tying_error"][0]
    with (tmp_path / "log.csv").open() as lines:
        logged = [float(row["tying_error"]) for row in csv.DictReader(lines)]
    assert logged == pytest.approx(history["tying_error"])


class Kill(Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("killed", "order", "optimizer"),
    [(1, "before", "adam"), (3, "after", "averaging")],
)
def test_a_resumed_training_ends_with_the_same_weights(killed, order, optimizer, tmp_path):
    interrupted, resumed, uninterrupted = (model(optimizer) for _ in range(3))

    def callbacks():
        return [kt.TieGradually("mirror", 2), BackupAndRestore(tmp_path / "backup")][:: 1 if order == "before" else -1]

    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, *callbacks(), Kill(killed))

    history = fit(resumed, *callbacks())

    fit(uninterrupted, kt.TieGradually("mirror", 2))
    assert history.epoch == list(range(killed, 4))
    assert kt.tying_error(resumed) == 0.0
    assert_same(resumed, uninterrupted)


def test_training_leaves_no_penalty_and_no_variables_behind():
    trained = model(builder=lambda: small(kernel_regularizer="l2"))
    paths = [variable.path for variable in trained.variables]

    fit(trained, kt.TieGradually("mirror"))

    assert [variable.path for variable in trained.variables] == paths
    assert type(trained.get_layer("first").kernel.regularizer) is keras.regularizers.L2
    assert type(trained.get_layer("first").kernel_regularizer) is keras.regularizers.L2


def test_a_second_training_with_the_same_callback_stays_tied():
    trained, callback = model(), kt.TieGradually("mirror")

    fit(trained, callback)
    history = fit(trained, callback).history

    assert history["tying_error"] == [0.0] * 4


@pytest.mark.parametrize("mode", MODES)
def test_a_callback_ties_another_model_too(mode):
    callback, second = kt.TieGradually("mirror", mode=mode), model()
    fit(model(), callback)

    history = fit(second, callback).history

    assert [error == 0.0 for error in history["tying_error"]] == [False, False, False, True]
    assert kt.tying_error(callback.tied_model) == 0.0


def test_training_that_stops_early_ends_tied():
    trained = model()

    history = fit(trained, EarlyStopping("loss", patience=0, min_delta=1e9), kt.TieGradually("mirror"))

    assert len(history.epoch) < 4
    assert kt.tying_error(trained) == 0.0


def test_parameterization_gives_a_parameterized_model_with_the_kernels_of_the_trained_one():
    trained, callback = model(), kt.TieGradually("mirror", mode="parameterization")

    fit(trained, callback)

    tied = callback.tied_model
    assert [row.mode for row in kt.tying_report(tied).rows if row.pattern] == ["parameterization"]
    np.testing.assert_array_equal(array(tied.get_layer("first").kernel), array(trained.get_layer("first").kernel))
    assert trained.get_layer("first").kernel.constraint is None
    fit(tied)
    assert kt.tying_error(tied) == 0.0


def test_the_tied_model_of_constraint_mode_is_the_trained_one():
    trained, callback = model(), kt.TieGradually("mirror")

    fit(trained, callback)

    assert callback.tied_model is trained


def test_subclassed_models_are_tied_too():
    trained = model(builder=subclassed)

    with pytest.warns(UserWarning, match="does not describe"):
        fit(trained, kt.TieGradually({"#0": "mirror"}))

    assert kt.tying_error(trained) == 0.0


def test_checkpoints_hold_the_penalty_of_their_epoch(tmp_path):
    fit(model(), kt.TieGradually("mirror", 2, 3.0), ModelCheckpoint(str(tmp_path / "{epoch}.keras")), epochs=3)

    first, *tied = (keras.saving.load_model(file) for file in sorted(tmp_path.iterdir()))

    assert first.get_layer("first").kernel_regularizer.get_config()["strength"] == 1.5
    assert [kt.tying_error(loaded) for loaded in tied] == [0.0, 0.0]


def test_stripping_ends_an_interrupted_training():
    trained, untouched = model(), model()
    with pytest.raises(KeyboardInterrupt):
        fit(trained, kt.TieGradually("mirror"), Kill(2))

    stripped = kt.strip_tying(trained)

    assert stripped.losses == []
    assert len(stripped.variables) == len(untouched.variables)
    fit(kt.apply_tying(stripped, "mirror", mode="parameterization"))


@pytest.mark.parametrize(
    ("options", "received"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 1.5}, "epochs=1.5"),
        ({"strength": -1.0}, "strength=-1.0"),
        ({"mode": "soft"}, "mode='soft'"),
    ],
    ids=["no epochs", "part of an epoch", "negative", "unknown mode"],
)
def test_arguments_are_checked_at_once(options, received):
    with raises_tying_error(received):
        kt.TieGradually("mirror", **options)


def test_patterns_that_tie_nothing_are_refused_before_training():
    trained, untouched = model(), model()

    with raises_tying_error("nowhere"):
        fit(trained, kt.TieGradually({"nowhere": "mirror"}))

    assert_same(trained, untouched)
    assert trained.losses == []
