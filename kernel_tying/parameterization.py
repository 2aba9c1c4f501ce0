"""Parameterization mode: a tied kernel, computed from the free weights, takes the place of the stock kernel variable."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import keras
from keras import ops
from keras.saving import deserialize_keras_object as deserialize

from kernel_tying import keras_private
from kernel_tying.algebra import Tensor, average, averaging_dtype, expand, free_shape, root_group_sizes
from kernel_tying.dispatch import CONVOLUTIONS, convolving_methods
from kernel_tying.errors import TyingError, abbreviate, check_choice
from kernel_tying.guards import REFUSED_METHODS, override_methods, refuse, restore_methods
from kernel_tying.identifiers import deserialize_pattern, resolve_object, serialize_pattern
from kernel_tying.kernels import (
    LayerTying,
    get_companion,
    kernel_names,
    resolve,
    set_companion,
    tied_constraint,
    tied_initializer,
)
from kernel_tying.pattern import TyingPattern

SCALINGS = ("values", "orthonormal")


class KernelView(keras_private.VariableView):
    """The tied kernel as a layer sees it: a variable whose value is `expand(theta)` and that stores nothing itself.

    With scaling "values", `theta` holds the values of the kernel. With "orthonormal" it holds `sqrt(group size) * value`,
    so that `theta -> kernel` keeps the Frobenius norm, and a step of plain SGD on `theta` is the projected step on the kernel.

    Args:
        stock: the kernel variable whose place the view takes.
        pattern: the tying pattern.
        scaling: "values" or "orthonormal".
        convolution: "auto", "tune", "kernel" or "group_sums".
        initializer: of the free weights, which are averaged from `stock` if it is None.
    """

    def __init__(self, stock: keras.Variable, pattern: TyingPattern, scaling: str, convolution: str, initializer: Any = None):
        self.pattern = pattern
        self.scaling = scaling
        self.convolution = convolution
        shape = free_shape(tuple(stock.shape), pattern)
        initializer = initializer or (lambda *_, **__: self.encode(stock.value))
        theta = keras_private.variable_like(stock, initializer, shape, autocast=False)
        super().__init__(stock, theta)
        theta.regularizer = stock.regularizer and (lambda free: stock.regularizer(self.decode(free)))
        theta.constraint = stock.constraint and (lambda free: self.encode(stock.constraint(self.decode(free))))

    @property
    def theta(self) -> keras.Variable:
        """The free weights, the only thing that is trained and stored."""
        return self.source

    @property
    def free_values(self) -> Tensor:
        """The values of the groups, in the dtype in which the layer computes."""
        return self._maybe_autocast(rescale(self.source.value, self.pattern, self.scaling, "values"))

    def decode(self, free: Tensor) -> Tensor:
        """Returns the kernel for the free weights `free`."""
        return expand(rescale(free, self.pattern, self.scaling, "values"), self.pattern)

    def encode(self, kernel: Tensor) -> Tensor:
        """Returns the free weights nearest to `kernel`."""
        return rescale(average(kernel, self.pattern), self.pattern, "values", self.scaling)


def rescale(free: Tensor, pattern: TyingPattern, source: str, target: str) -> Tensor:
    """Returns free weights of scaling `source` in scaling `target`."""
    if source == target:
        return free
    root = root_group_sizes(pattern, len(free.shape))
    dtype = keras.backend.standardize_dtype(free.dtype)
    wide = ops.cast(free, averaging_dtype(dtype))
    root = ops.cast(root, wide.dtype)
    return ops.cast(wide * root if target == "orthonormal" else wide / root, dtype)


def views(layer: keras.Layer) -> dict[str, KernelView]:
    """Returns the tied kernels of a stock layer in parameterization mode, by kernel name."""
    kernels = ((name, getattr(layer, name, None)) for name in kernel_names(layer) if layer.built)
    return {name: kernel for name, kernel in kernels if isinstance(kernel, KernelView)}


def parameterize(
    layer: keras.Layer, patterns: Mapping[str, TyingPattern], scaling: str, convolution: str, initializer: Any = None
) -> None:
    """Puts tied kernels, averaged from those that are there if there is no `initializer`, into a built stock layer.

    The free weights take the place of the stock kernel among the layer's weights, under its name and path.
    """
    for name, pattern in patterns.items():
        stock = getattr(layer, name)
        view = KernelView(stock, pattern, scaling, convolution, initializer)
        attribute = keras_private.attribute_of(layer, stock)
        keras_private.replace_variable(layer, stock, view.theta)
        keras_private.forget_attribute(layer, attribute)
        vars(layer)[attribute] = view  # untracked: the view is no weight
        setattr(layer, _free_attribute(name), view.theta)  # for backends that find variables by attribute, as SavedModel does
    override_methods(layer, {**_FILE_METHODS, **REFUSED_METHODS, **convolving_methods(layer)})


def deparameterize(layer: keras.Layer) -> None:
    """Puts stock kernel variables that hold the same values in the place of the tied kernels."""
    if not views(layer):
        return
    for name, view in views(layer).items():
        value = view.value
        stock = keras_private.variable_like(view, lambda *_, value=value, **__: value, tuple(view.shape), autocast=True)
        stock.regularizer, stock.constraint = view.regularizer, view.constraint
        attribute = keras_private.attribute_of(layer, view)
        keras_private.replace_variable(layer, view.theta, stock)
        keras_private.forget_attribute(layer, _free_attribute(name))
        keras_private.forget_attribute(layer, attribute)
        setattr(layer, attribute, stock)
    restore_methods(layer)


def _free_attribute(kernel_name: str) -> str:
    return f"free_{kernel_name}"


def _save(layer: keras.Layer, store: Any) -> None:
    """Writes the layer's variables in order: free weights in the place of kernels, under keys that tell their scaling."""
    scaling = {id(view.theta): view.scaling for view in views(layer).values()}
    for index, variable in enumerate(keras_private.own_variables(layer)):
        store[_key(index, scaling.get(id(variable), "values"))] = variable


def stock_store(layer: keras.Layer) -> dict[str, Any]:
    """Returns what a stock layer in the place of the tied `layer` would save: kernels in the place of free weights."""
    kernels = {id(view.theta): view for view in views(layer).values()}
    return {str(index): kernels.get(id(one), one) for index, one in enumerate(keras_private.own_variables(layer))}


def _load(layer: keras.Layer, store: Any) -> None:
    """Reads what `_save` wrote, in either scaling, and stock kernels, which are averaged."""
    variables = keras_private.own_variables(layer)
    if len(store.keys()) != len(variables):
        raise TyingError(
            f"A tied layer reads one array for each of its {len(variables)} variables. Received {len(store.keys())} arrays for "
            f"layer {layer.name!r}. Load the weights of an untied model into that model, and tie it then."
        )
    by_theta = {id(view.theta): view for view in views(layer).values()}
    for index, variable in enumerate(variables):
        if id(variable) in by_theta:
            _load_kernel(by_theta[id(variable)], store, index)
            continue
        variable.assign(store[str(index)])


def _load_kernel(view: KernelView, store: Any, index: int) -> None:
    keys = set(store.keys())  # an entry of a weight file is no dict: it has no `in`
    scaling = next((scaling for scaling in SCALINGS if _key(index, scaling) in keys), "values")
    value = store[_key(index, scaling)]
    if tuple(value.shape) != tuple(view.theta.shape):
        view.assign(value)
        return
    view.theta.assign(rescale(ops.convert_to_tensor(value), view.pattern, scaling, view.scaling))


def _key(index: int, scaling: str) -> str:
    return str(index) if scaling == "values" else f"{index}_{scaling}"


_FILE_METHODS = {"save_own_variables": _save, "load_own_variables": _load}


@contextlib.contextmanager
def tied_initializers(layer: keras.Layer, patterns: Mapping[str, TyingPattern]) -> Iterator[None]:
    """Lets `layer` draw tied kernels of full variance while it builds."""
    initializers = {name: get_companion(layer, name, "initializer") for name in patterns}
    try:
        for name, pattern in patterns.items():
            set_companion(layer, name, "initializer", tied_initializer(layer, name, pattern))
        yield
    finally:
        for name, initializer in initializers.items():
            set_companion(layer, name, "initializer", initializer)


def check_options(scaling: str, convolution: str) -> None:
    """Raises a `TyingError` unless both options have one of their values."""
    check_choice("scaling", scaling, SCALINGS)
    check_choice("convolution", convolution, CONVOLUTIONS)


@keras.saving.register_keras_serializable(package="kernel_tying")
class Tied(keras_private.TransparentWrapper):
    """Wraps a stock layer whose kernel is computed from free weights, which alone are trained and stored.

    The stock layer's own `call` runs unchanged, so all its options work. Name, dtype policy and `trainable` are those
    of the stock layer, and so are paths and order of the weights.

    Args:
        layer: a stock layer from the table of kernels, which from now on belongs to the wrapper. If it is built, its
            kernel is averaged; if not, its first kernel is drawn through `TiedInitializer`.
        pattern: a `TyingPattern`, the name of a family, or a dict from kernel names to either.
        scaling: "values": free weights are values of the kernel. "orthonormal": they are `sqrt(group size) * value`, with
            which plain SGD takes the steps of constraint mode.
        convolution: how the layer convolves. "kernel" expands the kernel and calls the stock convolution. "group_sums"
            multiplies each free weight with the sum of the inputs that its group sees, which takes fewer products, where
            the layer's class and the pattern allow it. "auto" does so where measurements say that it is faster. "tune" times
            both on this machine, when the layer is first called, and takes the faster one.

    Raises:
        TyingError: the layer keeps no kernel that can be tied, the pattern does not fit it, or it is tied already.

    Example:

    >>> import keras, kernel_tying as kt
    >>> layer = kt.Tied(keras.layers.Conv2D(4, 3), "dihedral")
    >>> layer.build((None, 8, 8, 2))
    >>> tuple(layer.free_weights["kernel"].shape), tuple(layer.kernel.shape)
    ((3, 1, 2, 4), (3, 3, 2, 4))
    """

    def __init__(
        self, layer: keras.Layer, pattern: LayerTying, scaling: str = "values", convolution: str = "auto", **kwargs: Any
    ):
        check_options(scaling, convolution)
        if not isinstance(layer, keras.Layer):
            raise TyingError(
                f"`Tied` wraps a Keras layer. Received {abbreviate(layer)}. Example: Tied(keras.layers.Conv2D(8, 5), 'mirror')."
            )
        if isinstance(layer, Tied) or views(layer) or any(tied_constraint(layer, name) for name in kernel_names(layer)):
            raise TyingError(f"A layer is tied once. Received layer {layer.name!r}, which is tied. Call `strip_tying` first.")
        self._patterns = resolve(layer, pattern)
        inherited = {"name": layer.name, "dtype": layer.dtype_policy, "trainable": layer.trainable}
        super().__init__(layer, **{**inherited, **kwargs})
        if not self.trainable:
            layer.trainable = False
        self.scaling = scaling
        self.convolution = convolution
        self.supports_jit = layer.supports_jit
        self.supports_masking = layer.supports_masking
        if layer.built:
            self.build_from_config(layer.get_build_config())

    @property
    def patterns(self) -> dict[str, TyingPattern]:
        """The tying pattern of each tied kernel, by kernel name."""
        return dict(self._patterns)

    @property
    def pattern(self) -> TyingPattern | dict[str, TyingPattern]:
        """The tying pattern of the spatial kernel, or a dict by kernel name if others are tied."""
        spatial_kernel = kernel_names(self.layer)[0]
        return self._patterns[spatial_kernel] if list(self._patterns) == [spatial_kernel] else self.patterns

    @property
    def kernel(self) -> keras.Variable:
        """The kernel, of the stock kernel's shape; of several, the spatial one. If tied, `kernel.assign(value)` averages."""
        return getattr(self.layer, kernel_names(self.layer)[0])

    @property
    def bias(self) -> keras.Variable | None:
        """The stock layer's bias."""
        return self.layer.bias

    @property
    def free_weights(self) -> dict[str, keras.Variable]:
        """The free weights of each tied kernel, by kernel name; empty before the layer is built."""
        return {name: view.theta for name, view in views(self.layer).items()}

    @property
    def input_spec(self) -> Any:
        """The stock layer's input specification."""
        return self.layer.input_spec

    def build(self, input_shape: Any = None) -> None:
        if self.free_weights:
            return
        if not self.layer.built:
            with tied_initializers(self.layer, self._patterns):
                self.layer.build(input_shape)
        parameterize(self.layer, self._patterns, self.scaling, self.convolution)

    def call(self, inputs: Tensor, **kwargs: Any) -> Tensor:
        return self.layer(inputs, **kwargs)

    def compute_output_spec(self, inputs: Tensor, **kwargs: Any) -> Any:
        return self.layer.compute_output_spec(inputs, **kwargs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor) -> Tensor:
        return self.layer.compute_mask(inputs, previous_mask)

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Raises a `TyingError`: a tied layer takes no LoRA weights."""
        refuse(self.layer)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Raises a `TyingError`: a tied layer can't be quantized."""
        refuse(self.layer)

    def get_config(self) -> dict[str, Any]:
        pattern = {name: serialize_pattern(pattern) for name, pattern in self._patterns.items()}
        config = super().get_config()
        config["layer"].pop("build_config", None)  # else the layer builds itself untied, and averaging shrinks its kernel
        return {**config, "pattern": pattern, "scaling": self.scaling, "convolution": self.convolution}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Tied:
        if not isinstance(config, dict) or "layer" not in config or not isinstance(config.get("pattern"), dict):
            raise TyingError(
                f"The config of a {cls.__name__} layer is a dict with 'layer' and, by kernel name, 'pattern'. "
                f"Received {abbreviate(config)}. Make one with `get_config()`."
            )
        # Keras writes arguments into a config before the constructor sees them, and deeply nested ones break that.
        check_options(config.get("scaling", "values"), config.get("convolution", "auto"))
        pattern = {name: deserialize_pattern(pattern) for name, pattern in config["pattern"].items()}
        layer = resolve_object("layer", partial(deserialize, custom_objects=custom_objects), config["layer"])
        return cls(**{**config, "layer": layer, "pattern": pattern})
