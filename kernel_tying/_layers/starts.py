"""How the kernels of a built layer start when they are tied: "redrawn" by their initializer, or "projected"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import keras

from kernel_tying._layers.attachment import views
from kernel_tying._layers.companions import tied_initializer
from kernel_tying._layers.freshness import is_fresh
from kernel_tying.algebra import Tensor, project, relative_distance
from kernel_tying.patterns.pattern import TyingPattern


def choose_starts(layer: keras.Layer, names: Iterable[str], init: str = "auto", is_trained: bool = False) -> dict[str, str]:
    """Returns how each kernel starts, by name. Kernels of an unbuilt layer are left out.

    With "auto" a kernel is redrawn if it is what its initializer drew, unless it is part of a trained model: there, a layer
    that was frozen at random is part of what the others learned.
    """

    def start(name: str) -> str:
        is_redrawn = init == "redraw" or (init == "auto" and not is_trained and is_fresh(layer, name))
        return "redrawn" if is_redrawn else "projected"

    return {name: start(name) for name in names} if layer.built else {}


def lost_norms(layer: keras.Layer, patterns: Mapping[str, TyingPattern], starts: Mapping[str, str]) -> dict[str, float]:
    """Returns the relative norm that each projected kernel of a stock layer loses, `||k - P k|| / ||k||`."""
    kernels = {name: getattr(layer, name) for name in patterns if starts.get(name) == "projected"}
    return {name: relative_distance(kernel, project(kernel, patterns[name])) for name, kernel in kernels.items()}


def draw_kernel(layer: keras.Layer, name: str, pattern: TyingPattern) -> Tensor:
    """Returns a tied kernel that the layer's initializer draws."""
    kernel = getattr(layer, name)
    return tied_initializer(layer, name, pattern)(tuple(kernel.shape), dtype=layer.variable_dtype)


def redraw(layer: keras.Layer, starts: Mapping[str, str]) -> None:
    """Draws those kernels of a layer in parameterization mode that start "redrawn"."""
    for name, view in views(layer).items():
        if starts.get(name) == "redrawn":
            view.assign(draw_kernel(layer, name, view.pattern))
