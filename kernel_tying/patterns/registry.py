"""The names by which families of patterns are called for."""

from __future__ import annotations

from collections.abc import Callable

from kernel_tying.errors import TyingError, abbreviate
from kernel_tying.pattern import TyingPattern
from kernel_tying.patterns.sizes import kernel_size

Family = Callable[[tuple[int, ...]], TyingPattern]

_families: dict[str, Family] = {}
_shipped: set[str] = set()


def ship(function: Family) -> None:
    """Registers a family of this package under the name of its function, which it keeps."""
    _families[function.__name__] = function
    _shipped.add(function.__name__)


def register(name: str, function: Family) -> None:
    """Makes `function` usable by `name` wherever a family's name is accepted.

    A model that was saved with a name needs the same registration before it is loaded. Registering a name of one's own
    again replaces its function, as when a notebook cell is run twice.

    Args:
        name: a name that none of the package's own families has.
        function: takes a kernel size, a tuple of integers, and returns a `TyingPattern` of that shape; it raises
            `TyingError` for sizes for which the family is not defined.

    Raises:
        TyingError: the name belongs to a family of this package, or `function` is no function.

    Example:

    >>> from functools import partial
    >>> import kernel_tying as kt
    >>> kt.patterns.register("sobel-like", partial(kt.patterns.mirror, antisymmetric=True))
    >>> kt.patterns.named("sobel-like", (1, 3))
    TyingPattern.parse('A.-A/')
    """
    if not isinstance(name, str) or not name or not callable(function):
        raise TyingError(
            f"A family is a function under a name. Received name={name!r}, function={function!r}. "
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

    Raises:
        TyingError: no family has that name, or the family is not defined for that size.
    """
    check_name(name)
    sizes = kernel_size(size)
    pattern = _families[name](sizes)
    if not isinstance(pattern, TyingPattern) or pattern.shape != sizes:
        raise TyingError(
            "A family returns a pattern of the shape it is asked for. "
            f"Received {abbreviate(pattern)} from {name!r} for {sizes}. "
            "Raise a TyingError in the family for sizes that it does not fit."
        )
    return pattern


def check_name(name: str) -> None:
    """Raises a `TyingError` unless a family has that name."""
    if not isinstance(name, str) or name not in _families:
        raise TyingError(
            f"A string is the name of a family of patterns: {', '.join(names())}. Received {abbreviate(name)}. "
            "Text notation goes through `TyingPattern.parse`, a family of your own through `patterns.register`."
        )
