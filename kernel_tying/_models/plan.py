"""Which kernels a call of `apply_tying` ties: the `patterns` argument, matched against the layers of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import cast

import keras

from kernel_tying._layers.fitting import LayerTying, is_matrix_layer, misfit, resolve
from kernel_tying._layers.identifiers import validate
from kernel_tying._layers.table import KERNELS, default_kernel
from kernel_tying._models.refusals import Patterns, check_globs, check_keeps_kernels, check_names, check_ties_something
from kernel_tying._models.sites import Site, find_sites, tied_kernels
from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.patterns.pattern import TyingPattern
from kernel_tying.patterns.registry import name_of


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
    """The choice for a site: a tying that must fit (`is_named`) or may fit, or None with the reason.

    `matched_name` is the layer name or glob in `patterns` that matched.
    """

    tying: LayerTying | None
    is_named: bool = False
    reason: str = ""
    matched_name: str = ""


def make_plan(root: keras.Layer, patterns: Patterns) -> Plan:
    """Returns the plan for `patterns`, checked before anything is changed.

    Raises:
        TyingError: an exact name matches no layer, or the pattern does not fit its layer; a glob ties nothing; a layer is
            already tied; its LoRA or quantization is active; nothing is tied.
    """
    sites = find_sites(root)
    choose = _chooser(patterns, sites)
    plan = Plan([], [])
    used_names = set()
    for site in sites:
        choice = choose(site)
        reason = _reason_against(choice, site, is_alone=site.outer is root)
        if reason is not None:
            plan.passed_over.append((site, reason))
            continue
        check_keeps_kernels(site, sites)
        plan.ties.append((site, resolve(site.layer, cast(LayerTying, choice.tying))))
        used_names.add(choice.matched_name)
        _check_untied(site)
    if isinstance(patterns, Mapping) and not _is_by_kernel_name(patterns, sites):
        wanted = [name for name in patterns if patterns[name] is not None]
        check_globs([name for name in wanted if name not in used_names], sites, plan.passed_over)
    check_ties_something(root, patterns, plan.passed_over, is_anything_tied=bool(plan.ties))
    return plan


def _reason_against(choice: _Choice, site: Site, is_alone: bool) -> str | None:
    """Returns why a site is passed over, or None if it is to be tied. A layer that is passed alone counts as named."""
    if choice.tying is None:
        return choice.reason
    if choice.is_named:
        return None
    if is_matrix_layer(site.layer) and not is_alone and (isinstance(choice.tying, str) or not choice.matched_name):
        return f"{type(site.layer).__name__} is tied only where it is named, or by a glob with a pattern"
    return misfit(site.layer, choice.tying)


def _check_untied(site: Site) -> None:
    if tied_kernels(site):
        raise TyingError(
            f"A layer is tied once. Received layer {site.path!r}, which is tied. "
            "Call `strip_tying` first, or leave the layer out by name: {'" + site.path + "': None, ...}."
        )


def _chooser(patterns: Patterns, sites: list[Site]) -> Callable[[Site], _Choice]:
    """Returns the function that chooses the tying of a site."""
    if _is_bare(patterns) or _is_by_kernel_name(patterns, sites):
        tying = _validated(cast(LayerTying, patterns))
        return lambda site: _Choice(tying)
    if isinstance(patterns, Mapping):
        _check_keys(patterns, sites)
        globs = _globs(patterns, sites)
        by_name = {name: _validated(cast(LayerTying, named)) for name, named in patterns.items()}
        return lambda site: _choice_by_name(by_name, globs, site)
    if callable(patterns):
        return lambda site: _choice_by_call(patterns, site)
    raise TyingError(
        "`patterns` is a TyingPattern, the name of a family, a dict from layer names, or a callable from layers. "
        f"Received {abbreviate(patterns)}. Text notation goes through `TyingPattern.parse`."
    )


def _is_bare(patterns: Patterns) -> bool:
    """Returns whether `patterns` is a pattern or a family. Callables that are no families take layers."""
    return isinstance(patterns, (TyingPattern, str)) or name_of(patterns) is not None


def _validated(tying: LayerTying | None) -> LayerTying | None:
    """Returns `tying` with names in place of functions, and raises a `TyingError` unless it consists of patterns."""
    if isinstance(tying, Mapping):
        return {name: validate(pattern) for name, pattern in tying.items()}
    return tying if tying is None else validate(tying)


def _is_by_kernel_name(patterns: Patterns, sites: list[Site]) -> bool:
    """Returns whether `patterns` is a dict from kernel names. A key that is the exact name of a layer means the layer."""
    known = {kernel.name for kernel in chain.from_iterable(KERNELS.values())}
    if not isinstance(patterns, Mapping) or not patterns or not set(patterns) <= known:
        return False
    return not any(set(patterns) & _exact_names(site) for site in sites)


def _exact_names(site: Site) -> set[str]:
    return {*site.paths, site.outer.name, site.position}


def _check_keys(patterns: Mapping[str, LayerTying | None], sites: list[Site]) -> None:
    """Raises a `TyingError` unless each key of `patterns` is an exact name of a layer, or a glob."""
    if not all(isinstance(name, str) for name in patterns):
        raise TyingError(f"The keys of `patterns` are names of layers. Received {list(patterns)}. Use `layer.name`.")
    check_names([name for name in _inexact_names(patterns, sites) if not _is_glob(name)], sites)


def _globs(patterns: Mapping[str, LayerTying | None], sites: list[Site]) -> list[str]:
    """Returns the names in `patterns` that are globs. An exact name of a layer is no glob, even with brackets in it."""
    return [name for name in _inexact_names(patterns, sites) if _is_glob(name)]


def _inexact_names(patterns: Mapping[str, LayerTying | None], sites: list[Site]) -> list[str]:
    """Returns the names in `patterns` that are not exact names of layers."""
    exact = set().union(*map(_exact_names, sites))
    return [name for name in patterns if name not in exact]


def _is_glob(name: str) -> bool:
    return bool(set(name) & set("*?["))


def _choice_by_name(patterns: Mapping[str, LayerTying | None], globs: list[str], site: Site) -> _Choice:
    exact = next((name for name in patterns if name in _exact_names(site)), None)
    if exact is not None:
        return _Choice(patterns[exact], is_named=True, reason=f"left out by {exact!r}", matched_name=exact)
    for glob in globs:
        if site.is_matched_by(glob):
            return _Choice(patterns[glob], reason=f"left out by {glob!r}", matched_name=glob)
    return _Choice(None, reason="not named")


def _choice_by_call(patterns: Callable[[keras.Layer], LayerTying | None], site: Site) -> _Choice:
    if default_kernel(site.layer) is None:
        return _Choice(None, reason=str(misfit(site.layer, "free")))
    return _Choice(_validated(patterns(site.layer)), is_named=True, reason="left out by the callable")
