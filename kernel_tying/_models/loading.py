"""Weights that Keras loads without `load_own_variables`: legacy `.h5` files, and the state trees of Orbax checkpoints.

Both loaders assign arrays to variables directly. Afterwards constrained kernels are projected. Free weights from an `.h5`
file are converted from the scaling in the file's config. A state tree does not tell the scaling of its free weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import keras

from kernel_tying import _keras
from kernel_tying._layers.attachment import views
from kernel_tying._layers.statistics import pool_moving_statistics
from kernel_tying._layers.tied import Tied
from kernel_tying._layers.view import rescale
from kernel_tying._models.sites import all_tied_kernels, constrained_kernels, find_sites
from kernel_tying.algebra import project
from kernel_tying.errors import TyingError
from kernel_tying.patterns.pattern import TyingPattern

# Keras names groups after classes, and `_layers/files.py` rescaled weights after their scaling.
_OF_FREE_WEIGHTS = re.compile(r"(^|/)tied(_\d+)?/layer(/|$)|/\d+_orthonormal$")


def stored_scalings(config: str | bytes | None) -> dict[str, str]:
    """Returns the scaling of each `Tied` layer by name, as far as the JSON config of a model has it."""
    name = keras.saving.get_registered_name(Tied)
    try:
        entries = list(_dicts(json.loads(config or "{}")))
        tied = [entry["config"] for entry in entries if name in (entry.get("class_name"), entry.get("registered_name"))]
        return {config["name"]: config["scaling"] for config in tied}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}  # a damaged config; Keras loads the weights without it


def tie_loaded(model: keras.Layer, scalings: dict[str, str]) -> None:
    """Projects constrained kernels, and converts free weights from the scalings of the file."""
    project_constrained(model)
    for layer in (site.layer for site in find_sites(model) if site.layer.name in scalings):
        pool_moving_statistics(layer)
        for view in views(layer).values():
            view.theta.assign(rescale(view.theta.value, view.pattern, scalings[layer.name], view.scaling))


def project_constrained(root: keras.Layer) -> dict[int, TyingPattern]:
    """Projects every kernel in constraint mode, and returns their patterns by the id of the variable."""
    kernels = constrained_kernels(root)
    for kernel in kernels:
        kernel.variable.assign(project(kernel.variable, kernel.pattern))
        pool_moving_statistics(kernel.site.layer)
    return {id(kernel.variable): kernel.pattern for kernel in kernels}


def explain_misfit(model: keras.Layer, path: str, entries: list[str]) -> TyingError | None:
    """Returns the error for a file of free weights that a model without free weights can't load, or None for other files."""
    if not any(map(_OF_FREE_WEIGHTS.search, entries)) or _has_free_weights(model):
        return None
    return TyingError(
        "A weight file of a tied model fits a model that is tied in the same way. "
        f"Received the free weights of {path!r} for {model.name!r}, which has none. "
        "Load it into the model that `apply_tying(..., mode='parameterization')` returns, and use `strip_tying` then."
    )


def _has_free_weights(model: keras.Layer) -> bool:
    return any(kernel.mode == "parameterization" for kernel in all_tied_kernels(model))


def _dicts(root: Any) -> Iterator[dict[str, Any]]:
    """Yields the dicts inside `root`, without recursion because files may nest them deeply."""
    pending = [root]
    while pending:
        entry = pending.pop()
        if isinstance(entry, dict):
            yield entry
            pending.extend(entry.values())
        elif isinstance(entry, list):
            pending.extend(entry)


_keras.follow_up_loading(stored_scalings, tie_loaded)
_keras.explain_misfits(explain_misfit)
