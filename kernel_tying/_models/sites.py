"""The walk over a model: yields every layer that could be tied, with the names that users give it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

import keras

from kernel_tying import _keras
from kernel_tying._layers.attachment import attachment, views
from kernel_tying._layers.companions import effective_constraint
from kernel_tying._layers.constraint import TiedConstraint
from kernel_tying._layers.fitting import known_shape
from kernel_tying._layers.table import kernel_names
from kernel_tying._layers.tied import Tied
from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.patterns.pattern import TyingPattern


@dataclass
class Site:
    """A layer of a model that is tied or skipped as a unit, with the place where the model holds it.

    Attributes:
        outer: the layer as the model holds it: a `Tied`, or the stock layer itself.
        paths: names like "outer/inner"; a shared layer has several.
        position: number of the layer in the walk, such as "#3". It does not depend on automatic names.
        is_described: whether the configs of all models and wrappers around it describe their layers, so that copies and
            files can replace the layer.
        keeps_constraint: whether these configs describe at least the constraints of its kernels.
    """

    outer: keras.Layer
    position: str
    is_described: bool = True
    keeps_constraint: bool = True
    paths: list[str] = field(default_factory=list)

    @property
    def layer(self) -> keras.Layer:
        """The stock layer."""
        return self.outer.layer if isinstance(self.outer, Tied) else self.outer

    @property
    def path(self) -> str:
        """The first of the paths."""
        return self.paths[0]

    @property
    def plan_key(self) -> str:
        """The key of the layer in a report's plan.

        It is the path; or the position in a subclassed model, where automatic names differ between instances.
        """
        return self.path if self.is_described else self.position

    @property
    def names(self) -> tuple[str, ...]:
        """The paths and the layer's name."""
        return (*self.paths, self.outer.name)

    def is_matched_by(self, glob: str) -> bool:
        """Returns whether a glob matches the layer's name or a path."""
        return any(fnmatchcase(name, glob) for name in self.names)


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
    """Yields path, layer and flags of every layer that has kernels, is a `Tied`, or has no inner layers."""
    children = [] if isinstance(layer, Tied) or kernel_names(layer) else _keras.sublayers(layer)
    if not children:
        yield prefix or layer.name, layer, is_described, keeps_constraint
        return
    describes_layers = is_rebuildable(layer)
    is_described = is_described and describes_layers
    keeps_constraint = keeps_constraint and (describes_layers or _keras.describes_constraints(layer))
    for child in children:
        yield from _walk(child, f"{prefix}/{child.name}".lstrip("/"), is_described, keeps_constraint)


def is_rebuildable(layer: keras.Layer) -> bool:
    """Returns whether fresh copies of `layer` can be made from copies of its inner layers."""
    return _keras.is_functional(layer) or _keras.is_sequential(layer) or _keras.is_plain_wrapper(layer)


def tied_kernels(site: Site) -> list[TiedKernel]:
    """Returns the tied kernels at a site, in either mode. A `TiedConstraint` counts if Keras applies it."""
    layer = site.layer
    parameterized = views(layer)
    patterns = {name: view.pattern for name, view in parameterized.items()}
    if isinstance(site.outer, Tied):  # which knows its patterns before it is built
        patterns = site.outer.patterns
    found = [TiedKernel(site, name, pattern, "parameterization", parameterized.get(name)) for name, pattern in patterns.items()]
    for name in [name for name in kernel_names(layer) if name not in patterns]:
        constraint = effective_constraint(layer, name)
        shape = known_shape(layer, name)
        if isinstance(constraint, TiedConstraint) and shape is not None:
            variable = getattr(layer, name) if layer.built else None
            found.append(TiedKernel(site, name, constraint.pattern_for(shape), "constraint", variable))
    return found


def all_tied_kernels(root: keras.Layer) -> list[TiedKernel]:
    """Returns the tied kernels of a model or layer in the order of the walk."""
    return list(chain.from_iterable(map(tied_kernels, find_sites(root))))


def some_tied_kernels(root: keras.Layer) -> list[TiedKernel]:
    """Returns the tied kernels of a model or layer, and raises a `TyingError` if there are none."""
    kernels = all_tied_kernels(root)
    if not kernels and attachment(root).tied_copy is not None:
        raise TyingError(
            f"This needs tied kernels. Received the given model {root.name!r}, in which nothing is tied, because `apply_tying` "
            "returned a tied copy. Use the returned model."
        )
    if not kernels:
        raise TyingError(f"This needs tied kernels. Received {root.name!r}, in which nothing is tied. Call `apply_tying`.")
    return kernels


def constrained_kernels(root: keras.Layer) -> list[TiedKernel]:
    """Returns the kernels of a model or layer that are in constraint mode and built."""
    return [kernel for kernel in all_tied_kernels(root) if kernel.mode == "constraint" and kernel.variable is not None]
