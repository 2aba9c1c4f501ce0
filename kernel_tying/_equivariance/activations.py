"""Which activations are equivariant."""

from __future__ import annotations

import keras

from kernel_tying._equivariance.draft import Call
from kernel_tying._equivariance.fields import Feature, Kind

ODD = {"linear", "tanh", "softsign", "hard_tanh", "tanh_shrink", "soft_shrink", "hard_shrink"}
POINTWISE = ODD | {
    "celu", "elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "hard_swish", "leaky_relu", "log_sigmoid", "mish",
    "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "sparse_plus", "sparse_sigmoid", "squareplus", "swish", "threshold",
}  # fmt: skip
OVER_CHANNELS = {"softmax", "log_softmax", "sparsemax"}  # along the last axis


def check_activation(call: Call, feature: Feature) -> None:
    """Raises a `TyingError`, now or once types are known, if the layer's `activation` breaks equivariance at `feature`."""
    activation = getattr(call.layer, "activation", None)
    name = getattr(activation, "__name__", type(activation).__name__) if activation is not None else "linear"
    is_stock = activation is None or getattr(keras.activations, name, None) is activation
    if name not in POINTWISE | OVER_CHANNELS or not is_stock:
        raise call.error(
            "Activations act on each value alone, or on all channels in the same way.",
            f"activation={name!r}, which is not known to",
            "Use an activation of keras.activations other than 'glu'.",
        )
    if name in OVER_CHANNELS:
        check_axis(call, feature, -1)
    if name not in ODD:
        refuse_signs(call, f"activation={name!r}", feature.kind)


def check_axis(call: Call, feature: Feature, axis: int | tuple[int, ...] | list[int]) -> None:
    """Raises a `TyingError` unless `axis` is the axis of channels."""
    channel_axis = call.draft.channel_axis(feature)
    axes = [entry % feature.rank for entry in ([axis] if isinstance(axis, int) else axis)]
    if axes != [channel_axis]:
        raise call.error(
            "A sum over one axis is equivariant if that is the axis of channels.",
            f"axis={axis} for values of rank {feature.rank}",
            f"Use axis={channel_axis}.",
        )


def refuse_signs(call: Call, what: str, kind: Kind) -> None:
    """Schedules a `TyingError` about `what` if the group turns out to change signs of values of this kind."""
    call.draft.later(lambda: _check_signs(call, what, kind))


def _check_signs(call: Call, what: str, kind: Kind) -> None:
    if kind.type.is_signed:
        raise call.error(
            "Where the group changes signs of channels, only odd functions of each value are equivariant.",
            f"{what} on {kind.type}",
            "Use 'tanh', 'softsign' or no activation there, or let a convolution map to 'regular' first.",
        )
