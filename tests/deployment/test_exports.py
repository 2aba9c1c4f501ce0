"""Exported models compute what Keras computes, in runtimes of other makers."""

import collections

import keras
import pytest
from families import FAMILIES, VARIANTS, assert_computes, batch, make
from keras import layers
from runtimes import BACKEND, EXPORTED, batch_options, can_export, export, exported, load_openvino

import kernel_tying as kt
from kernel_tying import dispatch

# Orthonormal free weights make the longest graph, a stripped model the shortest. Similar families have only the longest.
BRIEFLY = ("grouped", "channels_first", "transposed_volumes", "looped", "nested", "subclassed_with_norm")
KEEPS_FREE_WEIGHTS = {"tensorflow": {"tf_saved_model"}, "jax": {"tf_saved_model", "onnx"}, "torch": {"onnx", "torch"}}[BACKEND]


def variants(format, family):
    if family == "planes":
        return tuple(VARIANTS)
    return ("orthonormal",) if family in BRIEFLY or format == "torch" else ("orthonormal", "stripped")


CASES = [
    (format, family, variant)
    for format in EXPORTED
    for family in FAMILIES
    if can_export(format, family)
    for variant in variants(format, family)
]


@pytest.mark.usefixtures("int64_constants")
@pytest.mark.parametrize(("format", "family", "variant"), CASES)
def test_an_exported_model_computes_what_keras_computes(format, family, variant, tmp_path):
    model = make(family, variant)
    model(batch(model, 1))  # Keras wants a model called before it exports some formats
    options = batch_options(format, batch(model, 3))

    function = exported(model, format, tmp_path, **options)

    assert_computes(function, family, rows=(3,) if "input_signature" in options else (1, 3))


@pytest.mark.usefixtures("int64_constants")
@pytest.mark.parametrize("format", EXPORTED)
def test_an_exported_model_keeps_to_the_stock_convolution(format, tmp_path, monkeypatch):
    model = make("planes", "group sums")
    inputs = batch(model, 3)
    model(inputs)
    monkeypatch.setattr(dispatch, "_convolve", None)  # fails if group sums are taken

    exported(model, format, tmp_path, **batch_options(format, inputs))(inputs)

    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        model(inputs)


def wide(variant):
    """Returns a model whose kernel outweighs the rest of its file, 25 positions in nine groups."""
    x = keras.Input((8, 8, 64), name="image")
    model = keras.Model(x, layers.Conv2D(64, 5, name="conv")(x))
    nine_values = kt.TyingPattern.parse("AABCC/AABCC/DDEFF/GGHII/GGHII")
    model = kt.apply_tying(model, nine_values, **VARIANTS[variant])
    if variant == "stripped":
        model = kt.strip_tying(model)
    model(batch(model, 1))
    return model


@pytest.mark.usefixtures("int64_constants")
@pytest.mark.parametrize("format", EXPORTED)
def test_a_file_holds_the_kernel_or_the_free_weights(format, tmp_path):
    def size(variant):
        (tmp_path / variant).mkdir()
        export(wide(variant), format, tmp_path / variant)
        return sum(file.stat().st_size for file in (tmp_path / variant).rglob("*") if file.is_file())

    part, whole = size("orthonormal"), size("stripped")

    assert part / whole == pytest.approx(9 / 25 if format in KEEPS_FREE_WEIGHTS else 1, abs=0.15)


def test_onnxruntime_leaves_nothing_of_the_tying_to_each_call(tmp_path):
    import onnx
    import onnxruntime

    def operations(variant):
        (tmp_path / variant).mkdir()
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(tmp_path / variant / "optimized.onnx")
        onnxruntime.InferenceSession(str(export(wide(variant), "onnx", tmp_path / variant)), options)
        return collections.Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)

    assert operations("orthonormal") == operations("stripped")


@pytest.mark.parametrize("variant", ["orthonormal", "stripped"])
def test_openvino_reads_the_onnx_file(variant, tmp_path):
    model = make("planes", variant)
    model(batch(model, 1))

    function = load_openvino(export(model, "onnx", tmp_path))

    assert_computes(function, "planes", rows=(1, 3))
