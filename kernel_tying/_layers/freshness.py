"""Whether a kernel still is what its initializer drew.

Keras' random initializers keep the seed that they draw with, so a second draw has the same values. Nothing needs to be
noted when a kernel is trained, loaded or assigned. A loaded initializer has a new seed unless its seed was given, so kernels
from files count as trained.
"""

from __future__ import annotations

import keras
from keras import initializers, ops

from kernel_tying._layers.companions import get_companion
from kernel_tying._layers.initializer import untied
from kernel_tying._layers.table import kernel_of

_RANDOM = (
    initializers.Orthogonal,
    initializers.RandomNormal,
    initializers.RandomUniform,
    initializers.TruncatedNormal,
    initializers.VarianceScaling,
)


def is_fresh(layer: keras.Layer, kernel_name: str) -> bool:
    """Returns whether a kernel of a built layer still is what its random initializer drew, to the bit.

    It is False for initializers that draw other values at each call: those of your own, and those with a `SeedGenerator`.
    """
    initializer = kernel_of(layer, kernel_name).initializer(layer, untied(get_companion(layer, kernel_name, "initializer")))
    if not isinstance(initializer, _RANDOM) or not isinstance(initializer.seed, int):
        return False
    kernel = getattr(layer, kernel_name)
    drawn = initializer(tuple(kernel.shape), dtype=layer.variable_dtype)
    return bool(ops.all(ops.equal(kernel, drawn)))


def copy_seeds(layer: keras.Layer, copy: keras.Layer) -> None:
    """Gives the initializers of a copy the seeds of the given layer's, so that kernels that were fresh remain so."""
    for name, initializer in vars(layer).items():
        other = vars(copy).get(name)
        if isinstance(initializer, _RANDOM) and isinstance(other, _RANDOM) and isinstance(initializer.seed, int):
            other.seed = initializer.seed
