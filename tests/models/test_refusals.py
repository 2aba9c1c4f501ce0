"""Refused calls raise a `TyingError` of three parts, and leave the model as it was."""

import functools

import keras
import numpy as np
import pytest
from keras import layers
from support.errors import raises_tying_error
from support.models import IMAGE, MODES, Subclassed, conv, head, make, sequential, skip, state, tie, train

import kernel_tying as kt
from kernel_tying import TyingError, _keras

WIDE = kt.patterns.mirror((5, 5))


def tied_by_constraint():
    return tie(skip(), "constraint")


def tied_by_parameterization():
    return tie(skip(), "parameterization")


def tied_by_hand():
    x = keras.Input(IMAGE, name="image")
    return keras.Model(x, head(conv("first", kernel_constraint=kt.TiedConstraint("point"))(x)), name="by_hand")


def with_lora():
    model = sequential()
    model.get_layer("second").enable_lora(1)
    return model


class Quantized(layers.Conv2D):
    quantization_mode = "int8"
    _int8_call = layers.Conv2D.call


def quantized():
    x = keras.Input(IMAGE, name="image")
    return keras.Model(x, head(Quantized(2, 3, name="first")(conv("before")(x))), name="quantized")


class OwnBuild(layers.Conv2D):
    def build(self, input_shape):
        super().build(input_shape)


def own_build():
    x = keras.Input(IMAGE, name="image")
    return keras.Model(x, head(OwnBuild(2, 3, name="own")(conv("first")(x))), name="own_build")


def subclassed_unbuilt():
    return Subclassed(name="subclassed")


REFUSED = {
    "a pattern that does not fit": (sequential, {"first": WIDE}, {}, "kernel_size"),
    "a pattern of a rank between": (sequential, {"first": kt.TyingPattern.parse("AB BA/BA AB", shape=(1, 2, 2))}, {}, "rank"),
    "a misfit behind a fit": (sequential, {"first": "mirror", "second": WIDE}, {}, "'second'"),
    "a family that is not defined": (sequential, {"first": "spiral"}, {}, "spiral"),
    "no such kernel": (sequential, {"first": {"depthwise_kernel": "mirror"}}, {}, "depthwise_kernel"),
    "no kernel named": (sequential, {"first": {}}, {}, "'first'"),
    "a name of no layer": (sequential, {"first": "mirror", "third": "mirror"}, {}, "third"),
    "a glob of no layer": (sequential, {"first": "mirror", "third*": "mirror"}, {}, r"third\*"),
    "a layer without a kernel": (sequential, {"drop": "mirror"}, {}, "Dropout keeps no kernel"),
    "a scale without its name": (sequential, {"norm": "mirror"}, {}, "a pattern without a name"),
    "a layer with its own build": (own_build, {"own": "mirror"}, {}, "overrides `build`"),
    "tied by constraint": (tied_by_constraint, "mirror", {}, "tied once.*'first'"),
    "tied by parameterization": (tied_by_parameterization, "mirror", {}, "tied once.*'first'"),
    "tied by hand": (tied_by_hand, {"first": "mirror"}, {}, "tied once.*'first'"),
    "active LoRA": (with_lora, "mirror", {}, "'second': LoRA"),
    "active LoRA of a named layer": (with_lora, {"first": "mirror", "second": "mirror"}, {}, "'second': LoRA"),
    "quantization": (quantized, "mirror", {}, r"'first'.*quantized \(int8\)"),
    "a subclassed model without weights": (subclassed_unbuilt, "mirror", {}, "built"),
    "nothing tied by a pattern": (sequential, kt.patterns.mirror((7, 7)), {}, r"nothing is tied.*first: kernel_size=\(3, 3\)"),
    "nothing tied by a glob": (sequential, {"*": WIDE}, {}, "nothing is tied"),
    "nothing tied by None": (sequential, {"*": None}, {}, "nothing is tied"),
    "nothing tied by a callable": (sequential, lambda layer: None, {}, "nothing is tied"),
    "no patterns": (sequential, {}, {}, "nothing is tied"),
    "a number for a pattern": (sequential, 3, {}, "Received 3"),
    "a number for a layer's pattern": (sequential, {"first": 3}, {}, "Received 3"),
    "a wrong mode": (sequential, "mirror", {"mode": "tied"}, "mode='tied'"),
    "a wrong init": (sequential, "mirror", {"init": "zeros"}, "init='zeros'"),
    "a wrong scaling": (sequential, "mirror", {"scaling": "unit"}, "scaling='unit'"),
    "a wrong convolution": (sequential, "mirror", {"convolution": "fft"}, "convolution='fft'"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("builder", "patterns", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_leaves_the_model_as_it_was(builder, patterns, options, message, mode):
    model = make(builder, compiled=True)
    before = state(model)

    with pytest.raises(TyingError, match=f"(?s){message}") as refused:
        kt.apply_tying(model, patterns, **{"mode": mode, **options})

    np.testing.assert_equal(state(model), before)
    assert str(refused.value).count(". ") >= 2, "a rule, what was received, a way out"
    assert_trains_like_a_twin(model, builder)


def assert_trains_like_a_twin(model, builder):
    train(model)
    np.testing.assert_equal({name: state(model)[name] for name in ("weights", "optimizer")}, trained_twin(builder))


@functools.cache
def trained_twin(builder):
    twin = make(builder, compiled=True)
    train(twin)
    return {name: state(twin)[name] for name in ("weights", "optimizer")}


@pytest.mark.parametrize("options", [{"scaling": "orthonormal"}, {"convolution": "group_sums"}])
def test_options_of_parameterization_are_refused_in_constraint_mode(options):
    model = make(skip, compiled=True)

    with pytest.raises(TyingError, match="parameterization"):
        kt.apply_tying(model, "mirror", **options)

    assert_trains_like_a_twin(model, skip)


@pytest.mark.parametrize("value", [None, "model", np.zeros(3)])
def test_only_models_and_layers_are_tied(value):
    with pytest.raises(TyingError, match=r"model or layer\. Received .*\. Pass"):
        kt.apply_tying(value, "mirror")


@pytest.mark.parametrize("change", [lambda layer: layer.enable_lora(1), lambda layer: layer.quantize("int8")])
def test_tied_layers_refuse_lora_and_quantization(change):
    tied = make(tied_by_parameterization, compiled=True)
    before = state(tied)

    with pytest.raises(TyingError, match=r"'first'.*strip_tying"):
        change(tied.get_layer("first").layer)

    np.testing.assert_equal(state(tied), before)
    assert_trains_like_a_twin(tied, tied_by_parameterization)


@pytest.mark.parametrize("change", [lambda layer: layer.enable_lora(1), lambda layer: layer.quantize("int8")])
def test_constrained_layers_refuse_lora_and_quantization(change):
    tied = make(tied_by_constraint)

    with pytest.raises(TyingError, match=r"'first'.*strip_tying"):
        change(tied.get_layer("first"))

    assert kt.tying_error(tied) == 0.0


@pytest.mark.parametrize("verb", [kt.tying_error, kt.project_kernels])
@pytest.mark.parametrize("builder", [sequential, subclassed_unbuilt])
def test_verbs_for_tied_kernels_refuse_models_without_any(verb, builder):
    model = make(builder, compiled=True)

    with pytest.raises(TyingError, match=r"nothing is tied.*apply_tying"):
        verb(model)

    assert_trains_like_a_twin(model, builder)


class WithTied(keras.Model):
    """A subclassed model with `Tied` written into its code."""

    def __init__(self):
        super().__init__(name="with_tied")
        self.tied, self.pool = kt.Tied(conv("first"), "mirror"), layers.GlobalAveragePooling2D()
        self.head = layers.Dense(3, name="head")

    def call(self, inputs):
        return self.head(self.pool(self.tied(inputs)))


def with_tied():
    model = WithTied()
    model(np.zeros((1, *IMAGE), "float32"))
    return model


def test_stripping_refuses_what_is_written_into_code():
    model = make(with_tied, compiled=True)

    with pytest.raises(TyingError, match=r"'tied/first'|'first'.*'with_tied'"):
        kt.strip_tying(model)

    assert_trains_like_a_twin(model, with_tied)


def test_parameterization_mode_refuses_variables_of_nnx_and_leaves_the_model_as_it_was(monkeypatch):
    monkeypatch.setattr(_keras, "has_nnx_variables", lambda: True)
    model = make(sequential)
    before = state(model)

    with raises_tying_error("'sequential'"):
        kt.apply_tying(model, "mirror", mode="parameterization")
    with raises_tying_error("'conv'"):
        kt.Tied(layers.Conv2D(2, 3, name="conv"), "mirror")

    np.testing.assert_equal(state(model), before)


@pytest.mark.parametrize("verb", [kt.strip_tying, kt.tying_error, kt.tying_report, kt.project_kernels])
@pytest.mark.parametrize("value", [None, "model"])
def test_verbs_take_models_and_layers_only(verb, value):
    with raises_tying_error(repr(value)):
        verb(value)
