"""The verbs for whole models: `apply_tying`, `strip_tying`, `project_kernels`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import keras

from kernel_tying import keras_private, notes
from kernel_tying.algebra import project
from kernel_tying.attaching import (
    constrain,
    drop_traced_functions,
    parameterize_in_place,
    rebuild_tied,
    recompile_in_place,
    strip_in_place,
)
from kernel_tying.errors import TyingError, check_choice
from kernel_tying.parameterization import Tied, check_options
from kernel_tying.plan import Patterns, Plan, make_plan
from kernel_tying.rebuilding import blank, rebuild
from kernel_tying.sites import (
    all_tied_kernels,
    constrained_kernels,
    find_sites,
    is_rebuildable,
    some_tied_kernels,
    tied_kernels,
)

MODES = ("constraint", "parameterization")
INITS = ("project", "redraw")


def apply_tying(
    model_or_layer: keras.Layer,
    patterns: Patterns,
    *,
    mode: str = "constraint",
    init: str = "project",
    scaling: str = "values",
    convolution: str = "auto",
) -> keras.Layer:
    """Ties kernels of a model or layer, and returns the object to use from now on.

    In constraint mode that is the given object, changed in place. In parameterization mode it is a new model with the
    same names, weights and compilation, and the given one stays as it was; only models whose config does not describe
    their layers (subclassed models, recurrent and custom layers with layers inside) are changed in place in this mode too.

    Args:
        model_or_layer: a Keras model of any kind, or one layer.
        patterns: what to tie.
            A `TyingPattern` ties the layers whose `kernel_size` is its shape.
            The name of a family ties the spatial kernels with some axis > 1 for which the family is defined.
            Neither ties kernels without spatial axes, such as that of Dense: these are tied where they are named.
            A dict from kernel names ties these kernels.
            A dict from layer names, paths like "outer/inner", or globs to any of these or None: an exact name goes
            before globs, globs in the order of the dict.
            A callable that takes a layer and returns any of these or None.
        mode: "constraint" projects the full kernel after each optimizer step; "parameterization" trains the free
            weights alone.
        init: "project" averages kernels that are there, for trained kernels; "redraw" draws new ones, tied and with the
            variance of the layer's initializer.
        scaling: in parameterization mode, "values" or "orthonormal", see `Tied`.
        convolution: in parameterization mode, "auto", "tune", "kernel" or "group_sums", see `Tied`.

    Raises:
        TyingError: before anything is changed, if a name matches no layer, a named layer can't take its pattern, a
            layer is tied already, LoRA or quantization is active, a subclassed model is not built, or nothing is tied.

    Warns:
        UserWarning: the model's files will not describe the tying; its optimizer's moving averages need `KeepTied`; its
            own `compile`, or an optimizer or metric without a full config, keeps it from being compiled alike.

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
    _check_ties_built(model_or_layer, plan)
    optimizer = getattr(model_or_layer, "optimizer", None)
    reasons = {site.path: reason for site, reason in plan.passed_over if not tied_kernels(site)}
    if mode == "constraint":
        tied_root = constrain(model_or_layer, plan, init)
    elif _is_described(model_or_layer, plan):
        tied_root = rebuild_tied(model_or_layer, plan, init, scaling, convolution)
    else:
        tied_root = parameterize_in_place(model_or_layer, plan, init, scaling, convolution)
    for site in find_sites(tied_root):
        if site.path in reasons:
            notes.write_reason(site.layer, reasons[site.path])
    for caution in _cautions(tied_root, plan, mode, optimizer):
        warnings.warn(caution, UserWarning, stacklevel=2)
    return tied_root


def strip_tying(model_or_layer: keras.Layer) -> keras.Layer:
    """Returns plain Keras again: the same function with stock layers, and no trace of this package.

    What `Tied` wraps is unwrapped in a new model, and the given one stays as it was; constraints and kernels that were
    swapped in place are restored in place. A model without tying is returned as it is.

    Raises:
        TyingError: a subclassed model has a `Tied` layer written into its code, where it can't be replaced.

    Example:

    >>> import keras, kernel_tying as kt
    >>> tied = kt.Tied(keras.layers.Conv2D(4, 3), "mirror")
    >>> type(kt.strip_tying(tied)).__name__
    'Conv2D'
    """
    sites = find_sites(model_or_layer)
    wrapped = [site for site in sites if isinstance(site.holder, Tied)]
    for site in wrapped:
        if not site.is_described:
            raise TyingError(
                "A `Tied` layer can be unwrapped in a Sequential or Functional model. "
                f"Received {site.path!r} in {model_or_layer.name!r}, inside code of its own. Write the stock layer there and "
                "assign it the kernel: stock.kernel.assign(tied.kernel)."
            )
    root = (
        rebuild(model_or_layer, lambda layer: blank(layer.layer if isinstance(layer, Tied) else layer))
        if wrapped
        else model_or_layer
    )
    before, optimizer = root.variables, getattr(model_or_layer, "optimizer", None)
    is_swapped = [strip_in_place(site.layer) for site in find_sites(root)]
    if any(is_swapped):
        keras_private.list_parameters_anew(root)
        recompile_in_place(root, before)
    drop_traced_functions(root)
    if (wrapped or any(is_swapped)) and _needs_compile(root, optimizer):
        warnings.warn(NEEDS_COMPILE.format(root.name), UserWarning, stacklevel=2)
    return root


def project_kernels(model_or_layer: keras.Layer) -> None:
    """Projects every kernel in constraint mode now: after `set_weights`, `kernel.assign`, or your own training step.

    Raises:
        TyingError: nothing is tied.
    """
    some_tied_kernels(model_or_layer)
    for kernel in constrained_kernels(model_or_layer):
        kernel.variable.assign(project(kernel.variable, kernel.pattern))


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
    """Raises unless layers inside layers with code of their own have their kernels."""
    unbuilt = [site.path for site, _ in plan.ties if not site.is_described and not site.layer.built]
    if unbuilt:
        raise TyingError(
            "A layer inside a layer or model with code of its own is tied after it is built. "
            f"Received {unbuilt} in {root.name!r}, which are not built. Call it once on data, or `model.build(input_shape)`."
        )


def _is_described(root: keras.Layer, plan: Plan) -> bool:
    """Returns whether the config of a rebuilt model describes all tyings: the plan's, and those that are there already."""
    return all(site.is_described for site, _ in plan.ties) and all(
        kernel.site.keeps_constraint if kernel.mode == "constraint" else kernel.site.is_described
        for kernel in all_tied_kernels(root)
    )


NEEDS_COMPILE = (
    "Kernel variables of model {!r} were replaced, and it has its own `compile`, or an optimizer or metric that its config "
    "does not describe. Compile it before it is trained."
)


def _needs_compile(root: keras.Layer, optimizer: Any) -> bool:
    """Returns whether a model, compiled with `optimizer` before its kernels were replaced, could not be compiled anew."""
    return optimizer is not None and (not root.compiled or root.optimizer is optimizer)


def _cautions(root: keras.Layer, plan: Plan, mode: str, optimizer: Any) -> Iterator[str]:
    """Yields what the user of a newly tied model has to see to; `optimizer` is the one it was compiled with before."""
    if mode == "constraint" and any(getattr(one, "use_ema", False) for one in keras_private.inner_optimizers(optimizer)):
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
