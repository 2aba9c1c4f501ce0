"""The table of kernels: which stock layer keeps which kernels, and what of a pattern fits them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import keras
from keras import layers

from kernel_tying import keras_private
from kernel_tying.algebra import check_fits
from kernel_tying.constraint import TiedConstraint
from kernel_tying.errors import TyingError
from kernel_tying.identifiers import Identifier, validate
from kernel_tying.initializer import TiedInitializer, untied
from kernel_tying.pattern import TyingPattern
from kernel_tying.patterns.registry import named
from kernel_tying.patterns.sizes import kernel_size

LayerTying = Identifier | Mapping[str, Identifier]  # a bare identifier means the first kernel of the row
Axes = tuple[int | None, ...]  # sizes of a kernel's axes, None where only a built layer knows


def _spatial_axes(layer: keras.Layer) -> Axes:
    return (*kernel_size(layer.kernel_size, "kernel_size"), None, None)


def _pointwise_axes(layer: keras.Layer) -> Axes:
    return (*(1 for _ in layer.kernel_size), None, None)


def _matrix_axes(layer: keras.Layer) -> Axes:
    return (None, None)


def _einsum_axes(layer: keras.Layer) -> Axes:
    return tuple(None for _ in _einsum_labels(layer)[0])


def _registered_axes(layer: keras.Layer) -> Axes | None:
    return _spatial_axes(layer) if hasattr(layer, "kernel_size") else None


def _einsum_labels(layer: keras.Layer) -> list[str]:
    """Returns the labels of kernel and output in an EinsumDense layer's equation."""
    return layer.equation.partition(",")[2].replace(" ", "").split("->")


def _einsum_initializer(layer: keras.Layer, initializer: Any) -> Any:
    """Returns the initializer with the axes of its fans, which EinsumDense gives to stock initializers alone."""
    if not isinstance(initializer, keras.initializers.VarianceScaling) or initializer.input_axes is not None:
        return initializer
    kernel, output = _einsum_labels(layer)
    axes = {
        "input_axes": [axis for axis, label in enumerate(kernel) if label not in output],
        "output_axes": [axis for axis, label in enumerate(kernel) if label in output],
    }
    return type(initializer).from_config({**initializer.get_config(), "seed": initializer.seed, **axes})


def _same_initializer(layer: keras.Layer, initializer: Any) -> Any:
    return initializer


class Kernel(NamedTuple):
    """One kernel of a layer class.

    Attributes:
        name: the attribute that holds it.
        role: what goes with it stands in the attributes `<role>_initializer`, `<role>_regularizer`, `<role>_constraint`.
        axes: returns the sizes of its axes as far as an unbuilt layer knows them, or None if not even their number.
        initializer: returns what the layer makes of its initializer before it draws the kernel.
        seam: the method of the layer that convolves with it, where another convolution can stand in; empty if there is none.
    """

    name: str
    role: str = "kernel"
    axes: Callable[[keras.Layer], Axes | None] = _spatial_axes
    initializer: Callable[[keras.Layer, Any], Any] = _same_initializer
    seam: str = ""


_CONV = (Kernel("kernel"),)
_CONV_1D = (Kernel("kernel", seam="call"),)  # never calls its `convolution_op`
_CONV_ND = (Kernel("kernel", seam="convolution_op"),)
_DEPTHWISE = (Kernel("kernel", "depthwise", seam="call"),)
_SEPARABLE = (Kernel("depthwise_kernel", "depthwise"), Kernel("pointwise_kernel", "pointwise", _pointwise_axes))
_CELL = (Kernel("kernel", "kernel", _matrix_axes), Kernel("recurrent_kernel", "recurrent", _matrix_axes))

# The kernel that is meant where none is named comes first.
KERNELS: dict[type[keras.Layer], tuple[Kernel, ...]] = {
    layers.Conv1D: _CONV_1D,
    layers.Conv2D: _CONV_ND,
    layers.Conv3D: _CONV_ND,
    layers.Conv1DTranspose: _CONV,
    layers.Conv2DTranspose: _CONV,
    layers.Conv3DTranspose: _CONV,
    layers.DepthwiseConv1D: _DEPTHWISE,
    layers.DepthwiseConv2D: _DEPTHWISE,
    layers.SeparableConv1D: _SEPARABLE,
    layers.SeparableConv2D: _SEPARABLE,
    layers.Dense: (Kernel("kernel", "kernel", _matrix_axes),),
    layers.EinsumDense: (Kernel("kernel", "kernel", _einsum_axes, _einsum_initializer),),
    layers.SimpleRNNCell: _CELL,
    layers.GRUCell: _CELL,
    layers.LSTMCell: _CELL,
    keras_private.ConvLSTMCell: (Kernel("kernel"), Kernel("recurrent_kernel", "recurrent")),
}


def register_layer(cls: type[keras.Layer], kernels: Iterable[str]) -> None:
    """Adds a row for a layer class of one's own to the table of kernels. Subclasses inherit it unless they override `build`.

    Args:
        cls: a subclass of `keras.Layer`. If it has a `kernel_size`, a tuple of integers, its kernels have the shape
            `(*kernel_size, in, out)`; if not, they are tied only where the layer is named.
        kernels: names of the attributes that hold its kernels, the one that is meant where none is named first, each
            called `kernel` or `<role>_kernel`. Beside each stand the attributes `kernel_initializer`,
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
    KERNELS[cls] = tuple(Kernel(name, name.removesuffix("_kernel"), _registered_axes) for name in names)


def _row(layer: keras.Layer) -> tuple[Kernel, ...]:
    """Returns the layer's row of the table; it is empty if the class stands in none, or overrides `build`."""
    cls = next((cls for cls in type(layer).__mro__ if cls in KERNELS), None)
    return KERNELS[cls] if cls is not None and type(layer).build is cls.build else ()


def _kernel(layer: keras.Layer, name: str) -> Kernel:
    return next(kernel for kernel in _row(layer) if kernel.name == name)


def kernel_names(layer: keras.Layer) -> tuple[str, ...]:
    """Returns the names of the kernels that `layer` keeps, or `()` if its class stands in no row of the table."""
    return tuple(kernel.name for kernel in _row(layer))


def seam(layer: keras.Layer) -> str:
    """Returns the method of `layer` in which another convolution can stand in; "" if none, or if it is overridden."""
    names = {kernel.seam for kernel in _row(layer)} - {""}
    row = next((cls for cls in type(layer).__mro__ if cls in KERNELS), None)
    is_stock = all(getattr(type(layer), name, None) is getattr(row, name, None) for name in ("call", "convolution_op"))
    return names.pop() if names and is_stock else ""


def get_companion(layer: keras.Layer, kernel_name: str, what: str) -> Any:
    """Returns the layer's "initializer", "constraint" or "regularizer" for a kernel."""
    return getattr(layer, f"{_kernel(layer, kernel_name).role}_{what}")


def set_companion(layer: keras.Layer, kernel_name: str, what: str, value: Any) -> None:
    """Sets the layer's "initializer", "constraint" or "regularizer" for a kernel."""
    setattr(layer, f"{_kernel(layer, kernel_name).role}_{what}", value)


def tied_constraint(layer: keras.Layer, kernel_name: str) -> TiedConstraint | None:
    """Returns the layer's `TiedConstraint` for a kernel, whoever put it there."""
    constraint = get_companion(layer, kernel_name, "constraint")
    return constraint if isinstance(constraint, TiedConstraint) else None


def tied_initializer(layer: keras.Layer, kernel_name: str, pattern: TyingPattern) -> TiedInitializer:
    """Returns what draws a tied kernel with the variance that the layer's own initializer gives to the kernel."""
    base = untied(get_companion(layer, kernel_name, "initializer"))
    return TiedInitializer(pattern, _kernel(layer, kernel_name).initializer(layer, base))


def kernel_axes(layer: keras.Layer, kernel_name: str) -> Axes | None:
    """Returns the sizes of a kernel's axes, None for those that only a built layer knows; or None if nothing is known."""
    return tuple(getattr(layer, kernel_name).shape) if layer.built else _kernel(layer, kernel_name).axes(layer)


def kernel_shape(layer: keras.Layer, kernel_name: str) -> tuple[int, ...] | None:
    """Returns a kernel's shape, with 1 for the channels of an unbuilt layer; None if an unbuilt layer knows no axis."""
    axes = kernel_axes(layer, kernel_name) or (None,)
    return tuple(size or 1 for size in axes) if any(axes) else None


def spatial_size(layer: keras.Layer, kernel_name: str) -> tuple[int, ...]:
    """Returns the size of the spatial axes of a kernel, `()` if it has none."""
    return tuple(size for size in _kernel(layer, kernel_name).axes(layer) or () if size is not None)


def is_matrix_layer(layer: keras.Layer) -> bool:
    """Returns whether `layer` keeps kernels without spatial axes, as Dense does."""
    return any(not spatial_size(layer, name) for name in kernel_names(layer))


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
        size = getattr(layer, "kernel_size", None)
        described = f"{layer.name!r} with kernel_size={size}" if size else f"{layer.name!r} of class {type(layer).__name__}"
        raise TyingError(f"{error} This is layer {described}.") from None


def misfit(layer: keras.Layer, tying: LayerTying) -> str | None:
    """Returns why a tying that was given for many layers does not mean `layer`, or None if it does."""
    if not kernel_names(layer):
        refused = refusal(layer)
        return refused and refused.reason
    size = spatial_size(layer, kernel_names(layer)[0])
    if isinstance(tying, TyingPattern) and len(tying.shape) <= len(size) and tying.shape != size:
        return f"kernel_size={size} differs from the pattern's shape {tying.shape}"
    try:
        _patterns_by_kernel(layer, tying)
    except TyingError as error:
        return f"kernel_size={size} has no axis to tie" if set(size) == {1} else str(error)
    return None


def _patterns_by_kernel(layer: keras.Layer, tying: LayerTying) -> dict[str, TyingPattern]:
    names = kernel_names(layer)
    by_kernel = tying if isinstance(tying, Mapping) else {names[0]: tying}
    if not by_kernel or not set(by_kernel) <= set(names):
        raise TyingError(f"A layer is tied by the names of its kernels, {names}. Received {list(by_kernel)}. Use these names.")
    return {name: _checked_pattern(layer, name, validate(pattern)) for name, pattern in by_kernel.items()}


def _checked_pattern(layer: keras.Layer, kernel_name: str, tying: Identifier) -> TyingPattern:
    """Returns the pattern that `tying` means for a kernel, checked against all that is known of the kernel's axes."""
    axes, size = kernel_axes(layer, kernel_name), spatial_size(layer, kernel_name)
    pattern = _named_pattern(tying, size or axes) if isinstance(tying, str) else tying
    if axes is None:
        return pattern
    if len(size) < len(pattern.shape) and len(pattern.shape) != len(axes):
        raise TyingError(
            "A pattern that reaches a channel axis has the kernel's rank. "
            f"Received shape={pattern.shape} for a kernel of rank {len(axes)}. Append axes of size 1 for free channels."
        )
    reached = axes if layer.built else axes[: max(len(size), len(pattern.shape))]
    check_fits(pattern, tuple(size or pattern.shape[axis] for axis, size in enumerate(reached)))
    return pattern


def _named_pattern(name: str, axes: Axes | None) -> TyingPattern:
    size = tuple(size for size in axes or () if size is not None)
    if axes is None or len(size) < len(axes):
        raise TyingError(
            "A family of patterns is resolved for the size of a kernel, which this layer has once it is built. "
            f"Received {name!r} for an unbuilt layer. Build it first, or give a TyingPattern."
        )
    return named(name, size)
