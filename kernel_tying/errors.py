"""The one exception class of the package."""

from __future__ import annotations

from collections.abc import Sequence


class TyingError(ValueError):
    """A pattern, a kernel and a layer do not go together.

    Every message has three parts: the rule, what was received, and the way out. It is raised before anything is changed.
    """


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises a `TyingError` unless the argument `name` has one of the values `choices`."""
    if value not in choices:
        raise TyingError(f"`{name}` is one of {tuple(choices)}. Received {name}={value!r}. Use one of these.")
