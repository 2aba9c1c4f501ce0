"""Attribute forwarding: attributes that a wrapper lacks are read from the inner layer, and set on it."""

from __future__ import annotations

from typing import Any

import keras

# Wrapper and inner layer each read their own value of these, so both are set.
_READ_BY_BOTH = ("autocast", "supports_jit", "supports_masking")
_READ_INSIDE = ("activity_regularizer",)  # on both layers it would penalize the activity twice


class ForwardingWrapper(keras.layers.Wrapper):
    """A wrapper that exposes the public attributes of its inner layer, unless it has an attribute of that name."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)  # torch stores layers outside `vars(self)`
        except AttributeError:
            if name.startswith("_") or name == "layer":
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}") from None
        return getattr(self.layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if _is_inside(self, name):
            setattr(self.layer, name, value)
        if not _is_inside(self, name) or name in _READ_BY_BOTH:
            super().__setattr__(name, value)


def _is_inside(wrapper: keras.layers.Wrapper, name: str) -> bool:
    """Returns whether an attribute that is set on `wrapper` takes effect in the inner layer."""
    if name.startswith("_") or not hasattr(getattr(wrapper, "layer", None), name):
        return False
    is_own = hasattr(type(wrapper), name) or name in vars(wrapper)
    return not is_own or name in (*_READ_BY_BOTH, *_READ_INSIDE)
