"""Facts about files and exports of Keras 3.12 to 3.15 that private names build on; where one fails, Keras has changed."""

import h5py
import keras
import numpy as np
import pytest
from keras import layers
from support.backends import KERAS
from support.models import (
    make,
    sequential,
)

from kernel_tying import _keras


def test_archives_are_classes_of_keras_src_export():
    archives = _keras.exporting._archives()

    assert keras.export.ExportArchive in archives, "Keras keeps its archives elsewhere"
    for name in ("track", "add_endpoint", "track_and_add_endpoint", "write_out"):
        assert any(hasattr(vars(one).get(name), "__wrapped__") for one in archives), f"no archive has its own {name}"


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="other backends need TensorFlow for archives")
def test_an_archive_tells_that_it_exports(tmp_path):
    seen = []
    model = keras.Sequential([keras.Input((2,)), layers.Lambda(lambda x: seen.append(_keras.export_format()) or x)])
    seen.clear()

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", model.__call__, input_signature=[keras.InputSpec("float32", (None, 2))])
    archive.write_out(tmp_path / "exported", verbose=False)

    assert set(seen) == {"tf_saved_model"}
    assert not _keras.export_format()


def test_an_export_that_fails_is_over():
    with pytest.raises(ValueError, match="format"):
        keras.Sequential([keras.Input((2,))]).export("model", format="no such format")

    assert not _keras.export_format()


@pytest.mark.skipif(
    keras.backend.backend() == "jax" or (keras.backend.backend() == "torch" and KERAS < (3, 15)),
    reason="JAX, and torch until Keras 3.14, export with other packages alone: see tests/deployment",
)
def test_a_model_is_told_that_it_is_exported(tmp_path):
    seen = []

    class Probe(layers.Layer):
        def call(self, inputs):
            seen.append(_keras.export_format())
            return inputs

    model = keras.Sequential([keras.Input((2,)), Probe()])
    model(np.zeros((1, 2), "float32"))
    seen_by_calls = seen.copy()
    seen.clear()
    format = {"tensorflow": "tf_saved_model", "torch": "torch"}[keras.backend.backend()]
    model.export(tmp_path / "model.pt2", format=format)

    assert not any(seen_by_calls), "models that are called are told that they are exported"
    assert set(seen) == {format}, "models that are exported are not told"


def test_legacy_h5_files_are_loaded_by_two_functions_of_the_legacy_module(monkeypatch, tmp_path):
    calls = []
    for name in ("load_weights_from_hdf5_group", "load_weights_from_hdf5_group_by_name"):
        monkeypatch.setattr(_keras.files._legacy_h5, name, lambda group, model, *_, name=name: calls.append((name, model)))
    model = make(sequential)
    model.save(tmp_path / "model.h5")

    model.load_weights(tmp_path / "model.h5")
    loaded = keras.saving.load_model(tmp_path / "model.h5", compile=False)

    assert calls == [("load_weights_from_hdf5_group", model), ("load_weights_from_hdf5_group", loaded)]


def test_a_legacy_h5_file_holds_the_config_of_its_model(tmp_path):
    make(sequential).save(tmp_path / "model.h5")

    with h5py.File(tmp_path / "model.h5") as file:
        assert '"Conv2D"' in file.attrs["model_config"]


def test_a_state_tree_is_set_past_load_own_variables():
    model = make(sequential, compiled=True)
    vars(model.get_layer("first"))["load_own_variables"] = lambda store: pytest.fail("set_state_tree loads layer by layer")

    model.set_state_tree(model.get_state_tree(value_format="numpy_array"))


@pytest.mark.parametrize("name", ["model.weights.h5", "model.keras"])
def test_weight_files_have_groups_by_class_and_are_loaded_where_misfits_are_explained(tmp_path, name):
    model = make(sequential)
    (model.save if name.endswith(".keras") else model.save_weights)(tmp_path / name)

    assert "layers/conv2d/vars/0" in _keras.files._entries(str(tmp_path / name))
    assert hasattr(_keras.files._saving.load_weights_only, "__wrapped__")


def test_a_file_that_cannot_be_read_has_no_entries(tmp_path):
    (tmp_path / "damaged.keras").write_bytes(b"PK")

    assert [_keras.files._entries(str(tmp_path / name)) for name in ("damaged.keras", "absent.h5", "shards.json")] == [
        [],
        [],
        [],
    ]
