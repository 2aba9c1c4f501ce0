"""Initial kernels that are tied and keep the variance of the initializer that they are drawn from."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kernel_tying import keras_private
from kernel_tying.algebra import Tensor, average, expand, root_group_sizes
from kernel_tying.errors import check_config
from kernel_tying.guards import guard
from kernel_tying.identifiers import (
    Identifier,
    deserialize_pattern,
    pattern_for,
    resolve_object,
    serialize_pattern,
    validate,
)


@keras.saving.register_keras_serializable(package="kernel_tying")
class TiedInitializer(keras.initializers.Initializer):
    """Draws a kernel and ties it: each free weight is the signed sum of its group, divided by `sqrt(group size)`.

    A sum of n independent values of variance v has variance n v, so the tied kernel keeps the variance of the base
    initializer, where the mean over a group would have 1/n of it. Fans are those of the full kernel.

    Args:
        pattern: a `TyingPattern`, or the name of a family, which is resolved for the spatial size of the kernel.
        initializer: the base initializer (object, name or config); None stands for "glorot_uniform", as in Keras' layers.

    Raises:
        TyingError: no such family or initializer; when called, a pattern that does not fit the shape.

    Example:

    >>> import keras, kernel_tying as kt
    >>> initializer = kt.TiedInitializer("mirror", "he_normal")
    >>> kernel = initializer((5, 5, 3, 8))
    >>> bool(keras.ops.all(kernel == keras.ops.flip(kernel, axis=1)))
    True
    """

    def __init__(self, pattern: Identifier, initializer: Any = "glorot_uniform"):
        self.pattern = validate(pattern)
        self.initializer = resolve_object("initializer", keras.initializers.get, initializer)

    def __call__(self, shape: tuple[int, ...], dtype: str | None = None) -> Tensor:
        layer = keras_private.weight_adder()
        if layer is not None:  # the one moment at which we see a layer that Keras makes from a file
            guard(layer)
        pattern = pattern_for(self.pattern, tuple(shape))
        draw = self.initializer or keras.initializers.GlorotUniform()
        mean = average(draw(shape, dtype=dtype), pattern)
        return expand(mean * ops.cast(root_group_sizes(pattern, len(shape)), mean.dtype), pattern)

    def get_config(self) -> dict[str, Any]:
        return {
            "pattern": serialize_pattern(self.pattern),
            "initializer": keras.initializers.serialize(self.initializer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TiedInitializer:
        check_config(cls.__name__, config, required=["pattern", "initializer"])
        return cls(deserialize_pattern(config["pattern"]), config["initializer"])


def untied(initializer: Any) -> Any:
    """Returns the base initializer of a `TiedInitializer`, and any other initializer as it is."""
    return initializer.initializer if isinstance(initializer, TiedInitializer) else initializer
