"""The one walk over a model: every layer that could be tied, with the names by which users call it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import keras

from kernel_tying import keras_private
from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.identifiers import pattern_for
from kernel_tying.kernels import kernel_names, kernel_shape, tied_constraint
from kernel_tying.parameterization import Tied, views
from kernel_tying.pattern import TyingPattern


@dataclass
class Site:
    """A layer of a model that is taken or left as a whole.

    Attributes:
        holder: the layer as the model holds it: a stock layer, or a `Tied` around one.
        paths: names like "outer/inner", one for each way that leads to a shared layer.
        position: number of the layer in the walk, as "#3"; it survives automatic names.
        is_described: whether the configs of all models and wrappers around it describe their layers, so that copies and
            files can have another layer in its place.
        keeps_constraint: whether these configs describe at least what constrains its kernels.
    """

    holder: keras.Layer
    position: str
    is_described: bool = True
    keeps_constraint: bool = True
    paths: list[str] = field(default_factory=list)

    @property
    def layer(self) -> keras.Layer:
        """The stock layer."""
        return self.holder.layer if isinstance(self.holder, Tied) else self.holder

    @property
    def path(self) -> str:
        """The first of the paths."""
        return self.paths[0]

    @property
    def key(self) -> str:
        """The path, or the position where automatic names differ between instances of a subclassed model."""
        return self.path if self.is_described else self.position


@dataclass(frozen=True)
class TiedKernel:
    """A kernel that is tied, in either mode.

    Attributes:
        site: where it is.
        name: the kernel's name in its layer.
        pattern: its tying pattern.
        mode: "constraint" or "parameterization".
        variable: the kernel, or None if the layer is not built.
    """

    site: Site
    name: str
    pattern: TyingPattern
    mode: str
    variable: Any


def find_sites(root: keras.Layer) -> list[Site]:
    """Returns the sites of a model or layer in the order of the walk, each shared layer once."""
    if not isinstance(root, keras.Layer):
        raise TyingError(
            f"Kernels are tied in a Keras model or layer. Received {abbreviate(root)}. Pass a model, or one layer."
        )
    sites: dict[int, Site] = {}
    for path, layer, is_described, keeps_constraint in _walk(root, "", True, True):
        site = sites.setdefault(id(layer), Site(layer, f"#{len(sites)}"))
        site.paths.append(path)
        site.is_described &= is_described
        site.keeps_constraint &= keeps_constraint
    return list(sites.values())


def _walk(
    layer: keras.Layer, prefix: str, is_described: bool, keeps_constraint: bool
) -> Iterator[tuple[str, keras.Layer, bool, bool]]:
    """Yields path, layer and flags of a site for every layer without layers inside, and every `Tied` and kernel layer."""
    children = [] if isinstance(layer, Tied) or kernel_names(layer) else keras_private.sublayers(layer)
    if not children:
        yield prefix or layer.name, layer, is_described, keeps_constraint
        return
    describes_layers = is_rebuildable(layer)
    is_described = is_described and describes_layers
    keeps_constraint = keeps_constraint and (describes_layers or keras_private.describes_constraints(layer))
    for child in children:
        yield from _walk(child, f"{prefix}/{child.name}".lstrip("/"), is_described, keeps_constraint)


def is_rebuildable(layer: keras.Layer) -> bool:
    """Returns whether fresh copies of `layer` can be made from copies of the layers inside it."""
    return keras_private.is_functional(layer) or keras_private.is_sequential(layer) or keras_private.is_plain_wrapper(layer)


def tied_kernels(site: Site) -> list[TiedKernel]:
    """Returns the tied kernels at a site, in either mode."""
    layer = site.layer
    parameterized = views(layer)
    patterns = (
        site.holder.patterns if isinstance(site.holder, Tied) else {name: view.pattern for name, view in parameterized.items()}
    )
    found = [TiedKernel(site, name, pattern, "parameterization", parameterized.get(name)) for name, pattern in patterns.items()]
    for name in kernel_names(layer):
        constraint = tied_constraint(layer, name)
        shape = kernel_shape(layer, name)
        if constraint is not None and shape is not None:
            variable = getattr(layer, name) if layer.built else None
            found.append(TiedKernel(site, name, pattern_for(constraint.pattern, shape), "constraint", variable))
    return found


def all_tied_kernels(root: keras.Layer) -> list[TiedKernel]:
    """Returns the tied kernels of a model or layer in the order of the walk."""
    return [kernel for site in find_sites(root) for kernel in tied_kernels(site)]


def some_tied_kernels(root: keras.Layer) -> list[TiedKernel]:
    """Returns the tied kernels of a model or layer, and raises a `TyingError` if there are none."""
    kernels = all_tied_kernels(root)
    if not kernels:
        raise TyingError(f"This needs tied kernels. Received {root.name!r}, of which nothing is tied. Call `apply_tying`.")
    return kernels


def constrained_kernels(root: keras.Layer) -> list[TiedKernel]:
    """Returns the kernels of a model or layer that are in constraint mode and built."""
    return [kernel for kernel in all_tied_kernels(root) if kernel.mode == "constraint" and kernel.variable is not None]
