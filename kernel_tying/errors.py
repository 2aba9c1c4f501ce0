"""The exception class of the package, and helpers for messages and checks."""

from __future__ import annotations

import contextlib
import difflib
import math
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from typing import Any

_MAX_COMPARED = 200  # characters of a name: difflib takes time that grows with the square of the length


class TyingError(ValueError):
    """A pattern, a kernel or a layer is invalid, or they do not fit together.

    Every message has three parts: the rule, what was received, and the way out. The error is raised before anything is changed.
    """


class MissingExtraError(TyingError, ImportError):
    """An optional package is not installed. It is also an `ImportError`, because the import of a module fails with it."""


@contextlib.contextmanager
def needing(package: str, extra: str, subject: str) -> Iterator[None]:
    """Raises a `MissingExtraError` that names the extra of `setup.cfg` if an import inside fails.

    Args:
        package: name of the optional package, as its authors write it.
        extra: the extra that installs it.
        subject: what needs the package, in the plural.
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"{subject} need {package}. Received an environment without it ({error}). Install the extra `{extra}`."
        ) from error


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises a `TyingError` unless the argument `name` has one of the values `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise TyingError(
            f"`{name}` is one of {tuple(choices)}. Received {name}={abbreviate(value)}. "
            f"{did_you_mean(value, choices)}Use one of these."
        )


def did_you_mean(received: object, choices: Iterable[str]) -> str:
    """Returns a question that names the choice most similar to `received`, with a blank behind it; "" if none is similar.

    >>> did_you_mean("miror", ["mirror", "point"])
    "Did you mean 'mirror'? "
    """
    by_lower = {choice.lower(): choice for choice in choices}
    text = received.lower() if isinstance(received, str) and len(received) <= _MAX_COMPARED else ""
    similar = difflib.get_close_matches(text, by_lower, n=1)
    return f"Did you mean {by_lower[similar[0]]!r}? " if similar else ""


def check_config(name: str, config: Any, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Raises a `TyingError` unless `config` is a dict with all `required` keys and no others except `optional` ones."""
    if not isinstance(config, dict) or not set(required) <= set(config) <= {*required, *optional}:
        required_keys = " and ".join(f"{key!r}" for key in required)
        keys = required_keys + "".join(f", perhaps {key!r}" for key in optional)
        raise TyingError(
            f"The config of a {name} is a dict with {keys}. Received {abbreviate(config)}. Make one with `get_config()`."
        )


def real_number(value: Any) -> float:
    """Returns a real number as a float, and NaN for anything else."""
    try:
        return float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return math.inf


class _Abbreviation(reprlib.Repr):
    """A `repr` of the first entries and outer levels of a value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxtuple = self.maxlist = self.maxdict = 8
        self.maxstring = self.maxother = 180

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write integers of more than 4300 digits.
        return super().repr_int(x, level) if x.bit_length() <= 1024 else f"an integer of {x.bit_length()} bits"


def abbreviate(value: object) -> str:
    """Returns a short `repr` of any value in a short time, even if it is long, deep, or an integer too large to print.

    >>> abbreviate(list(range(100_000)))
    '[0, 1, 2, 3, 4, 5, 6, 7, ...]'
    """
    return f"{_Abbreviation().repr(value):.200}"
