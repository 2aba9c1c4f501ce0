"""Private names of `model.summary()`: it prints the name of a layer's class, where a tied layer says what it ties."""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import Any

import keras

from kernel_tying._keras.versions import private_name

_summaries: Any = private_name("keras.src.utils", "summary_utils")
_print: Any = _summaries.print_summary
_is_summarizing: ContextVar[bool] = ContextVar("is_summarizing", default=False)


class LabelledLayer(keras.Layer):
    """A layer whose `summary_label` takes the place of the class name in `model.summary()`."""

    @property
    def summary_label(self) -> str:
        """The text in brackets behind the layer's name."""
        return type(self).__name__

    # A summary reads `layer.__class__.__name__`, and Keras has no other hook. The class is a subclass of the layer's own.
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.summary_label, (type(self),), {}) if _is_summarizing.get() else type(self)


@functools.wraps(_print)
def _print_summary(*args: Any, **kwargs: Any) -> None:
    token = _is_summarizing.set(True)
    try:
        _print(*args, **kwargs)
    finally:
        _is_summarizing.reset(token)


_summaries.print_summary = _print_summary
