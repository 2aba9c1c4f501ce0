"""Private names of `keras.src.export`: whether a model is being exported, and to which format."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import keras

_export_format: ContextVar[str] = ContextVar("export_format", default="")


def export_format() -> str:
    """Returns the format to which `Model.export` or an `ExportArchive` is exporting in this thread, or "".

    It is a format of `Model.export`, such as "onnx". An archive that the caller made writes a "tf_saved_model".
    """
    return _export_format.get()


def _noting_export(method: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `method`, wrapped so that `export_format()` is its format while it runs."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def export(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments.get("format", "tf_saved_model")
        token = _export_format.set(_export_format.get() or given)
        try:
            return method(*args, **kwargs)
        finally:
            _export_format.reset(token)

    return export


def _archives() -> list[type]:
    """Returns all loaded classes named `*ExportArchive`. Which of them exist depends on the Keras version."""
    modules = [module for name, module in sys.modules.items() if name.startswith("keras.src.export.")]
    found: list[type] = []
    for module in modules:
        found += [value for name, value in vars(module).items() if name.endswith("ExportArchive")]
    return list(dict.fromkeys(found))


# Keras sets no flag while it exports, and inspecting the call stack takes longer than choosing a convolution.
keras.Model.export = _noting_export(keras.Model.export)
for _archive in _archives():
    for _name, _method in list(vars(_archive).items()):
        if inspect.isfunction(_method) and not _name.startswith("_"):
            setattr(_archive, _name, _noting_export(_method))
