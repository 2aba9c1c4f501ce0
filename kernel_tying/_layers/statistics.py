"""Statistics of a BatchNormalization whose scale or offset is tied: pooled over each tied group.

Without pooling each channel would be normalized by statistics of its own, and no tied scale could make them equal.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from kernel_tying import _keras
from kernel_tying._layers.attachment import views
from kernel_tying._layers.constraint import TiedConstraint
from kernel_tying.algebra import Tensor, accumulation_dtype, project, relative_distance
from kernel_tying.patterns.pattern import TyingPattern


class _Pooling(NamedTuple):
    """The patterns that tie means and variances. Signs count for means alone."""

    means: TyingPattern
    variances: TyingPattern


def pooling_methods(layer: keras.Layer) -> dict[str, Callable[..., Any]]:
    """Returns the override of the method in which `layer` computes batch statistics, by name; empty if there is none."""
    return {_keras.MOMENTS: _pooled_moments} if isinstance(layer, keras.layers.BatchNormalization) else {}


def pool_moving_statistics(layer: keras.Layer) -> None:
    """Pools the moving statistics of `layer`, if it is a built BatchNormalization with a tied scale or offset."""
    pooling = _pooling(layer)
    if pooling is None:
        return
    statistics = _moving_statistics(layer)
    if all(_is_tied(each.mean, pooling.means) and _is_tied(each.spread, pooling.variances) for each in statistics):
        return  # a square root of a square may differ in the last bit
    pooled = [_pooled(_upcast(each.mean), each.variance, pooling) for each in statistics]
    for each, (mean, variance) in zip(statistics, pooled, strict=True):
        each.mean.assign(mean)
        each.spread.assign(ops.sqrt(variance) if each.is_deviation else variance)


class _Moving(NamedTuple):
    """Variables for moving averages of a mean, and of a variance or a standard deviation."""

    mean: keras.Variable
    spread: keras.Variable
    is_deviation: bool = False

    @property
    def variance(self) -> Tensor:
        """The variance, in the dtype in which statistics are pooled."""
        return ops.square(_upcast(self.spread)) if self.is_deviation else _upcast(self.spread)


def _moving_statistics(layer: keras.Layer) -> list[_Moving]:
    statistics = [_Moving(layer.moving_mean, layer.moving_variance)]
    if getattr(layer, "renorm", False):  # since Keras 3.13
        statistics.append(_Moving(layer.moving_mean, layer.moving_stddev, True))
        statistics.append(_Moving(layer.renorm_mean, layer.renorm_stddev, True))
    return statistics


def _is_tied(variable: keras.Variable, pattern: TyingPattern) -> bool:
    return relative_distance(variable, project(variable, pattern)) == 0


def _upcast(variable: keras.Variable) -> Tensor:
    return ops.cast(variable, accumulation_dtype(keras.backend.standardize_dtype(variable.dtype)))


def _pooled_moments(layer: keras.Layer, inputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    moments, pooling = _keras.moments(layer, inputs, mask), _pooling(layer)
    return moments if pooling is None else _pooled(*moments, pooling)


def _pooled(mean: Tensor, variance: Tensor, pooling: _Pooling) -> tuple[Tensor, Tensor]:
    """Returns mean and variance over the entries of all channels of each tied group."""
    pooled_mean = project(mean, pooling.means)
    return pooled_mean, project(variance + ops.square(mean - pooled_mean), pooling.variances)


def _pooling(layer: keras.Layer) -> _Pooling | None:
    """Returns how the statistics of a layer are tied, or None if they are not."""
    if not isinstance(layer, keras.layers.BatchNormalization) or not layer.built:
        return None
    scale, offset = _pattern(layer, "gamma"), _pattern(layer, "beta")
    if scale is None and offset is None:
        return None
    return _Pooling(offset or _unsigned(scale), _unsigned(scale or offset))


def _pattern(layer: keras.Layer, name: str) -> TyingPattern | None:
    """Returns the pattern that ties the scale or offset of a layer, in either mode; None if it is untied."""
    if name in views(layer):
        return views(layer)[name].pattern
    variable = getattr(layer, name)  # None without that option
    constraint = getattr(variable, "constraint", None)
    return constraint.pattern_for(tuple(variable.shape)) if isinstance(constraint, TiedConstraint) else None


@lru_cache(maxsize=256)
def _unsigned(pattern: TyingPattern) -> TyingPattern:
    """Returns the pattern without signs. Each pinned position becomes a group of its own."""
    own = pattern.num_free + np.arange(pattern.labels.size).reshape(pattern.shape)
    return TyingPattern(np.where(pattern.signs == 0, own, pattern.labels))
