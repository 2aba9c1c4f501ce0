"""Layers of users that keep the kernel of a tied layer, and a model with such a layer."""

import keras
import numpy as np
from keras import layers, ops

import kernel_tying as kt

SKEW = kt.TyingPattern.parse("A B C D/-D A B C/-C -D A B/-B -C -D A")
INPUTS = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
RATE = 0.1


def tied_dense(scaling="values", **options):
    keras.utils.set_random_seed(1)
    tied = kt.Tied(layers.Dense(4, use_bias=False, name="encoder", **options), SKEW, scaling=scaling)
    tied.build(INPUTS.shape)
    return tied


def theta_of(tied):
    return tied.free_weights["kernel"]


# How a layer can keep a kernel, and how it gets it back.
PLACES = {
    "attribute": (lambda kernel: kernel, lambda kept: kept),
    "list": (lambda kernel: [kernel], lambda kept: kept[0]),
    "tuple": (lambda kernel: (kernel, kernel), lambda kept: kept[1]),
    "dict": (lambda kernel: {"kernel": kernel}, lambda kept: kept["kernel"]),
    "nested": (lambda kernel: {"kernels": [(kernel,)]}, lambda kept: kept["kernels"][0][0]),
}


class Decoder(layers.Layer):
    """A layer of the user's that keeps the kernel of another layer."""

    def __init__(self, kernel, place="attribute"):
        super().__init__(name="decoder")
        put, self.get = PLACES[place]
        self.kept = put(kernel)

    def call(self, hidden):
        return ops.matmul(hidden, ops.transpose(self.get(self.kept)))


def autoencoder(encoder, place="attribute"):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Decoder(encoder.kernel, place)(encoder(inputs)))
    model.compile(keras.optimizers.SGD(RATE), "mse")
    return model
