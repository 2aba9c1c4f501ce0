"""Rules of stock layers other than convolutions: pooling, padding, activations, normalization and shapes.

Each rule takes a `Call` and returns the `Feature` that it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernel_tying._equivariance.activations import check_activation, check_axis, refuse_signs
from kernel_tying._equivariance.convolutions import check_windows, per_axis
from kernel_tying._equivariance.draft import Call
from kernel_tying._equivariance.fields import Feature, vector_pattern
from kernel_tying._equivariance.operations import act_on_each
from kernel_tying._layers.table import kernel_names
from kernel_tying.patterns.pattern import TyingPattern


def keep(call: Call) -> Feature:
    """Nothing depends on the position or the channel."""
    return call.feature


def flatten(call: Call) -> Feature:
    """The axes in one: positions, and channels within. Both data formats are flattened so."""
    feature = call.feature
    if not feature.sizes or feature.is_flat:
        return feature
    call.check_grid()
    if feature.is_point:
        return Feature((), feature.channels, feature.kind)
    return Feature(feature.sizes, feature.channels, feature.kind, is_flat=True)


def reshape(call: Call) -> Feature:
    """Axes of size 1 around the channels, added or left out."""
    feature = call.feature
    output = call.output(feature.kind)
    if feature.is_flat or not feature.is_point or not output.is_point or output.channels != feature.channels:
        raise call.error(
            "A reshape keeps axes apart.",
            f"shape {call.draft.shape(feature)[1:]} to {call.draft.shape(output)[1:]}",
            "Only axes of size 1 around the channels can be added or left out: use Flatten, or global pooling.",
        )
    return output


def pool(call: Call) -> Feature:
    """Averages over windows."""
    layer = call.layer
    check_windows(call, layer.pool_size, layer.strides, layer.padding, 1)
    return call.output(call.feature.kind)


def pool_all(call: Call) -> Feature:
    """Averages over all positions, or over windows that divide the axes evenly."""
    call.check_grid()
    if hasattr(call.layer, "output_size"):
        call.check_exchangeable("output_size", per_axis(call, call.layer.output_size))
    return call.output(call.feature.kind)


def maxima(rule: Callable[[Call], Feature]) -> Callable[[Call], Feature]:
    """Returns the rule of a layer that takes maxima where the layer of `rule` takes averages."""

    def rule_of_maxima(call: Call) -> Feature:
        refuse_signs(call, "a maximum", call.feature.kind)
        return rule(call)

    return rule_of_maxima


def upsample(call: Call) -> Feature:
    """Nearest or interpolated values, the same number on both sides."""
    call.check_grid()
    call.check_exchangeable("size", per_axis(call, call.layer.size))
    return call.output(call.feature.kind)


def pad(call: Call) -> Feature:
    """Zeros around, or positions cut off."""
    call.check_grid()
    name = "padding" if hasattr(call.layer, "padding") else "cropping"
    pads: Any = getattr(call.layer, name)
    pairs = [tuple(pair) for pair in pads] if isinstance(pads[0], Sequence) else [tuple(pads)]
    call.check_exchangeable(name, pairs)
    if any(len(set(pairs[axis])) > 1 for axis in call.draft.reversed_axes):
        raise call.error(
            "Both ends of an axis are padded or cropped by the same amount.",
            f"{name}={tuple(pairs)}",
            "Use equal numbers. Layers behind it may need another input size: those of networks in keras.applications pad "
            "equally if the sizes are odd.",
        )
    return call.output(call.feature.kind)


def activate(call: Call) -> Feature:
    """The `activation` of an Activation layer."""
    check_activation(call, call.feature)
    return call.feature


def prelu(call: Call) -> Feature:
    """A PReLU, whose `alpha` is shared over the spatial axes."""
    act_on_each(call)
    feature, rank = call.feature, len(call.feature.sizes)
    channel_axis = call.draft.channel_axis(feature)
    spatial = {axis for axis in range(1, rank + 2) if axis != channel_axis}
    if feature.is_flat or not spatial <= set(call.layer.shared_axes or ()):
        raise call.error(
            "A PReLU has the same `alpha` at all positions.",
            f"shared_axes={call.layer.shared_axes}",
            f"Pass shared_axes={sorted(spatial)}.",
        )
    call.keep_type()
    if channel_axis not in (call.layer.shared_axes or ()):
        call.draft.later(lambda: _tie_slopes(call, channel_axis))
    return feature


def _tie_slopes(call: Call, channel_axis: int) -> None:
    """Ties the slopes of a PReLU, of size 1 along all axes but that of the channels."""
    rank, of_type = len(call.feature.sizes) + 1, call.feature.kind.type.unsigned
    if channel_axis == rank:
        _tie_scale(call, "alpha", rank)
        return
    field = vector_pattern(of_type)
    if field is not None:  # axes in front of the last two have no fields, so the pattern spans all channels
        first = field.num_free * np.arange(call.feature.channels // of_type.members)
        call.tie("alpha", TyingPattern((field.labels + first[:, None]).reshape(-1, *(1,) * (rank - 1))))


def _tie_scale(call: Call, name: str, rank: int = 1) -> None:
    """Ties a factor of each channel, which has no sign."""
    call.tie_vector(name, call.feature.kind.type.unsigned, "scale", rank)


def normalize(call: Call) -> Feature:
    """A normalization of each channel or over all channels, with `gamma` and `beta` of each channel."""
    layer = call.layer
    check_axis(call, call.feature, layer.axis)
    if call.feature.is_flat:
        raise call.error("A normalization knows its channels.", "flattened values", "Put it in front of Flatten.")
    refuse_signs(call, type(layer).__name__, call.feature.kind)
    call.keep_type()
    call.draft.later(lambda: _tie_normalization(call))
    return call.feature


def _tie_normalization(call: Call) -> None:
    names = kernel_names(call.layer)
    if "gamma" in names:
        _tie_scale(call, "gamma")
    if "beta" in names:
        call.tie_vector("beta", call.feature.kind.type, "center")


def normalize_batch(call: Call) -> Feature:
    """A BatchNormalization: it pools its statistics over the fields that its `gamma` or `beta` tie."""
    if not (call.layer.scale or call.layer.center):
        call.draft.later(lambda: _require_fixed(call, "scale=False, center=False", "Pass scale=True or center=True."))
    return normalize(call)


def normalize_groups(call: Call) -> Feature:
    """A GroupNormalization, whose groups of channels are whole fields or single channels."""
    channels, count = call.feature.channels, call.layer.groups
    size = 1 if count == -1 else channels // count
    if size > 1:
        call.draft.later(lambda: call.check_fields("channels / groups", size, call.feature.kind.type))
    return normalize(call)


def normalize_inputs(call: Call) -> Feature:
    """A fixed factor and offset for all channels, or one for each, which only fixed channels can have."""
    if call.layer.axis == ():
        refuse_signs(call, "an offset", call.feature.kind)
        return call.feature
    check_axis(call, call.feature, call.layer.axis)
    return _treat_each_channel(call)


def _treat_each_channel(call: Call) -> Feature:
    if call.feature.is_flat:
        raise call.error("Each channel has one factor.", "flattened values", "Put the layer in front of Flatten.")
    call.draft.later(lambda: _require_fixed(call, "factors of each channel", "Scale all channels by one number."))
    return call.feature


def rescale(call: Call) -> Feature:
    """A factor and an offset: numbers, or fixed values of each channel."""
    scale, offset = np.asarray(call.layer.scale), np.asarray(call.layer.offset)
    if offset.any():
        refuse_signs(call, "an offset", call.feature.kind)
    if scale.size == offset.size == 1:
        return call.feature
    rank, channel_axis = call.feature.rank, call.draft.channel_axis(call.feature)
    for name, array in (("scale", scale), ("offset", offset)):
        axes = [rank - array.ndim + axis for axis, size in enumerate(array.shape) if size > 1]
        if axes not in ([], [channel_axis]) or array.size not in (1, call.feature.channels):
            raise call.error(
                "A factor or offset is the same at all positions.",
                f"{name} of shape {array.shape}",
                "Use a number, or one for each channel.",
            )
    return _treat_each_channel(call)


def unit_normalize(call: Call) -> Feature:
    """A division by the norm of all channels."""
    check_axis(call, call.feature, call.layer.axis)
    return call.feature


def _require_fixed(call: Call, received: str, way_out: str) -> None:
    of_type = call.feature.kind.type
    if not of_type.is_fixed:
        raise call.error("Channels that the group exchanges are treated the same way.", f"{received} on {of_type}", way_out)
