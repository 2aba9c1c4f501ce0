"""All uses of private Keras names, each with its reason, each pinned by `tests/test_keras_private.py` (Keras 3.15)."""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from kernel_tying.algebra import Tensor
from kernel_tying.errors import TyingError

_global_state: Any = sys.modules["keras.src.backend.common.global_state"]
# The cell of ConvLSTM1D/2D/3D is not exported; it stands in the module of their base class.
ConvLSTMCell: type[keras.Layer] = sys.modules[keras.layers.ConvLSTM2D.__base__.__module__].ConvLSTMCell


class VariableView(keras.Variable):
    """A variable that owns no storage: its value is `decode(source.value)`, and assigning writes `encode(value)` to `source`.

    Every backend reads a Keras variable through `value`, so layers compute with the view as with any variable, and the
    result is differentiable in `source`. Name, path, shape and dtype are those of the variable that it stands for.

    Args:
        stands_for: the variable whose place the view takes.
        source: the variable that stores the value; it must not autocast, the view does.
    """

    def __init__(self, stands_for: keras.Variable, source: keras.Variable):
        # `keras.Variable.__init__` would allocate storage. Its other state is copied instead of set up.
        self.__dict__.update({name: value for name, value in vars(stands_for).items() if name != "_value"})
        self.source = source

    def decode(self, value: Tensor) -> Tensor:
        """Returns the value of the view for a value of `source`."""
        raise NotImplementedError

    def encode(self, value: Tensor) -> Tensor:
        """Returns the value of `source` for a value of the view."""
        raise NotImplementedError

    @property
    def value(self) -> Tensor:
        value = self.decode(self.source.value)
        if self._layout is not None:  # else XLA chooses one, and moves kernels between devices where stock ones stay
            value = keras.distribution.distribute_tensor(value, self._layout)
        # `_maybe_autocast` casts in mixed precision, behind `decode` as a stock variable does behind its storage.
        return self._maybe_autocast(value)

    def assign(self, value: Tensor) -> Tensor:
        value = self._convert_to_tensor(value, dtype=self._dtype)
        if tuple(value.shape) != tuple(self.shape):
            raise TyingError(
                f"A value has the shape of the kernel it is assigned to. Received shape {tuple(value.shape)} for "
                f"{self.path!r} of shape {tuple(self.shape)}. Free weights are assigned to `free_weights`."
            )
        self.source.assign(self.encode(value))
        return self.value

    @property
    def trainable(self) -> bool:
        return self.source.trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self.source.trainable = value

    def __repr__(self) -> str:
        shape, source_shape = tuple(self.shape), tuple(self.source.shape)
        return f"<{type(self).__name__} path={self.path}, shape={shape}, dtype={self._dtype}, source_shape={source_shape}>"


def variable_like(stands_for: keras.Variable, initializer: Any, shape: tuple[int, ...], autocast: bool) -> keras.Variable:
    """Returns a new variable with the name, path, dtype, aggregation and layout of `stands_for`.

    Args:
        stands_for: the variable whose place the new one takes.
        initializer: a function that returns the first value, whatever its arguments.
        shape: the shape of the new variable, of the same rank.
        autocast: whether the new variable casts in mixed precision.
    """
    variable = keras.Variable(
        initializer=_Initializer(initializer),
        shape=shape,
        dtype=stands_for._dtype,  # `dtype` reads the compute dtype inside an autocast scope
        autocast=autocast,
        aggregation=stands_for.aggregation,
        name=stands_for.name,
        layout=layout_like(stands_for, shape),  # else a LayoutMap is asked, while the variable has no path yet
    )
    variable._path = stands_for.path  # else the path depends on the name scope that is open just now
    return variable


class _Initializer:
    """Calls a function. On JAX, `__call__` of the initializer of a large distributed variable is compiled, not a lambda's."""

    def __init__(self, function: Callable[..., Tensor]):
        self.function = function

    def __call__(self, shape: tuple[int, ...], dtype: str | None = None) -> Tensor:
        return self.function(shape, dtype=dtype)


def layout_like(stands_for: keras.Variable, shape: tuple[int, ...]) -> keras.distribution.TensorLayout | None:
    """Returns the layout of `stands_for` for a variable of `shape`, replicated along each axis whose size differs.

    That is the layout which the variable has, or which a `keras.distribution` gives to its path; None if there is neither.

    Warns:
        UserWarning: the layout shards an axis whose size differs.
    """
    distribution = keras.distribution.distribution()
    layout = stands_for._layout if distribution is None else distribution.get_variable_layout(stands_for)
    if layout is None:
        return None
    is_kept = [new == old for new, old in zip(shape, stands_for.shape, strict=True)]
    axes = [name if kept else None for name, kept in zip(layout.axes, is_kept, strict=False)]  # axes at the end may be left out
    if axes != list(layout.axes):
        warnings.warn(
            f"Free weights are replicated along the axes that their pattern ties. Received the layout {layout.axes} for "
            f"{stands_for.path!r} of shape {tuple(stands_for.shape)}; its free weights of shape {shape} take {tuple(axes)}. "
            "Shard free axes, such as the output channels.",
            UserWarning,
            stacklevel=2,
        )
    return keras.distribution.TensorLayout(axes, layout.device_mesh)


def replace_variable(layer: keras.Layer, old: keras.Variable, new: keras.Variable) -> None:
    """Tracks `new` in the place of `old` among the layer's weights, with its `trainable`. Attributes stay as they are."""
    stores = (layer._trainable_variables, layer._non_trainable_variables)
    tracked, index = next((store, _index(store, old)) for store in stores if _index(store, old) is not None)
    trainable = old.trainable
    layer._untrack_variable(old)  # removes by identity and tells the backend
    was_locked, layer._tracker.locked = layer._tracker.locked, False  # a built layer refuses new variables
    layer._track_variable(new)
    layer._tracker.locked = was_locked
    tracked.insert(index, tracked.pop())  # else it comes last, and optimizer slots and `set_weights` go astray
    new.trainable = trainable


def list_parameters_anew(root: keras.Layer) -> None:
    """Makes torch find the variables that are there now: a layer lists its parameters, inner layers' too, when it is built."""
    for layer in all_layers(root):
        for module in list(layer.modules()) if hasattr(layer, "modules") else ():
            if hasattr(module, "_torch_params"):
                module._track_variables()


def is_exporting() -> bool:
    """Returns whether Keras traces a model for `model.export` just now, of which there is no other sign than the callers."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("keras.src.export."):
            return True
        frame = frame.f_back
    return False


def attribute_of(layer: keras.Layer, variable: keras.Variable) -> str:
    """Returns the name of the attribute in which `layer` keeps `variable`, such as `_kernel` behind a property `kernel`."""
    return next(name for name, value in vars(layer).items() if value is variable)


def forget_attribute(layer: keras.Layer, name: str) -> None:
    """Removes an attribute, and makes the backend forget what it tracks under that name."""
    super(keras.Layer, layer).__delattr__(name)  # past `keras.Layer.__delattr__`, which collects garbage: 0.1 s a layer


def weight_adder() -> keras.Layer | None:
    """Returns the layer that is adding a weight, and whose initializer is called, just now; or None."""
    scopes: Any = _global_state.get_global_attribute("name_scope_stack")
    caller = scopes[-1].caller if scopes else None
    return caller if isinstance(caller, keras.Layer) else None


def own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """Returns the variables that belong to `layer` itself, in the order in which Keras saves them."""
    return layer._trainable_variables + layer._non_trainable_variables


def sublayers(layer: keras.Layer) -> list[keras.Layer]:
    """Returns the layers directly inside `layer`."""
    return list(layer.layers) if isinstance(layer, keras.Model) else list(layer._layers)


def all_layers(layer: keras.Layer) -> list[keras.Layer]:
    """Returns `layer` and all layers inside it, each once."""
    return list(
        {id(one): one for one in [layer, *(inner for child in sublayers(layer) for inner in all_layers(child))]}.values()
    )


def seed_generators(layer: keras.Layer) -> list[keras.random.SeedGenerator]:
    """Returns the seed generators of `layer` itself, which weight files leave out."""
    return list(layer._seed_generators)


def copy_lambda(layer: keras.layers.Lambda) -> keras.layers.Lambda:
    """Returns a new Lambda layer with the same function, which a config would carry as unsafe code without its globals."""
    base_config = keras.Layer.get_config(layer)
    return type(layer)(layer.function, layer._output_shape, layer.mask, layer.arguments, **base_config)


class TransparentWrapper(keras.layers.Wrapper):
    """A wrapper that leaves no trace in the paths of variables: the layer inside is named as if it stood alone.

    Path and dtype policy are those of the layer inside, whenever they are set.
    """

    def _open_name_scope(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    @property
    def path(self) -> str | None:
        return self.layer.path  # by it a map of dtype policies is asked; else opening the name scope sets it

    @property
    def dtype_policy(self) -> Any:
        return super().dtype_policy

    @dtype_policy.setter
    def dtype_policy(self, value: Any) -> None:
        keras.Layer.dtype_policy.fset(self, value)
        self.layer.dtype_policy = value


def is_functional(model: keras.Layer) -> bool:
    """Returns whether `model` is a Functional model whose class makes copies of itself from inputs and outputs alone."""
    functional: Any = next((cls for cls in type(model).__mro__ if cls.__name__ == "Functional"), None)
    if functional is None or type(model).get_config is not functional.get_config:
        return False
    # Keras itself decides by the constructor whether the config describes layers; there is no public predicate.
    arguments = inspect.getfullargspec(type(model).__init__)
    takes_anything = bool(arguments.varargs and arguments.varkw and not arguments.kwonlyargs)
    return takes_anything or arguments.args == inspect.getfullargspec(functional.__init__).args


def call_alike(model: keras.Model, inputs: Any, copy: Callable[[Any], Any]) -> Any:
    """Returns what copies of a Functional model's operations make of `inputs`, called as the model calls its own.

    `keras.models.clone_model` does not keep the order in which an operation was called several times, and the config shows it.

    Args:
        model: a Functional model.
        inputs: symbolic tensors in the structure of `model.input`.
        copy: returns the copy of an operation, the same one each time.
    """
    tensors = dict(zip(map(id, keras.tree.flatten(model.input)), keras.tree.flatten(inputs), strict=True))
    nodes = [node for depth in sorted(model._nodes_by_depth, reverse=True) for node in model._nodes_by_depth[depth]]
    pending = [node for node in nodes if not node.is_input]
    while pending:
        node = next(node for node in pending if _is_next_call(node, tensors, pending))
        pending.remove(node)
        args, kwargs = node.arguments.fill_in(tensors)
        outputs = keras.tree.flatten(copy(node.operation)(*args, **kwargs))
        tensors.update(zip(map(id, node.outputs), outputs, strict=True))
    return keras.tree.map_structure(lambda tensor: tensors[id(tensor)], model.output)


def _is_next_call(node: Any, tensors: dict[int, Any], pending: list[Any]) -> bool:
    """Returns whether the inputs of a call are known, and no earlier call of the same operation is pending."""
    if not all(id(tensor) in tensors for tensor in node.input_tensors):
        return False
    calls = node.operation._inbound_nodes
    return not any(other in pending for other in calls[: calls.index(node)])


def is_plain_wrapper(layer: keras.Layer) -> bool:
    """Returns whether `layer` is a wrapper, such as TimeDistributed, that its class makes from the layer inside alone."""
    cls: Any = type(layer)
    wrapper: Any = keras.layers.Wrapper
    return (
        issubclass(cls, wrapper)
        and cls.get_config is wrapper.get_config
        and cls.from_config.__func__ is wrapper.from_config.__func__
    )


def describes_constraints(layer: keras.Layer) -> bool:
    """Returns whether the config of a stock layer with layers inside describes what constrains their kernels."""
    containers = (keras.layers.Wrapper, keras.layers.RNN, keras.layers.StackedRNNCells, keras.layers.Bidirectional)
    return isinstance(layer, containers) and type(layer).__module__.startswith("keras.")


def is_sequential(model: keras.Layer) -> bool:
    """Returns whether `model` is a Sequential model whose class makes copies of itself from layers alone."""
    cls: Any = type(model)
    return (
        issubclass(cls, keras.Sequential)
        and cls.get_config is keras.Sequential.get_config
        and cls.__init__ is keras.Sequential.__init__
    )


def sequential_layers(model: keras.Sequential) -> list[keras.Layer]:
    """Returns the layers of a Sequential model, the InputLayer included, which `layers` leaves out."""
    return list(model._layers)


def has_own_compile(model: keras.Layer) -> bool:
    """Returns whether the model's class overrides `compile`, so that nobody else knows its arguments."""
    return type(model).compile is not keras.Model.compile


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """Returns the objects that `compile` received. `get_compile_config` would fail on a loss written in a notebook."""
    return dict(model._compile_config.config)


def copy_iterations(source: Any, target: Any) -> None:
    """Copies the count of an optimizer's steps. With gradient accumulation, `iterations` is a quotient of it."""
    target._iterations.assign(ops.copy(source._iterations))


def copy_weight_decay_exclusions(source: Any, target: Any, pairs: list[tuple[keras.Variable, keras.Variable]]) -> None:
    """Excludes from the weight decay of `target` what `source` excludes, variable by variable; the config leaves it out."""
    excluded: set[int] = getattr(source, "_exclude_from_weight_decay", set())
    pattern = getattr(source, "_exclude_from_weight_decay_pattern", None)
    if excluded or pattern:
        variables = [new for old, new in pairs if source._var_key(old) in excluded]
        target.exclude_from_weight_decay(var_list=variables, var_names=[pattern.pattern] if pattern else None)


def inner_optimizers(optimizer: Any) -> Iterator[Any]:
    """Yields `optimizer` and the optimizers that it wraps."""
    if optimizer is None:
        return
    yield optimizer
    for inner in (getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", [])):
        yield from inner_optimizers(inner)


def moving_averages(optimizer: Any) -> Iterator[tuple[keras.Variable, keras.Variable]]:
    """Yields each trained variable with its moving average, for optimizers built with `use_ema=True`."""
    for one in inner_optimizers(optimizer):
        averages = getattr(one, "_model_variables_moving_average", None) or []
        pairs = zip(one._trainable_variables if averages else [], averages, strict=True)
        yield from ((variable, average) for variable, average in pairs if average is not None)


def _index(variables: list[keras.Variable], variable: keras.Variable) -> int | None:
    """Returns the index of `variable` by identity (`==` compares values), or None."""
    return next((index for index, one in enumerate(variables) if one is variable), None)
