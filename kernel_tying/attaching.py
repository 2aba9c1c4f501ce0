"""How a planned tying is put on a model and taken off again: constraints, swapped kernels, and rebuilt models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import keras

from kernel_tying import keras_private, notes
from kernel_tying.algebra import project, relative_distance
from kernel_tying.constraint import TiedConstraint
from kernel_tying.errors import TyingError
from kernel_tying.guards import guard, restore_methods
from kernel_tying.initializer import untied
from kernel_tying.kernels import get_companion, kernel_names, set_companion, tied_constraint, tied_initializer
from kernel_tying.parameterization import deparameterize, parameterize, views
from kernel_tying.pattern import TyingPattern
from kernel_tying.plan import Plan
from kernel_tying.rebuilding import blank, blank_tied, rebuild, recompile
from kernel_tying.regularizer import TyingPenalty
from kernel_tying.sites import find_sites


def constrain(root: keras.Layer, plan: Plan, init: str) -> keras.Layer:
    """Returns `root` with constraints on the planned kernels, which are projected or redrawn."""
    for site, patterns in plan.ties:
        notes.clear(site.layer)
        for name, pattern in patterns.items():
            _attach_constraint(site.layer, name, pattern, init)
        guard(site.layer)
    drop_traced_functions(root)
    return root


def _attach_constraint(layer: keras.Layer, name: str, pattern: TyingPattern, init: str) -> None:
    """Sets constraint and initializer of the layer, which are saved, and the constraint of the variable, which is run."""
    variable = getattr(layer, name) if layer.built else None
    then = get_companion(layer, name, "constraint") if variable is None else variable.constraint
    constraint = TiedConstraint(pattern, then)
    set_companion(layer, name, "constraint", constraint)
    set_companion(layer, name, "initializer", tied_initializer(layer, name, pattern))
    if variable is not None:
        variable.constraint = constraint
        start = _initial_kernel(layer, name, pattern, init)
        if init == "project":
            notes.write_lost(layer, name, relative_distance(variable, start))
        variable.assign(start)


def _initial_kernel(layer: keras.Layer, name: str, pattern: TyingPattern, init: str) -> Any:
    """Returns the kernel with which a newly tied built layer starts."""
    kernel = getattr(layer, name)
    if init == "project":
        return project(kernel, pattern)
    return tied_initializer(layer, name, pattern)(tuple(kernel.shape), dtype=layer.variable_dtype)


def rebuild_tied(root: keras.Layer, plan: Plan, init: str, scaling: str, convolution: str) -> keras.Layer:
    """Returns a copy of `root` in which `Tied` stands around the planned layers."""
    by_layer = {id(site.layer): patterns for site, patterns in plan.ties}

    def copy_layer(layer: keras.Layer) -> keras.Layer:
        patterns = by_layer.get(id(layer))
        return blank(layer) if patterns is None else blank_tied(layer, patterns, scaling, convolution)

    lost = [_lost(site.layer, patterns, init) for site, patterns in plan.ties]  # while there is no copy yet to take memory
    tied_root = rebuild(root, copy_layer)
    tied_sites = find_sites(tied_root)
    notes.carry_over(find_sites(root), tied_sites)
    by_path = {site.path: site.layer for site in tied_sites}
    for (site, _), lost_by_layer in zip(plan.ties, lost, strict=True):
        _start(by_path[site.path], lost_by_layer, init)
    keras_private.list_parameters_anew(tied_root)
    return tied_root


def parameterize_in_place(root: keras.Layer, plan: Plan, init: str, scaling: str, convolution: str) -> keras.Layer:
    """Returns `root` with tied kernels in the place of the planned layers' own."""
    _check_owned(root, plan)
    before = root.variables
    for site, patterns in plan.ties:
        lost = _lost(site.layer, patterns, init)
        parameterize(site.layer, patterns, scaling, convolution)
        _start(site.layer, lost, init)
    keras_private.list_parameters_anew(root)
    recompile_in_place(root, before)
    drop_traced_functions(root)
    return root


def _check_owned(root: keras.Layer, plan: Plan) -> None:
    """Raises if another layer tracks a kernel as its own too, as SpectralNormalization does: it would keep the stock kernel."""
    owners = Counter(
        id(variable) for layer in keras_private.all_layers(root) for variable in keras_private.own_variables(layer)
    )
    shared = [site.path for site, patterns in plan.ties for name in patterns if owners[id(getattr(site.layer, name))] > 1]
    if shared:
        raise TyingError(
            f"A kernel that several layers keep can't be replaced. Received {shared} in {root.name!r}. Use mode='constraint'."
        )


def _lost(layer: keras.Layer, patterns: Mapping[str, TyingPattern], init: str) -> dict[str, float]:
    """Returns the norm that each kernel of a stock layer loses if it is projected, `||k - P k|| / ||k||`."""
    if init != "project" or not layer.built:
        return {}
    kernels = {name: getattr(layer, name) for name in patterns}
    return {name: relative_distance(kernel, project(kernel, patterns[name])) for name, kernel in kernels.items()}


def _start(layer: keras.Layer, lost: Mapping[str, float], init: str) -> None:
    """Draws new kernels for a newly tied layer if that is asked for, and notes what its stock kernels `lost` if not."""
    notes.clear(layer)
    for name, norm in lost.items():
        notes.write_lost(layer, name, norm)
    if init == "redraw":
        for name, view in views(layer).items():
            view.assign(_initial_kernel(layer, name, view.pattern, init))


def strip_in_place(layer: keras.Layer) -> bool:
    """Removes all of this package from a stock layer. Returns whether a kernel variable was replaced."""
    is_swapped = bool(views(layer))
    deparameterize(layer)
    restore_methods(layer)
    for name in kernel_names(layer):
        _strip_companions(layer, name)
    notes.clear(layer)
    return is_swapped


def _strip_companions(layer: keras.Layer, name: str) -> None:
    """Puts plain Keras objects in the place of a kernel's `TiedConstraint`, `TiedInitializer` and `TyingPenalty`."""
    variable = getattr(layer, name) if layer.built else None
    constraint = tied_constraint(layer, name)
    if constraint is not None:
        set_companion(layer, name, "constraint", constraint.then)
        if variable is not None:
            variable.constraint = constraint.then
    if isinstance(get_companion(layer, name, "regularizer"), TyingPenalty):
        set_companion(layer, name, "regularizer", None)
        if variable is not None:
            variable.regularizer = None
    set_companion(layer, name, "initializer", untied(get_companion(layer, name, "initializer")))


def recompile_in_place(root: keras.Layer, before: list[keras.Variable]) -> None:
    """Compiles a model anew after variables were replaced; `before` are its variables of then."""
    if getattr(root, "compiled", False):
        recompile(root, root, list(zip(before, root.variables, strict=True)))


def drop_traced_functions(root: keras.Layer) -> None:
    """Makes models trace their steps anew: a traced step goes on with the constraints and kernels that it has seen."""
    for layer in keras_private.all_layers(root):
        if isinstance(layer, keras.Model):
            layer.train_function = layer.test_function = layer.predict_function = None
