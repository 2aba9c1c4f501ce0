"""Autoencoders whose decoders use the kernel of the encoder, and the verbs that copy them."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import kernel_tying as kt

PATTERN = {"encoder": kt.patterns.circulant((6, 6))}
DATA = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
COPIERS = {
    "apply_tying": lambda model: apply(model),
    "strip_tying": lambda model: kt.strip_tying(apply(model)),
}
in_both_directions = pytest.mark.parametrize("copier", COPIERS.values(), ids=COPIERS)


def apply(model, **options):
    return kt.apply_tying(model, PATTERN, mode="parameterization", **options)


def dense(name="encoder", **options):
    return layers.Dense(6, use_bias=False, name=name, **options)


def decode(encoder, hidden):
    return ops.einsum("bh,ih->bi", hidden, encoder.kernel)


def autoencoder():
    inputs, encoder = keras.Input((6,)), dense()
    return keras.Model(inputs, decode(encoder, encoder(inputs)))
