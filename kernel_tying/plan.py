"""Which kernels a call of `apply_tying` ties: the `patterns` argument, matched against the layers of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

import keras

from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.identifiers import validate
from kernel_tying.kernels import KERNELS, LayerTying, is_matrix_layer, kernel_names, misfit, resolve
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
    """What is meant for one site: a tying that it must take (`is_named`) or may take, or None with the reason.

    `key` is the key of the dict from layer names that led to it.
    """

    tying: LayerTying | None
    is_named: bool = False
    reason: str = ""
    key: str = ""


def make_plan(root: keras.Layer, patterns: Patterns) -> Plan:
    """Returns the plan for `patterns`, checked before anything is changed.

    Raises:
        TyingError: an exact name matches no layer or its layer cannot take the pattern; a glob ties nothing; a layer is
            tied already; its LoRA or quantization is active; nothing at all is tied.
    """
    sites = find_sites(root)
    choose = _chooser(patterns, sites)
    plan = Plan([], [])
    keys = set()
    for site in sites:
        choice = choose(site)
        reason = _reason_against(choice, site, is_alone=site.holder is root)
        if reason is not None:
            plan.passed_over.append((site, reason))
            continue
        plan.ties.append((site, resolve(site.layer, cast(LayerTying, choice.tying))))
        keys.add(choice.key)
        _check_untied(site)
    if isinstance(patterns, Mapping) and not _names_kernels(patterns):
        _check_globs(plan, [key for key in patterns if patterns[key] is not None and key not in keys])
    if not plan.ties:
        raise TyingError(
            f"A tying must tie some kernel. Received patterns={abbreviate(patterns)} for {root.name!r}, "
            f"of which nothing is tied{_reasons(plan)}. Make patterns for the kernel sizes of the model's layers."
        )
    return plan


def _reason_against(choice: _Choice, site: Site, is_alone: bool) -> str | None:
    """Returns why a site is passed over, or None if it is to be tied; a layer that is given alone counts as named."""
    if choice.tying is None:
        return choice.reason
    if choice.is_named:
        return None
    if is_matrix_layer(site.layer) and not is_alone and (isinstance(choice.tying, str) or not choice.key):
        return f"{type(site.layer).__name__} is tied only where it is named, or by a glob with a pattern"
    return misfit(site.layer, choice.tying)


def _check_globs(plan: Plan, idle: list[str]) -> None:
    """Raises if there are keys that tie nothing."""
    if idle:
        raise TyingError(
            f"A glob in `patterns` must tie some layer. Received {idle}, of which nothing is tied{_reasons(plan)}. "
            "Leave them out, or make patterns that fit."
        )


def _reasons(plan: Plan) -> str:
    """Returns in brackets why layers that keep kernels are passed over, for a message."""
    reasons = "; ".join(f"{site.path}: {reason}" for site, reason in plan.passed_over if kernel_names(site.layer))
    return f" ({reasons:.600})" if reasons else ""


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
        globs = _globs(patterns, sites)
        for named_tying in patterns.values():
            _check_tying(named_tying)
        return lambda site: _choice_by_name(patterns, globs, site)
    if callable(patterns):
        return lambda site: _choice_by_call(patterns, site)
    raise TyingError(
        "`patterns` is a TyingPattern, the name of a family, a dict from layer names, or a callable from layers. "
        f"Received {abbreviate(patterns)}. Text notation goes through `TyingPattern.parse`."
    )


def _check_tying(tying: LayerTying | None) -> None:
    """Raises unless `tying` is made of patterns and names of families."""
    for pattern in tying.values() if isinstance(tying, Mapping) else () if tying is None else (tying,):
        validate(pattern)


def _names_kernels(patterns: Patterns) -> bool:
    """Returns whether `patterns` is a dict from kernel names, rather than from layer names."""
    known = {kernel.name for row in KERNELS.values() for kernel in row}
    return isinstance(patterns, Mapping) and bool(patterns) and set(patterns) <= known


def _exact_names(site: Site) -> set[str]:
    return {*site.paths, site.holder.name, site.position}


def _globs(patterns: Mapping[str, LayerTying | None], sites: list[Site]) -> list[str]:
    """Returns the names that are globs, and raises a `TyingError` if another one is no layer's name."""
    if not all(isinstance(name, str) for name in patterns):
        raise TyingError(f"The keys of `patterns` are names of layers. Received {list(patterns)}. Use `layer.name`.")
    known = set().union(*map(_exact_names, sites))
    globs = [name for name in patterns if name not in known and any(character in name for character in "*?[")]
    unknown = [name for name in patterns if name not in known and name not in globs]
    if unknown:
        raise TyingError(
            f"A name in `patterns` is the name, path or glob of a layer. Received {unknown}, which match no layer. "
            f"Name some of the layers that keep kernels: {[site.path for site in sites if kernel_names(site.layer)]}."
        )
    return globs


def _choice_by_name(patterns: Mapping[str, LayerTying | None], globs: list[str], site: Site) -> _Choice:
    exact = next((name for name in patterns if name in _exact_names(site)), None)
    if exact is not None:
        return _Choice(patterns[exact], is_named=True, reason=f"left out by {exact!r}", key=exact)
    names = (*site.paths, site.holder.name)
    glob = next((glob for glob in globs if any(fnmatchcase(name, glob) for name in names)), None)
    if glob is None:
        return _Choice(None, reason="not named")
    return _Choice(patterns[glob], reason=f"left out by {glob!r}", key=glob)


def _choice_by_call(patterns: Callable[[keras.Layer], LayerTying | None], site: Site) -> _Choice:
    if not kernel_names(site.layer):
        return _Choice(None, reason=str(misfit(site.layer, {})))
    return _Choice(patterns(site.layer), is_named=True, reason="left out by the callable")
