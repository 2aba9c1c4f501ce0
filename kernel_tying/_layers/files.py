"""How layers in parameterization mode write and read weight files."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kernel_tying import _keras
from kernel_tying._layers.attachment import views
from kernel_tying._layers.statistics import pool_moving_statistics
from kernel_tying._layers.view import SCALINGS, KernelView, rescale
from kernel_tying.errors import TyingError


def _save(layer: keras.Layer, store: Any) -> None:
    """Writes the layer's variables in order, free weights instead of kernels.

    The entry name of free weights records their scaling.
    """
    scaling = {id(view.theta): view.scaling for view in views(layer).values()}
    for index, variable in enumerate(_keras.own_variables(layer)):
        store[_entry_name(index, scaling.get(id(variable), "values"))] = variable


def stock_store(layer: keras.Layer) -> dict[str, Any]:
    """Returns what the same layer would save without tying: kernels instead of free weights."""
    kernels = {id(view.theta): view for view in views(layer).values()}
    return {str(index): kernels.get(id(variable), variable) for index, variable in enumerate(_keras.own_variables(layer))}


def _load(layer: keras.Layer, store: Any) -> None:
    """Reads free weights in either scaling, as `_save` writes them, and stock kernels, which it averages."""
    variables = _keras.own_variables(layer)
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
    pool_moving_statistics(layer)


def _load_kernel(view: KernelView, store: Any, index: int) -> None:
    names = set(store.keys())  # entries of weight files do not support `in`
    scaling = next((scaling for scaling in SCALINGS if _entry_name(index, scaling) in names), "values")
    value = store[_entry_name(index, scaling)]
    if tuple(value.shape) != tuple(view.theta.shape):
        view.assign(value)
        return
    view.theta.assign(rescale(ops.convert_to_tensor(value), view.pattern, scaling, view.scaling))


def _entry_name(index: int, scaling: str) -> str:
    """Returns the name of a variable's entry in a weight file: that of the stock layer, unless weights are rescaled."""
    return str(index) if scaling == "values" else f"{index}_{scaling}"


FILE_METHODS = {"save_own_variables": _save, "load_own_variables": _load}
