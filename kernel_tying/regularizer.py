"""Soft tying: a penalty that draws a kernel towards the tied subspace."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import keras
from keras import ops

from kernel_tying.algebra import Tensor, project
from kernel_tying.errors import TyingError, abbreviate, check_config
from kernel_tying.identifiers import Identifier, deserialize_pattern, pattern_for, serialize_pattern, validate


@keras.saving.register_keras_serializable(package="kernel_tying")
class TyingPenalty(keras.regularizers.Regularizer):
    """Penalizes the distance from the tied subspace, `strength * ||k - P k||^2` (Frobenius norm).

    Args:
        pattern: a `TyingPattern`, or the name of a family, which is resolved for the spatial size of each kernel.
        strength: a finite number, at least 0.

    Raises:
        TyingError: no such family, or a strength that is negative or not finite; when called, a pattern that does not
            fit the kernel.

    Example:

    >>> import kernel_tying as kt, numpy as np
    >>> float(kt.TyingPenalty("mirror", 0.5)(np.array([[[1.0]], [[3.0]]], "float32")))
    1.0
    """

    def __init__(self, pattern: Identifier, strength: float = 0.01):
        self.pattern = validate(pattern)
        number = _float(strength)
        if not 0 <= number < math.inf:
            raise TyingError(
                "The strength of a penalty is a finite number, at least 0. "
                f"Received strength={abbreviate(strength)}. Example: 0.01."
            )
        self.strength = number

    def __call__(self, kernel: Tensor) -> Tensor:
        kernel = ops.convert_to_tensor(kernel)
        distance = kernel - project(kernel, pattern_for(self.pattern, tuple(kernel.shape)))
        return self.strength * ops.sum(ops.square(distance))

    def get_config(self) -> dict[str, Any]:
        return {"pattern": serialize_pattern(self.pattern), "strength": self.strength}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TyingPenalty:
        check_config(cls.__name__, config, required=["pattern", "strength"])
        return cls(deserialize_pattern(config["pattern"]), config["strength"])


def _float(value: Any) -> float:
    """Returns a real number as a float, and NaN for anything else."""
    try:
        return float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return math.inf
