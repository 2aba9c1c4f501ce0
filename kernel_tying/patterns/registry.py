"""The registry of pattern families by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from kernel_tying.errors import TyingError, abbreviate, did_you_mean
from kernel_tying.patterns import options
from kernel_tying.patterns.calls import as_builtin
from kernel_tying.patterns.pattern import TyingPattern
from kernel_tying.patterns.sizes import kernel_size

Family = Callable[..., TyingPattern]  # of a kernel size, a tuple of integers, and of options by name

_families: dict[str, Family] = {}
_shipped: set[str] = set()


def ship(function: Family) -> None:
    """Registers a family of this package under the name of its function, and reserves that name."""
    _families[function.__name__] = function
    _shipped.add(function.__name__)


def register(name: str, function: Family) -> None:
    """Makes `function` usable by `name` wherever a family's name is accepted.

    Before you load a model saved with a name, register that name again. Registering your own name twice replaces its
    function, as when a notebook cell is run again.

    Args:
        name: a name that no family of this package has.
        function: takes a kernel size, a tuple of integers, and returns a `TyingPattern` of that shape. It should raise
            a `TyingError` for unsupported sizes.

    Raises:
        TyingError: the name belongs to a family of this package, or `function` is not callable.

    Example:

    >>> from functools import partial
    >>> import kernel_tying as kt
    >>> kt.patterns.register("sobel-like", partial(kt.patterns.mirror, antisymmetric=True))
    >>> kt.patterns.named("sobel-like", (1, 3))
    TyingPattern.parse('A.-A/')
    """
    if not isinstance(name, str) or not name or not callable(function):
        raise TyingError(
            f"A family is a function under a name. Received name={abbreviate(name)}, function={abbreviate(function)}. "
            "Example: register('mine', mirror)."
        )
    if name in _shipped:
        raise TyingError(f"The families of this package keep their names. Received name={name!r}. Choose another name.")
    _families[name] = function


def names() -> list[str]:
    """Returns the names of all registered families, sorted."""
    return sorted(_families)


def named(name: str, size: tuple[int, ...]) -> TyingPattern:
    """Returns the pattern of the family `name` for the kernel size `size`.

    Args:
        name: the name of a family, perhaps with options in brackets.
        size: kernel size.

    Raises:
        TyingError: no family has that name, it lacks an option, or it does not support that size.

    >>> named("mirror(axis=0)", (3, 2))
    TyingPattern.parse('AB/CD/AB')
    """
    family, sizes = registered(name), kernel_size(size)
    pattern = family(sizes, **_options(name))
    if not isinstance(pattern, TyingPattern) or pattern.shape != sizes:
        raise TyingError(
            "A family returns a pattern of the shape it is asked for. "
            f"Received {abbreviate(pattern)} from {name!r} for {sizes}. "
            "Raise a TyingError in the family for sizes that it does not fit."
        )
    return pattern


def registered(name: str) -> Family:
    """Returns the function of the family `name`, without its options.

    Raises:
        TyingError: no family has that name, or it lacks an option.
    """
    check_name(name)
    return _families[_family_name(name)]


def check_name(name: str) -> None:
    """Raises a `TyingError` unless `name` is the name of a family, perhaps with options that it has."""
    family_name = _family_name(name) if isinstance(name, str) else ""
    if family_name not in _families:
        raise TyingError(
            f"A string is the name of a family of patterns: {', '.join(names())}. Received {abbreviate(name)}. "
            f"{did_you_mean(family_name, names())}"
            "Text notation goes through `TyingPattern.parse`, a family of your own through `patterns.register`."
        )
    options.check(family_name, _options(name), _families[family_name])


def name_of(family: object) -> str | None:
    """Returns the name of a registered function with the options of a `functools.partial`; None for other objects.

    Raises:
        TyingError: a function of `patterns` that needs more than a size, or options that can't be written as text.

    >>> from functools import partial
    >>> from kernel_tying import patterns
    >>> name_of(partial(patterns.mirror, axis=0))
    'mirror(axis=0)'
    """
    name = next((name for name, function in _families.items() if function is family), None)
    if name is not None or not callable(family):
        return name
    function, args, keywords = _parts(family)
    name = next((name for name, registered in _families.items() if registered is function), None)
    if name is None and not str(getattr(function, "__module__", "")).startswith(__package__):
        return None
    try:
        if name is None or args:
            raise TypeError
        return options.write(name, {option: _literal(value) for option, value in keywords.items()})
    except TypeError:
        raise TyingError(
            "A family is saved by its name and options, which are literals, so its function needs a size only. "
            f"Received {abbreviate(family)}. Give the rest a name, `patterns.register('mine', ...)`, or pass a TyingPattern."
        ) from None


def _parts(family: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Returns the function inside a `functools.partial`, with the arguments that it holds."""
    return (family.func, family.args, family.keywords) if isinstance(family, partial) else (family, (), {})


def _literal(value: Any) -> Any:
    """Returns an option as `repr` writes it for `options.parse`; raises a TypeError if it can't."""
    return value if isinstance(value, (str, float)) else as_builtin(value)


def _family_name(name: str) -> str:
    """Returns `name` without options. A name may have brackets of its own."""
    return name if name in _families else options.name_in(name)


def _options(name: str) -> dict[str, Any]:
    """Returns the options in `name`."""
    return {} if name in _families else options.parse(name)
