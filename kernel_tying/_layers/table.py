"""The table of kernels: which stock layer has which kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras
from keras import layers

from kernel_tying import _keras
from kernel_tying.errors import TyingError
from kernel_tying.patterns.sizes import kernel_size

Axes = tuple[int | None, ...]  # sizes of a kernel's axes, None where only a built layer knows


def _spatial_axes(layer: keras.Layer) -> Axes:
    return (*kernel_size(layer.kernel_size, "kernel_size"), None, None)


def _pointwise_axes(layer: keras.Layer) -> Axes:
    return (*(1 for _ in layer.kernel_size), None, None)


def _matrix_axes(layer: keras.Layer) -> Axes:
    return (None, None)


def _einsum_axes(layer: keras.Layer) -> Axes:
    return tuple(None for _ in _einsum_labels(layer)[0])


def _vector_axes(layer: keras.Layer) -> Axes:
    return (None,)


def _unknown_axes(layer: keras.Layer) -> Axes | None:
    return None


def _registered_axes(layer: keras.Layer) -> Axes | None:
    return _spatial_axes(layer) if hasattr(layer, "kernel_size") else None


def _einsum_labels(layer: keras.Layer) -> list[str]:
    """Returns the labels of kernel and output in an EinsumDense layer's equation."""
    return layer.equation.partition(",")[2].replace(" ", "").split("->")


def _einsum_initializer(layer: keras.Layer, initializer: Any) -> Any:
    """Returns the initializer with the axes of its fans, as EinsumDense of Keras 3.15 sets them on stock initializers."""
    if getattr(initializer, "input_axes", ()) is not None or not isinstance(initializer, keras.initializers.VarianceScaling):
        return initializer
    kernel, output = _einsum_labels(layer)
    axes = {
        "input_axes": [axis for axis, label in enumerate(kernel) if label not in output],
        "output_axes": [axis for axis, label in enumerate(kernel) if label in output],
    }
    return type(initializer).from_config({**initializer.get_config(), "seed": initializer.seed, **axes})


def _unchanged_initializer(layer: keras.Layer, initializer: Any) -> Any:
    return initializer


def _always(layer: keras.Layer) -> bool:
    return True


def _has_bias(layer: keras.Layer) -> bool:
    # The forget gate of an LSTM draws its part of the bias without the initializer that the layer was given.
    return bool(layer.use_bias) and not getattr(layer, "unit_forget_bias", False)


def _has_scale(layer: keras.Layer) -> bool:
    return bool(layer.scale or getattr(layer, "rms_scaling", False))


def _has_offset(layer: keras.Layer) -> bool:
    return bool(layer.center and not getattr(layer, "rms_scaling", False))


class Kernel(NamedTuple):
    """One kernel of a layer class. Biases, scales and offsets count as kernels too.

    Attributes:
        name: the attribute that holds it.
        role: prefix of the attributes `<role>_initializer`, `<role>_regularizer` and `<role>_constraint`.
        axes: function that returns the sizes of its axes as far as an unbuilt layer knows them, or None if even the rank is
            unknown.
        initializer: function that returns the initializer as the layer adapts it to the kernel.
        convolution_method: the method of the layer that convolves with it and can be overridden; empty if there is none.
        is_kept: function that returns whether the options of a layer give it this kernel.
        is_default: whether a pattern that is given without a kernel name may tie it.
    """

    name: str
    role: str = "kernel"
    axes: Callable[[keras.Layer], Axes | None] = _spatial_axes
    initializer: Callable[[keras.Layer, Any], Any] = _unchanged_initializer
    convolution_method: str = ""
    is_kept: Callable[[keras.Layer], bool] = _always
    is_default: bool = True


def _by_name(
    name: str,
    axes: Callable[[keras.Layer], Axes | None] = _unknown_axes,
    is_kept: Callable[[keras.Layer], bool] = _always,
) -> Kernel:
    """Returns a kernel that is tied by its name only, such as a bias."""
    return Kernel(name, name, axes, is_kept=is_kept, is_default=False)


_BIAS = _by_name("bias", _vector_axes, _has_bias)
_CONV = (Kernel("kernel"), _BIAS)
_CONV_1D = (Kernel("kernel", convolution_method="call"), _BIAS)  # never calls its `convolution_op`
_CONV_ND = (Kernel("kernel", convolution_method="convolution_op"), _BIAS)
_DEPTHWISE = (Kernel("kernel", "depthwise", convolution_method="call"), _BIAS)
_SEPARABLE = (Kernel("depthwise_kernel", "depthwise"), Kernel("pointwise_kernel", "pointwise", _pointwise_axes), _BIAS)
_CELL = (Kernel("kernel", "kernel", _matrix_axes), Kernel("recurrent_kernel", "recurrent", _matrix_axes), _BIAS)
_NORMALIZATION = (
    _by_name("gamma", is_kept=_has_scale),
    _by_name("beta", is_kept=_has_offset),
)
# The first kernel of a row is the default, if it can be.
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
    layers.Dense: (Kernel("kernel", "kernel", _matrix_axes), _BIAS),
    layers.EinsumDense: (
        Kernel("kernel", "kernel", _einsum_axes, _einsum_initializer),
        _by_name("bias", is_kept=lambda layer: bool(layer.bias_axes)),
    ),
    layers.SimpleRNNCell: _CELL,
    layers.GRUCell: (*_CELL[:2], _by_name("bias", is_kept=_has_bias)),
    layers.LSTMCell: _CELL,
    _keras.ConvLSTMCell: (Kernel("kernel"), Kernel("recurrent_kernel", "recurrent"), _BIAS),
    layers.BatchNormalization: _NORMALIZATION,
    layers.LayerNormalization: _NORMALIZATION,
    layers.GroupNormalization: _NORMALIZATION,
    layers.PReLU: (_by_name("alpha"),),
}
_BY_NAME_ONLY = ("bias", "gamma", "beta", "alpha")


def register_layer(cls: type[keras.Layer], kernels: Iterable[str]) -> None:
    """Adds a layer class of your own to the table of kernels. Subclasses inherit the row unless they override `build`.

    Args:
        cls: a subclass of `keras.Layer`. If it has a `kernel_size`, a tuple of integers, its kernels have the shape
            `(*kernel_size, in, out)`. If not, they are tied only where the layer is named.
        kernels: names of the attributes that hold its kernels, each called `kernel` or `<role>_kernel`, or "bias", "gamma",
            "beta" or "alpha". The first is the default, unless it is one of these four. For each, the layer has the
            attributes `kernel_initializer`, `kernel_regularizer` and `kernel_constraint`, or `<role>_initializer` and so on.
            They may be None.

    Raises:
        TyingError: `cls` is not a layer class, or `kernels` holds another name.
    """
    names = tuple(kernels) if isinstance(kernels, Iterable) else ()
    is_row = len(names) == len(set(map(str, names))) > 0 and all(map(_is_kernel_name, names))
    if not (isinstance(cls, type) and issubclass(cls, keras.Layer) and is_row):
        raise TyingError(
            "A row of the table of kernels is a subclass of keras.Layer and the names of its kernels, each 'kernel', "
            f"'..._kernel', 'bias', 'gamma', 'beta' or 'alpha'. Received cls={cls!r}, kernels={kernels!r}. "
            "Example: register_layer(MyConv2D, ('kernel',))."
        )
    KERNELS[cls] = tuple(map(_registered_kernel, names))


def _is_kernel_name(name: Any) -> bool:
    return isinstance(name, str) and (name == "kernel" or name.endswith("_kernel") or name in _BY_NAME_ONLY)


def _registered_kernel(name: str) -> Kernel:
    if name in _BY_NAME_ONLY:
        return _by_name(name)
    return Kernel(name, name.removesuffix("_kernel"), _registered_axes)


def kernels_of(layer: keras.Layer) -> tuple[Kernel, ...]:
    """Returns the kernels that a layer has by its row and options: none if its class has no row, or overrides `build`."""
    cls = next((cls for cls in type(layer).__mro__ if cls in KERNELS), None)
    if cls is None or type(layer).build is not cls.build:
        return ()
    return tuple(kernel for kernel in KERNELS[cls] if kernel.is_kept(layer))


def kernel_of(layer: keras.Layer, name: str) -> Kernel:
    """Returns the table's entry for a kernel of `layer`."""
    return next(kernel for kernel in kernels_of(layer) if kernel.name == name)


def kernel_names(layer: keras.Layer) -> tuple[str, ...]:
    """Returns the names of the kernels of `layer`, or `()` if its class has no row in the table."""
    return tuple(kernel.name for kernel in kernels_of(layer))


def default_kernel(layer: keras.Layer) -> str | None:
    """Returns the name of the kernel that a pattern without a name means, or None if each is tied by its name only."""
    return next((kernel.name for kernel in kernels_of(layer)[:1] if kernel.is_default), None)


def convolution_method(layer: keras.Layer) -> str:
    """Returns the name of the method in which `layer` convolves; "" if it cannot be overridden, or the class overrides it."""
    names = {kernel.convolution_method for kernel in kernels_of(layer)} - {""}
    row = next((cls for cls in type(layer).__mro__ if cls in KERNELS), None)
    is_stock = all(getattr(type(layer), name, None) is getattr(row, name, None) for name in ("call", "convolution_op"))
    return names.pop() if names and is_stock else ""
