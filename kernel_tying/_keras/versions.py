"""Supported versions of Keras, and the errors for private names that have moved."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import keras

SUPPORTED = "kernel_tying uses private names of Keras, and is tested on Keras 3.12 to 3.15."


INSTALL = "Install one of these versions, or a newer kernel_tying."


def private_name(module: str, name: str) -> Any:
    """Returns the object `name` of a loaded Keras module, or raises an ImportError that lists the supported versions."""
    try:
        return getattr(sys.modules[module], name)
    except (KeyError, AttributeError):
        raise ImportError(f"{SUPPORTED} Received Keras {keras.__version__} without {module}.{name}. {INSTALL}") from None


@contextlib.contextmanager
def noting_supported_versions() -> Iterator[None]:
    """Adds the supported Keras versions to an AttributeError about a private name."""
    try:
        yield
    except AttributeError as error:
        if str(error.name).startswith("_"):
            error.add_note(f"{SUPPORTED} Received Keras {keras.__version__}. {INSTALL}")
        raise
