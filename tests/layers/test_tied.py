"""Laws of tied layers: the stock layer that holds the expanded kernel is the oracle, through the dense matrix B."""

import json

import keras
import numpy as np
import pytest
from keras import layers, ops
from support.backends import array
from support.errors import raises_tying_error
from support.layers import SCALINGS, stock_twin
from support.oracles import dense_average

import kernel_tying as kt
from kernel_tying import testing

SIGNED = kt.TyingPattern.parse("A B -A/B . B/-A C A")
IMAGES = np.random.default_rng(0).normal(size=(2, 9, 9, 2)).astype("float32")


def tied_conv(pattern=SIGNED, **options):
    tied = kt.Tied(layers.Conv2D(3, 3, name="conv", **options), pattern)
    tied.build(IMAGES.shape)
    return tied


def test_pattern_of_a_tied_layer_is_the_family_at_its_kernel_size():
    assert kt.Tied(layers.Conv2D(3, (3, 5)), "mirror").pattern == kt.patterns.mirror((3, 5))


def test_pattern_by_kernel_name_means_the_pattern():
    assert kt.Tied(layers.Conv2D(3, 3), {"kernel": SIGNED}).pattern == SIGNED


def test_kernel_assign_averages():
    tied = tied_conv()
    value = np.random.default_rng(5).normal(size=tied.kernel.shape).astype("float32")

    tied.kernel.assign(value)

    np.testing.assert_allclose(tied.free_weights["kernel"], dense_average(value, SIGNED), rtol=1e-5, atol=1e-6)


def test_free_weights_have_the_rank_of_the_kernel():
    assert {name: tuple(free.shape) for name, free in tied_conv().free_weights.items()} == {"kernel": (3, 1, 2, 3)}


def test_free_weights_are_empty_before_the_layer_is_built():
    assert kt.Tied(layers.Conv2D(3, 3), SIGNED).free_weights == {}


@pytest.mark.parametrize("use_bias", [False, True])
def test_bias_is_the_bias_of_the_stock_layer(use_bias):
    tied = tied_conv(use_bias=use_bias)

    assert tied.bias is tied.layer.bias
    assert (tied.bias is not None) == use_bias


def described(layer):
    return [(weight.name, weight.path, weight.trainable) for weight in layer.weights]


def built_first(trainable=True):
    conv = layers.Conv2D(3, 3, name="conv")
    conv.build(IMAGES.shape)
    conv.trainable = trainable
    return kt.Tied(conv, SIGNED)


def from_config():
    tied = kt.Tied.from_config(tied_conv().get_config())
    tied.build(IMAGES.shape)
    return tied


@pytest.mark.parametrize("make", [tied_conv, built_first, from_config])
def test_weights_have_names_paths_and_order_of_the_stock_layer(make):
    stock = layers.Conv2D(3, 3, name="conv")
    stock.build(IMAGES.shape)

    assert described(make()) == described(stock)


@pytest.mark.parametrize("mode", ["constraint", "parameterization"])
def test_weights_of_a_tied_model_have_names_paths_and_order_of_the_stock_model(mode):
    def make():
        return keras.Sequential(
            [
                keras.Input((9, 9, 2)),
                layers.Conv2D(3, 3, name="a"),
                layers.BatchNormalization(name="n"),
                layers.Conv2D(3, 3, name="b"),
            ],
            name="model",
        )

    assert described(kt.apply_tying(make(), SIGNED, mode=mode)) == described(make())


def test_trainable_passes_through_to_the_free_weights():
    tied = tied_conv()

    tied.trainable = False

    assert tied.trainable_weights == []
    assert not tied.layer.trainable
    assert not tied.free_weights["kernel"].trainable


@pytest.mark.parametrize("is_built_first", [False, True])
def test_tied_layer_around_a_frozen_layer_is_frozen(is_built_first):
    tied = built_first(trainable=False) if is_built_first else tied_conv(trainable=False)

    assert (tied.trainable, tied.trainable_weights, len(tied.non_trainable_weights)) == (False, [], 2)
    assert not any(weight.trainable for weight in [*tied.weights, tied.kernel])


def test_kernel_that_is_frozen_by_itself_stays_frozen():
    conv = layers.Conv2D(3, 3)
    conv.build(IMAGES.shape)
    conv.kernel.trainable = False

    tied = kt.Tied(conv, SIGNED)

    assert [weight.path for weight in tied.trainable_weights] == [conv.bias.path]


def test_unfrozen_tied_layer_trains():
    tied = built_first(trainable=False)

    tied.trainable = True

    assert described(tied) == described(built_first())


def test_input_spec_is_that_of_the_built_stock_layer():
    assert tied_conv().input_spec.axes == {-1: 2}


def test_input_spec_refuses_what_the_stock_layer_refuses():
    with pytest.raises(ValueError, match="expected axis -1 of input shape to have value 2"):
        tied_conv()(np.zeros((1, 9, 9, 3), "float32"))


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_float16", "mixed_bfloat16"])
def test_dtypes_are_those_of_the_stock_layer(dtype):
    stock = layers.Conv2D(3, 3, dtype=dtype)
    output = stock(IMAGES)

    tied = tied_conv(dtype=dtype)

    assert tied.dtype_policy == stock.dtype_policy
    assert tied(IMAGES).dtype == output.dtype
    assert [weight.dtype for weight in tied.weights] == [weight.dtype for weight in stock.weights]
    assert tied.kernel.dtype == stock.kernel.dtype


@pytest.mark.parametrize("options", [{}, {"strides": 2, "padding": "same"}, {"data_format": "channels_first"}], ids=str)
def test_output_shape_is_that_of_the_stock_layer(options):
    stock = layers.Conv2D(3, 3, **options)

    assert kt.Tied(layers.Conv2D(3, 3, **options), SIGNED).compute_output_shape((None, 7, 7, 7)) == stock.compute_output_shape(
        (None, 7, 7, 7)
    )


def test_config_survives_json():
    options = {
        "kernel_regularizer": "l2",
        "kernel_constraint": "non_neg",
        "strides": 2,
        "dtype": "mixed_float16",
        "trainable": False,
    }
    tied = kt.Tied(layers.Conv2D(3, 3, **options), SIGNED, scaling="orthonormal", convolution="kernel")

    copy = layers.deserialize(json.loads(json.dumps(layers.serialize(tied))))

    assert copy.get_config() == tied.get_config()
    assert (copy.pattern, copy.scaling, copy.convolution) == (SIGNED, "orthonormal", "kernel")


def test_copy_of_a_built_tied_layer_draws_a_kernel_of_full_variance():
    normal = keras.initializers.RandomNormal(stddev=1.0, seed=3)
    tied = kt.Tied(layers.Conv2D(100, 3, kernel_initializer=normal), kt.patterns.constant((3, 3)))
    tied.build((None, 9, 9, 100))

    copy = layers.deserialize(layers.serialize(tied))

    assert np.std(copy.kernel) == pytest.approx(1, rel=0.05)


def test_config_of_the_wrapped_layer_is_that_of_the_stock_layer():
    stock = layers.Conv2D(3, 3, name="conv", kernel_constraint="non_neg", kernel_initializer="he_normal")

    tied = tied_conv(kernel_constraint="non_neg", kernel_initializer="he_normal")

    assert tied.layer.get_config() == stock.get_config()


def test_clone_of_a_model_with_a_tied_layer_is_tied_alike():
    model = keras.Sequential([keras.Input((9, 9, 2)), kt.Tied(layers.Conv2D(3, 3, name="conv"), SIGNED)])

    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())

    assert clone.get_layer("conv").pattern == SIGNED
    testing.assert_same_function(clone, model, IMAGES)


def lora_conv():
    conv = layers.Conv2D(3, 3, name="conv")
    conv.build(IMAGES.shape)
    conv.enable_lora(2)
    return conv


def quantized_dense():
    dense = layers.Dense(3, name="dense")
    dense.build((None, 2))
    dense.quantize("int8")
    return dense


def overriding_conv():
    class Overriding(layers.Conv2D):
        def build(self, input_shape):
            super().build(input_shape)

    return Overriding(3, 3, name="own")


def built_with_channels():
    conv = layers.Conv2D(3, 3, name="conv")
    conv.build((None, 9, 9, 2))
    return kt.Tied(conv, kt.patterns.constant((3, 3, 2, 4)))


REFUSED = {
    "a tied layer": (lambda: kt.Tied(tied_conv(), SIGNED), "'conv'"),
    "a layer inside a tied layer": (lambda: kt.Tied(tied_conv().layer, SIGNED), "'conv'"),
    "a layer with LoRA": (lambda: kt.Tied(lora_conv(), SIGNED), "LoRA is enabled"),
    "a quantized layer": (lambda: kt.Tied(quantized_dense(), SIGNED), "'dense'"),
    "a layer of another class": (lambda: kt.Tied(layers.MaxPooling2D(), SIGNED), "keeps no kernel"),
    "a class with a build of its own": (lambda: kt.Tied(overriding_conv(), SIGNED), "overrides `build`"),
    "no layer": (lambda: kt.Tied("conv", SIGNED), "'conv'"),
    "another kernel size": (lambda: kt.Tied(layers.Conv2D(3, 5, name="conv"), SIGNED), "(3, 3) for a kernel of shape (5, 5)"),
    "another number of filters": (built_with_channels, "(3, 3, 2, 4) for a kernel of shape (3, 3, 2, 3)"),
    "some channel axes": (lambda: kt.Tied(layers.Conv2D(3, 3), kt.patterns.constant((3, 3, 2))), "(3, 3, 2)"),
    "an unknown family": (lambda: kt.Tied(layers.Conv2D(3, 3), "mirrored"), "'mirrored'"),
    "a family that is not defined": (lambda: kt.Tied(layers.Conv2D(3, (3, 5)), "dihedral"), "(3, 5)"),
    "an unknown kernel": (lambda: kt.Tied(layers.Conv2D(3, 3), {"gamma": SIGNED}), "['gamma']"),
    "a bias that the layer lacks": (lambda: kt.Tied(layers.Conv2D(3, 3, use_bias=False), {"bias": SIGNED}), "['bias']"),
    "a scale without its name": (lambda: kt.Tied(layers.BatchNormalization(), SIGNED), "a pattern without a name"),
    "a matrix for a bias": (lambda: kt.Tied(layers.Conv2D(3, 3), {"bias": SIGNED}), "(3, 3) for a kernel of rank 1"),
    "no kernel": (lambda: kt.Tied(layers.Conv2D(3, 3), {}), "[]"),
    "no pattern": (lambda: kt.Tied(layers.Conv2D(3, 3), 7), "7"),
    "an unknown scaling": (lambda: kt.Tied(layers.Conv2D(3, 3), SIGNED, scaling="unit"), "scaling='unit'"),
    "an unknown convolution": (lambda: kt.Tied(layers.Conv2D(3, 3), SIGNED, convolution="fft"), "convolution='fft'"),
    "LoRA later": (lambda: tied_conv().layer.enable_lora(2), "'conv'"),
    "quantization later": (lambda: tied_conv().layer.quantize("int8"), "'conv'"),
    "LoRA through the wrapper": (lambda: tied_conv().enable_lora(2), "'conv'"),
    "quantization through the wrapper": (lambda: tied_conv().quantize("int8"), "'conv'"),
    "quantization of the shell": (lambda: tied_conv().quantize("int8"), "'conv'"),
    "a value of another shape": (lambda: tied_conv().kernel.assign(np.zeros((3, 3, 2, 5))), "(3, 3, 2, 5)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_tied_refuses(case):
    act, received = REFUSED[case]

    with raises_tying_error(received):
        act()


def test_pattern_over_channels_that_does_not_fit_is_refused_at_build():
    tied = kt.Tied(layers.Conv2D(3, 3, name="conv"), kt.patterns.constant((3, 3, 4, 3)))

    with raises_tying_error("(3, 3, 4, 3)"):
        tied.build(IMAGES.shape)


def test_building_a_tied_layer_again_leaves_its_weights_alone():
    tied = tied_conv()
    weights = tied.weights

    tied.build(IMAGES.shape)

    assert [id(weight) for weight in tied.weights] == [id(weight) for weight in weights]


SETTINGS = {
    "activation": keras.activations.relu,
    "use_bias": False,
    "strides": (2, 2),
    "padding": "same",
    "dilation_rate": (1, 2),
    "activity_regularizer": keras.regularizers.L2(0.5),
    "dtype_policy": keras.DTypePolicy("mixed_bfloat16"),
    "trainable": False,
    "autocast": False,
    "supports_masking": True,
    "kernel_regularizer": keras.regularizers.L2(0.5),
    "input_spec": None,
}


@pytest.mark.parametrize("convolution", ["kernel", "group_sums"])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_set_on_a_tied_layer_acts_as_on_the_stock_layer(name, scaling, convolution):
    penalty = "l1" if name != "dtype_policy" else None  # Keras 3.12 penalizes no activity in bfloat16
    tied = kt.Tied(layers.Conv2D(3, 3, activity_regularizer=penalty), SIGNED, scaling=scaling, convolution=convolution)
    tied.build(IMAGES.shape)
    stock = stock_twin(tied)
    for layer in (tied, stock):
        setattr(layer, name, SETTINGS[name])
    outputs = [layer(IMAGES) for layer in (stock, tied)]

    tolerance = 1e-5 if name != "dtype_policy" else 2e-2
    np.testing.assert_allclose(*[array(ops.cast(one, "float32")) for one in outputs], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(*[array(ops.cast(sum(layer.losses), "float32")) for layer in (stock, tied)], rtol=2e-2)
    assert outputs[0].dtype == outputs[1].dtype
    assert [weight.trainable for weight in tied.weights] == [weight.trainable for weight in stock.weights]
    assert getattr(tied.layer, name) == getattr(stock, name)


@pytest.mark.parametrize("is_built", [True, False])
def test_attributes_of_the_stock_layer_are_read_on_the_tied_layer(is_built):
    conv = layers.Conv2D(3, 3, strides=2, activation="tanh")
    public = [name for name in vars(conv) if not name.startswith("_")]
    own = {"activity_regularizer", "build", "built", "quantize", "supports_jit", "call_signature_parameters", "training"}
    if is_built:
        conv.build(IMAGES.shape)

    tied = kt.Tied(conv, SIGNED)

    assert {"filters", "kernel_size", "strides", "padding", "activation", "use_bias"} <= set(public)
    assert all(getattr(tied, name) is getattr(conv, name) for name in set(public) - own)


def test_attributes_that_no_stock_layer_has_are_the_own_of_a_tied_layer():
    tied = tied_conv()
    tied.note = "mine"

    assert tied.note == "mine"
    assert not hasattr(tied.layer, "note")
    with pytest.raises(AttributeError, match="no attribute 'embeddings'"):
        _ = tied.embeddings


def test_attributes_set_on_a_tied_layer_are_saved(tmp_path):
    model = keras.Sequential([keras.Input(IMAGES.shape[1:]), tied_conv()])
    model.layers[0].activation = keras.activations.relu
    model.save(tmp_path / "set.keras")

    loaded = keras.saving.load_model(tmp_path / "set.keras")

    np.testing.assert_array_equal(array(loaded(IMAGES)), array(model(IMAGES)))
    assert loaded.layers[0].activation is keras.activations.relu


@pytest.mark.parametrize("is_built", [True, False])
def test_the_convolution_of_a_tied_layer_can_be_set(is_built):
    tied = tied_conv() if is_built else kt.Tied(layers.Conv2D(3, 3, name="conv"), SIGNED)

    tied.convolution = "group_sums"
    tied.build(IMAGES.shape)

    assert tied.get_config()["convolution"] == tied.kernel.convolution == "group_sums"
    assert kt.tying_report(tied).rows[0].convolution == "group_sums"


def test_a_convolution_that_does_not_exist_is_refused_later_too():
    with raises_tying_error("convolution='fft'"):
        tied_conv().convolution = "fft"


def test_the_scaling_of_a_tied_layer_stays():
    with pytest.raises(AttributeError, match="scaling"):
        tied_conv().scaling = "orthonormal"


def test_an_unbuilt_tied_layer_says_what_the_unbuilt_stock_layer_says():
    with pytest.raises(AttributeError) as of_stock:
        _ = layers.Conv2D(3, 3).kernel
    with pytest.raises(AttributeError) as of_tied:
        _ = kt.Tied(layers.Conv2D(3, 3), SIGNED).kernel

    assert str(of_tied.value) == str(of_stock.value)


def test_tied_refuses_a_constrained_layer():
    with raises_tying_error("'conv'"):
        kt.Tied(layers.Conv2D(2, 3, kernel_constraint=kt.TiedConstraint("mirror"), name="conv"), "point")


def test_tied_freezes_the_layer_if_it_is_to_be_frozen():
    tied = kt.Tied(layers.Conv2D(2, 3), "mirror", trainable=False)

    tied.build((None, 9, 9, 2))

    assert tied.trainable_weights == []


LABELS = [
    ("dihedral", "Tied Conv2D: dihedral"),
    (kt.patterns.mirror((3, 3), axis=0), "Tied Conv2D: mirror(axis=0)"),
    (kt.TyingPattern.parse("ABC/DEF/ABC"), "Tied Conv2D: 3x3, 6 groups"),
    ({"kernel": "point", "bias": kt.patterns.constant((4,))}, "Tied Conv2D: kernel: point, bias: constant"),
]


@pytest.mark.parametrize(("pattern", "label"), LABELS, ids=[label for _, label in LABELS])
def test_a_summary_shows_the_stock_class_and_the_pattern(pattern, label):
    model = keras.Sequential([keras.Input((9, 9, 2)), kt.Tied(layers.Conv2D(4, 3, name="first"), pattern), layers.Flatten()])
    lines = []

    model.summary(line_length=200, print_fn=lines.append)

    text = "\n".join(lines)
    assert f" first ({label}) " in text
    assert " (Flatten) " in text
    assert model.layers[0].__class__ is type(model.layers[0]) is kt.Tied  # outside of a summary
    assert repr(model.layers[0]) == f"<{label}, name=first, built=True>"


@pytest.mark.parametrize(
    ("constraint", "text"),
    [
        (kt.TiedConstraint("mirror(axis=0)", "non_neg"), "TiedConstraint('mirror(axis=0)', then=NonNeg)"),
        (kt.TiedConstraint(kt.patterns.mirror((1, 3))), "TiedConstraint(TyingPattern.parse('ABA/'))"),
    ],
    ids=["name", "pattern"],
)
def test_the_repr_of_a_constraint_shows_the_pattern(constraint, text):
    assert repr(constraint) == text


def test_a_kernel_that_is_built_after_it_was_wrapped_is_averaged_when_training_first_traces_it():
    layer = layers.Conv2D(2, 3)
    model = keras.Sequential([kt.Tied(layer, "mirror")])
    layer.build((None, 3, 3, 1))
    kernel = array(layer.kernel).copy()

    model.compile("sgd", "mse")
    model.optimizer.learning_rate = 0.0
    model.fit(np.ones((2, 3, 3, 1)), np.ones((2, 1, 1, 2)), verbose=0)

    np.testing.assert_allclose(array(layer.kernel), (kernel + kernel[:, ::-1]) / 2, rtol=1e-6, atol=1e-7)
