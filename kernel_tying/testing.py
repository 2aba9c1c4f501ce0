"""Hypothesis strategies and assertions for property tests of patterns and tied models. Needs Hypothesis.

Example:

>>> from hypothesis import given
>>> from kernel_tying import testing
>>> @given(testing.tied_problems())
... def test_projection(problem):
...     testing.assert_projection(*problem)
>>> test_projection()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from kernel_tying._layers.table import KERNELS
from kernel_tying.algebra import Tensor, average, expand, project
from kernel_tying.equivariance import equivariance_error
from kernel_tying.errors import TyingError, needing
from kernel_tying.patterns.groups import Group
from kernel_tying.patterns.pattern import TyingPattern
from kernel_tying.report import tying_error, tying_report

with needing("Hypothesis", "testing", "Strategies"):
    from hypothesis import strategies as st
    from hypothesis.extra import numpy as hnp


def patterns(
    *,
    shape: tuple[int, ...] | None = None,
    min_rank: int = 1,
    max_rank: int = 3,
    max_side: int = 5,
    signed: bool = True,
    pinned: bool = True,
) -> st.SearchStrategy[TyingPattern]:
    """Returns a strategy for tying patterns. Shrinks to small patterns with one group, without signs and pins.

    Args:
        shape: shape of all patterns; by default it varies too.
        min_rank: smallest number of axes.
        max_rank: largest number of axes.
        max_side: largest size of an axis.
        signed: whether positions may hold the negative of their free weight.
        pinned: whether positions may be pinned to zero.

    Raises:
        TyingError: the bounds leave no pattern.
    """
    if shape is not None and math.prod(shape) < 2:
        raise TyingError(f"A pattern has a tied axis, of size 2 or more. Received shape={shape}. Enlarge an axis.")
    if not 1 <= min_rank <= max_rank or max_side < 2:
        raise TyingError(
            "Bounds of patterns are 1 <= min_rank <= max_rank and 2 <= max_side. "
            f"Received min_rank={min_rank}, max_rank={max_rank}, max_side={max_side}. Change them."
        )
    sides = st.lists(st.integers(1, max_side), min_size=min_rank, max_size=max_rank).map(tuple)
    shapes = sides.filter(lambda sizes: math.prod(sizes) > 1) if shape is None else st.just(shape)
    return shapes.flatmap(lambda size: _patterns_of(size, signed, pinned))


def _patterns_of(shape: tuple[int, ...], signed: bool, pinned: bool) -> st.SearchStrategy[TyingPattern]:
    labels = hnp.arrays(np.int64, shape, elements=st.integers(0, math.prod(shape) - 1), fill=st.nothing())
    signs = st.sampled_from([1] + [-1] * signed + [0] * pinned)
    sign_arrays = hnp.arrays(np.int64, shape, elements=signs, fill=st.nothing()).filter(np.any)
    return st.builds(lambda label, sign: TyingPattern(np.where(sign == 0, -1, label), sign), labels, sign_arrays)


@st.composite
def kernels(
    draw: st.DrawFn,
    pattern: TyingPattern,
    *,
    free_axes: int = 2,
    max_channels: int = 3,
    max_fields: int = 1,
    dtype: str = "float32",
    max_magnitude: float = 1e3,
) -> np.ndarray:
    """Returns a strategy for kernels that fit `pattern`: finite NumPy arrays without subnormals. Shrinks to zeros.

    Args:
        draw: passed by Hypothesis.
        pattern: the tying pattern.
        free_axes: number of axes after those of the pattern.
        max_channels: largest size along free axes.
        max_fields: largest number of fields along tied axes that are not spatial.
        dtype: a NumPy float dtype.
        max_magnitude: largest absolute value.
    """
    sizes = [*pattern.shape, *[1] * free_axes]
    most = [max_channels if size == 1 else max_fields if axis >= len(sizes) - 2 else 1 for axis, size in enumerate(sizes)]
    shape = [size * draw(st.integers(1, count)) for size, count in zip(sizes, most, strict=True)]
    elements = hnp.from_dtype(np.dtype(dtype), min_value=-max_magnitude, max_value=max_magnitude, allow_subnormal=False)
    return draw(hnp.arrays(np.dtype(dtype), tuple(shape), elements=elements))


@st.composite
def tied_problems(
    draw: st.DrawFn, *, max_rank: int = 2, max_side: int = 4, max_channels: int = 3, max_fields: int = 2
) -> tuple[TyingPattern, np.ndarray]:
    """Returns a strategy for pairs of a pattern and a kernel that it fits. Shrinks to small patterns and zero kernels.

    Args:
        draw: passed by Hypothesis.
        max_rank: largest number of axes of the pattern.
        max_side: largest size of an axis of the pattern.
        max_channels: largest size along the free axes.
        max_fields: largest number of fields along tied axes that are not spatial.
    """
    pattern = draw(patterns(max_rank=max_rank, max_side=max_side))
    free_axes = draw(st.sampled_from([2, 1, 0]))
    return pattern, draw(kernels(pattern, free_axes=free_axes, max_channels=max_channels, max_fields=max_fields))


Drawn = tuple[dict[str, Any], tuple[int, ...]]  # arguments of a layer, and the shape of an input, channels last


def _draw_window(draw: st.DrawFn, cls: type, channels: int, max_kernel_size: int) -> Drawn:
    """Draws the arguments that all layers with a `kernel_size` share."""
    rank = next(rank for rank in (1, 2, 3) if f"{rank}D" in cls.__name__)
    size = draw(st.tuples(*[st.integers(2, max_kernel_size)] * rank))
    padding = st.sampled_from(["valid", "same"] + ["causal"] * (cls is keras.layers.Conv1D))
    spacing = draw(st.sampled_from(["strides", "dilation_rate"]))  # Keras refuses both at once
    options = {"kernel_size": size, "padding": draw(padding), spacing: draw(st.integers(1, 2))}
    return options, (2, *(2 * length + 1 for length in size), channels)


def _draw_conv(draw: st.DrawFn, cls: type, channels: int, filters: int, max_kernel_size: int) -> Drawn:
    channel_groups = draw(st.integers(1, 2))
    options, shape = _draw_window(draw, cls, channel_groups * channels, max_kernel_size)
    return {**options, "filters": channel_groups * filters, "groups": channel_groups}, shape


def _draw_transpose(draw: st.DrawFn, cls: type, channels: int, filters: int, max_kernel_size: int) -> Drawn:
    options, shape = _draw_window(draw, cls, channels, max_kernel_size)
    return {**options, "filters": filters}, shape


def _draw_depthwise(draw: st.DrawFn, cls: type, channels: int, filters: int, max_kernel_size: int) -> Drawn:
    options, shape = _draw_window(draw, cls, channels, max_kernel_size)
    return {**options, "depth_multiplier": filters}, shape


def _draw_separable(draw: st.DrawFn, cls: type, channels: int, filters: int, max_kernel_size: int) -> Drawn:
    options, shape = _draw_window(draw, cls, channels, max_kernel_size)
    return {**options, "filters": filters, "depth_multiplier": draw(st.integers(1, 2))}, shape


def _draw_dense(draw: st.DrawFn, cls: type, channels: int, filters: int, max_kernel_size: int) -> Drawn:
    return {"units": filters + 1}, (2, *draw(st.sampled_from([(), (3,)])), channels + 1)


def _draw_einsum_dense(draw: st.DrawFn, cls: type, channels: int, filters: int, max_kernel_size: int) -> Drawn:
    equation, output_shape = draw(
        st.sampled_from([("abc,cd->abd", (3, filters)), ("abc,cde->abde", (3, 2, filters)), ("abc,bcd->ad", (filters,))])
    )
    bias_axes = draw(st.sampled_from([None, equation[-1]]))
    return {"equation": equation, "output_shape": output_shape, "bias_axes": bias_axes}, (2, 3, channels + 1)


def _draw_batch_normalization(draw: st.DrawFn, cls: type, channels: int, filters: int, max_kernel_size: int) -> Drawn:
    return _scale_and_offset(draw), (3, 4, channels + 1)


def _draw_layer_normalization(draw: st.DrawFn, cls: type, channels: int, filters: int, max_kernel_size: int) -> Drawn:
    return {"axis": draw(st.sampled_from([-1, [1, 2]])), **_scale_and_offset(draw)}, (2, 3, channels + 1)


def _draw_group_normalization(draw: st.DrawFn, cls: type, channels: int, filters: int, max_kernel_size: int) -> Drawn:
    groups = draw(st.integers(1, 2))
    return {"groups": groups, **_scale_and_offset(draw)}, (2, 3, groups * (channels + 1))


def _scale_and_offset(draw: st.DrawFn) -> dict[str, bool]:
    scale, center = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    return {"scale": scale, "center": center}


def _draw_prelu(draw: st.DrawFn, cls: type, channels: int, filters: int, max_kernel_size: int) -> Drawn:
    return {"shared_axes": draw(st.sampled_from([None, [1], [1, 2]]))}, (2, 3, 2, channels + 1)


_DRAWERS: dict[type[keras.layers.Layer], Callable[..., Drawn]] = {
    keras.layers.Conv1D: _draw_conv,
    keras.layers.Conv2D: _draw_conv,
    keras.layers.Conv3D: _draw_conv,
    keras.layers.Conv1DTranspose: _draw_transpose,
    keras.layers.Conv2DTranspose: _draw_transpose,
    keras.layers.Conv3DTranspose: _draw_transpose,
    keras.layers.DepthwiseConv1D: _draw_depthwise,
    keras.layers.DepthwiseConv2D: _draw_depthwise,
    keras.layers.SeparableConv1D: _draw_separable,
    keras.layers.SeparableConv2D: _draw_separable,
    keras.layers.Dense: _draw_dense,
    keras.layers.EinsumDense: _draw_einsum_dense,
    keras.layers.BatchNormalization: _draw_batch_normalization,
    keras.layers.LayerNormalization: _draw_layer_normalization,
    keras.layers.GroupNormalization: _draw_group_normalization,
    keras.layers.PReLU: _draw_prelu,
}
CHANNELWISE_LAYERS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.PReLU,
)
STOCK_LAYERS = tuple(cls for cls in _DRAWERS if cls not in CHANNELWISE_LAYERS)


@st.composite
def stock_layers(
    draw: st.DrawFn,
    /,
    *,
    classes: Sequence[type[keras.layers.Layer]] = STOCK_LAYERS,
    max_kernel_size: int = 4,
    max_channels: int = 2,
    **options: Any,
) -> tuple[keras.layers.Layer, np.ndarray]:
    """Returns a strategy for pairs: an unbuilt stock layer with a kernel, and an input that it accepts.

    Kernel size, strides or dilation, padding, groups, depth multiplier, bias and activation vary if the class has
    them. Shrinks to the first class with default options, a kernel of size 2 and one channel.

    Args:
        draw: passed by Hypothesis.
        classes: the classes to choose from, of `STOCK_LAYERS`, or of `CHANNELWISE_LAYERS`, which have scales, offsets and
            slopes instead of kernels.
        max_kernel_size: largest kernel size along an axis.
        max_channels: largest number of channels in a channel group.
        **options: arguments of the layer that are fixed.
    """
    cls = draw(st.sampled_from(classes))
    channels, filters = draw(st.tuples(*[st.integers(1, max_channels)] * 2))
    drawn, shape = _DRAWERS[cls](draw, cls, channels, filters, max_kernel_size)
    if cls in STOCK_LAYERS:
        drawn |= {"use_bias": draw(st.booleans())} if cls is not keras.layers.EinsumDense else {}
        drawn["activation"] = draw(st.sampled_from([None, "relu", "tanh"]))
    # Without a seed, Keras draws one from the `random` module, which Hypothesis deprecates inside strategies.
    seeded = {
        f"{kernel.role}_initializer": keras.initializers.GlorotUniform(draw(st.integers(0, 99))) for kernel in KERNELS[cls]
    }
    layer = cls(**{**drawn, **seeded, **options})
    if getattr(layer, "data_format", None) == "channels_first":
        shape = (shape[0], shape[-1], *shape[1:-1])
    return layer, np.random.default_rng(draw(st.integers(0, 99))).normal(size=shape).astype("float32")


def dense_basis(pattern: TyingPattern) -> np.ndarray:
    """Returns the matrix `B` of `kernel = B @ free_weights`: one row for each position, one column for each group."""
    basis = np.zeros((pattern.labels.size, pattern.num_free))
    for position, (label, sign) in enumerate(zip(pattern.labels.flat, pattern.signs.flat, strict=True)):
        if sign:
            basis[position, label] = sign
    return basis


def assert_tied(model_or_layer: keras.Layer) -> None:
    """Raises an AssertionError that names the kernels, unless all tied kernels of a model or layer are tied to the bit."""
    if tying_error(model_or_layer) != 0.0:
        errors = {f"{row.layer}.{row.kernel}": row.error for row in tying_report(model_or_layer).rows if row.error}
        raise AssertionError(f"Kernels are not tied to the bit. Relative distances from the tied subspace: {errors}.")


def assert_projection(pattern: TyingPattern, kernel: np.ndarray) -> None:
    """Raises an AssertionError unless `project`, at `kernel`, is the orthogonal projection onto the kernels tied by `pattern`.

    It checks that `project` is idempotent to the bit, that `average` undoes `expand` to the bit, and that the residual is
    orthogonal to every tied kernel.
    """
    free = average(kernel, pattern)
    projected = _array(project(kernel, pattern))
    np.testing.assert_array_equal(_array(project(projected, pattern)), projected, err_msg="project is not idempotent")
    np.testing.assert_array_equal(
        _array(average(expand(free, pattern), pattern)), _array(free), err_msg="average does not undo expand"
    )
    residual = np.asarray(kernel, np.result_type(kernel, "float32")) - projected
    residual_means = _array(average(residual, pattern))
    tolerance = 16 * np.finfo(kernel.dtype).eps * max(1.0, float(np.abs(kernel).max()))
    np.testing.assert_allclose(residual_means, 0, atol=tolerance, err_msg="the residual is not orthogonal to the tied kernels")


def assert_same_function(first: keras.Layer, second: keras.Layer, inputs: Any, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Raises an AssertionError unless two models or layers give the same outputs, by default to the bit.

    Args:
        first: a model or layer.
        second: a model or layer.
        inputs: inputs of both, which are called in inference mode.
        rtol: relative tolerance.
        atol: absolute tolerance.
    """
    outputs = [keras.tree.flatten(layer(inputs, training=False)) for layer in (first, second)]
    for first_output, second_output in zip(*outputs, strict=True):
        np.testing.assert_allclose(_array(first_output), _array(second_output), rtol=rtol, atol=atol)


def assert_equivariant(model: keras.Layer, group: str | Group, inputs: Any, *, tolerance: float = 1e-5, **options: Any) -> None:
    """Raises an AssertionError if the `equivariance_error` of a model exceeds `tolerance`, or is NaN.

    Args:
        model: a model or layer.
        group: a `Group`, or its name.
        inputs: inputs of the model.
        tolerance: largest relative deviation.
        **options: types of inputs and outputs, and `training`, as `equivariance_error` takes them.
    """
    error = equivariance_error(model, group, inputs, **options)
    if not error <= tolerance:
        raise AssertionError(f"{model.name!r} is not equivariant under {group}: relative error {error:.2g} > {tolerance:.2g}.")


def _array(tensor: Tensor) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)
