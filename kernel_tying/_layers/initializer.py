"""Initial kernels that are tied and have the variance of their base initializer."""

from __future__ import annotations

from typing import Any

import keras

from kernel_tying import _keras
from kernel_tying._layers.identifiers import (
    PatternLike,
    deserialize_pattern,
    pattern_for,
    resolve_object,
    serialize_pattern,
    validate,
)
from kernel_tying._layers.overrides import guard
from kernel_tying._native import native
from kernel_tying.algebra import Tensor, expand, first_members, project
from kernel_tying.errors import check_config

_DETERMINISTIC = (
    keras.initializers.Constant,
    keras.initializers.Identity,
    keras.initializers.Ones,
    keras.initializers.STFT,
    keras.initializers.Zeros,
)


@keras.saving.register_keras_serializable(package="kernel_tying")
class TiedInitializer(keras.initializers.Initializer):
    """Draws a kernel and copies the first member of each tied group to the others, with their signs.

    Each free weight is one draw, so it has the distribution that the base initializer gives to an entry. The mean over a
    group of n would have 1/n of the variance. A draw that is already tied, such as a Gaussian bump under a rotation, does
    not change, and noise on top of it keeps its variance. Fans are those of the full kernel. The results of Keras' own
    deterministic initializers (Constant, Identity, Ones, STFT, Zeros) are projected.

    Args:
        pattern: a `TyingPattern`, or a family: its name, such as "mirror" or "mirror(axis=0)", or its function. A family is
            resolved for the spatial size of the kernel.
        initializer: the base initializer (object, name or config); None means "glorot_uniform", as in Keras' layers.

    Raises:
        TyingError: no such family or initializer; when called, a pattern that does not fit the shape.

    Example:

    >>> import keras, kernel_tying as kt
    >>> initializer = kt.TiedInitializer("mirror", "he_normal")
    >>> kernel = initializer((5, 5, 3, 8))
    >>> bool(keras.ops.all(kernel == keras.ops.flip(kernel, axis=1)))
    True
    """

    def __init__(self, pattern: PatternLike, initializer: Any = "glorot_uniform"):
        self.pattern = validate(pattern)
        self.initializer = resolve_object("initializer", keras.initializers.get, initializer)

    @native.untraced
    def __call__(self, shape: tuple[int, ...], dtype: str | None = None) -> Tensor:
        layer = _keras.weight_adder()
        if layer is not None:  # the only hook that reaches a layer that Keras makes from a file
            guard(layer)
        pattern = pattern_for(self.pattern, tuple(shape))
        draw = self.initializer or keras.initializers.GlorotUniform()
        kernel = draw(shape, dtype=dtype)
        return project(kernel, pattern) if isinstance(draw, _DETERMINISTIC) else expand(first_members(kernel, pattern), pattern)

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
    """Returns the base initializer of a `TiedInitializer`, and other initializers unchanged."""
    return initializer.initializer if isinstance(initializer, TiedInitializer) else initializer
