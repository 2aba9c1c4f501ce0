"""How tied layers convolve: whatever the way, the stock layer that holds the expanded kernel is the oracle."""

import importlib
import pkgutil
import re
from unittest import mock

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers, ops
from support.backends import array, gradients
from support.oracles import dense_adjoint

import kernel_tying as kt
from kernel_tying import testing
from kernel_tying._convolution import generic, sums
from kernel_tying._convolution.geometry import Geometry
from kernel_tying._layers import algorithm

CONVOLVING = (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv1D, layers.DepthwiseConv2D)
QUESTION = kt.TyingPattern.parse("AABCC/AABCC/DDEFF/GGHII/GGHII")
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 64)).astype("float32")


@pytest.fixture(autouse=True)
def measured_device(monkeypatch):
    """Lets machines with accelerators, on which nothing was measured, choose as CPUs do."""
    monkeypatch.setattr(algorithm.BACKEND, "hardware_without_benchmarks", lambda: "")


@pytest.fixture(autouse=True)
def forgotten_ways():
    """Lets each test decide and time on its own."""
    yield
    algorithm._cached_decision.cache_clear()


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


@given(testing.stock_layers(classes=CONVOLVING, max_kernel_size=3), st.data())
def test_group_sums_give_the_outputs_and_gradients_of_the_stock_layer(problem, data):
    layer, inputs = problem
    pattern = data.draw(testing.patterns(shape=tuple(layer.kernel_size)))
    by_sums = tied(layer, pattern, shape=inputs.shape)

    assert row(by_sums).convolution == "group_sums"
    assert_like_the_stock_layer(by_sums, pattern, inputs)


@given(testing.stock_layers(classes=CONVOLVING, max_kernel_size=3), st.data())
def test_factors_give_the_outputs_and_gradients_of_the_stock_layer(problem, data):
    layer, inputs = problem
    pattern = data.draw(testing.patterns(shape=tuple(layer.kernel_size)))
    exported = tied(layer, pattern, shape=inputs.shape)

    with mock.patch.object(algorithm.BACKEND, "is_exporting", return_value=True):
        assert row(exported).convolution == "factors"
        assert_like_the_stock_layer(exported, pattern, inputs)


def assert_like_the_stock_layer(layer, pattern, inputs):
    by_kernel = kt.apply_tying(kt.strip_tying(layer), {layer.name: pattern}, mode="parameterization", convolution="kernel")
    assert_close(array(layer(inputs)), array(by_kernel(inputs)))
    pairs = [gradients(lambda one=one: loss(one, inputs), one.trainable_variables) for one in (layer, by_kernel)]
    for one, other in zip(*pairs, strict=True):
        assert_close(one, other, 1e-4)


def test_a_batch_without_samples_has_outputs_without_samples_and_no_gradient():
    layer = tied(layers.Conv2D(8, 5), QUESTION)
    inputs = ops.convert_to_tensor(IMAGES[:0])

    assert tuple(layer(inputs).shape) == (0, *layer.compute_output_shape(IMAGES.shape)[1:])
    for gradient in gradients(lambda: ops.sum(layer(inputs)), layer.trainable_variables):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("scaling", ["values", "orthonormal"])
def test_group_sums_know_scaling(scaling):
    by_sums = tied(layers.Conv2D(6, 5, padding="same", activation="tanh"), QUESTION, scaling=scaling)

    assert_close(array(by_sums(IMAGES)), array(kt.strip_tying(by_sums)(IMAGES)))


@pytest.mark.machine
@pytest.mark.parametrize("cls", [layers.Conv2D, layers.DepthwiseConv2D], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("is_exporting", [False, True])
def test_group_sums_with_channels_first_are_those_with_channels_last(monkeypatch, cls, is_exporting):
    monkeypatch.setattr(algorithm.BACKEND, "is_exporting", lambda: is_exporting)
    options = {"padding": "same", "activation": "tanh", "kernel_size": 5} | ({"filters": 6} if cls is layers.Conv2D else {})
    first, last = (cls(data_format=f"channels_{order}", **options) for order in ("first", "last"))
    inputs = np.moveaxis(IMAGES, -1, 1)
    by_sums = tied(first, QUESTION, shape=inputs.shape)
    last.build(IMAGES.shape)
    last.set_weights(kt.strip_tying(by_sums).get_weights())

    assert_close(array(by_sums(inputs)), np.moveaxis(array(last(IMAGES)), -1, 1))


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16", "bfloat16", "float64"])
def test_group_sums_are_taken_in_a_precision_that_is_wide_enough(dtype, double_precision):
    by_sums = tied(layers.Conv2D(8, 5, padding="same", dtype=dtype), QUESTION)
    wide = layers.Conv2D(8, 5, padding="same", dtype="float64")
    wide.build(IMAGES.shape)
    wide.kernel.assign(array(ops.cast(by_sums.kernel, "float64")))
    tolerance = {"mixed_bfloat16": 2**-5, "bfloat16": 2**-5, "mixed_float16": 2**-8, "float64": 2**-46}[dtype]

    assert_close(array(ops.cast(by_sums(IMAGES), "float64")), array(wide(IMAGES)), tolerance)


def gradients_of(layer):
    """Returns the gradients of a loss in the inputs and in the kernel or its free weights."""
    inputs = keras.Variable(IMAGES)
    return gradients(lambda: loss(layer, inputs.value), [inputs, layer.trainable_variables[0]])


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_gradients_of_group_sums_in_mixed_precision_are_as_exact_as_those_of_the_stock_layer(dtype):
    keras.utils.set_random_seed(0)
    by_sums = tied(layers.Conv2D(8, 5, padding="same", dtype=dtype), QUESTION)
    stock, exact = kt.strip_tying(by_sums), layers.Conv2D(8, 5, padding="same", dtype="float32")
    exact.build(IMAGES.shape)
    exact.set_weights(stock.get_weights())

    (in_inputs, in_free), *others = (gradients_of(layer) for layer in (by_sums, stock, exact))

    # How exact the stock layer is depends on the CPU.
    (stock_in_inputs, stock_in_free), (true_in_inputs, true_in_free) = (
        (of_inputs, dense_adjoint(of_kernel, QUESTION)) for of_inputs, of_kernel in others
    )
    for found, of_stock, true in ((in_inputs, stock_in_inputs, true_in_inputs), (in_free, stock_in_free, true_in_free)):
        assert np.abs(found - true).max() <= 2 * np.abs(of_stock - true).max()


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
        pytest.param(lambda: OwnCall(4, 5), QUESTION, "OwnCall does not support group sums", id="call"),
        pytest.param(lambda: OwnConvolution(4, 5), QUESTION, "OwnConvolution does not support group sums", id="convolution_op"),
        pytest.param(
            lambda: layers.Conv2DTranspose(4, 5), QUESTION, "Conv2DTranspose does not support group sums", id="transpose"
        ),
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
        ({"strides": 2}, "group_sums", "2.5 pay at 64 channels with strides"),
        ({"groups": 2}, "kernel", "groups"),
        ({"strides": 2, "filters": 32}, "kernel", "no saving pays at 32 channels with strides"),
        ({"dtype": "mixed_bfloat16"}, "kernel", "not measured on bfloat16"),
    ],
    ids=str,
)
def test_auto_takes_group_sums_where_measurements_say_that_they_pay(monkeypatch, options, expected, reason):
    monkeypatch.setattr(algorithm.BACKEND, "break_even_reductions", lambda *about: {64: 2.5, 128: 1.5})
    layer = tied(layers.Conv2D(**{"filters": 64, "kernel_size": 5, **options}), QUESTION, "auto")

    assert row(layer).convolution == expected
    assert reason in row(layer).convolution_reason


def test_auto_counts_the_filters_of_first_layers(monkeypatch):
    by_kind = {"first": {64: 2.5}}
    monkeypatch.setattr(algorithm.BACKEND, "break_even_reductions", lambda kind, is_compiled: by_kind.get(kind))
    colors, features = (tied(layers.Conv2D(64, 5), QUESTION, "auto", (None, 8, 8, channels)) for channels in (3, 5))

    assert row(colors).convolution == "group_sums"
    assert row(colors).convolution_reason.endswith("2.5 pay at 64 filters of few channels")
    assert row(features).convolution == "kernel"


@pytest.mark.parametrize(("savings", "expected"), [({1: 1.0}, "group_sums"), ({}, "kernel")])
def test_auto_asks_for_depthwise_layers_on_their_own_whatever_their_strides(monkeypatch, savings, expected):
    monkeypatch.setattr(
        algorithm.BACKEND, "break_even_reductions", lambda kind, is_compiled: savings if kind == "depthwise" else None
    )
    layer = tied(layers.DepthwiseConv2D(5, strides=2), QUESTION, "auto")

    assert row(layer).convolution == expected
    assert row(layer).convolution_reason.endswith("in depthwise layers")


def test_auto_takes_the_stock_convolution_where_nothing_was_measured(monkeypatch):
    monkeypatch.setattr(algorithm.BACKEND, "threads", lambda: 96)

    layer = tied(layers.Conv2D(64, 5), QUESTION, "auto")

    assert (row(layer).convolution, row(layer).convolution_reason) == (
        "kernel",
        "not measured on 96 threads: `kt.tune` would measure",
    )


@pytest.fixture
def seconds(monkeypatch):
    """The times that functions seem to take, and how often they were asked for."""
    times = {"kernel": 3.0, "group_sums": 2.0, "asked": 0}

    def shortest_times(functions):
        times["asked"] += 1
        for function in functions.values():
            function()
        return {name: times[name] for name in functions}

    monkeypatch.setattr(algorithm, "shortest_times", shortest_times)
    return times


@pytest.mark.parametrize(
    ("layer", "group_sums"),
    [(layers.Conv2D(4, 5, strides=2), 2.0), (layers.Conv2D(4, 5, strides=2), 4.5), (layers.DepthwiseConv2D(5), 2.0)],
    ids=["faster", "slower", "faster depthwise"],
)
def test_tune_takes_the_way_that_took_less_time_and_measures_once(seconds, layer, group_sums):
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
    monkeypatch.setattr(algorithm.BACKEND, "hardware_without_benchmarks", lambda: "accelerators")

    assert row(tied(layers.Conv2D(4, 5), QUESTION, "tune")).convolution_reason.startswith("not measured on accelerators")
    assert seconds["asked"] == 0


@given(testing.stock_layers(classes=CONVOLVING, max_kernel_size=3), st.data())
def test_the_stock_convolution_that_is_timed_is_that_of_the_layer(problem, data):
    layer, inputs = problem
    bare = type(layer).from_config({**layer.get_config(), "use_bias": False, "activation": None})
    by_kernel = tied(bare, data.draw(testing.patterns(shape=tuple(layer.kernel_size))), "kernel", inputs.shape)

    outputs = by_kernel(inputs)

    problem = algorithm._problem(by_kernel.layer, by_kernel.kernel, inputs.shape)
    timed = algorithm._stock_convolution(problem, ops.convert_to_tensor(inputs), ops.convert_to_tensor(by_kernel.kernel))
    np.testing.assert_array_equal(array(timed), array(outputs))


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
    def broken(geometry, size):
        raise ZeroDivisionError("planted")

    layer = tied(layers.Conv2D(3, 5), QUESTION)
    inputs = IMAGES[:, :7, :6]  # of a size that no function is compiled for yet
    monkeypatch.setattr(Geometry, "adjoint_padding", broken)

    with pytest.raises(ZeroDivisionError, match="planted"):
        gradients(lambda: loss(layer, inputs), layer.trainable_variables)


def sizes_of_images():
    return [IMAGES[:1, :size, :8, :4] for size in (6, 7, 8)]


def test_equal_problems_are_traced_once_for_each_shape(monkeypatch):
    traces = []
    product_of = generic.product_of
    monkeypatch.setattr(generic, "product_of", lambda *arguments: traces.append(1) or product_of(*arguments))
    counts = []

    for _ in range(3):  # with patterns and geometries that are equal and not the same
        layer = tied(layers.Conv2D(2, 5), kt.TyingPattern(QUESTION.labels), shape=(None, None, 8, 4))
        for images in sizes_of_images():
            gradients(lambda layer=layer, images=images: loss(layer, images), layer.trainable_variables)
            layer(images)
        counts.append(len(traces))

    assert counts[0] == counts[1] == counts[2]


def test_a_way_is_decided_once_whatever_the_batch(monkeypatch):
    asked = []
    monkeypatch.setattr(algorithm.BACKEND, "break_even_reductions", lambda *about: asked.append(about) or {})
    layer = tied(layers.Conv2D(64, 5), QUESTION, "auto")

    for batch in (1, 2, 1, 2):
        layer(IMAGES[:batch])

    assert len(asked) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"strides": (2, 2)},
        {"dilation_rate": (2, 2), "padding": "same"},
        {"padding": "same"},
        {"dtype_policy": keras.DTypePolicy("mixed_bfloat16")},
    ],
    ids=str,
)
def test_a_layer_whose_options_change_between_calls_convolves_by_the_new_ones(change):
    layer = tied(layers.Conv2D(4, 5), QUESTION)
    layer(IMAGES)

    for name, value in change.items():
        setattr(layer.layer, name, value)

    assert_close(array(ops.cast(layer(IMAGES), "float32")), array(ops.cast(kt.strip_tying(layer)(IMAGES), "float32")), 2**-5)


def test_a_choice_changes_with_the_option_convolution():
    layer = tied(layers.Conv2D(4, 5), QUESTION)
    ways = []

    for convolution in ("group_sums", "kernel", "group_sums"):
        layer.convolution = convolution
        layer(IMAGES)
        ways.append(row(layer).convolution)

    assert ways == ["group_sums", "kernel", "group_sums"]


@pytest.mark.parametrize(("convolution", "exported"), [("group_sums", "factors"), ("auto", "kernel"), ("tune", "kernel")])
def test_an_export_after_calls_takes_the_form_for_exporters_and_later_calls_do_not(monkeypatch, convolution, exported):
    monkeypatch.setattr(algorithm, "_fastest_timed", lambda *_: algorithm.Algorithm("group_sums", ""))
    monkeypatch.setattr(algorithm, "_fastest_by_benchmarks", lambda *_: algorithm.Algorithm("group_sums", ""))
    model = keras.Sequential([keras.Input(IMAGES.shape[1:]), layers.Conv2D(4, 5)])
    model = kt.apply_tying(model, QUESTION, mode="parameterization", convolution=convolution)
    ways = []

    def note(*_, **__):
        model(IMAGES)
        ways.append(row(model).convolution)

    monkeypatch.setattr("keras.src.export.export_onnx", note)
    note()
    model.export("model.onnx", format="onnx")
    note()

    assert ways == ["group_sums", exported, "group_sums"]


OTHER_BACKENDS = {"jax", "tensorflow", "torch"} - {keras.backend.backend()}


def test_all_caches_are_bounded():
    names = [module.name for module in pkgutil.walk_packages(kt.__path__, "kernel_tying.")]
    own = [name for name in names if name.rpartition(".")[2] not in OTHER_BACKENDS]
    caches = [value for name in own for value in vars(importlib.import_module(name)).values() if hasattr(value, "cache_info")]

    assert len(caches) >= 8
    assert all(cache.cache_info().maxsize is not None for cache in caches)


@pytest.mark.parametrize("convolution", ["auto", "tune"])
def test_the_choice_does_not_search_for_shared_sums_of_groups(monkeypatch, convolution):
    monkeypatch.setattr(sums, "_shared", None)  # fails if it is called
    monkeypatch.setattr(algorithm, "shortest_times", lambda functions: {"kernel": 1.0, "group_sums": 2.0})
    layer = tied(layers.Conv2D(2, 60), kt.patterns.constant((60, 60)), convolution, shape=(1, 64, 64, 1))

    layer(np.zeros((1, 64, 64, 1), "float32"))

    assert row(layer).convolution == "kernel"


@given(testing.stock_layers(classes=CONVOLVING, max_kernel_size=3), st.data())
def test_products_are_counted_as_there_are_sums_of_groups(problem, data):
    layer, inputs = problem
    layer = tied(layer, data.draw(testing.patterns(shape=tuple(layer.kernel_size))), shape=inputs.shape)

    problem = algorithm._problem(layer.layer, layer.kernel, inputs.shape)

    assert problem.products == len(sums.group_sums(problem.pattern, problem.kernel_size).groups)


def outcome(function, inputs):
    """Returns the outputs of a function and their dtype, or None if it refuses the inputs."""
    try:
        outputs = function(inputs)
    except Exception:  # each backend has errors of its own
        return None
    return array(outputs), keras.backend.standardize_dtype(outputs.dtype)


@pytest.mark.parametrize("convolution", ["auto", "group_sums", "kernel"])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Conv1D(8, 3, padding="causal"),
        lambda: layers.Conv2D(64, 3, padding="same", activation="relu"),
        lambda: layers.Conv3D(8, 3),
        lambda: layers.DepthwiseConv1D(3),
        lambda: layers.DepthwiseConv2D(3, padding="same"),
    ],
    ids=["Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D"],
)
def test_inputs_of_another_dtype_are_convolved_or_refused_as_by_the_stock_layer(layer, dtype, convolution):
    layer = layer()
    shape = (2, *[6] * len(layer.kernel_size), 64)
    by_sums = tied(layer, "mirror", convolution, shape)
    planes = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)

    expected = outcome(kt.strip_tying(by_sums), ops.convert_to_tensor(planes))

    found = outcome(by_sums, ops.convert_to_tensor(planes))
    assert (found is None) == (expected is None)
    if expected is not None:
        assert found[1] == expected[1]
        assert_close(found[0], expected[0])


def trained(model, planes):
    """Returns the predictions of a model before and after a step."""
    model.compile("sgd", "mse")
    before = model.predict(planes, verbose=0)
    model.fit(planes, np.zeros_like(before), verbose=0)
    return ops.convert_to_tensor(np.stack([before, model.predict(planes, verbose=0)]))


@pytest.mark.parametrize("convolution", ["auto", "group_sums"])
@pytest.mark.parametrize("dtype", ["int8", "float32"])  # of the model's input; the data are integers
def test_a_model_predicts_and_fits_integers_as_the_stock_model(dtype, convolution):
    model = keras.Sequential([keras.Input((8, 8, 64), dtype=dtype), layers.Conv2D(64, 3, padding="same")])
    by_sums = kt.apply_tying(model, "dihedral", mode="parameterization", convolution=convolution)
    planes = np.random.default_rng(0).integers(0, 2, (4, 8, 8, 64)).astype("int8")

    expected = outcome(lambda inputs: trained(kt.apply_tying(model, "dihedral", mode="parameterization"), inputs), planes)

    assert (outcome(kt.strip_tying(by_sums).predict, planes) is None) == (expected is None)
    found = outcome(lambda inputs: trained(by_sums, inputs), planes)
    assert (found is None) == (expected is None)
    if expected is not None:
        assert_close(found[0], expected[0])
