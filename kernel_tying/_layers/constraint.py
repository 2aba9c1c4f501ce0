"""Constraint mode: the kernel is projected onto the tied subspace after each optimizer step."""

from __future__ import annotations

from typing import Any

import keras

from kernel_tying._layers.identifiers import (
    PatternLike,
    PatternLookup,
    deserialize_pattern,
    resolve_object,
    serialize_pattern,
    validate,
)
from kernel_tying.algebra import Tensor, project
from kernel_tying.errors import check_config
from kernel_tying.patterns.pattern import TyingPattern


@keras.saving.register_keras_serializable(package="kernel_tying")
class TiedConstraint(keras.constraints.Constraint):
    """Projects a kernel onto the tied subspace, `P kernel`; composed with another constraint, `P . then . P`.

    Keras applies it after each optimizer step. It does not act on initial kernels, moving averages or loaded weights:
    `apply_tying`, `TiedInitializer`, `KeepTied` and `project_kernels` do.

    Args:
        pattern: a `TyingPattern`, or a family: its name, such as "mirror" or "mirror(axis=0)", or its function. A family is
            resolved for the spatial size of each kernel.
        then: another constraint (object, name or config), applied to the projected kernel before it is projected again.

    Raises:
        TyingError: no such family or constraint; when called, a pattern that does not fit the kernel.

    Example:

    >>> import keras, kernel_tying as kt
    >>> layer = keras.layers.Conv2D(8, 5, kernel_constraint=kt.TiedConstraint("dihedral", then="non_neg"))
    """

    def __init__(self, pattern: PatternLike, then: Any = None):
        self.pattern = validate(pattern)
        self._pattern_for = PatternLookup()
        self.then = resolve_object("then", keras.constraints.get, then)

    def pattern_for(self, shape: tuple[int, ...]) -> TyingPattern:
        """Returns the pattern that ties a kernel of `shape`. A family makes it once for each shape."""
        return self._pattern_for(self.pattern, shape)

    def __repr__(self) -> str:
        then = "" if self.then is None else f", then={type(self.then).__name__}"
        return f"{type(self).__name__}({self.pattern!r}{then})"

    def __call__(self, value: Tensor) -> Tensor:
        pattern = self.pattern_for(tuple(value.shape))
        projected = project(value, pattern)
        return projected if self.then is None else project(self.then(projected), pattern)

    def get_config(self) -> dict[str, Any]:
        return {"pattern": serialize_pattern(self.pattern), "then": keras.constraints.serialize(self.then)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TiedConstraint:
        check_config(cls.__name__, config, required=["pattern"], optional=["then"])
        return cls(deserialize_pattern(config["pattern"]), then=config.get("then"))
