"""The given model of a tied copy: it stays untied, so training it in place of the copy draws a warning."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import keras

from kernel_tying import _keras
from kernel_tying._layers.attachment import Attachment, attach, attachment, override_methods, restore_methods
from kernel_tying._models.sites import all_tied_kernels


def note_tied_copy(given: keras.Layer, copy: keras.Layer) -> None:
    """Notes on a model that a tied copy of it was made, without keeping the copy alive."""
    record = attach(given)
    record.tied_copy = weakref.ref(copy)
    record.copy_steps = tuple(_keras.step_counters(getattr(copy, "optimizer", None)))
    if isinstance(given, keras.Model) and not record.stock_methods:
        override_methods(given, {"make_train_function": _warn_once})


def _warn_once(model: keras.Model, *args: Any, **kwargs: Any) -> Any:
    """Warns that a model is trained whose tied copy is not. Keras calls this before it trains a model."""
    restore_methods(model)
    if not _is_copy_trained(attachment(model)) and not all_tied_kernels(model):
        warnings.warn(
            "In parameterization mode `apply_tying` returns a tied copy, and the given model stays untied. "
            f"Received a call that trains the given model {model.name!r}, and its copy was not trained. "
            "Train the returned model: `model = apply_tying(model, ...)`.",
            UserWarning,
            stacklevel=2,
        )
    return model.make_train_function(*args, **kwargs)


def _is_copy_trained(record: Attachment) -> bool:
    """Returns whether the tied copy of a model was trained. A copy that was thrown away untrained was forgotten."""
    copy = record.tied_copy and record.tied_copy()
    counters = [*record.copy_steps, *_keras.step_counters(getattr(copy, "optimizer", None))]
    return any(_keras.count_of_steps(counter) > 0 for counter in counters)
