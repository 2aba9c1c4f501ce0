"""The draft of a plan: what is known of a model's values while it is read, and the patterns chosen so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from kernel_tying._equivariance.acting import channel_axis
from kernel_tying._equivariance.fields import Action, Feature, Kind, action, vector_pattern
from kernel_tying._equivariance.windows import is_exchangeable, reversed_axes
from kernel_tying.errors import TyingError
from kernel_tying.patterns.groups import Group
from kernel_tying.patterns.pattern import TyingPattern


class Draft:
    """A plan in the making.

    Attributes:
        group: the group.
        data_format: "channels_last" or "channels_first", the same in the whole model.
        paths: path of each layer by `id`.
        ties: pattern of each kernel by path and name.
        trivial: the action on a single channel.
        scalar: the kind of values with a single channel.
        regular: the action on one channel for each element.
        reversed_axes: axes that the group reverses.
    """

    def __init__(self, group: Group, data_format: str, paths: dict[int, str]):
        self.group = group
        self.data_format = data_format
        self.paths = paths
        self.ties: dict[str, dict[str, TyingPattern]] = {}
        self.trivial, self.regular = (action(group, name, name) for name in ("trivial", "regular"))
        self.scalar = Kind("a single channel", self.trivial, is_known=True)
        self.reversed_axes = reversed_axes(group)
        self._calls: dict[int, tuple[Kind, Kind]] = {}
        self._pending: list[Callable[[], None]] = []

    def later(self, step: Callable[[], None]) -> None:
        """Schedules a step that needs the types of values."""
        self._pending.append(step)

    def finish(self) -> None:
        """Runs the scheduled steps."""
        for step in self._pending:
            step()

    def share(self, layer: keras.Layer, in_kind: Kind, out_kind: Kind, where: str) -> None:
        """Gives all calls of a layer the same types."""
        for first, kind in zip(self._calls.setdefault(id(layer), (in_kind, out_kind)), (in_kind, out_kind), strict=True):
            first.join(kind, where)

    def shape(self, feature: Feature) -> tuple[int | None, ...]:
        """Returns the shape of a value as Keras has it."""
        if self.data_format == "channels_first":
            return (None, feature.channels, *feature.sizes)
        return (None, *feature.sizes, feature.channels)

    def feature(self, shape: tuple[Any, ...], kind: Kind) -> Feature:
        """Returns the value of `shape`."""
        channels, sizes = (shape[1], shape[2:]) if self.data_format == "channels_first" else (shape[-1], shape[1:-1])
        return Feature(tuple(sizes), channels, kind)

    def channel_axis(self, feature: Feature) -> int:
        """Returns the axis of the channels of a value."""
        return channel_axis(feature.rank, self.data_format)


@dataclass(frozen=True)
class Call:
    """A call of a layer or operation on values of a model.

    Attributes:
        draft: the draft of the plan.
        layer: the layer or operation.
        features: the values that it is called on.
        constants: its other arguments.
    """

    draft: Draft
    layer: Any
    features: list[Feature]
    constants: list[Any]

    @property
    def feature(self) -> Feature:
        """The value that the layer is called on."""
        return self.features[0]

    @property
    def path(self) -> str:
        """The layer's path in the model."""
        return self.draft.paths.get(id(self.layer), self.layer.name)

    @property
    def described(self) -> str:
        """Path and class for messages."""
        return f"{self.path!r} ({type(self.layer).__name__})"

    def error(self, rule: str, received: str, way_out: str) -> TyingError:
        """Returns an error about the layer."""
        return TyingError(f"{rule} Received {received} in layer {self.described}. {way_out}")

    def produce(self, default: Action) -> Kind:
        """Returns the type of the output of a layer that changes types."""
        kind = Kind(f"layer {self.path!r}", default)
        self.draft.share(self.layer, self.feature.kind, kind, f"Layer {self.described}")
        return kind

    def keep_type(self) -> None:
        """Notes that the layer has weights, and keeps the type."""
        self.draft.share(self.layer, self.feature.kind, self.feature.kind, f"Layer {self.described}")

    def output(self, kind: Kind) -> Feature:
        """Returns the output of a layer that computes its output's shape."""
        shape = self.layer.compute_output_shape(self.draft.shape(self.feature))
        return self.draft.feature(shape, kind)

    def tie(self, kernel: str, pattern: TyingPattern | None) -> None:
        """Adds a pattern to the plan, if there is one."""
        if pattern is None:
            return
        kernels = self.draft.ties.setdefault(self.path, {})
        if kernels.setdefault(kernel, pattern) != pattern:
            raise self.error(
                "A shared layer has one pattern for all its calls.",
                f"calls that need different patterns of `{kernel}`",
                "Use a layer of its own for each.",
            )

    def tie_vector(self, name: str, of_type: Action, switch: str, rank: int = 1) -> None:
        """Adds the pattern of a vector of channels, such as a bias. `switch` is the argument that leaves it out."""
        try:
            self.tie(name, vector_pattern(of_type, rank))
        except TyingError:
            raise self.error(
                f"The group fixes `{name}`.", f"the type {of_type}, which fixes only zero,", f"Pass {switch}=False."
            ) from None

    def check_grid(self) -> None:
        """Raises a `TyingError` unless the value has the axes that the group moves, and the model's data format."""
        data_format = getattr(self.layer, "data_format", None) or self.draft.data_format
        if data_format != self.draft.data_format:
            raise self.error(
                "All layers of a model have one data format.",
                f"data_format={data_format!r}",
                f"Use {self.draft.data_format!r}.",
            )
        rank = self.draft.group.rank
        if self.feature.is_flat or len(self.feature.sizes) < rank:
            shape = self.draft.shape(self.feature)
            raise self.error(
                f"The group moves {rank} spatial axes.",
                "flattened values" if self.feature.is_flat else f"values of shape {shape}",
                "Use a group of fewer axes, or take the layer out.",
            )

    def check_exchangeable(self, name: str, values: Any) -> None:
        """Raises a `TyingError` unless an argument is equal along axes that the group exchanges."""
        values = tuple(values)
        if not is_exchangeable(self.draft.group, values[: self.draft.group.rank]):
            raise self.error(
                "The group exchanges axes, along which all sizes are equal.",
                f"{name}={values}",
                "Make them equal, or use a group that exchanges no axes, such as 'p2' or 'flip(1)'.",
            )

    def check_fields(self, argument: str, channels: int, of_type: Action) -> None:
        """Raises a `TyingError` unless `channels` is a number of whole fields."""
        if channels % of_type.members:
            size = of_type.members
            above = -(-channels // size) * size
            raise self.error(
                f"Channels of type {of_type} are whole fields of {size}.",
                f"{argument}={channels}",
                f"Use a multiple of {size}, such as {above}, or a smaller group.",
            )
