"""How tied layers convolve: whatever the way, the stock layer that holds the expanded kernel is the oracle."""

import re

import keras
import numpy as np
import pytest
from helpers import array, dense_adjoint, gradients
from hypothesis import given
from hypothesis import strategies as st
from keras import layers, ops

import kernel_tying as kt
from kernel_tying import dispatch, testing
from kernel_tying.convolution import form

CONVOLVING = (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv1D, layers.DepthwiseConv2D)
QUESTION = kt.TyingPattern.parse("AABCC/AABCC/DDEFF/GGHII/GGHII")
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 64)).astype("float32")


def tied(layer, pattern, convolution="group_sums", shape=IMAGES.shape, **options):
    """Returns a built tied layer."""
    if not layer.built:
        layer.build(shape)
    return kt.apply_tying(layer, {layer.name: pattern}, mode="parameterization", convolution=convolution, **options)


def row(layer):
    return next(row for row in kt.tying_report(layer).rows if row.pattern is not None)


def loss(layer, inputs):
    return ops.mean(ops.square(ops.cast(layer(inputs), "float32") - 0.3))


def assert_close(one, other, tolerance=1e-5):
    assert np.abs(one - other).max() <= tolerance * max(np.abs(other).max(), 1e-3)


@given(testing.stock_layers(classes=CONVOLVING), st.data())
def test_group_sums_give_the_outputs_and_gradients_of_the_stock_layer(problem, data):
    layer, inputs = problem
    pattern = data.draw(testing.patterns(shape=tuple(layer.kernel_size)))
    by_sums = tied(layer, pattern, shape=inputs.shape)
    by_kernel = kt.apply_tying(kt.strip_tying(by_sums), {layer.name: pattern}, mode="parameterization", convolution="kernel")

    assert row(by_sums).convolution == "group_sums"
    assert_close(array(by_sums(inputs)), array(by_kernel(inputs)))
    pairs = [gradients(lambda one=one: loss(one, inputs), one.trainable_variables) for one in (by_sums, by_kernel)]
    for one, other in zip(*pairs, strict=True):
        assert_close(one, other, 1e-4)


def test_a_batch_without_samples_has_outputs_without_samples_and_no_gradient():
    layer = tied(layers.Conv2D(8, 5), QUESTION)
    inputs = ops.convert_to_tensor(IMAGES[:0])

    assert tuple(layer(inputs).shape) == (0, *layer.compute_output_shape(IMAGES.shape)[1:])
    for gradient in gradients(lambda: ops.sum(layer(inputs)), layer.trainable_variables):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("scaling", ["values", "orthonormal"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_group_sums_know_scaling_and_data_format(scaling, data_format):
    layer = layers.Conv2D(6, 5, padding="same", data_format=data_format, activation="tanh")
    inputs = IMAGES if data_format == "channels_last" else np.moveaxis(IMAGES, -1, 1)
    by_sums = tied(layer, QUESTION, scaling=scaling, shape=inputs.shape)

    assert_close(array(by_sums(inputs)), array(kt.strip_tying(by_sums)(inputs)))


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16", "bfloat16", "float64"])
def test_group_sums_are_taken_in_a_precision_that_is_wide_enough(dtype, double_precision):
    by_sums = tied(layers.Conv2D(8, 5, padding="same", dtype=dtype), QUESTION)
    wide = layers.Conv2D(8, 5, padding="same", dtype="float64")
    wide.build(IMAGES.shape)
    wide.kernel.assign(array(ops.cast(by_sums.kernel, "float64")))
    tolerance = {"mixed_bfloat16": 2**-5, "bfloat16": 2**-5, "mixed_float16": 2**-8, "float64": 2**-46}[dtype]

    assert_close(array(ops.cast(by_sums(IMAGES), "float64")), array(wide(IMAGES)), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("mixed_bfloat16", 2**-7), ("mixed_float16", 2**-9)])
def test_gradients_of_group_sums_in_mixed_precision_are_those_of_the_stock_layer(dtype, tolerance):
    by_sums = tied(layers.Conv2D(8, 5, padding="same", dtype=dtype), QUESTION)
    stock, inputs = kt.strip_tying(by_sums), keras.Variable(IMAGES)

    (in_inputs, in_free), (stock_in_inputs, in_kernel) = (
        gradients(lambda layer=layer: loss(layer, inputs.value), [inputs, layer.trainable_variables[0]])
        for layer in (by_sums, stock)
    )

    assert_close(in_inputs, stock_in_inputs, tolerance)
    assert_close(in_free, dense_adjoint(in_kernel, QUESTION), tolerance)


def test_group_sums_beyond_the_range_of_float16_do_not_overflow():
    layer = tied(layers.Conv2D(8, 5, dtype="mixed_float16"), kt.patterns.constant((5, 5)))
    layer.kernel.assign(np.full((5, 5, 64, 8), 2.0**-12))

    outputs = array(layer(np.full(IMAGES.shape, 2.0**12, "float32")))

    np.testing.assert_array_equal(outputs, 25 * 64.0)


class OwnCall(layers.Conv2D):
    def call(self, inputs):
        return super().call(inputs) * 2


class OwnConvolution(layers.Conv2D):
    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel) * 2


@pytest.mark.parametrize(
    ("layer", "pattern", "reason"),
    [
        pytest.param(lambda: OwnCall(4, 5), QUESTION, "OwnCall lets no other", id="call"),
        pytest.param(lambda: OwnConvolution(4, 5), QUESTION, "OwnConvolution lets no other", id="convolution_op"),
        pytest.param(lambda: layers.Conv2DTranspose(4, 5), QUESTION, "Conv2DTranspose lets no other", id="transpose"),
        pytest.param(
            lambda: layers.Conv2D(2, 2),
            kt.TyingPattern(np.arange(256).reshape(2, 2, 64, 1) % 3),
            "ties channels",
            id="channels",
        ),
    ],
)
def test_a_layer_that_cannot_take_group_sums_convolves_as_ever_and_the_report_says_why(layer, pattern, reason):
    by_kernel = tied(layer(), pattern)

    assert (row(by_kernel).convolution, reason in row(by_kernel).convolution_reason) == ("kernel", True)
    np.testing.assert_array_equal(array(by_kernel(IMAGES)), array(kt.strip_tying(by_kernel)(IMAGES)))


@pytest.mark.parametrize(
    ("options", "expected", "reason"),
    [
        ({}, "group_sums", "2.8 times fewer products"),
        ({"filters": 32}, "kernel", "no saving pays at 32 channels"),
        ({"strides": 2}, "kernel", "strides"),
        ({"groups": 2}, "kernel", "groups"),
        ({"dtype": "mixed_bfloat16"}, "kernel", "not measured on bfloat16"),
    ],
    ids=str,
)
def test_auto_takes_group_sums_where_measurements_say_that_they_pay(monkeypatch, options, expected, reason):
    monkeypatch.setattr(dispatch._BACKEND, "savings_that_pay", lambda *about: {64: 2.5, 128: 1.5})
    layer = tied(layers.Conv2D(**{"filters": 64, "kernel_size": 5, **options}), QUESTION, "auto")

    assert row(layer).convolution == expected
    assert reason in row(layer).convolution_reason


@pytest.mark.parametrize(("savings", "expected"), [({1: 1.0}, "group_sums"), ({}, "kernel")])
def test_auto_asks_for_depthwise_layers_on_their_own_whatever_their_strides(monkeypatch, savings, expected):
    monkeypatch.setattr(
        dispatch._BACKEND, "savings_that_pay", lambda is_depthwise, is_compiled: savings if is_depthwise else None
    )
    layer = tied(layers.DepthwiseConv2D(5, strides=2), QUESTION, "auto")

    assert row(layer).convolution == expected
    assert row(layer).convolution_reason.endswith("in depthwise layers")


def test_auto_takes_the_stock_convolution_where_nothing_was_measured(monkeypatch):
    monkeypatch.setattr(dispatch._BACKEND, "threads", lambda: 96)

    layer = tied(layers.Conv2D(64, 5), QUESTION, "auto")

    assert (row(layer).convolution, row(layer).convolution_reason) == ("kernel", "not measured on 96 threads")


@pytest.fixture
def seconds(monkeypatch):
    """The times that functions seem to take, and how often they were asked for."""
    times = {"kernel": 3.0, "group_sums": 2.0, "asked": 0}

    def shortest_times(functions):
        times["asked"] += 1
        for function in functions.values():
            function()
        return {name: times[name] for name in functions}

    monkeypatch.setattr(dispatch, "shortest_times", shortest_times)
    monkeypatch.setattr(dispatch, "_timed_ways", {})
    return times


@pytest.mark.parametrize("group_sums", [2.0, 4.5], ids=["faster", "slower"])
@pytest.mark.parametrize(
    "layer", [layers.Conv2D(4, 5, strides=2), layers.DepthwiseConv2D(5)], ids=lambda one: type(one).__name__
)
def test_tune_takes_the_way_that_took_less_time_and_measures_once(seconds, group_sums, layer):
    seconds["group_sums"] = group_sums
    model = keras.Sequential([keras.Input(IMAGES.shape[1:]), type(layer).from_config(layer.get_config()), layers.Flatten()])
    model = kt.apply_tying(model, QUESTION, mode="parameterization", convolution="tune")

    model.compile("sgd", "mse")
    model.fit(IMAGES, np.zeros((2, *model.output_shape[1:])), batch_size=1, verbose=0)

    expected, other = ("group_sums", "kernel") if group_sums < 3 else ("kernel", "group_sums")
    assert row(model).convolution == expected
    assert row(model).convolution_reason == f"1.5 times as fast as {other!r}, timed here"
    assert seconds["asked"] == 1
    assert_close(array(model(IMAGES)), array(kt.strip_tying(model)(IMAGES)))


def test_tune_measures_in_earnest():
    layer = tied(layers.Conv2D(64, 5), QUESTION, "tune")

    assert re.fullmatch(r"\d+\.\d times as fast as '(kernel|group_sums)', timed here", row(layer).convolution_reason)
    assert row(layer).convolution not in row(layer).convolution_reason


def test_tune_takes_the_stock_convolution_on_devices_whose_time_it_cannot_tell(monkeypatch, seconds):
    monkeypatch.setattr(dispatch._BACKEND, "unmeasured", lambda: "accelerators")

    assert row(tied(layers.Conv2D(4, 5), QUESTION, "tune")).convolution_reason == "not measured on accelerators"
    assert seconds["asked"] == 0


@given(testing.stock_layers(classes=CONVOLVING))
def test_the_stock_convolution_that_is_timed_is_that_of_the_layer(problem):
    layer, inputs = problem
    bare = type(layer).from_config({**layer.get_config(), "use_bias": False, "activation": None})

    outputs = bare(inputs)

    np.testing.assert_array_equal(
        array(dispatch._stock_convolution(bare, ops.convert_to_tensor(inputs), bare.kernel)), array(outputs)
    )


def test_a_size_that_is_not_known_keeps_the_stock_convolution():
    model = keras.Sequential([keras.Input((None, None, 64)), layers.Conv2D(64, 5)])

    tied_model = kt.apply_tying(model, QUESTION, mode="parameterization", convolution="group_sums")

    assert row(tied_model).convolution_reason == "the size of the inputs is unknown"


def test_the_way_survives_files_and_stripping_takes_it_away(tmp_path):
    model = keras.Sequential([keras.Input(IMAGES.shape[1:]), layers.Conv2D(4, 5, name="conv")])
    tied_model = kt.apply_tying(model, QUESTION, mode="parameterization", convolution="group_sums")
    tied_model.save(tmp_path / "tied.keras")

    loaded = keras.saving.load_model(tmp_path / "tied.keras")

    assert row(loaded).convolution == "group_sums"
    np.testing.assert_array_equal(array(loaded(IMAGES)), array(tied_model(IMAGES)))
    assert "convolution_op" not in vars(kt.strip_tying(loaded).get_layer("conv"))


def test_an_error_in_the_gradient_surfaces(monkeypatch):
    def broken(tensor, strides):
        raise ZeroDivisionError("planted")

    layer = tied(layers.Conv2D(3, 5), QUESTION)
    inputs = IMAGES[:, :7, :6]  # of a size that no function is compiled for yet
    monkeypatch.setattr(form, "spread", broken)

    with pytest.raises(ZeroDivisionError, match="planted"):
        gradients(lambda: loss(layer, inputs), layer.trainable_variables)
