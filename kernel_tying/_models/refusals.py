"""Errors about the `patterns` argument of `apply_tying`: names that match nothing, and patterns that tie nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

import keras

from kernel_tying._layers.fitting import LayerTying, find_obstruction, is_matrix_layer, spatial_size
from kernel_tying._layers.table import default_kernel, kernel_names
from kernel_tying._models.sites import Site
from kernel_tying.errors import TyingError, abbreviate, did_you_mean

Patterns = LayerTying | Mapping[str, LayerTying | None] | Callable[[keras.Layer], LayerTying | None]
PassedOver = Sequence[tuple[Site, str]]
_MAX_LISTED = 12  # names in a message


def check_names(unknown: Sequence[str], sites: Sequence[Site]) -> None:
    """Raises a `TyingError` if names are `unknown`: they are neither exact names of layers, nor globs."""
    if unknown:
        raise TyingError(
            f"A name in `patterns` is the name, path or glob of a layer. Received {list(unknown)}, which match no layer. "
            f"{_similar(unknown[0], sites)}Name some of the layers that keep kernels: {_with_kernels(sites)}."
        )


def check_globs(unused: Sequence[str], sites: Sequence[Site], passed_over: PassedOver) -> None:
    """Raises a `TyingError` if names in `patterns` are `unused`: they tie nothing."""
    if not unused:
        return
    matched = [site for site in sites if site.is_matched_by(unused[0])]
    with_kernels = [site for site in matched if kernel_names(site.layer)]
    reasons = [(site, reason) for site, reason in passed_over if site in with_kernels]
    rule = "A glob in `patterns` must tie some layer."
    if not matched:
        raise TyingError(
            f"{rule} Received {unused[0]!r}, which matches no layer, so nothing is tied. {_similar(unused[0], sites)}"
            f"Layers that keep kernels are {_with_kernels(sites)}."
        )
    if reasons:
        raise TyingError(
            f"{rule} Received {unused[0]!r}, by which nothing is tied{_in_brackets(reasons)}. {_way_out_of(reasons)}"
        )
    if with_kernels:
        raise TyingError(f"{rule} Received {unused[0]!r}, all of whose layers match an earlier name. Put it before that name.")
    raise TyingError(
        f"{rule} Received {unused[0]!r}, which matches layers without kernels only: {_listed(site.path for site in matched)}. "
        f"Layers that keep kernels are {_with_kernels(sites)}."
    )


def check_keeps_kernels(site: Site, sites: Sequence[Site]) -> None:
    """Raises a `TyingError` if a layer of Keras that keeps no kernel is named. A layer of your own may need a row."""
    obstruction = find_obstruction(site.layer)
    if obstruction is None or kernel_names(site.layer) or not type(site.layer).__module__.startswith("keras."):
        return
    others = [other for other in sites if kernel_names(other.layer)]
    raise TyingError(
        "Only kernels of layers in the table of kernels can be tied. "
        f"Received layer {site.path!r}: {obstruction.reason}. {_similar(site.path, others)}"
        f"Name some of the layers that keep kernels: {_with_kernels(sites)}."
    )


def check_ties_something(root: keras.Layer, patterns: Patterns, passed_over: PassedOver, is_anything_tied: bool) -> None:
    """Raises a `TyingError` if nothing is tied."""
    if is_anything_tied:
        return
    reasons = [(site, reason) for site, reason in passed_over if default_kernel(site.layer)]
    raise TyingError(
        f"A tying must tie some kernel. Received patterns={abbreviate(patterns)} for {root.name!r}, "
        f"in which nothing is tied{_in_brackets(reasons)}. {_way_out(patterns, reasons)}"
    )


def _way_out(patterns: Patterns, reasons: PassedOver) -> str:
    if not reasons:
        return "No layer of it keeps a kernel. Add a row for a class of your own with `register_layer`."
    if all(is_matrix_layer(site.layer) for site, _ in reasons):
        tying = repr(patterns) if isinstance(patterns, str) else "pattern"
        return f"Name the layers to tie, for example {{{reasons[0][0].path!r}: {tying}}}."
    if all(_is_left_out(reason) for _, reason in reasons):
        return f"Name some of the layers that keep kernels: {_listed(site.path for site, _ in reasons)}."
    return _way_out_of(reasons)


def _way_out_of(reasons: PassedOver) -> str:
    """Returns the way out where patterns do not fit."""
    unfit = [site.layer for site, reason in reasons if not _is_left_out(reason)]
    convolutions = [layer for layer in unfit if not is_matrix_layer(layer)]
    sizes = sorted({spatial_size(layer, kernel_names(layer)[0]) for layer in convolutions})
    tiable = [size for size in sizes if max(size, default=1) > 1]
    if tiable:
        return f"Choose a pattern that fits a kernel size of these layers, {_listed(tiable)}."
    return "Name these layers, each with a pattern that fits all axes of its kernel."


def _is_left_out(reason: str) -> bool:
    return reason == "not named" or reason.startswith("left out by")


def _in_brackets(reasons: PassedOver) -> str:
    """Returns the part of a message that says, in brackets, why layers with kernels are passed over."""
    listed = "; ".join(f"{site.path}: {reason}" for site, reason in reasons)
    return f" ({listed:.600})" if listed else ""


def _similar(name: str, sites: Sequence[Site]) -> str:
    """Returns a question about the layers that may be meant by `name`, with a blank behind it; or ""."""
    names = list(chain.from_iterable(site.names for site in sites))
    if any(known.startswith(f"{name}/") for known in names):
        return f"{name!r} holds layers of its own: did you mean '{name}/*'? "
    return did_you_mean(name, names)


def _with_kernels(sites: Sequence[Site]) -> str:
    return _listed(site.path for site in sites if default_kernel(site.layer))


def _listed(values: Iterable[object]) -> str:
    """Returns the first values as a list, with a note if there are more."""
    listed = list(values)
    more = f" and {len(listed) - _MAX_LISTED} more" if len(listed) > _MAX_LISTED else ""
    return f"{listed[:_MAX_LISTED]}{more}"
