"""Attaches a planned tying to a model, and removes it: constraints, swapped kernels, and rebuilt models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from typing import Any

import keras

from kernel_tying import _keras
from kernel_tying._layers.algorithm import Convolution
from kernel_tying._layers.attachment import Notes, attach, attachment, detach, views
from kernel_tying._layers.companions import (
    effective_constraint,
    get_companion,
    set_companion,
    tied_constraint,
    tied_initializer,
)
from kernel_tying._layers.constraint import TiedConstraint
from kernel_tying._layers.initializer import untied
from kernel_tying._layers.overrides import guard
from kernel_tying._layers.regularizer import TyingPenalty, unpenalized
from kernel_tying._layers.starts import choose_starts, draw_kernel, lost_norms, redraw
from kernel_tying._layers.statistics import pool_moving_statistics
from kernel_tying._layers.table import kernel_names
from kernel_tying._layers.tied import deparameterize, parameterize_built
from kernel_tying._layers.view import Scaling
from kernel_tying._models import references
from kernel_tying._models.compiling import recompile
from kernel_tying._models.copying import Rebuilt, rebuild, zeroed_copy, zeroed_tied_copy
from kernel_tying._models.plan import Plan
from kernel_tying._models.sites import Site
from kernel_tying.algebra import project, relative_distance
from kernel_tying.errors import TyingError
from kernel_tying.patterns.pattern import TyingPattern


@_keras.noting_supported_versions()
def constrain(root: keras.Layer, plan: Plan, init: str) -> keras.Layer:
    """Returns `root` with constraints on the planned kernels, which are projected or redrawn."""
    starts = _starts(root, plan, init)
    for (site, patterns), start in zip(plan.ties, starts, strict=True):
        attach(site.layer).notes = Notes(init=start)
        for name, pattern in patterns.items():
            _attach_constraint(site.layer, name, pattern, start.get(name, ""))
        pool_moving_statistics(site.layer)
        guard(site.layer)
    drop_traced_functions(root)
    return root


def _starts(root: keras.Layer, plan: Plan, init: str) -> list[dict[str, str]]:
    """Returns how each kernel of the planned layers starts, by name: "projected" or "redrawn"."""
    is_trained = init == "auto" and _is_trained(root)
    return [choose_starts(site.layer, patterns, init, is_trained) for site, patterns in plan.ties]


def _is_trained(root: keras.Layer) -> bool:
    """Returns whether the optimizer of a model, or of a model inside it, has stepped."""
    return any(_keras.has_stepped(getattr(layer, "optimizer", None)) for layer in _keras.all_layers(root))


def _attach_constraint(layer: keras.Layer, name: str, pattern: TyingPattern, start: str) -> None:
    """Sets the layer's constraint and initializer, which are saved, and the variable's constraint, which is applied."""
    variable = getattr(layer, name) if layer.built else None
    then = get_companion(layer, name, "constraint") if variable is None else variable.constraint
    constraint = TiedConstraint(pattern, then)
    set_companion(layer, name, "constraint", constraint)
    set_companion(layer, name, "initializer", tied_initializer(layer, name, pattern))
    if variable is not None:
        variable.constraint = constraint
        initial_kernel = _initial_kernel(layer, name, pattern, start)
        if start == "projected":
            attach(layer).notes.lost[name] = relative_distance(variable, initial_kernel)
        variable.assign(initial_kernel)


def _initial_kernel(layer: keras.Layer, name: str, pattern: TyingPattern, start: str) -> Any:
    """Returns the initial kernel of a built layer in constraint mode."""
    return project(getattr(layer, name), pattern) if start == "projected" else draw_kernel(layer, name, pattern)


@_keras.noting_supported_versions()
def rebuild_tied(root: keras.Layer, plan: Plan, init: str, scaling: Scaling, convolution: Convolution) -> Rebuilt:
    """Returns a copy of `root` in which `Tied` wraps the planned layers."""
    by_layer = {id(site.layer): patterns for site, patterns in plan.ties}

    def copy_layer(layer: keras.Layer) -> keras.Layer:
        patterns = by_layer.get(id(layer))
        return zeroed_copy(layer) if patterns is None else zeroed_tied_copy(layer, patterns, scaling, convolution)

    starts = _starts(root, plan, init)
    norms = [lost_norms(site.layer, patterns, start) for (site, patterns), start in zip(plan.ties, starts, strict=True)]
    rebuilt = rebuild(root, copy_layer)
    for old, new in rebuilt.pairs:
        attach(new).notes = deepcopy(attachment(old).notes)
    copies = {id(old): new for old, new in rebuilt.pairs}
    for (site, _), lost, start in zip(plan.ties, norms, starts, strict=True):
        attach(copies[id(site.layer)]).notes = Notes(lost, start)
        redraw(copies[id(site.layer)], start)
    return rebuilt


@_keras.noting_supported_versions()
def parameterize_in_place(root: keras.Layer, plan: Plan, init: str, scaling: Scaling, convolution: Convolution) -> keras.Layer:
    """Returns `root` with tied kernels instead of the planned layers' own."""
    check_tracked_once(root, [(site.path, kernel) for site, kernel in _planned_kernels(plan)])
    _check_held_by_layers_alone(root, plan)
    before = root.variables
    starts = _starts(root, plan, init)
    for (site, patterns), start in zip(plan.ties, starts, strict=True):
        parameterize_built(site.layer, patterns, scaling, convolution, start)
    _keras.refresh_parameters(root)
    recompile_in_place(root, before)
    drop_traced_functions(root)
    return root


def _planned_kernels(plan: Plan) -> list[tuple[Site, keras.Variable]]:
    """Returns the kernels to tie, each with the site of its layer."""
    kernels: list[tuple[Site, keras.Variable]] = []
    for site, patterns in plan.ties:
        kernels += [(site, getattr(site.layer, name)) for name in patterns]
    return kernels


def check_tracked_once(root: keras.Layer, weights: Iterable[tuple[str, keras.Variable]]) -> None:
    """Raises a `TyingError` if a second layer tracks a weight, as SpectralNormalization does. It would keep the old weight.

    Args:
        root: a model or layer.
        weights: kernels and free weights to replace, each with the path of its layer.
    """
    tracked: Counter[int] = Counter()  # by the id of a variable: the number of layers that track it
    for layer in _keras.all_layers(root):
        tracked.update(map(id, _keras.own_variables(layer)))
    shared = [path for path, variable in weights if tracked[id(variable)] > 1]
    if shared:
        raise TyingError(
            f"A kernel that several layers keep can't be replaced. Received {shared} in {root.name!r}. "
            "Use mode='constraint', or remove the kernel from the other layers."
        )


def _check_held_by_layers_alone(root: keras.Layer, plan: Plan) -> None:
    """Raises a `TyingError` if a function or a call argument holds a planned kernel. It would keep the stock kernel."""
    targets: dict[int, Any] = {}
    permitted: list[keras.Layer] = []
    for site, kernel in _planned_kernels(plan):
        targets |= {id(target): target for target in (kernel, *_keras.mutable_storage(kernel))}
        permitted += [site.layer, site.outer]
    holder, held = references.find_holder(root, targets, permitted)
    if holder is not None:
        raise TyingError(
            "A kernel that is held elsewhere than in its layer can't be replaced. "
            f"Received {references.describe(held)}, held by {holder.name!r} in {root.name!r}. Use mode='constraint'."
        )


@_keras.noting_supported_versions()
def strip_in_place(layer: keras.Layer) -> bool:
    """Removes all traces of this package from a stock layer. Returns whether a kernel variable was replaced."""
    is_swapped = bool(views(layer))
    deparameterize(layer)
    for name in kernel_names(layer):
        _strip_companions(layer, name)
    detach(layer)
    return is_swapped


def _strip_companions(layer: keras.Layer, name: str) -> None:
    """Replaces a kernel's `TiedConstraint`, `TiedInitializer` and `TyingPenalty` by what they wrap."""
    variable = getattr(layer, name) if layer.built else None
    constraint, effective = tied_constraint(layer, name), effective_constraint(layer, name)
    if constraint is not None:
        set_companion(layer, name, "constraint", constraint.then)
    if variable is not None and isinstance(effective, TiedConstraint):
        variable.constraint = effective.then
    strip_penalty(layer, name)
    set_companion(layer, name, "initializer", untied(get_companion(layer, name, "initializer")))


def attach_penalties(root: keras.Layer, plan: Plan, strength: float | keras.Variable) -> None:
    """Puts a `TyingPenalty` on the planned kernels, in the place of one that is there. It adds to other regularizers."""
    for site, patterns in plan.ties:
        for name, pattern in patterns.items():
            _map_regularizers(site.layer, name, partial(_penalized, pattern, strength))
    drop_traced_functions(root)


def strip_penalty(layer: keras.Layer, name: str) -> None:
    """Removes the `TyingPenalty` of a kernel, and leaves what it added to."""
    _map_regularizers(layer, name, unpenalized)


def _penalized(pattern: TyingPattern, strength: float | keras.Variable, regularizer: Any) -> TyingPenalty:
    return TyingPenalty(pattern, strength, unpenalized(regularizer))


def _map_regularizers(layer: keras.Layer, name: str, function: Callable[[Any], Any]) -> None:
    """Replaces the layer's regularizer, which is saved, and the variable's regularizer, which is applied."""
    saved = get_companion(layer, name, "regularizer")
    replaced = function(saved)
    set_companion(layer, name, "regularizer", replaced)
    if layer.built:
        variable = getattr(layer, name)
        applied = variable.regularizer
        variable.regularizer = replaced if applied is saved else function(applied)


def recompile_in_place(root: keras.Layer, before: list[keras.Variable]) -> None:
    """Recompiles a compiled model after variables were replaced. `before` holds its previous variables."""
    if getattr(root, "compiled", False):
        recompile(root, root, list(zip(before, root.variables, strict=True)))


def drop_traced_functions(root: keras.Layer) -> None:
    """Makes models trace their steps again. A traced step would use the constraints and kernels from the time of tracing."""
    for layer in _keras.all_layers(root):
        if isinstance(layer, keras.Model):
            layer.train_function = layer.test_function = layer.predict_function = None
