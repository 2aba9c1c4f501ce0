"""Recorded calls of the families of this package. A config holds name and arguments. Loading it repeats the call."""

from __future__ import annotations

import functools
import inspect
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec
from weakref import WeakValueDictionary

import numpy as np

from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.patterns import groups

if TYPE_CHECKING:
    from kernel_tying.patterns.pattern import TyingPattern

Arguments = ParamSpec("Arguments")
TEXTS = {*groups.names(), "trivial", "regular"}  # that arguments may be: groups, and types of fields

# Not the registry: a config calls families of this package only, never a function that users registered.
_families: dict[str, Callable[..., TyingPattern]] = {}
# Loaded patterns that are in use, by call. A constraint and an initializer with equal configs share one pattern.
_loaded: WeakValueDictionary[Any, TyingPattern] = WeakValueDictionary()


def recorded(function: Callable[Arguments, TyingPattern]) -> Callable[Arguments, TyingPattern]:
    """Returns `function`, wrapped so that its patterns store the call that made them if its arguments are numbers and names."""
    signature = inspect.signature(function)
    takes_size = "size" in signature.parameters and "repeats" not in signature.parameters

    @functools.wraps(function)
    def family(*args: Arguments.args, **kwargs: Arguments.kwargs) -> TyingPattern:
        if takes_size:
            _check_size_is_a_tuple(function.__name__, args)
        pattern = function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        try:
            arguments = {name: as_builtin(value) for name, value in bound.arguments.items()}
        except TypeError:
            return pattern
        vars(pattern)["_call"] = (function.__name__, arguments)
        return pattern

    _families[function.__name__] = family
    return family


def _check_size_is_a_tuple(name: str, args: tuple[Any, ...]) -> None:
    """Raises a `TyingError` for a size whose axes are separate arguments, as in `mirror(5, 5)`."""
    if len(args) > 1 and _is_length(args[0]) and _is_length(args[1]):
        sizes = tuple(itertools.takewhile(_is_length, args))
        raise TyingError(
            f"A kernel size is one argument, a tuple. Received {name}{abbreviate(sizes)}. "
            f"Write {name}({abbreviate(sizes)}); pass options by name."
        )


def _is_length(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) > 0


def repeat(name: str, arguments: dict[str, Any]) -> TyingPattern:
    """Returns the pattern that the family `name` of this package makes from `arguments`, a dict by argument name.

    Raises:
        TyingError: there is no such family, or it does not take these arguments.
    """
    if not isinstance(name, str) or name not in _families:
        raise TyingError(
            f"A config names a family of this package: {', '.join(sorted(_families))}. Received {abbreviate(name)}. "
            "Install the version of kernel_tying that wrote it, or a later one."
        )
    signature = inspect.signature(_families[name])
    if not isinstance(arguments, dict) or set(arguments) != set(signature.parameters):
        raise _malformed(name, signature, arguments)
    try:
        args = _positional(signature, {key: as_builtin(value) for key, value in arguments.items()})
    except TypeError:
        raise _malformed(name, signature, arguments) from None
    pattern = _loaded.get((name, args))
    if pattern is None:
        pattern = _loaded[name, args] = _families[name](*args)
    return pattern


def written(name: str, arguments: dict[str, Any]) -> str:
    """Returns a recorded call as `mirror(axis=0)`: without the kernel size and default values."""
    signature = inspect.signature(_families[name])
    parameters = signature.parameters
    if "size" not in parameters or "repeats" in parameters:  # the sizes are not that of the kernel
        return f"{name}({', '.join(map(repr, _positional(signature, arguments)))})"
    options = {key: value for key, value in arguments.items() if key != "size" and value != parameters[key].default}
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})" if options else name


def _positional(signature: inspect.Signature, arguments: dict[str, Any]) -> tuple[Any, ...]:
    """Returns arguments by name as positional ones."""
    in_order = {key: arguments[key] for key in signature.parameters}
    return inspect.BoundArguments(signature, in_order).args


def listed(value: Any) -> Any:
    """Returns recorded arguments with tuples as lists, as in JSON."""
    if isinstance(value, dict):
        return {key: listed(entry) for key, entry in value.items()}
    return [listed(entry) for entry in value] if isinstance(value, tuple) else value


def as_builtin(value: Any, depth: int = 2) -> Any:
    """Returns a number, a name, or sequences of these nested up to `depth`, as plain Python numbers, strings and tuples.

    The lengths of `blocks` are nested twice, no argument is nested deeper.

    Raises:
        TypeError: the value is of another type, a group or a text without a name here, or an integer exceeds 64 bits.
    """
    if isinstance(value, groups.Group):
        value = value.name
    if isinstance(value, str) and value in TEXTS:
        return str(value)
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if depth and isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes)):
        return tuple(as_builtin(entry, depth - 1) for entry in value)
    number = operator.index(value)
    if number.bit_length() > 63:
        raise TypeError("an integer too large for a kernel")
    return number


def _malformed(name: str, signature: inspect.Signature, arguments: object) -> TyingError:
    return TyingError(
        f"The arguments of {name!r} in a config are {', '.join(signature.parameters)}: integers, booleans, names, or lists. "
        f"Received {abbreviate(arguments)}. Make a config with `get_config()`."
    )
