"""Resolves patterns for a layer, and checks that they fit its kernels."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import NamedTuple

import keras

from kernel_tying._layers.identifiers import PatternLike, validate
from kernel_tying._layers.table import KERNELS, Axes, default_kernel, kernel_names, kernel_of
from kernel_tying.errors import TyingError
from kernel_tying.patterns.fields import check_fits
from kernel_tying.patterns.pattern import TyingPattern
from kernel_tying.patterns.registry import named

LayerTying = PatternLike | Mapping[str, PatternLike]  # without a kernel name it ties the default kernel


def kernel_axes(layer: keras.Layer, kernel_name: str) -> Axes | None:
    """Returns the sizes of a kernel's axes, None where only a built layer knows; or None if even the rank is unknown."""
    return tuple(getattr(layer, kernel_name).shape) if layer.built else kernel_of(layer, kernel_name).axes(layer)


def known_shape(layer: keras.Layer, kernel_name: str) -> tuple[int, ...] | None:
    """Returns a kernel's shape as far as it is known, with 1 for the channels of an unbuilt layer; None if no size is known."""
    axes = kernel_axes(layer, kernel_name) or (None,)
    return tuple(size or 1 for size in axes) if any(axes) else None


def spatial_size(layer: keras.Layer, kernel_name: str) -> tuple[int, ...]:
    """Returns the size of the spatial axes of a kernel, `()` if it has none."""
    return tuple(size for size in kernel_of(layer, kernel_name).axes(layer) or () if size is not None)


def is_matrix_layer(layer: keras.Layer) -> bool:
    """Returns whether the default kernel of `layer` has no spatial axes, as that of Dense."""
    name = default_kernel(layer)
    return name is not None and not spatial_size(layer, name)


class Obstruction(NamedTuple):
    """The reason why no kernel of a layer can be tied, and the way out."""

    reason: str
    way_out: str


def find_obstruction(layer: keras.Layer) -> Obstruction | None:
    """Returns why no kernel of `layer` can be tied, whatever the pattern, or None."""
    cls = type(layer)
    if not kernel_names(layer):
        if any(base in KERNELS for base in cls.__mro__):
            return Obstruction(f"{cls.__name__} overrides `build`", "Add a row for the class with `register_layer`.")
        is_own = not cls.__module__.startswith("keras.")
        way_out = "Add a row for the class with `register_layer`." if is_own else "Tie a layer such as Conv2D or Dense."
        return Obstruction(f"{cls.__name__} keeps no kernel that can be tied", way_out)
    if getattr(layer, "lora_enabled", False):
        return Obstruction(
            "LoRA is enabled", "Save the model and load it again, which merges the LoRA weights, and tie it then."
        )
    if layer.quantization_mode is not None:
        return Obstruction(f"the layer is quantized ({layer.quantization_mode})", "Quantize a stripped model, after training.")
    return None


def resolve(layer: keras.Layer, tying: LayerTying) -> dict[str, TyingPattern]:
    """Returns the pattern of each kernel of `layer` that `tying` names.

    Raises:
        TyingError: no kernel of the layer can be tied, it has no kernel of that name, or a pattern does not fit it.
    """
    obstruction = find_obstruction(layer)
    if obstruction is not None:
        raise TyingError(
            "Only kernels of layers in the table of kernels can be tied. "
            f"Received layer {layer.name!r}: {obstruction.reason}. {obstruction.way_out}"
        )
    try:
        return _patterns_by_kernel(layer, tying)
    except TyingError as error:
        size = getattr(layer, "kernel_size", None)
        described = f"{layer.name!r} with kernel_size={size}" if size else f"{layer.name!r} of class {type(layer).__name__}"
        raise TyingError(f"{error} This is layer {described}.") from None


def misfit(layer: keras.Layer, tying: LayerTying) -> str | None:
    """Returns why a tying for many layers does not apply to `layer`, or None if it does."""
    if not kernel_names(layer):
        obstruction = find_obstruction(layer)
        return obstruction and obstruction.reason
    size = spatial_size(layer, kernel_names(layer)[0])
    if default_kernel(layer) is None and not isinstance(tying, Mapping):
        return f"{type(layer).__name__} keeps only weights that are tied by name"
    if isinstance(tying, TyingPattern) and len(tying.shape) <= len(size) and tying.shape != size:
        return f"kernel_size={size} differs from the pattern's shape {tying.shape}"
    try:
        _patterns_by_kernel(layer, tying)
    except TyingError as error:
        return f"kernel_size={size} has no axis to tie" if set(size) == {1} else str(error)
    return None


def _patterns_by_kernel(layer: keras.Layer, tying: LayerTying) -> dict[str, TyingPattern]:
    names = kernel_names(layer)
    by_kernel = tying if isinstance(tying, Mapping) else {_default_name(layer): tying}
    if not by_kernel or not set(by_kernel) <= set(names):
        options = _options_without(layer, set(by_kernel) - set(names))
        raise TyingError(
            f"A layer is tied by the names of its kernels, {names}. Received {list(by_kernel)}. Use these names{options}."
        )
    return {name: _checked_pattern(layer, name, pattern) for name, pattern in by_kernel.items()}


def _options_without(layer: keras.Layer, names: set[str]) -> str:
    """Returns the part of a message about kernels that other options would give a layer."""
    possible = chain.from_iterable(KERNELS.get(cls, ()) for cls in type(layer).__mro__)
    if names.isdisjoint(kernel.name for kernel in possible):
        return ""
    options = [name for name in ("use_bias", "unit_forget_bias", "scale", "center", "bias_axes") if hasattr(layer, name)]
    return f", or other values of {', '.join(options)}"


def _default_name(layer: keras.Layer) -> str:
    """Returns the name of the default kernel, and raises a `TyingError` if there is none."""
    name = default_kernel(layer)
    if name is None:
        names = kernel_names(layer)
        raise TyingError(
            f"A bias, scale or offset is tied by its name, here {names}. Received a pattern without a name. "
            f"Example: {{{layer.name!r}: {{{names[0]!r}: pattern}}}}."
        )
    return name


def _checked_pattern(layer: keras.Layer, kernel_name: str, tying: PatternLike) -> TyingPattern:
    """Returns the pattern that `tying` means for a kernel, checked against the known sizes of its axes."""
    axes, size = kernel_axes(layer, kernel_name), spatial_size(layer, kernel_name)
    identifier = validate(tying)
    pattern = _named_pattern(identifier, size or axes) if isinstance(identifier, str) else identifier
    if axes is None:
        return pattern
    reaches_channels = len(pattern.shape) > len(size)
    if reaches_channels and len(pattern.shape) != len(axes):
        raise TyingError(
            "A pattern that reaches a channel axis has the kernel's rank. "
            f"Received shape={pattern.shape} for a kernel of rank {len(axes)}. Append axes of size 1 for free channels."
        )
    reached = axes if layer.built else axes[: max(len(size), len(pattern.shape))]
    # The pattern's own size fits an axis whose length only a built layer knows.
    shape = tuple(length or pattern.shape[axis] for axis, length in enumerate(reached))
    check_fits(pattern, shape, max(len(axes) - 2, 0))
    return pattern


def _named_pattern(name: str, axes: Axes | None) -> TyingPattern:
    size = tuple(size for size in axes or () if size is not None)
    if axes is None or len(size) < len(axes):
        raise TyingError(
            "A family of patterns is resolved for the size of a kernel, which this layer has once it is built. "
            f"Received {name!r} for an unbuilt layer. Build it first, or give a TyingPattern."
        )
    return named(name, size)
