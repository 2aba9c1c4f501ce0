"""Constraint mode: the kernel is projected onto the tied subspace after each optimizer step."""

from __future__ import annotations

from typing import Any

import keras

from kernel_tying.algebra import Tensor, project
from kernel_tying.errors import check_config
from kernel_tying.identifiers import (
    Identifier,
    deserialize_pattern,
    pattern_for,
    resolve_object,
    serialize_pattern,
    validate,
)


@keras.saving.register_keras_serializable(package="kernel_tying")
class TiedConstraint(keras.constraints.Constraint):
    """Projects a kernel onto the tied subspace, `P kernel`; composed with another constraint, `P . then . P`.

    Keras applies it after each optimizer step. It does not see the initial kernel, moving averages and loaded weights:
    `apply_tying`, `TiedInitializer`, `KeepTied` and `project_kernels` do.

    Args:
        pattern: a `TyingPattern`, or the name of a family, which is resolved for the spatial size of each kernel.
        then: another constraint (object, name or config), applied to the projected kernel before it is projected again.

    Raises:
        TyingError: no such family or constraint; when called, a pattern that does not fit the kernel.

    Example:

    >>> import keras, kernel_tying as kt
    >>> layer = keras.layers.Conv2D(8, 5, kernel_constraint=kt.TiedConstraint("dihedral", then="non_neg"))
    """

    def __init__(self, pattern: Identifier, then: Any = None):
        self.pattern = validate(pattern)
        self.then = resolve_object("then", keras.constraints.get, then)

    def __call__(self, value: Tensor) -> Tensor:
        pattern = pattern_for(self.pattern, tuple(value.shape))
        projected = project(value, pattern)
        return projected if self.then is None else project(self.then(projected), pattern)

    def get_config(self) -> dict[str, Any]:
        return {"pattern": serialize_pattern(self.pattern), "then": keras.constraints.serialize(self.then)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TiedConstraint:
        check_config(cls.__name__, config, required=["pattern"], optional=["then"])
        return cls(deserialize_pattern(config["pattern"]), then=config.get("then"))
