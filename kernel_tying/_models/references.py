"""Searches functions and objects for layers and variables of a model that no config mentions."""

from __future__ import annotations

import dis
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import keras

from kernel_tying import _keras

_DEPTH = 8  # of nested objects; closures are rarely nested more than three deep
_LEAVES = (str, bytes, int, float, complex, type, ModuleType, CodeType, keras.Variable, keras.KerasTensor)


def objects_of(root: keras.Layer) -> dict[int, Any]:
    """Returns all layers and variables of a model by id, including tied kernels and the backends' storage."""
    found: list[Any] = _keras.all_layers(root)
    for layer in _keras.all_layers(root):
        attributes = [value for value in vars(layer).values() if isinstance(value, keras.Variable)]
        for variable in (*_keras.own_variables(layer), *attributes):
            found += [variable, *_keras.mutable_storage(variable)]
    return {id(value): value for value in found}


def find_holder(root: keras.Layer, targets: Mapping[int, Any], permitted: Iterable[Any] = ()) -> tuple[Any, Any]:
    """Returns a layer or operation that leads to an object of `targets`, and that object; or `(None, None)`.

    Args:
        root: the model. Its attributes, functions and call arguments are searched.
        targets: objects by id.
        permitted: layers that may hold targets, and are not searched.
    """
    layers = _keras.all_layers(root)
    holders: list[Any] = list(layers)
    for layer in layers:
        holders += _keras.operations(layer)
    permitted_ids = set(map(id, permitted))
    for holder in holders:
        found = None if id(holder) in permitted_ids else find(_keras.held_values(holder), targets, holders)
        if found is not None:
            return holder, found
    return None, None


def find(roots: Iterable[Any], targets: Mapping[int, Any], passed_over: Iterable[Any] = ()) -> Any:
    """Returns an object of `targets` that `roots` lead to, or None.

    Args:
        roots: values, such as functions and attributes.
        targets: objects by id.
        passed_over: objects that are not searched.
    """
    seen = {id(value) for value in passed_over}
    pending = [(value, 0) for value in roots]
    while pending:
        value, depth = pending.pop()
        if id(value) in targets:
            return value
        if id(value) not in seen and depth < _DEPTH:
            seen.add(id(value))
            pending += [(part, depth + 1) for part in _parts(value)]
    return None


def _parts(value: Any) -> Iterable[Any]:
    """Returns the values that a value refers to directly."""
    if isinstance(value, _LEAVES):
        return ()
    if isinstance(value, keras.Layer):  # a feature extractor shares layers with the model that it was cut from
        return (*_keras.sublayers(value), *_keras.own_variables(value))
    if isinstance(value, FunctionType):
        return _parts_of_function(value)
    if isinstance(value, MethodType):
        return value.__self__, value.__func__
    if isinstance(value, partial):
        return value.func, *value.args, *value.keywords.values()
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    return list(getattr(value, "__dict__", {}).values())


def _parts_of_function(function: FunctionType) -> Iterator[Any]:
    """Yields the values of a function's closure, defaults and attributes, and of the globals that its code loads."""
    for cell in function.__closure__ or ():
        if cell != type(cell)():  # an empty cell belongs to a name that is not assigned yet
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()
    yield from (function.__globals__[name] for name in _loaded_globals(function.__code__) if name in function.__globals__)


def _loaded_globals(code: CodeType) -> set[str]:
    inner = (_loaded_globals(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    loaded = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return loaded.union(*inner)


def describe(found: Any) -> str:
    """Returns the description of a layer or variable for a message."""
    if isinstance(found, keras.Layer):
        return f"layer {found.name!r}"
    return f"variable {found.path!r}" if isinstance(found, keras.Variable) else "the value of a variable"
