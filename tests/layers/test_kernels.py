"""The laws of tied layers, over every row of the table of kernels."""

import contextlib
import copy
import itertools
from typing import NamedTuple

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers, ops
from support.backends import array, gradients, train_step
from support.errors import is_refused_alike, raises_tying_error
from support.layers import SCALINGS, randomize, stock_twin, total_loss
from support.models import MODES, assert_equal_values, compile_model, values
from support.oracles import copied_first_members, dense_adjoint, dense_project, root_sizes

import kernel_tying as kt
from kernel_tying import testing
from kernel_tying._layers.table import KERNELS, kernel_names

CELLS = [cls for cls in KERNELS if cls.__name__.endswith("Cell")]


def channel_rank(kernel_name, layer):
    """Returns the number of leading axes that a pattern may tie without having the kernel's rank."""
    return len(getattr(layer, "kernel_size", ())) if kernel_name != "pointwise_kernel" else 0


CLASSES = [*testing.STOCK_LAYERS, *testing.CHANNELWISE_LAYERS]
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


@st.composite
def some_patterns(draw, layer, input_shape):
    """Draws a pattern for some kernels of a layer, at least one."""
    twin = type(layer).from_config(layer.get_config())
    twin.build(input_shape)
    sizes = {name: np.prod(getattr(twin, name).shape) for name in kernel_names(layer)}
    names = draw(st.lists(st.sampled_from([name for name in sizes if sizes[name] > 1]), min_size=1, unique=True))
    return {name: draw(pattern_for_shape(tuple(getattr(twin, name).shape), channel_rank(name, layer))) for name in names}


def pattern_for_shape(shape, spatial_rank):
    """Returns a strategy for patterns that tie spatial axes, or all axes: channels as a whole, in fields, or not at all."""
    divisors = ([size for size in range(1, total + 1) if total % size == 0] for total in shape[-2:])
    shapes = [(*shape[:-2], *channels) for channels in itertools.product(*divisors)]
    shapes += [shape[:spatial_rank]] if spatial_rank else []
    fitting = [one for one in shapes if 1 < np.prod(one) <= 64]
    return st.sampled_from(fitting or [shape]).flatmap(lambda one: testing.patterns(shape=one))


@st.composite
def tied_layers(draw, **options):
    layer, inputs = draw(testing.stock_layers(max_kernel_size=3, **options).filter(lambda drawn: has_axis_to_tie(*drawn)))
    tied = kt.Tied(layer, draw(some_patterns(layer, inputs.shape)), scaling=draw(st.sampled_from(SCALINGS)))
    tied.build(inputs.shape)
    randomize(tied)
    return tied, inputs


def has_axis_to_tie(layer, inputs):
    """Returns whether some kernel of the layer has more than one entry."""
    twin = type(layer).from_config(layer.get_config())
    twin.build(inputs.shape)
    return any(np.prod(getattr(twin, name).shape) > 1 for name in kernel_names(layer))


WITH_FORMATS = [(cls, name) for cls in CLASSES if "Conv" in cls.__name__ for name in ("channels_last", "channels_first")]
WITHOUT_FORMATS = [(cls, None) for cls in CLASSES if "Conv" not in cls.__name__]


@pytest.mark.machine
@pytest.mark.parametrize(
    ("cls", "data_format"), [*WITH_FORMATS, *WITHOUT_FORMATS], ids=lambda value: getattr(value, "__name__", value)
)
@given(data=st.data())
def test_tied_layer_equals_the_stock_layer_that_holds_the_expanded_kernels(cls, data_format, data):
    options = {"data_format": data_format} if data_format else {}
    tied, inputs = data.draw(tied_layers(classes=[cls], **options))
    stock = stock_twin(tied)

    if not is_refused_alike(stock, tied, inputs):
        testing.assert_same_function(tied, stock, inputs, rtol=1e-5, atol=1e-5)


@pytest.mark.machine
@every_class
@given(data=st.data())
def test_gradient_in_the_free_weights_is_b_transposed_times_the_gradient_in_the_kernel(cls, data):
    tied, inputs = data.draw(tied_layers(classes=[cls]))
    stock = stock_twin(tied)
    if is_refused_alike(stock, tied, inputs):
        return
    expected = gradients(lambda: total_loss(stock, inputs), [getattr(stock, name) for name in tied.patterns])

    found = gradients(lambda: total_loss(tied, inputs), [tied.free_weights[name] for name in tied.patterns])

    for name, kernel_gradient, gradient in zip(tied.patterns, expected, found, strict=True):
        adjoint = dense_adjoint(kernel_gradient, tied.patterns[name])
        roots = 1 if tied.scaling == "values" else root_sizes(tied.patterns[name], adjoint)
        np.testing.assert_allclose(gradient, adjoint / roots, rtol=1e-4, atol=1e-5)


IMAGE, STEPS, VOLUME = (7, 6, 4), (8, 4), (5, 4, 4, 2)
SIGNED = kt.TyingPattern.parse("A B -A/B . B/-A C A")
CIRCULANT = kt.patterns.circulant((4, 4))


def in_pairs(*shape):
    """Returns a pattern that ties neighbours two by two."""
    return kt.TyingPattern(np.arange(np.prod(shape)).reshape(shape) // 2)


class Case(NamedTuple):
    """A layer named "one", the shape of what it is called with, and what ties it: a name and patterns by kernel."""

    layer: keras.layers.Layer
    shape: tuple
    patterns: dict
    target: str = "one"


# At least one for each class of the table that is a layer by itself.
ALONE = {
    "Conv1D": Case(layers.Conv1D(4, 3, padding="causal", name="one"), STEPS, {"kernel": "mirror"}),
    "Conv2D": Case(layers.Conv2D(4, 3, groups=2, strides=2, name="one"), IMAGE, {"kernel": SIGNED}),
    "Conv3D": Case(layers.Conv3D(2, (2, 3, 3), name="one"), VOLUME, {"kernel": "point"}),
    "Conv1DTranspose": Case(layers.Conv1DTranspose(3, 3, strides=2, name="one"), STEPS, {"kernel": "mirror"}),
    "Conv2DTranspose": Case(layers.Conv2DTranspose(3, 3, strides=2, name="one"), IMAGE, {"kernel": SIGNED}),
    "Conv3DTranspose": Case(layers.Conv3DTranspose(2, 2, name="one"), VOLUME, {"kernel": "point"}),
    "DepthwiseConv1D": Case(layers.DepthwiseConv1D(3, depth_multiplier=2, name="one"), STEPS, {"kernel": "mirror"}),
    "DepthwiseConv2D": Case(layers.DepthwiseConv2D(3, name="one"), IMAGE, {"kernel": SIGNED}),
    "SeparableConv1D": Case(
        layers.SeparableConv1D(4, 3, name="one"), STEPS, {"depthwise_kernel": "mirror", "pointwise_kernel": in_pairs(1, 4, 4)}
    ),
    "SeparableConv2D, depthwise": Case(layers.SeparableConv2D(4, 3, name="one"), IMAGE, {"depthwise_kernel": SIGNED}),
    "SeparableConv2D, pointwise": Case(
        layers.SeparableConv2D(4, 3, name="one"), IMAGE, {"pointwise_kernel": in_pairs(1, 1, 4, 4)}
    ),
    "Dense": Case(layers.Dense(4, name="one"), STEPS, {"kernel": CIRCULANT}),
    "EinsumDense": Case(layers.EinsumDense("abc,cde->abde", (8, 3, 2), name="one"), STEPS, {"kernel": in_pairs(4, 3, 2)}),
    "Conv2D, fields": Case(
        layers.Conv2D(6, 3, bias_initializer="normal", name="one"),
        IMAGE,
        {"kernel": kt.patterns.equivariant((3, 3), "p2", "regular", "regular"), "bias": kt.patterns.constant((2,))},
    ),
    "Conv2DTranspose, fields": Case(
        layers.Conv2DTranspose(6, 3, name="one"), IMAGE, {"kernel": kt.patterns.equivariant((3, 3), "p4", "trivial", "regular")}
    ),
    "DepthwiseConv2D, fields": Case(
        layers.DepthwiseConv2D(3, name="one"), IMAGE, {"kernel": kt.patterns.equivariant((3, 3), "p2", "regular", "trivial")}
    ),
    "Dense, fields": Case(
        layers.Dense(6, bias_initializer="normal", name="one"),
        STEPS,
        {"kernel": kt.patterns.circulant((2, 2)), "bias": kt.TyingPattern.parse("A-A.")},
    ),
    "BatchNormalization": Case(
        layers.BatchNormalization(gamma_initializer="normal", beta_initializer="normal", name="one"),
        STEPS,
        {"gamma": kt.patterns.constant((2,)), "beta": kt.TyingPattern.parse("A-A")},
    ),
    "LayerNormalization": Case(
        layers.LayerNormalization(gamma_initializer="normal", name="one"), STEPS, {"gamma": kt.patterns.constant((2,))}
    ),
    "GroupNormalization": Case(
        layers.GroupNormalization(2, beta_initializer="normal", name="one"), STEPS, {"beta": kt.patterns.constant((2,))}
    ),
    "PReLU": Case(layers.PReLU("normal", name="one"), IMAGE, {"alpha": in_pairs(7, 6, 2)}),
}
WRAPPED = {
    "TimeDistributed": Case(
        layers.TimeDistributed(layers.Conv1D(3, 3, name="inner"), name="one"), (3, *STEPS), {"kernel": "mirror"}, "one/inner"
    ),
}
# The configs of recurrent layers describe the constraints of their cells, but no other cell can stand in their place.
RECURRENT = {
    "SimpleRNN": Case(
        layers.SimpleRNN(4, bias_initializer="normal", name="one"),
        STEPS,
        {"kernel": CIRCULANT, "recurrent_kernel": CIRCULANT, "bias": kt.patterns.constant((4,))},
        "one/*",
    ),
    "LSTM": Case(layers.LSTM(2, name="one"), STEPS, {"recurrent_kernel": in_pairs(2, 8)}, "one/*"),
    "GRU, bidirectional": Case(
        layers.Bidirectional(layers.GRU(2), name="one"), STEPS, {"kernel": in_pairs(4, 6)}, "one/backward*"
    ),
    "ConvLSTM2D": Case(
        layers.ConvLSTM2D(2, 3, name="one"), (3, *IMAGE), {"kernel": SIGNED, "recurrent_kernel": "mirror"}, "one/*"
    ),
}
CASES = {**ALONE, **WRAPPED, **RECURRENT}
VARIANTS = [{"mode": "constraint"}, *({"mode": "parameterization", "scaling": scaling} for scaling in SCALINGS)]
every_case = pytest.mark.parametrize("name", CASES)
every_layer = pytest.mark.parametrize("name", ALONE)
in_both_modes = pytest.mark.parametrize("mode", MODES)


def stock_model(name):
    keras.utils.set_random_seed(3)
    layer = type(CASES[name].layer).from_config(CASES[name].layer.get_config())
    x = keras.Input(CASES[name].shape)
    return compile_model(keras.Model(x, layers.Dense(3, name="head")(layers.Flatten(name="flat")(layer(x))), name="net"))


def tie(model, name, **options):
    """Returns the tied model; parameterization mode inside recurrent layers draws a warning."""
    is_undescribed = options.get("mode") == "parameterization" and name in RECURRENT
    with pytest.warns(UserWarning, match="does not describe") if is_undescribed else contextlib.nullcontext():
        return kt.apply_tying(model, {CASES[name].target: CASES[name].patterns}, **options)


def inputs_for(name):
    return np.random.default_rng(1).normal(size=(4, *CASES[name].shape)).astype("float32")


def fit(model, name):
    y = np.random.default_rng(2).normal(size=(4, 3)).astype("float32")
    model.fit(inputs_for(name), y, batch_size=4, verbose=0, shuffle=False)
    return model


def tied_kernels(model):
    """Returns the tied kernels of a model by path, as its report and its layers tell."""
    return {(row.layer, row.kernel): row.pattern for row in kt.tying_report(model).rows if row.pattern is not None}


def test_every_class_of_the_table_has_a_case():
    stock = {cls for cls in KERNELS if cls.__module__.startswith("keras.")}
    cells = {cls for cls in stock if cls.__name__.endswith("Cell")}

    assert (
        {type(case.layer) for case in ALONE.values()} == stock - cells == {*testing.STOCK_LAYERS, *testing.CHANNELWISE_LAYERS}
    )
    assert all(any(cls.__name__.removesuffix("Cell") in name for name in RECURRENT) for cls in cells)


@in_both_modes
@every_case
def test_kernels_stay_tied_to_the_bit_in_training(name, mode):
    tied = tie(stock_model(name), name, mode=mode)
    before = values(tied.trainable_variables)

    errors = [kt.tying_error(fit(tied, name)) for _ in range(2)]

    assert errors == [0.0, 0.0]
    assert not any(np.array_equal(one, array(other)) for one, other in zip(before, tied.trainable_variables, strict=True))


@every_layer
def test_orthonormal_free_weights_take_the_steps_of_constrained_kernels(name):
    stepped = []
    for options in ({"mode": "constraint"}, {"mode": "parameterization", "scaling": "orthonormal"}):
        layer = type(CASES[name].layer).from_config(CASES[name].layer.get_config())
        layer.build((None, *CASES[name].shape))
        randomize(layer)
        tied, optimizer = kt.apply_tying(layer, CASES[name].patterns, **options), keras.optimizers.SGD(0.1, momentum=0.9)
        for _ in range(3):
            train_step(lambda tied=tied: total_loss(tied, inputs_for(name)), tied.trainable_variables, optimizer)
        stepped.append(values(kt.strip_tying(tied).weights))

    for one, other in zip(*stepped, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*ALONE, *WRAPPED])
def test_a_copy_is_tied_and_trains_on_alike(name):
    tied = fit(tie(stock_model(name), name, mode="parameterization", scaling="orthonormal"), name)

    duplicate = copy.deepcopy(tied)

    assert_equal_values(duplicate.variables, tied.variables)
    assert_equal_values(fit(duplicate, name).variables, fit(tied, name).variables)
    assert kt.tying_error(duplicate) == 0.0


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@every_case
def test_tying_projects_the_named_kernels_and_leaves_the_rest(name, options):
    stock = stock_model(name)
    before = values(stock.variables)
    tied = tie(stock, name, init="project", **options)
    patterns = list(tied_kernels(tied).values())

    after = values(kt.strip_tying(tied).variables)

    changed = [index for index, (one, other) in enumerate(zip(before, after, strict=True)) if not np.array_equal(one, other)]
    assert len(patterns) == len(changed) == len(CASES[name].patterns)
    for index, pattern in zip(changed, patterns, strict=True):
        np.testing.assert_allclose(after[index], dense_project(before[index], pattern), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@every_case
def test_variables_keep_their_places_and_paths(name, options):
    stock = stock_model(name)
    expected = [(variable.path, variable.dtype, variable.trainable) for variable in stock.variables]

    tied = tie(stock, name, **options)

    assert [(variable.path, variable.dtype, variable.trainable) for variable in tied.variables] == expected


@pytest.mark.parametrize("name", [*ALONE, *WRAPPED])
def test_only_free_weights_are_trained_in_parameterization_mode(name):
    stock = stock_model(name)
    tied = tie(stock, name, mode="parameterization")

    rows = [row for row in kt.tying_report(tied).rows if row.pattern is not None]

    assert stock.count_params() - tied.count_params() == sum(row.full_weights - row.free_weights for row in rows) > 0


DESCRIBED = [
    (name, options) for options in VARIANTS for name in CASES if options["mode"] == "constraint" or name not in RECURRENT
]


@pytest.mark.parametrize(("name", "options"), DESCRIBED, ids=str)
def test_a_file_describes_the_tied_model(name, options, tmp_path):
    tied = fit(tie(stock_model(name), name, **options), name)
    tied.save(tmp_path / "tied.keras")

    loaded = keras.saving.load_model(tmp_path / "tied.keras")

    assert_equal_values(loaded.weights, tied.weights)
    assert list(tied_kernels(loaded).values()) == list(tied_kernels(tied).values())
    # On torch a stock orthogonal kernel is transposed in memory until it is loaded, which MKL rounds otherwise on some CPUs.
    is_transposed = keras.backend.backend() == "torch" and name in RECURRENT
    testing.assert_same_function(loaded, tied, inputs_for(name), atol=1e-6 if is_transposed else 0)


@pytest.mark.parametrize("name", RECURRENT)
def test_weights_and_plan_restore_a_model_with_tied_cells(name, tmp_path):
    tied = fit(tie(stock_model(name), name, mode="parameterization"), name)
    tied.save_weights(tmp_path / "tied.weights.h5")

    with pytest.warns(UserWarning, match="does not describe"):
        restored = kt.apply_tying(stock_model(name), kt.tying_report(tied).plan, mode="parameterization")
    restored.optimizer.build(restored.trainable_variables)
    restored.load_weights(tmp_path / "tied.weights.h5")

    assert_equal_values(restored.weights, tied.weights)


@in_both_modes
@every_case
def test_a_stripped_model_is_the_same_function_without_a_trace(name, mode):
    tied = fit(tie(stock_model(name), name, mode=mode, convolution="kernel"), name)  # group sums round otherwise
    outputs = array(tied(inputs_for(name)))

    stripped = kt.strip_tying(tied)

    np.testing.assert_array_equal(array(stripped(inputs_for(name))), outputs)
    assert "kernel_tying" not in str(stripped.get_config())
    assert tied_kernels(stripped) == {}


ROLES = [(name, kernel) for name, case in ALONE.items() for kernel in case.patterns]


def layer_with(name, kernel, **companions):
    """Returns a fresh layer with companions for one of its kernels, such as `depthwise_regularizer`."""
    config = CASES[name].layer.get_config()
    role = kernel.removesuffix("_kernel") if f"{kernel}_regularizer" not in config else kernel
    role = role if f"{role}_regularizer" in config else "depthwise"
    return type(CASES[name].layer).from_config({**config, **{f"{role}_{what}": one for what, one in companions.items()}})


@in_both_modes
@pytest.mark.parametrize(("name", "kernel"), ROLES)
def test_regularizer_and_constraint_of_a_kernel_go_on_acting_on_it(name, kernel, mode):
    layer = layer_with(name, kernel, regularizer=keras.regularizers.L2(0.5), constraint=keras.constraints.NonNeg())
    inputs = inputs_for(name)
    layer.build(inputs.shape)

    tied = kt.apply_tying(layer, {kernel: CASES[name].patterns[kernel]}, mode=mode)
    trained = tied.trainable_variables
    keras.optimizers.SGD(0.1).apply([ops.ones(weight.shape) for weight in trained], trained)

    found = array(getattr(tied.layer if mode == "parameterization" else tied, kernel))
    pattern = next(iter(tied_kernels(tied).values()))
    np.testing.assert_allclose(sum(map(array, tied.losses)), 0.5 * np.sum(np.square(found)), rtol=1e-5)
    if (pattern.signs >= 0).all():
        assert found.min() >= 0
    assert kt.tying_error(tied) == 0.0


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("name", "kernel"), ROLES)
def test_the_first_kernel_is_what_the_layer_draws_with_its_variance_kept(name, kernel, scaling):
    initializer = keras.initializers.HeNormal(seed=5)
    stock, inner = (layer_with(name, kernel, initializer=initializer) for _ in range(2))
    stock.build((2, *CASES[name].shape))
    drawn = array(getattr(stock, kernel)).copy()
    tied = kt.Tied(inner, tied_kernels_of_built(stock, {kernel: CASES[name].patterns[kernel]}), scaling=scaling)

    tied.build((2, *CASES[name].shape))

    expected = copied_first_members(drawn, tied.patterns[kernel])
    np.testing.assert_allclose(array(getattr(tied.layer, kernel)), expected, rtol=1e-6)


def tied_kernels_of_built(layer, patterns):
    """Returns the patterns of a built layer, family names resolved."""
    return {row.kernel: row.pattern for row in kt.tying_report(kt.apply_tying(layer, patterns)).rows}


@in_both_modes
@every_layer
def test_redrawn_kernels_have_the_variance_of_the_layer(name, mode):
    kernel, pattern = next(iter(CASES[name].patterns.items()))
    stock, other = (layer_with(name, kernel, initializer=keras.initializers.HeNormal(seed=5)) for _ in range(2))
    for layer in (stock, other):
        layer.build((2, *CASES[name].shape))
    drawn = array(getattr(stock, kernel))

    tied = kt.apply_tying(other, {kernel: pattern}, mode=mode, init="redraw")

    found = next(iter(tied_kernels(tied).values()))
    expected = copied_first_members(drawn, found)
    np.testing.assert_allclose(array(getattr(getattr(tied, "layer", tied), kernel)), expected, rtol=1e-6)


@in_both_modes
@pytest.mark.parametrize(
    "method", [lambda layer: layer.quantize("int8"), lambda layer: layer.enable_lora(2)], ids=["int8", "lora"]
)
@pytest.mark.parametrize("name", ["Conv2D", "Dense", "EinsumDense"])
def test_quantization_and_lora_are_refused_until_the_layer_is_stripped(name, method, mode):
    tied = tie(stock_model(name), name, mode=mode)

    with raises_tying_error("'one'"):
        method(tied.get_layer("one"))

    assert kt.tying_error(tied) == 0.0
    stripped = kt.strip_tying(tied).get_layer("one")
    if name != "Conv2D":
        method(stripped)
        assert stripped.quantization_mode == "int8" or stripped.lora_enabled


@in_both_modes
def test_matrices_are_tied_only_where_they_are_named(mode):
    model = stock_model("Conv2D")

    tied = kt.apply_tying(model, "mirror", mode=mode)

    reasons = {row.layer: row.reason for row in kt.tying_report(tied).rows if row.pattern is None}
    assert reasons == {"head": "Dense is tied only where it is named, or by a glob with a pattern"}


@pytest.mark.parametrize(
    "patterns", [{"o*": "circulant"}, {"*": "mirror"}, "mirror", CIRCULANT, {"kernel": CIRCULANT}], ids=repr
)
def test_matrices_are_not_tied_by_a_rule_for_many_layers(patterns):
    with raises_tying_error("nothing is tied"):
        kt.apply_tying(stock_model("Dense"), patterns)


@pytest.mark.parametrize(
    "patterns", [{"one": "circulant"}, {"one": CIRCULANT}, {"o*": CIRCULANT}, {"o*": {"kernel": "circulant"}}], ids=repr
)
def test_a_family_ties_a_matrix_as_a_whole(patterns):
    tied = kt.apply_tying(stock_model("Dense"), patterns)

    assert tied_kernels(tied) == {("one", "kernel"): CIRCULANT}


UNFIT = {
    "a family for an unbuilt matrix": (lambda: kt.Tied(layers.Dense(4), "circulant"), "'circulant' for an unbuilt layer"),
    "a vector for a matrix": (lambda: kt.Tied(layers.Dense(4), kt.patterns.mirror((4,))), "(4,) for a kernel of rank 2"),
    "a matrix for three axes": (
        lambda: kt.Tied(layers.EinsumDense("abc,cde->abde", (None, 3, 2)), CIRCULANT),
        "(4, 4) for a kernel of rank 3",
    ),
    "a family for a pointwise kernel": (
        lambda: kt.Tied(layers.SeparableConv2D(4, 3), {"pointwise_kernel": "mirror"}),
        "(1, 1)",
    ),
    "spatial axes of a pointwise kernel": (
        lambda: kt.Tied(layers.SeparableConv2D(4, 3), {"pointwise_kernel": SIGNED}),
        "(3, 3) for a kernel of shape (1, 1)",
    ),
    "a kernel of another layer": (
        lambda: kt.Tied(layers.DepthwiseConv2D(3), {"depthwise_kernel": SIGNED}),
        "['depthwise_kernel']",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_patterns_that_do_not_fit_are_refused(case):
    make, received = UNFIT[case]

    with raises_tying_error(received):
        make()


@in_both_modes
def test_layers_inside_other_stock_layers_are_tied_in_place(mode):
    x = keras.Input((5, 4))
    model = compile_model(keras.Model(x, layers.MultiHeadAttention(2, 2, name="heads")(x, x)))

    with pytest.warns(UserWarning, match="does not describe"):
        tied = kt.apply_tying(model, {"heads/query": in_pairs(4, 2, 2)}, mode=mode)

    assert list(tied_kernels(tied)) == [("heads/query", "kernel")]
    assert tied is model


@pytest.mark.parametrize(
    ("cls", "kernels"),
    [(int, ["kernel"]), (keras.layers.Conv2D(1, 3), ["kernel"]), (keras.layers.Layer, []), (keras.layers.Layer, ["weight"])],
)
def test_register_layer_refuses_what_is_no_row_of_the_table(cls, kernels):
    with raises_tying_error(f"kernels={kernels!r}"):
        kt.register_layer(cls, kernels)
