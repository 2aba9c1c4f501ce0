"""`tune` times both algorithms of each tied convolution, and fixes the faster as the layer's option."""

import json
from unittest import mock

import keras
import numpy as np
import pytest
from keras import layers
from support.backends import array
from support.errors import raises_tying_error
from support.models import subclassed

import kernel_tying as kt
from kernel_tying import tuning
from kernel_tying._layers import algorithm
from kernel_tying._layers.attachment import views


@pytest.fixture
def seconds(monkeypatch):
    """Replaces the clock: group sums are faster with five rows of kernel, and slower with three. Returns what was timed."""
    timed = []

    def shortest_times(steps):
        for step in steps.values():
            step()
        timed.append(list(steps))
        return {"kernel": 2.0, "group_sums": 1.0 if len(timed) == 1 else 4.0}

    monkeypatch.setattr(algorithm, "shortest_times", shortest_times)
    return timed


def network():
    x = keras.Input((8, 8, 3), name="image")
    h = layers.Conv2D(4, 5, padding="same", name="first")(x)
    h = layers.Conv2D(4, 3, padding="same", name="second")(h)
    h = layers.Conv2D(4, 3, padding="same", name="third")(h)
    h = layers.Dense(4, name="dense")(layers.Flatten()(layers.Conv2DTranspose(2, 3, name="transposed")(h)))
    return keras.Model(x, h, name="network")


def tied(mode="parameterization", model=None):
    convolutional = {"first": "dihedral", "second": "mirror", "third": "mirror", "transposed": "mirror"}
    return kt.apply_tying(model or network(), convolutional, mode=mode)


@pytest.mark.parametrize("training", [True, False])
def test_each_layer_gets_its_faster_convolution_and_files_keep_it(seconds, training, tmp_path):
    model = tied()
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    expected = array(model(images))

    report = kt.tune(model, 2, training=training, verbose=0)

    chosen = {"first": "group_sums", "second": "kernel", "third": "kernel", "transposed": "auto"}
    assert {row.layer: row.convolution for row in report.rows} == chosen
    model.save(tmp_path / "tuned.keras")
    for found in (model, keras.saving.load_model(tmp_path / "tuned.keras")):
        assert {name: found.get_layer(name).convolution for name in chosen} == chosen
        np.testing.assert_allclose(array(found(images)), expected, rtol=1e-4, atol=1e-5)


def test_equal_layers_are_timed_once(seconds):
    report = kt.tune(tied(), verbose=0)

    assert seconds == [["kernel", "group_sums"]] * 2
    assert [row.speed_up for row in report.rows] == [2.0, 0.5, 0.5, None]
    assert report.rows[-1].reason == "Conv2DTranspose does not support group sums"


def test_layers_that_are_tied_in_place_are_tuned_too(seconds):
    with pytest.warns(UserWarning, match="does not describe all tied layers"):
        model = kt.apply_tying(subclassed(), "mirror", mode="parameterization")

    report = kt.tune(model, verbose=0)

    chosen = [row.convolution for row in report.rows]
    assert chosen[0] == "group_sums"
    assert [view.convolution for layer in model.layers for view in views(layer).values()] == chosen


def test_interrupted_timing_leaves_the_options_as_they_were(monkeypatch):
    model = tied()
    monkeypatch.setattr(
        tuning, "time_algorithms", mock.Mock(side_effect=[{"kernel": 2.0, "group_sums": 1.0}, KeyboardInterrupt])
    )

    with pytest.raises(KeyboardInterrupt):
        kt.tune(model, verbose=0)

    assert model.get_layer("first").convolution == "auto"


def test_a_tuned_model_trains_by_its_new_convolutions(seconds):
    model = tied()
    model.compile("sgd", "mse")
    images, answers = np.ones((2, 8, 8, 3), "float32"), np.ones((2, 4), "float32")
    model.fit(images, answers, verbose=0)

    kt.tune(model, verbose=0)

    assert model.train_function is None, "the traced step has the old convolutions"
    model.fit(images, answers, verbose=0)


def test_a_report_is_a_table_and_a_dict(seconds):
    report = kt.tune(tied(), 4, verbose=0)

    assert "outputs and gradients of 4 samples" in repr(report)
    assert [line.split()[1:4] for line in repr(report).splitlines() if line.strip().startswith("first")] == [
        ["2000.00", "1000.00", "2.00"]
    ]
    assert report._repr_html_().count("<tr>") == 5
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["speed_up"] == 2.0


def test_progress_is_shown(seconds, capsys):
    kt.tune(tied(), verbose=1)

    assert "4/4" in capsys.readouterr().out


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, "8"])
def test_a_batch_size_is_a_positive_integer(batch_size):
    with raises_tying_error(f"batch_size={batch_size!r}"):
        kt.tune(tied(), batch_size)


@pytest.mark.parametrize("make", [network, lambda: tied("constraint")], ids=["stock", "constraint"])
def test_models_without_a_choice_are_refused(make):
    with raises_tying_error("'network'"):
        kt.tune(make())


def test_tuning_times_this_machine():
    (first, *_) = kt.tune(tied(), 1, verbose=0).rows

    assert first.kernel > 0
    assert first.group_sums > 0
