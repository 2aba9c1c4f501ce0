"""Soft tying: a penalty that pulls a kernel towards the tied subspace."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from kernel_tying._layers.identifiers import (
    PatternLike,
    PatternLookup,
    deserialize_pattern,
    resolve_object,
    serialize_pattern,
    validate,
)
from kernel_tying.algebra import Tensor, project
from kernel_tying.errors import TyingError, abbreviate, check_config, real_number


@keras.saving.register_keras_serializable(package="kernel_tying")
class TyingPenalty(keras.regularizers.Regularizer):
    """Penalizes the distance from the tied subspace, `strength * ||k - P k||^2` (Frobenius norm).

    Args:
        pattern: a `TyingPattern`, or a family: its name, such as "mirror" or "mirror(axis=0)", or its function. A family is
            resolved for the spatial size of each kernel.
        strength: a finite number, at least 0; or a scalar `keras.Variable`, which may change between training steps. Configs
            hold its value. On JAX, the model that is trained must track the variable.
        regularizer: another regularizer (object, name or config), whose penalty is added.

    Raises:
        TyingError: no such family or regularizer, or a strength that is negative or not finite; when called, a pattern that
            does not fit the kernel.

    Example:

    >>> import kernel_tying as kt, numpy as np
    >>> float(kt.TyingPenalty("mirror", 0.5)(np.array([[[1.0]], [[3.0]]], "float32")))
    1.0
    """

    def __init__(self, pattern: PatternLike, strength: float | keras.Variable = 0.01, regularizer: Any = None):
        self.pattern = validate(pattern)
        self._pattern_for = PatternLookup()
        self.regularizer = resolve_object("regularizer", keras.regularizers.get, regularizer)
        self.strength = strength if isinstance(strength, keras.Variable) else checked_strength(strength)

    def __call__(self, kernel: Tensor) -> Tensor:
        kernel = ops.convert_to_tensor(kernel)
        distance = kernel - project(kernel, self._pattern_for(self.pattern, tuple(kernel.shape)))
        penalty = self.strength * ops.sum(ops.square(distance))
        return penalty if self.regularizer is None else penalty + self.regularizer(kernel)

    def get_config(self) -> dict[str, Any]:
        return {
            "pattern": serialize_pattern(self.pattern),
            "strength": float(ops.convert_to_numpy(self.strength)),
            "regularizer": keras.regularizers.serialize(self.regularizer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TyingPenalty:
        check_config(cls.__name__, config, required=["pattern", "strength"], optional=["regularizer"])
        return cls(deserialize_pattern(config["pattern"]), config["strength"], config.get("regularizer"))


def checked_strength(strength: Any) -> float:
    """Returns the strength of a penalty as a float, and raises a `TyingError` unless it is a finite number from 0."""
    number = real_number(strength)
    if not 0 <= number < math.inf:
        raise TyingError(
            "The strength of a penalty is a finite number, at least 0. "
            f"Received strength={abbreviate(strength)}. Example: 0.01."
        )
    return number


def unpenalized(regularizer: Any) -> Any:
    """Returns what a `TyingPenalty` adds to, and other regularizers unchanged."""
    return regularizer.regularizer if isinstance(regularizer, TyingPenalty) else regularizer
