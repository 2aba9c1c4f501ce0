"""Identifiers of patterns in arguments and configs: a pattern, or the name of a family, perhaps with options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernel_tying._native import native
from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.patterns.pattern import TyingPattern
from kernel_tying.patterns.registry import Family, check_name, name_of, named, registered

Identifier = TyingPattern | str
PatternLike = Identifier | Family  # what users pass: a function of `patterns`, or a partial of it, means its name


def validate(pattern: PatternLike) -> Identifier:
    """Returns a pattern or the name of a family unchanged, and the name of a family for its function.

    Raises:
        TyingError: `pattern` is neither.
    """
    identifier = pattern if isinstance(pattern, (str, TyingPattern)) else name_of(pattern)
    if identifier is None:
        raise TyingError(
            "A tying is a TyingPattern, or a family of patterns: its name, or its function in `patterns`. "
            f"Received {abbreviate(pattern)}. Examples: 'mirror', 'mirror(axis=0)'. "
            "Register a family of your own with `patterns.register`."
        )
    if isinstance(identifier, str):
        check_name(identifier)
    return identifier


@native.untraced
def pattern_for(pattern: Identifier, shape: tuple[int, ...]) -> TyingPattern:
    """Returns the pattern itself, or the named family's pattern for the spatial axes of a kernel of `shape`.

    The spatial axes are all but the last two. Both axes of a matrix count as spatial.
    """
    return named(pattern, shape[:-2] or shape) if isinstance(pattern, str) else pattern


class PatternLookup:
    """A cached `pattern_for`. It calls a family once per shape, and again if another function is registered under its name.

    Copies and pickles start with an empty cache.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, tuple[int, ...]], tuple[Family, TyingPattern]] = {}

    def __call__(self, pattern: Identifier, shape: tuple[int, ...]) -> TyingPattern:
        if not isinstance(pattern, str):
            return pattern
        family, (made_by, known) = registered(pattern), self._known.get((pattern, shape), (None, None))
        if known is None or made_by is not family:
            known = pattern_for(pattern, shape)
            self._known[pattern, shape] = family, known
        return known

    def __reduce__(self) -> tuple[type[PatternLookup], tuple[()]]:
        return type(self), ()


def in_words(pattern: TyingPattern) -> str:
    """Returns the family of a pattern, or its size and number of groups."""
    size = "x".join(map(str, pattern.shape))
    return pattern.family or f"{size}, {pattern.num_free} group{'' if pattern.num_free == 1 else 's'}"


def serialize_pattern(pattern: Identifier) -> str | dict[str, Any]:
    """Returns a JSON-serializable stand-in for `pattern`."""
    return pattern if isinstance(pattern, str) else pattern.get_config()


def deserialize_pattern(config: str | dict[str, Any] | TyingPattern) -> Identifier:
    """Returns the pattern or name that `serialize_pattern` wrote."""
    return TyingPattern.from_config(config) if isinstance(config, dict) else validate(config)


def resolve_object(role: str, get: Callable[[Any], Any], identifier: Any) -> Any:
    """Returns the Keras object that `identifier` means. An identifier is an object, a name or a config.

    Args:
        role: name of the argument, for the message.
        get: the function of Keras that finds the object, such as `keras.constraints.get`.
        identifier: the value of the argument.

    Raises:
        TyingError: Keras finds no such object.
    """
    try:
        return get(identifier)
    except TyingError:
        raise
    except Exception as error:  # Keras raises exceptions of any class for a malformed config
        raise TyingError(
            f"`{role}` is an object of Keras, its name or its config. Received {role}={abbreviate(identifier)}, and Keras "
            f"says {abbreviate(str(error))}. Pass the object itself."
        ) from error
