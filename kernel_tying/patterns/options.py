"""Options of families in text: `mirror(axis=0)`. They are literals, parsed without evaluation."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from kernel_tying.errors import TyingError, abbreviate, did_you_mean

_MAX_LENGTH = 1000  # characters: Python's parser takes memory and stack for hostile text


def name_in(text: str) -> str:
    """Returns the part of `text` that names a family, all before the first bracket.

    >>> name_in("mirror(axis=0)")
    'mirror'
    """
    return text.partition("(")[0].strip()


def parse(text: str) -> dict[str, Any]:
    """Returns the options that `text` gives a family, each a literal by name.

    Raises:
        TyingError: the text is not a name, or a name with options by name in brackets.

    >>> parse("mirror(axis=(0, 1), antisymmetric=True)")
    {'axis': (0, 1), 'antisymmetric': True}
    """
    if "(" not in text:
        return {}
    try:
        call = _syntax(text)
        return {str(option.arg): ast.literal_eval(option.value) for option in call.keywords}
    except (SyntaxError, ValueError, TypeError, AttributeError, RecursionError, MemoryError):
        raise TyingError(
            "Options of a family are literals by name, in brackets behind its name. "
            f"Received {abbreviate(text)}. Example: 'mirror(axis=0, antisymmetric=True)'."
        ) from None


def write(name: str, options: Mapping[str, Any]) -> str:
    """Returns the text of a family with options.

    >>> write("mirror", {"axis": 0})
    'mirror(axis=0)'
    """
    return f"{name}({', '.join(f'{option}={value!r}' for option, value in options.items())})" if options else name


def check(name: str, options: Mapping[str, Any], family: Callable[..., Any]) -> None:
    """Raises a `TyingError` unless the function `family` takes each of `options` besides the kernel size."""
    parameters = _parameters(family)
    if parameters is None:
        return
    unknown = [option for option in options if option not in parameters]
    if unknown:
        raise TyingError(
            f"The family {name!r} has the options {', '.join(parameters) or '(none)'}. Received {', '.join(unknown)}. "
            f"{did_you_mean(unknown[0], parameters)}Leave out other options; the kernel size comes from the layer."
        )
    for option, value in options.items():
        if isinstance(parameters[option].default, bool) and not isinstance(value, bool):
            raise TyingError(
                f"The option {option!r} of {name!r} is True or False. Received {option}={abbreviate(value)}. Use one of these."
            )


def _syntax(text: str) -> ast.Call:
    """Returns the call that `text` writes, with arguments by name only."""
    _, _, rest = text.partition("(")
    if len(text) > _MAX_LENGTH or not rest.rstrip().endswith(")"):
        raise ValueError
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the syntax of malformed numbers
        call = ast.parse(f"family({rest.rstrip()}", mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError
    names = {option.arg for option in call.keywords}
    if not names or None in names or len(names) < len(call.keywords):  # no options, an unpacked dict, or one twice
        raise ValueError
    return call


def _parameters(family: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """Returns the parameters of a family behind the kernel size, or None if any name may be given."""
    try:
        _, *parameters = inspect.signature(family).parameters.values()
    except (ValueError, TypeError):  # some functions written in C tell no signature
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name: parameter for parameter in parameters}
