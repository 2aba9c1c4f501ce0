"""What stands for a pattern in arguments and configs: a pattern, or the name of a family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.pattern import TyingPattern
from kernel_tying.patterns.registry import check_name, named

Identifier = TyingPattern | str


def validate(pattern: Identifier) -> Identifier:
    """Returns `pattern` if it is a pattern or the name of a family, and raises a `TyingError` otherwise."""
    if isinstance(pattern, str):
        check_name(pattern)
    elif not isinstance(pattern, TyingPattern):
        raise TyingError(
            f"A tying is a TyingPattern or the name of a family of patterns. Received {abbreviate(pattern)}. Example: 'mirror'."
        )
    return pattern


def pattern_for(pattern: Identifier, shape: tuple[int, ...]) -> TyingPattern:
    """Returns the pattern itself, or the named family's pattern for the spatial axes of a kernel of `shape`.

    The spatial axes are all but the last two; a matrix counts as a whole.
    """
    return named(pattern, shape[:-2] or shape) if isinstance(pattern, str) else pattern


def serialize_pattern(pattern: Identifier) -> str | dict[str, Any]:
    """Returns a JSON-serializable stand-in for `pattern`."""
    return pattern if isinstance(pattern, str) else pattern.get_config()


def deserialize_pattern(config: str | dict[str, Any] | TyingPattern) -> Identifier:
    """Returns the pattern or name that `serialize_pattern` wrote."""
    return TyingPattern.from_config(config) if isinstance(config, dict) else validate(config)


def resolve_object(role: str, get: Callable[[Any], Any], identifier: Any) -> Any:
    """Returns the Keras object that `identifier` stands for: an object, a name or a config.

    Args:
        role: name of the argument, for the message.
        get: the function of Keras that finds the object, such as `keras.constraints.get`.
        identifier: what was passed for it.

    Raises:
        TyingError: Keras finds no such object.
    """
    try:
        return get(identifier)
    except TyingError:
        raise
    except Exception as error:  # a malformed config makes Keras raise whatever comes first
        raise TyingError(
            f"`{role}` is an object of Keras, its name or its config. Received {role}={abbreviate(identifier)}, of which Keras "
            f"says {abbreviate(str(error))}. Pass the object itself."
        ) from error
