"""Models of every family of layers, tied in every way, for the exporters."""

import functools
import warnings

import keras
import numpy as np
from keras import layers

import kernel_tying as kt

SUBCLASSED_IMAGE = (6, 6, 2)
SIGNED = kt.TyingPattern.parse("A B -A/C . -C/D E -D")  # pins the middle to zero, and makes columns opposite
PAIRS = {
    shape: kt.TyingPattern(np.arange(np.prod(shape)).reshape(shape) // 2)
    for shape in [(1, 1, 4, 6), (4, 6), (30, 4), (3, 12), (4, 12)]
}


def pooled(inputs, features, pool):
    return keras.Model(inputs, layers.Dense(3, name="head")(pool(name="pool")(features)))


def planes():
    x = keras.Input((8, 10, 4), name="image")
    h = layers.Conv2D(6, 3, padding="same", activation="relu", name="same")(x)
    h = layers.BatchNormalization(name="norm")(h)
    h = layers.Conv2D(6, (3, 5), strides=2, padding="same", name="strided")(h)
    h = layers.Conv2D(4, 3, padding="same", dilation_rate=2, use_bias=False, name="dilated")(h)
    return pooled(x, h, layers.GlobalAveragePooling2D)


def grouped():
    x = keras.Input((8, 8, 4), name="image")
    return pooled(x, layers.Conv2D(6, 3, groups=2, name="grouped")(x), layers.GlobalAveragePooling2D)


def channels_first():
    x = keras.Input((4, 8, 9), name="image")
    h = layers.Conv2D(5, 3, data_format="channels_first", name="conv")(x)
    return pooled(x, h, functools.partial(layers.GlobalAveragePooling2D, data_format="channels_first"))


def sequences():
    x = keras.Input((12, 3), name="sequence")
    h = layers.Conv1D(4, 5, padding="causal", name="causal")(x)
    h = layers.Conv1D(4, 3, strides=2, padding="same", name="strided")(h)
    h = layers.DepthwiseConv1D(3, depth_multiplier=2, name="depthwise")(h)
    return pooled(x, layers.Conv1DTranspose(4, 3, strides=2, name="transposed")(h), layers.GlobalAveragePooling1D)


def volumes():
    x = keras.Input((6, 6, 6, 2), name="volume")
    h = layers.BatchNormalization(name="norm")(layers.Conv3D(3, 3, padding="same", name="same")(x))
    return pooled(x, layers.Conv3D(3, 3, strides=2, name="strided")(h), layers.GlobalAveragePooling3D)


def transposed_volumes():
    x = keras.Input((5, 5, 5, 2), name="volume")
    return pooled(x, layers.Conv3DTranspose(3, 3, strides=2, name="transposed")(x), layers.GlobalAveragePooling3D)


def transposed():
    x = keras.Input((6, 7, 3), name="image")
    h = layers.Conv2DTranspose(3, 5, activation="relu", name="valid")(x)
    return pooled(x, layers.Conv2DTranspose(4, 3, strides=2, padding="same", name="strided")(h), layers.GlobalAveragePooling2D)


def depthwise():
    x = keras.Input((8, 9, 2), name="image")
    h = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(x)
    return pooled(x, layers.SeparableConv2D(6, 3, strides=2, name="separable")(h), layers.GlobalAveragePooling2D)


def dense():
    x = keras.Input((5, 4), name="rows")
    h = layers.EinsumDense("abc,cd->abd", output_shape=(5, 6), bias_axes="d", activation="relu", name="einsum")(x)
    return keras.Model(x, layers.Dense(4, name="dense")(layers.Flatten(name="flat")(h)))


def recurrent(unroll=True):
    x = keras.Input((5, 4), name="sequence")
    h = layers.LSTM(3, return_sequences=True, unroll=unroll, name="lstm")(x)
    return keras.Model(x, layers.GRU(4, unroll=unroll, name="gru")(h))


def looped():
    return recurrent(unroll=False)


def nested():
    y = keras.Input((8, 8, 4), name="inner_image")
    h = layers.Conv2D(4, 3, padding="same", name="inner")(y)
    trunk = keras.Sequential([keras.Input((8, 8, 4)), keras.Model(y, layers.BatchNormalization(name="norm")(h))], name="trunk")
    x = keras.Input((8, 8, 4), name="image")
    return pooled(x, layers.Conv2D(3, 3, name="outer")(trunk(x)), layers.GlobalAveragePooling2D)


def equivariant():
    x = keras.Input((9, 9, 2), name="image")
    h = layers.Conv2D(8, 3, name="lift")(x)
    h = layers.BatchNormalization(name="norm")(h)
    return pooled(x, layers.Conv2D(16, 3, strides=2, name="deep")(layers.ReLU(name="relu")(h)), layers.GlobalMaxPooling2D)


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def __init__(self, normalize=False, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(3, 3, name="conv")
        self.norm = layers.BatchNormalization(name="norm") if normalize else layers.Activation("tanh", name="norm")
        self.pool = layers.GlobalAveragePooling2D(name="pool")

    def call(self, inputs):
        return self.pool(self.norm(self.conv(inputs)))


def subclassed(normalize=False):
    model = Subclassed(normalize)
    model(np.zeros((1, *SUBCLASSED_IMAGE), "float32"))
    return model


def subclassed_with_norm():
    return subclassed(normalize=True)


REGULAR = kt.patterns.constant((8,))
P4M = {
    "lift": {"kernel": kt.patterns.equivariant((3, 3), "p4m"), "bias": REGULAR},
    "norm": {"gamma": REGULAR, "beta": REGULAR},
    "deep": {"kernel": kt.patterns.equivariant((3, 3), "p4m", "regular", "regular"), "bias": REGULAR},
    "head": {"kernel": kt.patterns.constant((8, 1))},
}
CELL = {"kernel": PAIRS[4, 12], "recurrent_kernel": PAIRS[3, 12]}
TIES = {
    planes: {"same": "mirror", "strided": "mirror", "dilated": SIGNED},
    grouped: SIGNED,
    channels_first: SIGNED,
    sequences: "mirror",
    volumes: "mirror",
    transposed_volumes: "mirror",
    transposed: "mirror",
    depthwise: {"depthwise": SIGNED, "separable": {"depthwise_kernel": "mirror", "pointwise_kernel": PAIRS[1, 1, 4, 6]}},
    dense: {"einsum": PAIRS[4, 6], "dense": PAIRS[30, 4]},
    recurrent: {"lstm/lstm_cell": CELL, "gru/gru_cell": PAIRS[3, 12]},
    looped: {"lstm/lstm_cell": CELL, "gru/gru_cell": PAIRS[3, 12]},
    nested: "mirror",
    equivariant: P4M,
    subclassed: "mirror",
    subclassed_with_norm: "mirror",
}
FAMILIES = {builder.__name__: builder for builder in TIES}
VARIANTS = {
    "stripped": {"mode": "parameterization"},
    "constraint": {"mode": "constraint"},
    "values": {"mode": "parameterization", "scaling": "values"},
    "orthonormal": {"mode": "parameterization", "scaling": "orthonormal"},
    "group sums": {"mode": "parameterization", "convolution": "group_sums"},
}


def stock(family):
    """Returns an untied model with weights that differ from one another, biases and moving averages too."""
    model, random = FAMILIES[family](), np.random.default_rng(0)
    for variable in model.variables:
        if variable.dtype == "float32":
            value = 0.3 * random.normal(size=variable.shape)
            variable.assign(np.abs(value) + 0.5 if variable.name == "moving_variance" else value)
    return model


def make(family, variant):
    """Returns a model of a family: stock, tied or stripped."""
    model = stock(family)
    if variant == "stock":
        return model
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* does not describe all tied layers")
        model = kt.apply_tying(model, TIES[FAMILIES[family]], init="project", **VARIANTS[variant])
    return kt.strip_tying(model) if variant == "stripped" else model


def batch(model, rows):
    """Returns inputs of a model."""
    shape = SUBCLASSED_IMAGE if isinstance(model, Subclassed) else model.input_shape[1:]
    return np.random.default_rng(rows).normal(size=(rows, *shape)).astype("float32")


def assert_computes(function, family, rows):
    """Compares with stock layers that hold projected kernels, which is what every variant of a family computes."""
    twin = make(family, "constraint")
    for count in rows:
        inputs = batch(twin, count)
        expected = keras.ops.convert_to_numpy(twin(inputs, training=False))
        np.testing.assert_allclose(function(inputs), expected, rtol=0, atol=1e-5)
