"""Rules of convolutions and Dense layers: the output of a call, and the patterns of kernel and bias.

Each rule takes a `Call` and returns the `Feature` that it gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from kernel_tying._equivariance.activations import check_activation, check_axis
from kernel_tying._equivariance.draft import Call
from kernel_tying._equivariance.fields import Action, Feature, Kind, flat_pattern, kernel_pattern
from kernel_tying._equivariance.windows import Window
from kernel_tying.patterns.sizes import kernel_size


def convolve(call: Call) -> Feature:
    """A convolution, maybe in channel groups."""
    layer, feature = call.layer, call.feature
    check_windows(call, layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate)
    if 1 < layer.groups == feature.channels == layer.filters:
        return _convolve_each_channel(call)
    output = call.output(call.produce(_default(call)))
    check_activation(call, output)
    call.draft.later(partial(_tie_convolution, call, output))
    return output


def _tie_convolution(call: Call, output: Feature) -> None:
    layer, in_type, out_type = call.layer, call.feature.kind.type, output.kind.type
    suffix = " / groups" if layer.groups > 1 else ""
    call.check_fields("channels" + suffix, call.feature.channels // layer.groups, in_type)
    call.check_fields("filters" + suffix, layer.filters // layer.groups, out_type)
    call.tie("kernel", kernel_pattern(layer.kernel_size, in_type, out_type))
    _tie_bias(call, out_type)


def convolve_transposed(call: Call) -> Feature:
    """A transposed convolution, whose kernel has the axes `(*spatial, out, in)`."""
    layer = call.layer
    call.check_grid()
    for name in ("kernel_size", "strides", "dilation_rate"):
        call.check_exchangeable(name, kernel_size(getattr(layer, name), name))
    _check_transposed_windows(call)
    output = call.output(call.produce(_default(call)))
    check_activation(call, output)
    call.draft.later(partial(_tie_transposed, call, output))
    return output


def _tie_transposed(call: Call, output: Feature) -> None:
    in_type, out_type = call.feature.kind.type, output.kind.type
    call.check_fields("filters", call.layer.filters, out_type)
    call.tie("kernel", kernel_pattern(call.layer.kernel_size, out_type, in_type))
    _tie_bias(call, out_type)


def convolve_depthwise(call: Call) -> Feature:
    """A depthwise convolution: it keeps the type, unless it makes several channels of each trivial one."""
    layer = call.layer
    check_windows(call, layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate)
    if layer.depth_multiplier == 1:
        return _convolve_each_channel(call)
    output = call.output(call.produce(_default_of_multiplier(call)))
    check_activation(call, output)
    call.draft.later(partial(_tie_multiplied, call, "kernel", output.kind))
    call.draft.later(lambda: _tie_bias(call, output.kind.type))
    return output


def convolve_separable(call: Call) -> Feature:
    """A depthwise and a pointwise convolution."""
    layer = call.layer
    check_windows(call, layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate)
    output = call.output(call.produce(_default(call)))
    check_activation(call, output)
    between = call.feature.kind if layer.depth_multiplier == 1 else Kind("", _default_of_multiplier(call))
    tie = _tie_each_channel if layer.depth_multiplier == 1 else _tie_multiplied
    call.draft.later(partial(tie, call, "depthwise_kernel", between))
    call.draft.later(partial(_tie_pointwise, call, between, output.kind))
    return output


def _tie_pointwise(call: Call, between: Kind, out_kind: Kind) -> None:
    call.check_fields("filters", call.layer.filters, out_kind.type)
    size = (1,) * len(call.layer.kernel_size)
    call.tie("pointwise_kernel", kernel_pattern(size, between.type, out_kind.type))
    _tie_bias(call, out_kind.type)


def _convolve_each_channel(call: Call) -> Feature:
    call.keep_type()
    output = call.output(call.feature.kind)
    check_activation(call, output)
    call.draft.later(partial(_tie_each_channel, call, "kernel", output.kind))
    call.draft.later(lambda: _tie_bias(call, output.kind.type))
    return output


def _tie_each_channel(call: Call, kernel: str, kind: Kind) -> None:
    """Ties a kernel with an axis of channels and one of size 1. The signs of input and output cancel."""
    unsigned, trivial = kind.type.unsigned, call.draft.trivial
    types = (unsigned, trivial) if hasattr(call.layer, "depth_multiplier") else (trivial, unsigned)
    call.tie(kernel, kernel_pattern(call.layer.kernel_size, *types))


def _tie_multiplied(call: Call, kernel: str, out_kind: Kind) -> None:
    """Ties a depthwise kernel that makes fields of each channel: output channel = input channel * multiplier + j."""
    in_type, multiplier = call.feature.kind.type, call.layer.depth_multiplier
    if not in_type.is_fixed:
        raise call.error(
            "With a depth multiplier above 1 the channels of a field are not adjacent.",
            f"depth_multiplier={multiplier} on {in_type}",
            "Use depth_multiplier=1 and a 1x1 convolution behind the layer.",
        )
    call.check_fields("depth_multiplier", multiplier, out_kind.type)
    call.tie(kernel, kernel_pattern(call.layer.kernel_size, call.draft.trivial, out_kind.type))


def _default_of_multiplier(call: Call) -> Action:
    is_whole = call.layer.depth_multiplier % call.draft.group.order == 0
    return call.draft.regular if is_whole else call.draft.trivial


def _default(call: Call) -> Action:
    """Returns the type of the output of a layer if nothing else decides: trivial where no spatial axes are left."""
    is_invariant = call.feature.is_flat or call.feature.is_point
    return call.draft.trivial if is_invariant else call.draft.regular


def _tie_bias(call: Call, out_type: Action) -> None:
    if call.layer.use_bias:
        call.tie_vector("bias", out_type, "use_bias")


def dense(call: Call) -> Feature:
    """A Dense layer: on vectors, on flattened values, or at each position."""
    layer, feature = call.layer, call.feature
    if feature.sizes and not feature.is_flat:
        check_axis(call, feature, -1)
    if feature.is_flat:
        _check_sizes(call)
    sizes = () if feature.is_flat else feature.sizes
    output = Feature(sizes, layer.units, call.produce(_default(call)))
    check_activation(call, output)
    call.draft.later(partial(_tie_dense, call, output.kind))
    return output


def _tie_dense(call: Call, out_kind: Kind) -> None:
    feature, in_type, out_type = call.feature, call.feature.kind.type, out_kind.type
    call.check_fields("units", call.layer.units, out_type)
    if feature.is_flat:
        call.tie("kernel", flat_pattern(tuple(size or 1 for size in feature.sizes), feature.channels, in_type, out_type))
    else:
        call.tie("kernel", kernel_pattern((), in_type, out_type))
    _tie_bias(call, out_type)


def per_axis(call: Call, value: int | Sequence[int]) -> tuple[int, ...]:
    """Returns an argument of the layer for each spatial axis, where one number means all."""
    return (value,) * len(call.feature.sizes) if isinstance(value, int) else tuple(value)


def _check_sizes(call: Call) -> None:
    """Raises a `TyingError` unless all sizes of flattened values are known, and equal where the group exchanges axes."""
    call.check_exchangeable("sizes", call.feature.sizes)
    if None in call.feature.sizes:
        raise call.error(
            "A Dense layer on flattened values has a fixed number of inputs.",
            f"sizes={call.feature.sizes}",
            "Give the model's Input a fixed size.",
        )


def check_windows(call: Call, size: Any, strides: Any, padding: str, dilation: Any) -> None:
    """Raises a `TyingError` unless the layer's windows are symmetric along each axis that the group reverses."""
    call.check_grid()
    size, strides, dilation = (per_axis(call, value) for value in (size, strides, dilation))
    sizes = call.feature.sizes
    for name, values in {"window": size, "strides": strides, "dilation_rate": dilation, "sizes": sizes}.items():
        call.check_exchangeable(name, values)
    for axis in call.draft.reversed_axes:
        window = Window((size[axis] - 1) * dilation[axis] + 1, strides[axis], padding)
        if not window.is_symmetric(sizes[axis]):
            raise call.error(
                "A layer sees its input the same way from both ends: equal padding, and no remainder.",
                f"size {sizes[axis]} along axis {axis}, window {window.extent}, stride {window.stride}, padding={padding!r}",
                window.way_out(sizes[axis]),
            )


def _check_transposed_windows(call: Call) -> None:
    layer = call.layer
    for axis in call.draft.reversed_axes:
        dilation, stride = (per_axis(call, getattr(layer, name))[axis] for name in ("dilation_rate", "strides"))
        window = Window((layer.kernel_size[axis] - 1) * dilation + 1, stride, layer.padding)
        if layer.output_padding is not None or not window.is_symmetric_transposed():
            raise call.error(
                "A transposed convolution cuts its output equally at both ends.",
                f"window {window.extent}, stride {stride}, padding={layer.padding!r}, output_padding={layer.output_padding}",
                f"Use kernel_size={stride} or {stride + 2} with strides={stride}, and no output_padding.",
            )
