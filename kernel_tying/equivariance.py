"""Exactly equivariant networks from stock ones: the plan for a model, and the measured error."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kernel_tying import _keras
from kernel_tying._equivariance.acting import FieldTypes, actions, channel_axis, orbit
from kernel_tying._equivariance.draft import Draft
from kernel_tying._equivariance.fields import Action, Feature, Kind
from kernel_tying._equivariance.walk import trace
from kernel_tying._equivariance.windows import is_exchangeable, is_symmetry
from kernel_tying._layers.fitting import resolve
from kernel_tying._models.sites import find_sites, tied_kernels
from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.patterns import groups
from kernel_tying.patterns.groups import Group
from kernel_tying.patterns.pattern import TyingPattern


def equivariant_plan(
    model: keras.Model, group: str | Group, *, inputs: FieldTypes = "trivial", outputs: FieldTypes = "trivial"
) -> dict[str, dict[str, TyingPattern]]:
    """Returns the patterns that make a stock network equivariant under `group`, for `apply_tying`: `f(u x) == u f(x)`.

    If the group acts on the input of the tied network, it acts on the output in the same way: vectors such as logits do
    not change, and maps such as segmentations move too. That is exact, for weights of any values, in training and at inference.
    Layers that draw random numbers in training, such as Dropout, do not transform these. Then training is equivariant on
    average.

    A convolution maps to `"regular"` fields: its channels are `width / group.order` fields, one channel for each
    element. The layer in front of an output maps to the type of the output. A Dense layer behind global pooling or
    Flatten maps to `"trivial"`. Biases, and the scale and offset of normalization layers, are tied accordingly.

    Args:
        model: a Functional or Sequential model, built. It may contain other models, and is not changed.
        group: a `Group`, or its name, such as "p4m". It acts on the first spatial axes, as many as its rank.
        inputs: type of the input's channels as `patterns.equivariant` takes it, for all inputs; or a dict from input
            names to types; or a list with the type of each input.
        outputs: types of the outputs, in the same ways.

    Returns:
        A dict from paths of layers to dicts from kernel names to patterns. Layers that need no tying are left out.

    Raises:
        TyingError: a layer breaks equivariance: its windows are not symmetric, its width is not a multiple of the group's
            order, its effect is not known, and so on. The message names the layer and the way out.

    Example:

    >>> import keras, kernel_tying as kt
    >>> model = keras.Sequential([
    ...     keras.Input((9, 9, 1)),
    ...     keras.layers.Conv2D(16, 3, name="lift"),
    ...     keras.layers.Conv2D(8, 3, use_bias=False, name="deep"),
    ...     keras.layers.GlobalAveragePooling2D(),
    ...     keras.layers.Dense(10, name="logits"),
    ... ])
    >>> plan = kt.equivariant_plan(model, "p4m")
    >>> {path: {name: pattern.shape for name, pattern in kernels.items()} for path, kernels in plan.items()}
    {'lift': {'kernel': (3, 3, 1, 8), 'bias': (8,)}, 'deep': {'kernel': (3, 3, 8, 8)}, 'logits': {'kernel': (8, 1)}}
    """
    group = groups.get(group)
    _check_symmetry(group)
    _check_built(model)
    draft = Draft(group, _data_format(model), {id(site.outer): site.path for site in find_sites(model)})
    features = _inputs(draft, model, inputs)
    structure = features[0] if isinstance(model, keras.Sequential) else keras.tree.pack_sequence_as(model.input, features)
    results = trace(draft, model, structure)
    _end(draft, model, keras.tree.flatten(results), outputs)
    draft.finish()
    if not draft.ties:
        raise TyingError(
            f"A plan ties some kernel. Received {model.name!r}, in which nothing needs tying under {group}. "
            "Use a model with convolutions, or types that the group acts on."
        )
    plan = {path: draft.ties[path] for path in draft.paths.values() if path in draft.ties}
    _check_tieable(model, plan)
    return plan


def equivariance_error(
    model: keras.Layer,
    group: str | Group,
    inputs: Any,
    *,
    in_types: FieldTypes = "trivial",
    out_types: FieldTypes = "trivial",
    training: bool = False,
) -> float:
    """Returns the largest `|f(u x) - u f(x)| / max |f(x)|` over all elements `u` of a group.

    It is about 1e-7, the rounding of float32, if `f` is equivariant.

    The group moves the positions of arrays with spatial axes, as many as its rank, and the channels of all arrays
    according to their types. So vectors of type "trivial", such as logits, do not change.

    Args:
        model: the network `f`, with or without tying.
        group: a `Group`, or its name, such as "p4m".
        inputs: arrays `x` in the structure that the model takes, each of shape `(batch, *spatial, channels)`.
        in_types: types of the inputs, as the argument `inputs` of `equivariant_plan`.
        out_types: types of the outputs.
        training: whether the network is called in training mode. Its moving statistics and random states are not changed.

    Raises:
        TyingError: an input can't be moved by the group, or a type is malformed.

    Example:

    >>> import keras, numpy as np, kernel_tying as kt
    >>> model = keras.Sequential([keras.Input((5, 5, 1)), keras.layers.Conv2D(8, 3), keras.layers.GlobalMaxPooling2D()])
    >>> images = np.random.default_rng(0).normal(size=(2, 5, 5, 1)).astype("float32")
    >>> kt.equivariance_error(model, "p4", images) > 0.1
    True
    >>> tied = kt.apply_tying(model, kt.equivariant_plan(model, "p4"))
    >>> kt.equivariance_error(tied, "p4", images) < 1e-5
    True
    """
    group = groups.get(group)
    arrays = _arrays(model, inputs)
    input_actions = actions(group, in_types, "in_types", _names(model, "input", len(arrays)))
    data_format = _data_format(model)
    _check_movable(arrays, input_actions, data_format, "input")
    if not any(array.ndim >= group.rank + 2 for array in arrays):
        raise TyingError(
            f"{group} moves {group.rank} axes of positions. Received inputs of shapes {[array.shape for array in arrays]}, "
            "which lack them. Use a group of a lower rank."
        )
    outputs = _outputs(model, inputs, arrays, training)
    output_actions = actions(group, out_types, "out_types", _names(model, "output", len(outputs)))
    _check_movable(outputs, output_actions, data_format, "output")
    moved_inputs = zip(*(orbit(*pair, data_format) for pair in zip(arrays, input_actions, strict=True)), strict=True)
    moved_outputs = zip(*(orbit(*pair, data_format) for pair in zip(outputs, output_actions, strict=True)), strict=True)
    errors: list[float] = []
    for moved, expected in zip(moved_inputs, moved_outputs, strict=True):
        errors += map(_deviation, _outputs(model, inputs, list(moved), training), expected)
    return float(np.max(errors))


def _arrays(model: keras.Layer, inputs: Any) -> list[np.ndarray]:
    """Returns the inputs as a flat list of arrays, one for each input of the model."""
    if not isinstance(model, keras.Layer):
        raise TyingError(f"The error is that of a Keras model or layer. Received {abbreviate(model)}. Pass a model.")
    arrays = [np.asarray(array) for array in keras.tree.flatten(inputs)]
    count = len(getattr(model, "inputs", None) or arrays)
    if len(arrays) != count or not all(array.dtype.kind in "fiub" and array.ndim > 1 and array.size for array in arrays):
        raise TyingError(
            f"Inputs are {count} arrays of numbers, with a batch axis and channels. Received {abbreviate(inputs)}. "
            "Pass what the model is called on."
        )
    return arrays


def _check_movable(arrays: list[np.ndarray], types: list[Action], data_format: str, side: str) -> None:
    """Raises a `TyingError` unless the channels of each array are whole fields of its type."""
    for array, of_type in zip(arrays, types, strict=True):
        _check_whole_fields(array.shape[channel_axis(array.ndim, data_format)], of_type, f"an {side}")


def _outputs(model: keras.Layer, structure: Any, arrays: list[np.ndarray], training: bool) -> list[np.ndarray]:
    """Returns the outputs for `arrays`, flat. The model's state is restored."""
    state = [(variable, keras.ops.convert_to_numpy(variable)) for variable in model.non_trainable_variables]
    outputs = model(keras.tree.pack_sequence_as(structure, arrays), training=training)
    for variable, value in state:
        variable.assign(value)
    return [keras.ops.convert_to_numpy(keras.ops.cast(output, "float32")) for output in keras.tree.flatten(outputs)]


def _deviation(output: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest deviation relative to the largest absolute value, 0.0 for equal arrays."""
    deviation = np.max(np.abs(output - expected), initial=0.0)
    return float(deviation / np.max(np.abs(expected))) if deviation else 0.0


def _names(model: keras.Layer, side: str, count: int) -> list[str]:
    """Returns the names of the inputs or outputs of a model, numbers if it has none."""
    if not getattr(model, f"{side}s", None):
        return [f"{side} {number}" for number in range(count)]
    return _keras.output_names(model) if side == "output" else [tensor.name for tensor in model.inputs]


def _check_symmetry(group: Group) -> None:
    """Raises a `TyingError` unless the group turns and mirrors grids of every size."""
    if not is_symmetry(group):
        raise TyingError(
            "Layers that slide windows are equivariant under groups that permute and reverse axes. "
            f"Received {group}, which also moves entries in other ways. Use such a group, as those of `groups` are."
        )


def _check_tieable(model: keras.Model, plan: dict[str, dict[str, TyingPattern]]) -> None:
    """Raises a `TyingError` if `apply_tying` would refuse the plan: a layer is tied already, overrides `build`, and so on."""
    for site in (site for site in find_sites(model) if site.path in plan):
        if tied_kernels(site):
            raise TyingError(
                f"A plan is made for stock layers. Received layer {site.path!r}, which is tied. Call `strip_tying` first."
            )
        resolve(site.layer, plan[site.path])


def _check_built(model: keras.Model) -> None:
    """Raises a `TyingError` unless the model has a graph."""
    if not isinstance(model, keras.Model) or not _keras.runs_graph(model):
        raise TyingError(
            f"A plan follows the calls of Functional and Sequential models. Received {abbreviate(model)}. "
            "Build the model from keras.Input, or tie its layers by name, with `patterns.equivariant`."
        )
    if not getattr(model, "inputs", None):
        raise TyingError(
            f"A plan needs the shapes of a model's inputs. Received {model.name!r}, which is not built. "
            "Begin the Sequential with keras.Input(shape)."
        )


def _data_format(model: keras.Layer) -> str:
    """Returns the data format of the model's first layer that has one."""
    formats = [layer.data_format for layer in _keras.all_layers(model) if getattr(layer, "data_format", None)]
    return formats[0] if formats else keras.config.image_data_format()


def _inputs(draft: Draft, model: keras.Model, types: FieldTypes) -> list[Feature]:
    """Returns the features of the model's inputs."""
    names = [tensor.name for tensor in model.inputs]
    features = []
    for tensor, of_type in zip(model.inputs, actions(draft.group, types, "inputs", names), strict=True):
        kind = Kind(f"input {tensor.name!r}", of_type, is_known=True)
        features.append(draft.feature(tuple(tensor.shape), kind))
        _check_boundary(draft, features[-1])
    return features


def _end(draft: Draft, model: keras.Model, results: list[Feature], types: FieldTypes) -> None:
    """Gives the outputs their types."""
    names = _keras.output_names(model)
    for name, result, of_type in zip(names, results, actions(draft.group, types, "outputs", names), strict=True):
        kind = Kind(f"output {name!r}", of_type, is_known=True)
        result.kind.join(kind, f"Output {name!r}")
        _check_boundary(draft, result)


def _check_boundary(draft: Draft, feature: Feature) -> None:
    """Raises a `TyingError` unless the group acts on an input or output."""
    rank, of_type = draft.group.rank, feature.kind.type
    if feature.is_flat or (feature.sizes and not is_exchangeable(draft.group, feature.sizes[:rank])):
        raise TyingError(
            f"The group maps the grid onto itself: it has {rank} axes, equal where the group exchanges them. "
            f"Received {feature.kind.origin} with {'flattened values' if feature.is_flat else f'sizes={feature.sizes}'}. "
            "Use inputs of equal sizes, a group that exchanges no axes, or a Dense layer behind Flatten."
        )
    _check_whole_fields(feature.channels, of_type, feature.kind.origin)


def _check_whole_fields(channels: int, of_type: Action, origin: str) -> None:
    if channels % of_type.members:
        raise TyingError(
            f"Channels of type {of_type} are whole fields of {of_type.members}. "
            f"Received {origin} with {channels} channels. Use a type that fits."
        )
