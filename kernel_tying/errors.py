"""The one exception class of the package, and what its messages and checks share."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any


class TyingError(ValueError):
    """A pattern, a kernel and a layer do not go together.

    Every message has three parts: the rule, what was received, and the way out. It is raised before anything is changed.
    """


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises a `TyingError` unless the argument `name` has one of the values `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise TyingError(f"`{name}` is one of {tuple(choices)}. Received {name}={abbreviate(value)}. Use one of these.")


def check_config(name: str, config: Any, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Raises a `TyingError` unless `config` is a dict that has all `required` keys, and no others but the `optional` ones."""
    if not isinstance(config, dict) or not set(required) <= set(config) <= {*required, *optional}:
        keys = " and ".join(f"{key!r}" for key in required) + "".join(f", perhaps {key!r}" for key in optional)
        raise TyingError(
            f"The config of a {name} is a dict with {keys}. Received {abbreviate(config)}. Make one with `get_config()`."
        )


class _Abbreviation(reprlib.Repr):
    """Keeps the first entries of the outer levels of a value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxtuple = self.maxlist = self.maxdict = 8
        self.maxstring = self.maxother = 180

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write integers of more than 4300 digits.
        return super().repr_int(x, level) if x.bit_length() <= 1024 else f"an integer of {x.bit_length()} bits"


def abbreviate(value: object) -> str:
    """Returns a short `repr` of any value in short time: long or deep ones, integers too large to be written.

    >>> abbreviate(list(range(100_000)))
    '[0, 1, 2, 3, 4, 5, 6, 7, ...]'
    """
    return f"{_Abbreviation().repr(value):.200}"
