"""Files of earlier versions load as they did: labels as lists, and modules that have moved."""

import pickle
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from support.backends import array
from support.models import MODES
from support.oracles import dense_expand

import kernel_tying as kt
from kernel_tying.testing import assert_tied

DATA = Path(__file__).parents[1] / "data"
# Files of the first version, which wrote the labels of all patterns as lists. Of its Keras 3.15, `config.json` names two
# arguments of GlorotUniform that Keras 3.12 has not; these were removed.
LISTED = DATA / "listed_labels"
NINE = kt.TyingPattern.parse("AABCC/AABCC/DDE-FF/GGHII/GG.II")


@pytest.fixture(params=MODES)
def listed(request, tmp_path):
    """Returns mode, path and the kernel that the file of free weights or of a kernel holds."""
    path = LISTED / f"{request.param}.keras"
    zipfile.ZipFile(path).extract("model.weights.h5", tmp_path)
    arrays = []
    with h5py.File(tmp_path / "model.weights.h5") as file:
        file.visititems(lambda name, item: arrays.append(np.array(item)) if getattr(item, "ndim", 0) == 4 else None)
    (stored,) = arrays
    return request.param, path, stored if request.param == "constraint" else dense_expand(stored, NINE)


def test_a_file_that_lists_labels_loads(listed):
    mode, path, kernel = listed

    model = keras.saving.load_model(path)

    (row,) = kt.tying_report(model).rows
    assert (row.pattern, row.mode) == (NINE, mode)
    assert_tied(model)
    np.testing.assert_allclose(array(model.get_layer("first").kernel), kernel, rtol=1e-6)


def test_a_weights_file_of_the_first_version_loads(listed):
    mode, path, kernel = listed
    model = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Conv2D(1, 5, name="first")])
    model = kt.apply_tying(model, {"first": NINE}, mode=mode)

    model.load_weights(path.with_suffix(".weights.h5"))

    np.testing.assert_allclose(array(model.get_layer("first").kernel), kernel, rtol=1e-6)


# Files of the time when all modules stood in one folder: their configs name modules that have moved.
FLAT = DATA / "flat_modules"
FLAT_PATTERNS = {"first": NINE, "second": {"depthwise_kernel": "dihedral"}}


@pytest.mark.parametrize("mode", MODES)
def test_files_that_name_moved_modules_load(mode):
    stock = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(1, 5, padding="same", name="first"),
            keras.layers.SeparableConv2D(2, 3, name="second"),
            keras.layers.Flatten(),
            keras.layers.Dense(1, name="third"),
        ]
    )
    tied = kt.apply_tying(stock, FLAT_PATTERNS, mode=mode)
    tied.load_weights(FLAT / f"{mode}.weights.h5")

    model = keras.saving.load_model(FLAT / f"{mode}.keras")

    found = [(row.layer, row.mode, row.error) for row in kt.tying_report(model).rows]
    assert found == [("first", mode, 0), ("second", mode, 0), ("third", "", None)]
    assert isinstance(model.get_layer("first").kernel_regularizer, kt.TyingPenalty)
    image = np.random.default_rng(0).normal(size=(2, 6, 6, 1)).astype("float32")
    np.testing.assert_array_equal(array(model(image)), array(tied(image)))
    assert np.any(array(model(image)))


def test_a_pickle_of_arrays_loads():
    written = pickle.dumps((kt.TyingPattern, (NINE.labels, NINE.signs)))  # as `__reduce__` of the first version had it

    make, arguments = pickle.loads(written)

    assert make(*arguments) == NINE
