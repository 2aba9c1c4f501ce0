"""The protocol that each backend module implements, and the module of the active backend."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, cast

import keras

from kernel_tying._convolution.geometry import Geometry
from kernel_tying.algebra import Tensor

# Of a convolution: with few input channels, with strides, channel by channel, or any other.
Kind = Literal["first", "strided", "depthwise", "dense"]


class Backend(Protocol):
    """The functions that `jax.py`, `tensorflow.py` and `torch.py` define."""

    def convolve(self, inputs: Tensor, free: Tensor, geometry: Geometry) -> Tensor:
        """Returns the tied convolution, computed by group sums and differentiable any number of times.

        Args:
            inputs: a tensor `(batch, *spatial, in)`.
            free: the free weights of each tied group, a tensor `(K, in / channel_groups, out)`.
            geometry: strides, dilation, padding and the other numbers that do not depend on values.
        """

    def traced_convolutions(self) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        """Returns the stock convolution and the depthwise one, for a graph that is being traced.

        Both take `(inputs, kernel, strides, padding, data_format, dilation_rate)`, as those of `keras.ops`.
        """

    def is_compiling(self) -> bool:
        """Returns whether a compiler is tracing that takes stock operators only."""

    def is_exporting(self) -> bool:
        """Returns whether a model is being exported."""

    def hardware_without_benchmarks(self) -> str:
        """Returns the name of hardware without benchmark data, or ""."""

    def threads(self) -> int:
        """Returns the number of compute threads."""

    def is_compiled(self, given: bool | None) -> bool:
        """Returns whether XLA or torch.compile compiles the model. `given` is the caller's answer, or None if unknown."""

    def break_even_reductions(self, kind: Kind, is_compiled: bool) -> Mapping[int, float] | None:
        """Returns the break-even reduction k^2/K by minimum channel count, or None without benchmark data.

        An empty mapping says that group sums are never faster. In first layers, filters count instead of channels.
        """

    def inference_step(
        self, function: Callable[..., Tensor], tensors: Sequence[Tensor], is_compiled: bool
    ) -> Callable[[], Any]:
        """Returns a function that computes outputs, and blocks until they are ready."""

    def training_step(self, function: Callable[..., Tensor], tensors: Sequence[Tensor], is_compiled: bool) -> Callable[[], Any]:
        """Returns a function that computes outputs and gradients with respect to `tensors`, and blocks until both are ready."""


HAS_GROUP_SUMS = keras.backend.backend() in ("jax", "tensorflow", "torch")
# Imported with the package: torch.compile cannot trace an import.
_MODULE = importlib.import_module(f"kernel_tying._convolution.{keras.backend.backend()}") if HAS_GROUP_SUMS else None
BACKEND = cast(Backend, _MODULE)
