"""Private names of saving: hooks after the loaders that bypass `load_own_variables`, and where files do not fit a model."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable
from typing import Any

import keras

from kernel_tying._keras.versions import private_name

_legacy_h5: Any = private_name("keras.src.legacy.saving", "legacy_h5_format")
_saving: Any = private_name("keras.src.saving", "saving_lib")
_WEIGHTS_IN_ARCHIVE = "model.weights.h5"

_set_state_tree: Any = keras.Model.set_state_tree


def follow_up_loading(read: Callable[[Any], Any], follow_up: Callable[[keras.Layer, Any], None]) -> None:
    """Makes Keras call `follow_up(model, read(config))` after it assigns weights from a legacy `.h5` file or a state tree.

    Both loaders bypass `load_own_variables`, and no other hook reaches layers inside nested models and wrappers. `config`
    is the JSON config of the model that wrote the `.h5` file. It is None if the file has none, and for state trees.
    """
    for name in ("load_weights_from_hdf5_group", "load_weights_from_hdf5_group_by_name"):
        load = getattr(_legacy_h5, name)
        setattr(_legacy_h5, name, _followed_up(load, lambda group: read(group.file.attrs.get("model_config")), follow_up))
    set_state_tree = _followed_up(lambda tree, model: _set_state_tree(model, tree), lambda tree: read(None), follow_up)
    keras.Model.set_state_tree = functools.wraps(_set_state_tree)(lambda model, state_tree: set_state_tree(state_tree, model))


def _followed_up(
    load: Callable[..., None], read: Callable[[Any], Any], follow_up: Callable[[keras.Layer, Any], None]
) -> Callable[..., None]:
    @functools.wraps(load)
    def load_and_follow_up(source: Any, model: keras.Layer, *args: Any, **kwargs: Any) -> None:
        stored = read(source)
        load(source, model, *args, **kwargs)
        follow_up(model, stored)

    return load_and_follow_up


def explain_misfits(explain: Callable[[keras.Layer, str, list[str]], Exception | None]) -> None:
    """Makes Keras raise `explain(model, path, entries)`, if it returns an exception, where a weight file does not fit a model.

    Keras names the layers that it could not load, and prints arrays. `entries` are the paths of groups and arrays in the file.
    """
    load = _saving.load_weights_only

    @functools.wraps(load)
    def load_or_explain(model: keras.Layer, filepath: Any, *args: Any, **kwargs: Any) -> None:
        try:
            load(model, filepath, *args, **kwargs)
        except ValueError:
            error = explain(model, str(filepath), _entries(str(filepath)))
            if error is None:
                raise
            raise error from None

    _saving.load_weights_only = load_or_explain


def _entries(path: str) -> list[str]:
    """Returns the paths of groups and arrays in a weight file or a `.keras` file; none if it can't be read."""
    import h5py  # one of Keras' own requirements, which takes time to import

    names: list[str] = []
    try:
        if path.endswith(".h5"):
            with h5py.File(path) as file:
                file.visit(names.append)
        elif path.endswith(".keras"):
            with zipfile.ZipFile(path) as archive, archive.open(_WEIGHTS_IN_ARCHIVE) as weights, h5py.File(weights) as file:
                file.visit(names.append)
    except (OSError, KeyError, zipfile.BadZipFile):
        return []  # a damaged or remote file: Keras raises its own error
    return names
