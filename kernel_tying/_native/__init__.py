"""The few operations of the algebra, as functions of the backend. A call through `keras.ops` takes up to ten times as long.

Each backend module defines the functions that `keras_ops` documents.
"""

from __future__ import annotations

import importlib
from typing import Any

import keras

_NAME = keras.backend.backend()
_MODULE = _NAME if _NAME in ("jax", "tensorflow", "torch") else "keras_ops"
native: Any = importlib.import_module(f"kernel_tying._native.{_MODULE}")
