"""Attributes of layers and models that configs leave out: compared with those of fresh copies, and copied."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import keras
import numpy as np
from keras import ops

from kernel_tying import _keras
from kernel_tying._layers.attachment import attached_names

Counterpart = Callable[[Any], Any]
_MISSING = object()
# Values that are treated as immutable: model and copy share them.
_VALUES = (type(None), bool, int, float, complex, str, bytes, slice, range, Enum, type, ModuleType, FunctionType)
_SHARED = (*_VALUES, BuiltinFunctionType, np.generic, np.dtype, np.ufunc)


class _NotCopiedError(Exception):
    """A value that cannot be copied."""


def differences(source: Any, target: Any) -> list[str]:
    """Returns the names of attributes that `target` lacks or that differ from `source`, without layers and variables."""
    skipped, made = attached_names(source), _keras.attributes(target)
    named = [(name, value) for name, value in _keras.attributes(source).items() if name not in skipped]
    compared = [(name, value) for name, value in named if not _belongs_to_keras(name, value, source)]
    return [name for name, value in compared if not matches(value, made.get(name, _MISSING))]


def _belongs_to_keras(name: str, value: Any, source: Any) -> bool:
    """Returns whether an attribute belongs to the structure of a layer or model, which other functions copy."""
    is_private = name.startswith("_") and not isinstance(value, _VALUES)
    if isinstance(source, keras.Model):
        return is_private
    if any(isinstance(leaf, (keras.Layer, keras.Variable)) for leaf in _leaves(value)):
        return True
    return is_private and isinstance(source, keras.Layer) and type(source).__module__.startswith("keras.")


def copy_attributes(source: Any, target: Any, counterpart: Counterpart) -> None:
    """Copies the attributes of `source` to its fresh copy `target`, except those that cannot be copied.

    Args:
        source: a layer, model or operation.
        target: its fresh copy.
        counterpart: returns the copied model's counterpart of a layer or variable.
    """
    for name in differences(source, target):
        try:
            value = _copy_value(_keras.attributes(source)[name], counterpart)
        except _NotCopiedError:
            continue
        setattr(target, name, value)


def untracked_variables(source: Any, target: Any) -> Iterator[tuple[keras.Variable, keras.Variable]]:
    """Yields pairs of variables that a layer holds but does not track, such as the states of a stateful RNN."""
    tracked = {id(variable) for variable in _keras.own_variables(source)}
    for name, value in _keras.attributes(source).items():
        if isinstance(value, keras.Variable):
            continue
        for old, new in zip(_leaves(value), _leaves(vars(target).get(name)), strict=False):
            if _are(keras.Variable, old, new) and id(old) not in tracked:
                yield old, new


def _leaves(value: Any) -> Iterator[Any]:
    """Yields the leaves of nested dicts, lists and tuples."""
    if not isinstance(value, (Mapping, list, tuple)):
        yield value
        return
    parts = list(value.values()) if isinstance(value, Mapping) else value
    for part in parts:
        yield from _leaves(part)


def matches(first: Any, second: Any) -> bool:
    """Returns whether two values are equivalent in a layer and in its copy. Layers and variables are compared elsewhere."""
    if first is second:
        return True
    for kind in (keras.Variable, keras.Layer, keras.KerasTensor, keras.random.SeedGenerator):
        if isinstance(first, kind):
            return isinstance(second, kind)
    if _are(Mapping, first, second):
        return list(first) == list(second) and _all_match(first.values(), second.values())
    if _are((list, tuple), first, second):
        return _all_match(first, second)
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        return np.array_equal(first, second)  # a sequence that is loaded from an asset may become an array
    if type(first) is not type(second):
        return False
    if isinstance(first, (FunctionType, MethodType)):
        return first.__code__ is second.__code__  # each constructor call makes a new function of the same code
    if ops.is_tensor(first):
        return np.array_equal(ops.convert_to_numpy(first), ops.convert_to_numpy(second))
    return _objects_match(first, second)


def _are(kind: Any, *values: Any) -> bool:
    return all(isinstance(value, kind) for value in values)


def _all_match(first: Any, second: Any) -> bool:
    return len(first) == len(second) and all(matches(*pair) for pair in zip(first, second, strict=True))


def _objects_match(first: Any, second: Any) -> bool:
    """Returns whether two objects of a class have equal configs, are equal, or have no `__eq__` to tell them apart."""
    try:
        if hasattr(first, "get_config"):
            return matches(first.get_config(), second.get_config())
        is_compared_by_identity = type(first).__eq__ is object.__eq__  # type: ignore[comparison-overlap]
        return is_compared_by_identity or bool(first == second) or first != first  # NaN too
    except _keras.UNDESCRIBED:
        return False


def _copy_value(value: Any, counterpart: Counterpart) -> Any:
    """Returns a copy of a value that shares nothing mutable, and holds the copied model's layers and variables."""
    if isinstance(value, _SHARED):
        return value
    if isinstance(value, (keras.Layer, keras.Variable)):
        return counterpart(value)
    if isinstance(value, Mapping):
        return {key: _copy_value(part, counterpart) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return _copy_sequence(value, counterpart)
    if isinstance(value, MethodType):
        return MethodType(value.__func__, _copy_value(value.__self__, counterpart))
    if isinstance(value, partial):
        parts = ((value.func, *value.args), value.keywords)
        (function, *args), keywords = (_copy_value(part, counterpart) for part in parts)
        return partial(function, *args, **keywords)
    if isinstance(value, np.ndarray):
        return copy.deepcopy(value)
    if ops.is_tensor(value):
        return ops.copy(value)
    return _copy_by_config(value, counterpart)


def _copy_sequence(value: Any, counterpart: Counterpart) -> Any:
    parts = [_copy_value(part, counterpart) for part in value]
    if hasattr(value, "_fields"):  # a named tuple
        return type(value)(*parts)
    return next(kind for kind in (list, tuple, set, frozenset) if isinstance(value, kind))(parts)


def _copy_by_config(value: Any, counterpart: Counterpart) -> Any:
    try:
        check_config(type(value))
        new = type(value).from_config(value.get_config())
    except (*_keras.UNDESCRIBED, AttributeError) as error:
        raise _NotCopiedError from error
    copy_attributes(value, new, counterpart)  # on Keras 3.15 the configs of some losses leave out arguments
    return new


def check_config(cls: type) -> None:
    """Raises a NotImplementedError if a class overrides its constructor without overriding `get_config` too."""
    if not hasattr(cls, "get_config"):
        raise NotImplementedError(f"{cls.__name__} has no `get_config`.")
    constructor, config = _defining_class(cls, "__init__"), _defining_class(cls, "get_config")
    if not constructor.__module__.startswith("keras.") and not issubclass(config, constructor):
        raise NotImplementedError(f"{cls.__name__} has no `get_config` of its own.")


def _defining_class(cls: type, name: str) -> type:
    return next(base for base in cls.__mro__ if name in vars(base))
