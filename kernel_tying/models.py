"""The verbs for whole models: `apply_tying`, `penalize`, `strip_tying`, `project_kernels`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Literal, TypeVar, get_args

import keras

from kernel_tying import _keras
from kernel_tying._layers.algorithm import Convolution
from kernel_tying._layers.attachment import attach, views
from kernel_tying._layers.regularizer import checked_strength
from kernel_tying._layers.tied import Tied, check_options, refuse_nnx
from kernel_tying._layers.view import Scaling
from kernel_tying._models.attaching import (
    attach_penalties,
    check_tracked_once,
    constrain,
    drop_traced_functions,
    parameterize_in_place,
    rebuild_tied,
    recompile_in_place,
    strip_in_place,
)
from kernel_tying._models.copying import rebuild, zeroed_copy
from kernel_tying._models.given import note_tied_copy
from kernel_tying._models.loading import project_constrained
from kernel_tying._models.plan import Plan, make_plan
from kernel_tying._models.refusals import Patterns
from kernel_tying._models.sites import (
    Site,
    all_tied_kernels,
    find_sites,
    is_rebuildable,
    some_tied_kernels,
    tied_kernels,
)
from kernel_tying._models.state import LayerPairs, dropped_attributes
from kernel_tying.errors import TyingError, check_choice

Mode = Literal["constraint", "parameterization"]
Init = Literal["auto", "project", "redraw"]
MODES: tuple[str, ...] = get_args(Mode)
INITS: tuple[str, ...] = get_args(Init)
# What is given is what is returned, as far as types go: `Tied` forwards to its layer.
Model = TypeVar("Model", bound=keras.Layer)


def apply_tying(
    model_or_layer: Model,
    patterns: Patterns,
    *,
    mode: Mode = "constraint",
    init: Init = "auto",
    scaling: Scaling = "values",
    convolution: Convolution = "auto",
) -> Model:
    """Ties kernels of a model or layer, and returns the object to use from now on.

    Constraint mode changes the given object in place and returns it. Parameterization mode returns a new model with the
    same names, weights and compilation, and leaves the given one unchanged. The exceptions are models whose config does not
    describe their layers (subclassed models, recurrent and custom layers with inner layers): both modes change these in place.

    Args:
        model_or_layer: a Keras model of any kind, or one layer.
        patterns: what to tie.
            A `TyingPattern` ties the layers whose `kernel_size` is its shape.
            A family ties the spatial kernels with some axis > 1 for which it is defined. Give its name, such as "mirror" or
            "mirror(axis=0)"; or its function, such as `patterns.mirror` or `partial(patterns.mirror, axis=0)`.
            Neither ties kernels without spatial axes, such as those of Dense. Name these layers to tie them.
            A dict from kernel names ties these kernels. Biases, scales and offsets are tied only in this way.
            A dict can also map layer names, paths like "outer/inner", or globs to any of these or None. An exact name takes
            precedence over globs, and an earlier glob over a later one.
            A callable takes a layer with a kernel and returns any of these or None.
        mode: "constraint" projects the full kernel after each optimizer step. It is the default because it fits every model:
            variables, optimizer state and references to layers stay as they are. "parameterization" trains the free weights
            alone, for smaller files, fewer optimizer slots and tied convolutions.
        init: how tied kernels start. "project" averages the current kernels, for trained models. "redraw" draws tied kernels
            with the variance of the layer's initializer, which averages of random values would lose. "auto" redraws the
            kernels that still are what Keras' initializer drew, unless an optimizer has stepped, and projects all others. A
            report says which was done.
        scaling: in parameterization mode, "values" or "orthonormal", see `Tied`.
        convolution: in parameterization mode, "auto", "tune", "kernel" or "group_sums", see `Tied`.

    Raises:
        TyingError: before anything is changed, if a name matches no layer, a named layer can't take its pattern, a
            layer is tied already, LoRA or quantization is active, a subclassed model is not built, nothing is tied, or a
            function or object that no config describes holds layers or variables of a model that would be copied.

    Warns:
        UserWarning: the model's files will not describe the tying; its optimizer's moving averages need `KeepTied`; it
            can't be recompiled because it has its own `compile`, an optimizer or metric without a full config, or a loss
            that holds layers of the model; it has attributes that can't be copied; later, the given model is trained before
            the tied copy of it.

    Example:

    >>> import keras, kernel_tying as kt
    >>> model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Conv2D(8, 5), keras.layers.Flatten()])
    >>> nine_values = kt.TyingPattern.parse("AABCC/AABCC/DDEFF/GGHII/GGHII")
    >>> tied = kt.apply_tying(model, nine_values, mode="parameterization")
    >>> model.count_params(), tied.count_params()
    (208, 80)
    """
    _check_options(mode, init, scaling, convolution)
    _check_built(model_or_layer)
    plan = make_plan(model_or_layer, patterns)
    if mode == "parameterization":
        refuse_nnx(model_or_layer.name)
    _check_ties_built(model_or_layer, plan)
    optimizer = getattr(model_or_layer, "optimizer", None)
    untied = [(site.layer, reason) for site, reason in plan.passed_over if not tied_kernels(site)]
    pairs: LayerPairs = []
    if mode == "constraint":
        tied_root = constrain(model_or_layer, plan, init)
    elif _can_rebuild(model_or_layer, plan):
        tied_root, pairs = rebuild_tied(model_or_layer, plan, init, scaling, convolution)
        note_tied_copy(model_or_layer, tied_root)
    else:
        tied_root = parameterize_in_place(model_or_layer, plan, init, scaling, convolution)
    copies = {id(old): new for old, new in pairs}
    for layer, reason in untied:
        attach(copies.get(id(layer), layer)).notes.reason = reason
    for message in (*_tying_warnings(tied_root, plan, mode, optimizer), *_attribute_warnings(model_or_layer, pairs)):
        warnings.warn(message, UserWarning, stacklevel=2)
    return tied_root


def penalize(model: Model, patterns: Patterns, strength: float) -> Model:
    """Pulls kernels of a model or layer towards patterns: soft tying, in place. Returns the model.

    Each kernel that `apply_tying` would tie gets a `TyingPenalty` on top of its own regularizer. It replaces a `TyingPenalty`
    that is there. `strip_tying` removes it. Weights, optimizer and compilation stay as they are.

    Args:
        model: a Keras model of any kind, or a layer.
        patterns: as for `apply_tying`.
        strength: factor of the penalty `||k - P k||^2`, a finite number, at least 0.

    Raises:
        TyingError: before anything is changed, as by `apply_tying`; or the strength is no such number.

    Warns:
        UserWarning: the model's files will not describe the penalty.

    Example:

    >>> import keras, kernel_tying as kt
    >>> model = keras.Sequential([keras.Input((9, 9, 1)), keras.layers.Conv2D(4, 3, kernel_regularizer="l2")])
    >>> model = kt.penalize(model, "mirror", strength=0.1)
    >>> type(model.layers[0].kernel_regularizer).__name__, type(kt.strip_tying(model).layers[0].kernel_regularizer).__name__
    ('TyingPenalty', 'L2')
    """
    strength = checked_strength(strength)
    _check_built(model)
    plan = make_plan(model, patterns)
    _check_ties_built(model, plan)
    attach_penalties(model, plan, strength)
    if not all(site.keeps_constraint for site, _ in plan.ties):
        warnings.warn(UNDESCRIBED_PENALTY.format(model.name), UserWarning, stacklevel=2)
    return model


def strip_tying(model_or_layer: Model) -> Model:
    """Returns a plain Keras model of the same function: stock layers without any trace of this package.

    `Tied` layers are unwrapped in a new model, and the given one is unchanged. Constraints are removed, and
    kernels that were swapped in place are restored in place. A model without tying is returned unchanged.

    Raises:
        TyingError: the code of a subclassed model creates a `Tied` layer, so it can't be replaced; another layer also holds
            a kernel that was swapped in place.

    Example:

    >>> import keras, kernel_tying as kt
    >>> tied = kt.Tied(keras.layers.Conv2D(4, 3), "mirror")
    >>> type(kt.strip_tying(tied)).__name__
    'Conv2D'
    """
    sites = find_sites(model_or_layer)
    wrapped = [site for site in sites if isinstance(site.outer, Tied)]
    _check_unwrappable(model_or_layer, wrapped)
    in_place = [site for site in sites if not isinstance(site.outer, Tied)]
    check_tracked_once(model_or_layer, _free_weights(in_place))
    root: keras.Layer = model_or_layer
    pairs: LayerPairs = []
    if wrapped:
        root, pairs = rebuild(model_or_layer, lambda layer: zeroed_copy(layer.layer if isinstance(layer, Tied) else layer))
    messages = list(_attribute_warnings(model_or_layer, pairs))
    before, optimizer = root.variables, getattr(model_or_layer, "optimizer", None)
    were_swapped = [strip_in_place(site.layer) for site in find_sites(root)]
    if any(were_swapped):
        _keras.refresh_parameters(root)
        recompile_in_place(root, before)
    _keras.untrack_states(root)
    drop_traced_functions(root)
    if (wrapped or any(were_swapped)) and _needs_compile(root, optimizer):
        messages.append(NEEDS_COMPILE.format(root.name))
    for message in messages:
        warnings.warn(message, UserWarning, stacklevel=2)
    return root


def _check_unwrappable(root: keras.Layer, wrapped: list[Site]) -> None:
    """Raises a `TyingError` if the code of a subclassed model holds a `Tied` layer."""
    for site in wrapped:
        if not site.is_described:
            raise TyingError(
                "A `Tied` layer can be unwrapped in a Sequential or Functional model. "
                f"Received {site.path!r} in {root.name!r}, inside code of its own. Write the stock layer there and "
                "assign it the kernel: stock.kernel.assign(tied.kernel)."
            )


def _free_weights(sites: list[Site]) -> list[tuple[str, keras.Variable]]:
    """Returns the free weights of stock layers in parameterization mode, each with the path of its layer."""
    weights: list[tuple[str, keras.Variable]] = []
    for site in sites:
        weights += [(site.path, view.theta) for view in views(site.layer).values()]
    return weights


def project_kernels(model_or_layer: keras.Layer) -> None:
    """Projects every kernel in constraint mode now: after `set_weights`, `kernel.assign`, or your own training step.

    Raises:
        TyingError: nothing is tied.
    """
    some_tied_kernels(model_or_layer)
    project_constrained(model_or_layer)


def _check_options(mode: str, init: str, scaling: str, convolution: str) -> None:
    check_choice("mode", mode, MODES)
    check_choice("init", init, INITS)
    check_options(scaling, convolution)
    if mode == "constraint" and (scaling != "values" or convolution in ("tune", "group_sums")):
        raise TyingError(
            "In constraint mode the full kernel is trained, without free weights. "
            f"Received scaling={scaling!r}, convolution={convolution!r}. Use mode='parameterization', or leave them out."
        )


def _check_built(root: keras.Layer) -> None:
    if isinstance(root, keras.Model) and not is_rebuildable(root) and not root.built:
        raise TyingError(
            "A subclassed model is tied after it is built. "
            f"Received {root.name!r}, which is not built. Call it once on data, or `model.build(input_shape)`."
        )


def _check_ties_built(root: keras.Layer, plan: Plan) -> None:
    """Raises a `TyingError` unless planned layers inside layers or models with code of their own are built."""
    unbuilt = [site.path for site, _ in plan.ties if not site.is_described and not site.layer.built]
    if unbuilt:
        raise TyingError(
            "A layer inside a layer or model with code of its own is tied after it is built. "
            f"Received {unbuilt} in {root.name!r}, which are not built. Call it once on data, or `model.build(input_shape)`."
        )


def _can_rebuild(root: keras.Layer, plan: Plan) -> bool:
    """Returns whether configs describe all tyings, the planned and the present ones, so that a copy can have them."""
    return all(site.is_described for site, _ in plan.ties) and all(
        kernel.site.keeps_constraint if kernel.mode == "constraint" else kernel.site.is_described
        for kernel in all_tied_kernels(root)
    )


UNDESCRIBED_PENALTY = (
    "The config of {!r} does not describe all layers with a penalty, so its .keras file, pickles and copies leave it out. "
    "Call `penalize` on the loaded model."
)
NEEDS_COMPILE = (
    "Kernel variables of model {!r} were replaced, and it has its own `compile`, an optimizer or metric that its config "
    "does not describe, or a loss or metric that holds layers or variables of the given model. Compile it before it is trained."
)


def _needs_compile(root: keras.Layer, optimizer: Any) -> bool:
    """Returns whether a model that was compiled with `optimizer` could not be recompiled after its kernels were replaced."""
    return optimizer is not None and (not root.compiled or root.optimizer is optimizer)


def _attribute_warnings(source: keras.Layer, pairs: LayerPairs) -> Iterator[str]:
    """Yields a warning if the copy of `source` lacks attributes. `pairs` holds each layer with its copy."""
    dropped = dropped_attributes(pairs)
    if dropped:
        yield (
            f"Some attributes of {source.name!r}, which no config describes, can't be copied. Received {dropped}: the new "
            "model lacks them, or has them as its constructors make them. Set them on the new model."
        )


def _tying_warnings(root: keras.Layer, plan: Plan, mode: str, optimizer: Any) -> Iterator[str]:
    """Yields warnings for the user of a newly tied model. `optimizer` is the one of the model before it was tied."""
    if mode == "constraint" and any(getattr(inner, "use_ema", False) for inner in _keras.inner_optimizers(optimizer)):
        yield (
            "The optimizer averages weights before they are constrained, so averages are not tied. "
            "Add kernel_tying.KeepTied() to the callbacks."
        )
    if mode == "parameterization" and _needs_compile(root, optimizer):
        yield NEEDS_COMPILE.format(root.name)
    if not all(site.keeps_constraint if mode == "constraint" else site.is_described for site, _ in plan.ties):
        files = "leave out the tying" if mode == "constraint" else "hold free weights that they can't load"
        yield (
            f"The config of {root.name!r} does not describe all tied layers, so its .keras file, pickles and copies {files}. "
            "Use `save_weights`; later construct the model, `apply_tying(model, report.plan)`, and `load_weights`."
        )
