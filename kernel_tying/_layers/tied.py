"""Parameterization mode: a tied kernel replaces the stock kernel variable, and `Tied` wraps the layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import keras
from keras import ops
from keras.saving import deserialize_keras_object as deserialize

from kernel_tying import _keras
from kernel_tying._layers.algorithm import CONVOLUTIONS, Convolution, convolving_methods
from kernel_tying._layers.attachment import Notes, attach, override_methods, views
from kernel_tying._layers.companions import get_companion, set_companion, tied_constraint, tied_initializer
from kernel_tying._layers.files import FILE_METHODS
from kernel_tying._layers.fitting import LayerTying, resolve
from kernel_tying._layers.forwarding import ForwardingWrapper
from kernel_tying._layers.identifiers import deserialize_pattern, in_words, resolve_object, serialize_pattern
from kernel_tying._layers.overrides import REFUSED_METHODS, refuse
from kernel_tying._layers.starts import choose_starts, lost_norms, redraw
from kernel_tying._layers.statistics import pool_moving_statistics, pooling_methods
from kernel_tying._layers.table import default_kernel, kernel_names
from kernel_tying._layers.view import SCALINGS, KernelView, Scaling
from kernel_tying._native import native
from kernel_tying.algebra import Tensor
from kernel_tying.errors import TyingError, abbreviate, check_choice
from kernel_tying.patterns.pattern import TyingPattern


def parameterize(
    layer: keras.Layer, patterns: Mapping[str, TyingPattern], scaling: str, convolution: str, initializer: Any = None
) -> None:
    """Replaces kernels of a built stock layer by tied ones, averaged from the stock kernels if there is no `initializer`.

    The free weights replace the stock kernel in the layer's weights, under its name and path.
    """
    for name, pattern in patterns.items():
        stock = getattr(layer, name)
        view = KernelView(stock, pattern, scaling, convolution, initializer)
        attribute = _keras.attribute_of(layer, stock)
        _keras.replace_variable(layer, stock, view.theta)
        _keras.forget_attribute(layer, attribute)
        vars(layer)[attribute] = view  # untracked, because the view is not a weight
        attach(layer).views[name] = view
        setattr(layer, _free_attribute(name), view.theta)  # for backends that find variables by attribute, as SavedModel does
    override_methods(layer, {**FILE_METHODS, **REFUSED_METHODS, **convolving_methods(layer), **pooling_methods(layer)})
    pool_moving_statistics(layer)


def parameterize_built(
    layer: keras.Layer, patterns: Mapping[str, TyingPattern], scaling: str, convolution: str, starts: dict[str, str]
) -> None:
    """Replaces kernels of a built stock layer by tied ones that start as `starts` says by name, and notes it for reports."""
    notes = Notes(lost_norms(layer, patterns, starts), starts)
    parameterize(layer, patterns, scaling, convolution)
    attach(layer).notes = notes
    redraw(layer, starts)


def deparameterize(layer: keras.Layer) -> None:
    """Replaces tied kernels by stock kernel variables with the same values."""
    for name, view in views(layer).items():
        value = view.value
        stock = _keras.variable_like(view, lambda *_, value=value, **__: value, tuple(view.shape))
        stock.regularizer, stock.constraint = view.regularizer, view.constraint
        attribute = _keras.attribute_of(layer, view)
        _keras.replace_variable(layer, view.theta, stock)
        _keras.forget_attribute(layer, _free_attribute(name))
        _keras.forget_attribute(layer, attribute)
        setattr(layer, attribute, stock)


def _free_attribute(kernel_name: str) -> str:
    return f"free_{kernel_name}"


@contextlib.contextmanager
def tied_initializers(layer: keras.Layer, patterns: Mapping[str, TyingPattern]) -> Iterator[None]:
    """Makes `layer` draw tied kernels of full variance while it builds."""
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


def refuse_nnx(name: str) -> None:
    """Raises a `TyingError` if NNX is enabled, which would train the tied kernel in addition to the free weights."""
    if _keras.has_nnx_variables():
        raise TyingError(
            "In parameterization mode the kernel is computed, and is no variable of NNX. "
            f"Received {name!r} while NNX is enabled. Use mode='constraint', or unset KERAS_NNX_ENABLED."
        )


@keras.saving.register_keras_serializable(package="kernel_tying")
class Tied(ForwardingWrapper, _keras.TransparentWrapper, _keras.LabelledLayer):
    """Wraps a stock layer and computes its kernel from free weights. Only the free weights are trained and stored.

    The stock layer's own `call` runs unchanged, so all its options work. The wrapper has the name, dtype policy and
    `trainable` of the stock layer, and its weights have the same paths and order. Other attributes of the stock layer, such
    as `filters` or `activation`, can be read and set on the wrapper.

    Args:
        layer: a stock layer from the table of kernels. It belongs to the wrapper from now on. If it is not built, its initial
            kernel is drawn through `TiedInitializer`. If it is, the rule is `init="auto"` of `apply_tying`: a kernel that
            still is what the layer's initializer drew is drawn again, and any other is averaged. To choose, call
            `apply_tying(layer, pattern, mode="parameterization", init=...)`. A layer of a trained model that was frozen
            before it was trained also counts as fresh. `apply_tying` on the model averages its kernel.
        pattern: a `TyingPattern`, a family (its name, such as "mirror" or "mirror(axis=0)", or its function), or a dict from
            kernel names to these.
        scaling: "values": free weights are values of the kernel. "orthonormal": they are `sqrt(group size) * value`, so
            that plain SGD takes the same steps as in constraint mode.
        convolution: how the layer convolves. "kernel" expands the kernel and calls the stock convolution. "group_sums"
            multiplies each free weight by the sum of the inputs of its group, which needs fewer products; layers and
            patterns that it does not support use the stock convolution. "auto" uses group sums where benchmarks show that
            they are faster. "tune" times both on this machine when the layer is first called, and uses the faster one.

    Raises:
        TyingError: the layer has no kernel that can be tied, the pattern does not fit it, or it is already tied.

    Example:

    >>> import keras, kernel_tying as kt
    >>> layer = kt.Tied(keras.layers.Conv2D(4, 3), "dihedral")
    >>> layer.build((None, 8, 8, 2))
    >>> tuple(layer.free_weights["kernel"].shape), tuple(layer.kernel.shape)
    ((3, 1, 2, 4), (3, 3, 2, 4))
    """

    def __init__(
        self,
        layer: keras.Layer,
        pattern: LayerTying,
        scaling: Scaling = "values",
        convolution: Convolution = "auto",
        **kwargs: Any,
    ):
        check_options(scaling, convolution)
        if not isinstance(layer, keras.Layer):
            raise TyingError(
                f"`Tied` wraps a Keras layer. Received {abbreviate(layer)}. Example: Tied(keras.layers.Conv2D(8, 5), 'mirror')."
            )
        if isinstance(layer, Tied) or views(layer) or any(tied_constraint(layer, name) for name in kernel_names(layer)):
            raise TyingError(f"A layer is tied once. Received layer {layer.name!r}, which is tied. Call `strip_tying` first.")
        refuse_nnx(layer.name)
        self._patterns = resolve(layer, pattern)
        inherited = {"name": layer.name, "dtype": layer.dtype_policy, "trainable": layer.trainable}
        super().__init__(layer, **{**inherited, **kwargs})
        if not self.trainable:
            layer.trainable = False
        self._scaling = scaling
        self.convolution = convolution
        self.supports_jit = layer.supports_jit
        self.supports_masking = layer.supports_masking
        if layer.built:
            parameterize_built(layer, self._patterns, scaling, convolution, choose_starts(layer, self._patterns))
            self.build_from_config(layer.get_build_config())

    @property
    def patterns(self) -> dict[str, TyingPattern]:
        """The tying pattern of each tied kernel, by kernel name."""
        return dict(self._patterns)

    @property
    def pattern(self) -> TyingPattern | dict[str, TyingPattern]:
        """The tying pattern of the default kernel, or a dict by kernel name if others are tied."""
        default = default_kernel(self.layer)
        return self._patterns[default] if default and list(self._patterns) == [default] else self.patterns

    @property
    def summary_label(self) -> str:
        """The stock layer's class and the patterns, as `model.summary()` shows them."""
        by_name = {name: in_words(pattern) for name, pattern in self._patterns.items()}
        is_default = list(by_name) == [default_kernel(self.layer)]
        words = [text if is_default else f"{name}: {text}" for name, text in by_name.items()]
        return f"{type(self).__name__} {type(self.layer).__name__}: {', '.join(words)}"

    def __repr__(self) -> str:
        return f"<{self.summary_label}, name={self.name}, built={self.built}>"

    @property
    def scaling(self) -> str:
        """How the free weights are scaled, "values" or "orthonormal". It cannot be changed."""
        return self._scaling

    @property
    def convolution(self) -> str:
        """How the layer convolves, as "auto", "tune", "kernel" or "group_sums"."""
        return self._convolution

    @convolution.setter
    def convolution(self, value: str) -> None:
        check_choice("convolution", value, CONVOLUTIONS)
        self._convolution = value
        for view in views(self.layer).values():
            view.convolution = value

    @property
    def kernel(self) -> keras.Variable:
        """The full kernel; the spatial one if there are several. If it is tied, `kernel.assign(value)` averages."""
        return getattr(self.layer, default_kernel(self.layer) or "kernel")

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

    @input_spec.setter
    def input_spec(self, value: Any) -> None:
        self.layer.input_spec = value

    @native.untraced
    @_keras.noting_supported_versions()
    def build(self, input_shape: Any = None) -> None:
        if self.free_weights:
            return
        if not self.layer.built:
            with tied_initializers(self.layer, self._patterns):
                self.layer.build(input_shape)
        parameterize(self.layer, self._patterns, self.scaling, self.convolution)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Keras' work around a call takes as long as a small convolution. The inner layer does it too, so plain calls skip it.
        is_bare = self.built and len(args) == 1 and not kwargs and ops.is_tensor(args[0]) and type(self).call is Tied.call
        return self.layer(*args) if is_bare and _keras.is_called_plainly(self) else super().__call__(*args, **kwargs)

    def call(self, inputs: Tensor, **kwargs: Any) -> Tensor:
        return self.layer(inputs, **kwargs)

    def compute_output_spec(self, inputs: Tensor, **kwargs: Any) -> Any:
        return self.layer.compute_output_spec(inputs, **kwargs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor) -> Tensor:
        return self.layer.compute_mask(inputs, previous_mask)

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Raises a `TyingError`: a tied layer does not support LoRA."""
        refuse(self.layer)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Raises a `TyingError`: a tied layer can't be quantized."""
        refuse(self.layer)

    def get_config(self) -> dict[str, Any]:
        pattern = {name: serialize_pattern(pattern) for name, pattern in self._patterns.items()}
        config = super().get_config()
        config["layer"].pop("build_config", None)  # else the layer builds itself untied first
        return {**config, "pattern": pattern, "scaling": self.scaling, "convolution": self.convolution}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Tied:
        if not isinstance(config, dict) or "layer" not in config or not isinstance(config.get("pattern"), dict):
            raise TyingError(
                f"The config of a {cls.__name__} layer is a dict with 'layer' and, by kernel name, 'pattern'. "
                f"Received {abbreviate(config)}. Make one with `get_config()`."
            )
        # Before the constructor runs, Keras writes its arguments into a config. That fails on deeply nested arguments.
        check_options(config.get("scaling", "values"), config.get("convolution", "auto"))
        pattern = {name: deserialize_pattern(pattern) for name, pattern in config["pattern"].items()}
        layer = resolve_object("layer", partial(deserialize, custom_objects=custom_objects), config["layer"])
        return cls(**{**config, "layer": layer, "pattern": pattern})
