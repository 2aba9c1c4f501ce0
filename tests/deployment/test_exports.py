"""Exported models compute what Keras computes, in runtimes of other makers."""

import collections
from unittest import mock

import keras
import numpy as np
import pytest
from families import FAMILIES, VARIANTS, assert_computes, batch, make, stock
from keras import layers
from runtimes import BACKEND, EXPORTED, batch_options, can_export, export, exported, load_openvino
from support.errors import is_refused_alike

import kernel_tying as kt
from kernel_tying._convolution import plain

# Orthonormal free weights make the longest graph. One family has the other variants: a stripped model is a stock one.
CONVOLVING = ("planes", "grouped", "sequences", "volumes", "depthwise", "subclassed")
KEEPS_FREE_WEIGHTS = {"tensorflow": {"tf_saved_model"}, "jax": {"tf_saved_model", "onnx"}, "torch": {"onnx", "torch"}}[BACKEND]


def variants(family):
    if family == "planes":
        return tuple(VARIANTS)
    return ("orthonormal", "group sums") if family in CONVOLVING else ("orthonormal",)


CASES = [
    (format, family, variant)
    for format in EXPORTED
    for family in FAMILIES
    if can_export(format, family)
    for variant in variants(family)
]


@pytest.mark.usefixtures("int64_constants")
@pytest.mark.parametrize(("format", "family", "variant"), CASES)
def test_an_exported_model_computes_what_keras_computes(format, family, variant, tmp_path):
    model = make(family, variant)
    # Keras wants a model called before it exports some formats.
    if is_refused_alike(stock(family), model, batch(model, 1)):
        return
    model(batch(model, 1))
    options = batch_options(format, batch(model, 3))

    function = exported(model, format, tmp_path, **options)

    assert_computes(function, family, rows=(3,) if "input_signature" in options else (1, 3))


@pytest.mark.usefixtures("int64_constants")
@pytest.mark.parametrize("format", EXPORTED)
def test_logits_of_an_exported_equivariant_model_stay_if_the_image_is_turned_or_mirrored(format, tmp_path):
    model = make("equivariant", "values")
    images = batch(model, 3)
    model(images)
    turned, mirrored = np.rot90(images, axes=(1, 2)).copy(), images[:, :, ::-1].copy()

    function = exported(model, format, tmp_path, **batch_options(format, images))

    logits = function(images)
    for moved in (turned, mirrored):
        np.testing.assert_allclose(function(moved), logits, rtol=0, atol=1e-5 * np.abs(logits).max())


@pytest.mark.usefixtures("int64_constants")
@pytest.mark.parametrize("format", EXPORTED)
@pytest.mark.parametrize("variant", ["values", "group sums"])
def test_group_sums_are_exported_where_they_are_asked_for(format, variant, tmp_path, monkeypatch):
    model = make("planes", variant)
    inputs = batch(model, 3)
    model(inputs)
    convolve = mock.Mock(side_effect=plain.convolve)
    monkeypatch.setattr(plain, "convolve", convolve)

    exported(model, format, tmp_path, **batch_options(format, inputs))(inputs)

    assert convolve.called == (variant == "group sums")


def images_of_any_size():
    x = keras.Input((None, None, 64), name="image")
    h = layers.Conv2D(64, 5, padding="same", name="same")(x)
    return keras.Model(x, layers.Conv2D(8, 3, strides=2, name="strided")(h))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the exporters of other backends need fixed sizes, or options for each")
def test_an_exported_model_by_group_sums_takes_images_of_any_size(tmp_path):
    patterns = {"same": "dihedral", "strided": "mirror"}
    model = kt.apply_tying(images_of_any_size(), patterns, mode="parameterization", convolution="group_sums")
    sizes = [(1, 9, 12, 64), (2, 16, 11, 64)]
    model(np.zeros(sizes[0], "float32"))

    function = exported(model, "onnx", tmp_path)

    for size in sizes:
        inputs = np.random.default_rng(0).normal(size=size).astype("float32")
        np.testing.assert_allclose(function(inputs), keras.ops.convert_to_numpy(model(inputs)), rtol=0, atol=2e-5)


NINE_VALUES = kt.TyingPattern.parse("AABCC/AABCC/DDEFF/GGHII/GGHII")


def wide(variant, pattern=NINE_VALUES, size=5, channels=64):
    """Returns a model whose kernel outweighs the rest of its file; by default one of 25 positions in nine groups."""
    x = keras.Input((8, 8, channels), name="image")
    model = keras.Model(x, layers.Conv2D(channels, size, padding="same", name="conv")(x))
    model = kt.apply_tying(model, pattern, **VARIANTS[variant])
    if variant == "stripped":
        model = kt.strip_tying(model)
    model(batch(model, 1))
    return model


def size_of_file(model, format, folder):
    folder.mkdir()
    export(model, format, folder)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.usefixtures("int64_constants")
@pytest.mark.parametrize("format", EXPORTED)
def test_a_file_holds_the_kernel_or_the_free_weights(format, tmp_path):
    part, whole = (size_of_file(wide(variant), format, tmp_path / variant) for variant in ("orthonormal", "stripped"))

    assert part / whole == pytest.approx(9 / 25 if format in KEEPS_FREE_WEIGHTS else 1, abs=0.15)


@pytest.mark.usefixtures("int64_constants")
@pytest.mark.parametrize("format", [format for format in EXPORTED if format != "torch"])  # torch's graphs outweigh kernels
@pytest.mark.parametrize(("pattern", "size", "share"), [("dihedral", 5, 0.3), ("radial", 7, 0.3), ("rotation", 3, 0.45)])
def test_a_file_of_group_sums_holds_the_free_weights(format, pattern, size, share, tmp_path):
    models = {variant: wide(variant, pattern, size, channels=128) for variant in ("group sums", "stripped")}

    part, whole = (size_of_file(model, format, tmp_path / variant) for variant, model in models.items())

    assert part / whole <= share


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
