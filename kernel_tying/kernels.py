"""The table of kernels: which stock layer keeps which kernels, and what of a pattern fits them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import keras

from kernel_tying.algebra import check_fits
from kernel_tying.constraint import TiedConstraint
from kernel_tying.errors import TyingError
from kernel_tying.identifiers import Identifier, validate
from kernel_tying.pattern import TyingPattern
from kernel_tying.patterns.registry import named
from kernel_tying.patterns.sizes import kernel_size

LayerTying = Identifier | Mapping[str, Identifier]  # a bare identifier means the spatial kernel

# The spatial kernel comes first. What goes with each, such as its constraint, is found by Keras' naming: see `companion`.
KERNELS: dict[type[keras.Layer], tuple[str, ...]] = {
    keras.layers.Conv1D: ("kernel",),
    keras.layers.Conv2D: ("kernel",),
    keras.layers.Conv3D: ("kernel",),
}


def register_layer(cls: type[keras.Layer], kernels: Iterable[str]) -> None:
    """Adds a row for a layer class of one's own to the table of kernels. Subclasses inherit it unless they override `build`.

    Args:
        cls: a subclass of `keras.Layer` with a `kernel_size`, a tuple of integers.
        kernels: names of the attributes that hold its kernels, the spatial kernel first, each called `kernel` or
            `<role>_kernel`, of shape `(*kernel_size, in, out)`. Beside each stand the attributes `kernel_initializer`,
            `kernel_regularizer` and `kernel_constraint`, or `<role>_initializer` and so on, which may be None.

    Raises:
        TyingError: `cls` is no layer class, or a name does not end in `kernel`.
    """
    names = tuple(kernels)
    is_row = all(isinstance(name, str) and (name == "kernel" or name.endswith("_kernel")) for name in names) and bool(names)
    if not (isinstance(cls, type) and issubclass(cls, keras.Layer) and is_row):
        raise TyingError(
            "A row of the table of kernels is a subclass of keras.Layer and the names of its kernels, each 'kernel' or "
            f"'..._kernel'. Received cls={cls!r}, kernels={kernels!r}. Example: register_layer(MyConv2D, ('kernel',))."
        )
    KERNELS[cls] = names


def kernel_names(layer: keras.Layer) -> tuple[str, ...]:
    """Returns the names of the kernels that `layer` keeps, or `()` if its class stands in no row of the table."""
    row = next((cls for cls in type(layer).__mro__ if cls in KERNELS), None)
    return KERNELS[row] if row is not None and type(layer).build is row.build else ()


def companion(kernel_name: str, role: str) -> str:
    """Returns the name of the attribute that goes with a kernel, by Keras' naming.

    >>> companion("kernel", "constraint"), companion("depthwise_kernel", "constraint")
    ('kernel_constraint', 'depthwise_constraint')
    """
    return f"{kernel_name.removesuffix('_kernel')}_{role}"


def spatial_size(layer: keras.Layer) -> tuple[int, ...]:
    """Returns the size of the spatial axes of the layer's kernel."""
    return kernel_size(layer.kernel_size, "kernel_size")


class Refusal(NamedTuple):
    """Why no kernel of a layer can be tied, and what to do about it."""

    reason: str
    way_out: str


def refusal(layer: keras.Layer) -> Refusal | None:
    """Returns why no kernel of `layer` can be tied, whatever the pattern, or None."""
    cls = type(layer)
    if not kernel_names(layer):
        if any(base in KERNELS for base in cls.__mro__):
            return Refusal(f"{cls.__name__} overrides `build`", "Add a row for the class with `register_layer`.")
        return Refusal(f"{cls.__name__} keeps no kernel that can be tied", "Add a row for a class with `register_layer`.")
    if getattr(layer, "lora_enabled", False):
        return Refusal("LoRA is enabled", "Save the model and load it again, which merges the LoRA weights, and tie it then.")
    if layer.quantization_mode is not None:
        return Refusal(f"the layer is quantized ({layer.quantization_mode})", "Quantize a stripped model, after training.")
    return None


def resolve(layer: keras.Layer, tying: LayerTying) -> dict[str, TyingPattern]:
    """Returns the pattern of each kernel of `layer` that `tying` names.

    Raises:
        TyingError: no kernel of the layer can be tied, it keeps no kernel of that name, or a pattern does not fit it.
    """
    refused = refusal(layer)
    if refused is not None:
        raise TyingError(
            "Only kernels of layers in the table of kernels can be tied. "
            f"Received layer {layer.name!r}: {refused.reason}. {refused.way_out}"
        )
    try:
        return _patterns_by_kernel(layer, tying)
    except TyingError as error:
        raise TyingError(f"{error} This is layer {layer.name!r} with kernel_size={spatial_size(layer)}.") from None


def misfit(layer: keras.Layer, tying: LayerTying) -> str | None:
    """Returns why a tying that was given for many layers does not mean `layer`, or None if it does."""
    if not kernel_names(layer):
        refused = refusal(layer)
        return refused and refused.reason
    size = spatial_size(layer)
    if isinstance(tying, TyingPattern) and len(tying.shape) <= len(size) and tying.shape != size:
        return f"kernel_size={size} differs from the pattern's shape {tying.shape}"
    try:
        _patterns_by_kernel(layer, tying)
    except TyingError as error:
        return f"kernel_size={size} has no axis to tie" if max(size) == 1 else str(error)
    return None


def _patterns_by_kernel(layer: keras.Layer, tying: LayerTying) -> dict[str, TyingPattern]:
    names = kernel_names(layer)
    by_kernel = tying if isinstance(tying, Mapping) else {names[0]: tying}
    if not by_kernel or not set(by_kernel) <= set(names):
        raise TyingError(f"A layer is tied by the names of its kernels, {names}. Received {list(by_kernel)}. Use these names.")
    return {name: _checked_pattern(layer, name, validate(pattern)) for name, pattern in by_kernel.items()}


def _checked_pattern(layer: keras.Layer, kernel_name: str, tying: Identifier) -> TyingPattern:
    """Returns the pattern that `tying` means for a kernel, checked against all that is known of the kernel's shape."""
    size = spatial_size(layer)
    pattern = named(tying, size) if isinstance(tying, str) else tying
    if len(pattern.shape) > len(size) and len(pattern.shape) != len(size) + 2:
        raise TyingError(
            "A pattern that reaches a channel axis has the kernel's rank. "
            f"Received shape={pattern.shape} for a kernel of rank {len(size) + 2}. Append axes of size 1 for free channels."
        )
    check_fits(pattern, kernel_shape(layer, kernel_name) or size + pattern.shape[len(size) :])
    return pattern


def tied_constraint(layer: keras.Layer, kernel_name: str) -> TiedConstraint | None:
    """Returns the layer's `TiedConstraint` for a kernel, whoever put it there."""
    constraint = get_companion(layer, kernel_name, "constraint")
    return constraint if isinstance(constraint, TiedConstraint) else None


def kernel_shape(layer: keras.Layer, kernel_name: str) -> tuple[int, ...] | None:
    """Returns the shape of a kernel, or None if the layer is not built."""
    return tuple(getattr(layer, kernel_name).shape) if layer.built else None


def get_companion(layer: keras.Layer, kernel_name: str, role: str) -> Any:
    """Returns the layer's initializer, constraint or regularizer for a kernel."""
    return getattr(layer, companion(kernel_name, role))


def set_companion(layer: keras.Layer, kernel_name: str, role: str, value: Any) -> None:
    """Sets the layer's initializer, constraint or regularizer for a kernel."""
    setattr(layer, companion(kernel_name, role), value)
