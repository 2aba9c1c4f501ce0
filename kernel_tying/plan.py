"""Which kernels a call of `apply_tying` ties: the `patterns` argument, matched against the layers of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

import keras

from kernel_tying.errors import TyingError
from kernel_tying.identifiers import validate
from kernel_tying.kernels import KERNELS, LayerTying, kernel_names, misfit, refusal, resolve
from kernel_tying.pattern import TyingPattern
from kernel_tying.sites import Site, find_sites, tied_kernels

Patterns = LayerTying | Mapping[str, LayerTying | None] | Callable[[keras.Layer], LayerTying | None]


@dataclass
class Plan:
    """What a call ties, and why it passes over the rest.

    Attributes:
        ties: sites with the pattern of each kernel.
        passed_over: sites with the reason.
    """

    ties: list[tuple[Site, dict[str, TyingPattern]]]
    passed_over: list[tuple[Site, str]]


@dataclass(frozen=True)
class _Choice:
    """What is meant for one site: a tying that it must take (`is_named`) or may take, or None with the reason."""

    tying: LayerTying | None
    is_named: bool = False
    reason: str = ""


def make_plan(root: keras.Layer, patterns: Patterns) -> Plan:
    """Returns the plan for `patterns`, checked before anything is changed.

    Raises:
        TyingError: an exact name matches no layer or its layer cannot take the pattern; a layer is tied already; its
            LoRA or quantization is active; nothing at all is tied.
    """
    sites = find_sites(root)
    choose = _chooser(patterns, sites)
    plan = Plan([], [])
    for site in sites:
        choice = choose(site)
        reason = choice.reason if choice.tying is None else None if choice.is_named else misfit(site.layer, choice.tying)
        if choice.tying is None or reason is not None:
            plan.passed_over.append((site, reason or ""))
            continue
        plan.ties.append((site, resolve(site.layer, choice.tying)))
        _check_untied(site)
    if not plan.ties:
        reasons = "; ".join(f"{site.path}: {reason}" for site, reason in plan.passed_over[:8] if kernel_names(site.layer))
        raise TyingError(
            f"A tying must tie some kernel. Received patterns={patterns!r:.200} for {root.name!r}, of which nothing is tied"
            f"{f' ({reasons})' if reasons else ''}. Make patterns for the kernel sizes of the model's layers."
        )
    return plan


def _check_untied(site: Site) -> None:
    if tied_kernels(site):
        raise TyingError(
            f"A layer is tied once. Received layer {site.path!r}, which is tied. "
            "Call `strip_tying` first, or leave the layer out by name: {'" + site.path + "': None, ...}."
        )


def _chooser(patterns: Patterns, sites: list[Site]) -> Callable[[Site], _Choice]:
    """Returns the function that chooses what is meant for a site."""
    if isinstance(patterns, (TyingPattern, str)) or _names_kernels(patterns):
        tying = cast(LayerTying, patterns)
        _check_tying(tying)
        return lambda site: _Choice(tying)
    if isinstance(patterns, Mapping):
        _check_names(patterns, sites)
        for named_tying in patterns.values():
            _check_tying(named_tying)
        return lambda site: _choice_by_name(patterns, site)
    if callable(patterns):
        return lambda site: _choice_by_call(patterns, site)
    raise TyingError(
        "`patterns` is a TyingPattern, the name of a family, a dict from layer names, or a callable from layers. "
        f"Received {patterns!r:.200}. Text notation goes through `TyingPattern.parse`."
    )


def _check_tying(tying: LayerTying | None) -> None:
    """Raises unless `tying` is made of patterns and names of families."""
    for pattern in tying.values() if isinstance(tying, Mapping) else () if tying is None else (tying,):
        validate(pattern)


def _names_kernels(patterns: Patterns) -> bool:
    """Returns whether `patterns` is a dict from kernel names, rather than from layer names."""
    return (
        isinstance(patterns, Mapping) and bool(patterns) and set(patterns) <= {name for row in KERNELS.values() for name in row}
    )


def _is_glob(name: str) -> bool:
    return any(character in name for character in "*?[")


def _exact_names(site: Site) -> set[str]:
    return {*site.paths, site.holder.name, site.position}


def _check_names(patterns: Mapping[str, LayerTying | None], sites: list[Site]) -> None:
    known = set().union(*map(_exact_names, sites))
    unknown = [name for name in patterns if not _is_glob(name) and name not in known]
    if unknown:
        raise TyingError(
            f"A name in `patterns` is the name, path or glob of a layer. Received {unknown}, which match no layer. "
            f"Layers that keep kernels: {[site.path for site in sites if kernel_names(site.layer)]}."
        )
    idle = [name for name in patterns if _is_glob(name) and not any(_matches(name, site) for site in sites)]
    if idle:
        raise TyingError(f"A glob in `patterns` matches some layer. Received {idle}. Layers: {[site.path for site in sites]}.")


def _matches(glob: str, site: Site) -> bool:
    return any(fnmatchcase(name, glob) for name in (*site.paths, site.holder.name))


def _choice_by_name(patterns: Mapping[str, LayerTying | None], site: Site) -> _Choice:
    exact = next((name for name in patterns if name in _exact_names(site)), None)
    name = exact if exact is not None else next((glob for glob in patterns if _is_glob(glob) and _matches(glob, site)), None)
    if name is None:
        return _Choice(None, reason="not named")
    return _Choice(patterns[name], is_named=exact is not None, reason=f"left out by {name!r}")


def _choice_by_call(patterns: Callable[[keras.Layer], LayerTying | None], site: Site) -> _Choice:
    if not kernel_names(site.layer):
        return _Choice(None, reason=str(refusal(site.layer)))
    return _Choice(patterns(site.layer), is_named=True, reason="left out by the callable")
