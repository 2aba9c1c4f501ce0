"""Files that Keras loads past the layers' own methods: legacy `.h5` files and state trees, which Orbax checkpoints hold."""

import warnings

import h5py
import keras
import numpy as np
import pytest
from support.backends import array
from support.models import DESCRIBED, images, make, shared_across, shared_twice, skip, tie

from kernel_tying.testing import assert_same_function, assert_tied

# Keras cannot load the others from `.h5` files: calls of `keras.ops`, or a layer shared with a nested model.
LOADABLE = [builder for builder in DESCRIBED if builder not in (skip, shared_twice, shared_across)]
across_scalings = pytest.mark.parametrize(("source", "target"), [("values", "orthonormal"), ("orthonormal", "values")])


def parameterized(scaling, seed=7):
    return tie(make(skip, compiled=True, seed=seed), "parameterization", scaling=scaling)


def projected_by_hand(stock):
    """Returns the weights of a stock model whose spatial kernels are mirrored along their second axis."""
    weights = [array(variable) for variable in stock.weights]
    return [(weight + weight[:, ::-1]) / 2 if weight.ndim == 4 else weight for weight in weights]


def overwrite_kernels(path):
    """Writes random numbers to all kernels in a file."""
    generator = np.random.default_rng(0)

    def overwrite(name, entry):
        if isinstance(entry, h5py.Dataset) and entry.ndim == 4:
            entry[...] = generator.normal(size=entry.shape)

    with h5py.File(path, "r+") as file:
        file.visititems(overwrite)


@pytest.mark.parametrize("builder", DESCRIBED)
def test_a_constrained_model_projects_the_stock_kernels_of_a_legacy_h5_file(builder, tmp_path):
    stock, tied = make(builder), tie(make(builder, seed=8), "constraint")
    stock.save(tmp_path / "stock.h5")

    tied.load_weights(tmp_path / "stock.h5")

    assert_tied(tied)
    for weight, expected in zip(tied.weights, projected_by_hand(stock), strict=True):
        np.testing.assert_allclose(array(weight), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("builder", LOADABLE)
def test_a_damaged_legacy_h5_file_cannot_untie_a_model(builder, tmp_path):
    tie(make(builder), "constraint").save(tmp_path / "tied.h5")
    overwrite_kernels(tmp_path / "tied.h5")

    loaded = keras.saving.load_model(tmp_path / "tied.h5", compile=False)

    assert_tied(loaded)


@across_scalings
def test_free_weights_of_a_legacy_h5_file_load_across_scalings(source, target, tmp_path):
    tied, loaded = parameterized(source), parameterized(target, seed=8)
    tied.save(tmp_path / "tied.h5")

    loaded.load_weights(tmp_path / "tied.h5")

    assert_same_function(tied, loaded, images(tied), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scaling", ["values", "orthonormal"])
@pytest.mark.parametrize("config", [None, "{", "[" * 100_000, '{"class_name": "kernel_tying>Tied", "config": {}}'], ids=repr)
def test_a_legacy_h5_file_without_a_readable_config_is_read_in_the_scaling_of_the_model(config, scaling, tmp_path):
    tied, loaded = parameterized(scaling), parameterized(scaling, seed=8)
    tied.save(tmp_path / "tied.h5")
    with h5py.File(tmp_path / "tied.h5", "r+") as file:
        del file.attrs["model_config"]
        if config is not None:
            file["text"] = config  # an attribute holds 64 kB
            file.attrs["model_config"] = config[:60_000]

    loaded.load_weights(tmp_path / "tied.h5")

    assert_same_function(tied, loaded, images(tied))


def test_a_stock_model_loads_a_legacy_h5_file_as_without_this_package(tmp_path):
    stock, loaded = make(skip), make(skip, seed=8)
    stock.save(tmp_path / "stock.h5")

    loaded.load_weights(tmp_path / "stock.h5")

    assert_same_function(stock, loaded, images(stock))


@pytest.mark.parametrize("builder", DESCRIBED)
def test_a_state_tree_cannot_untie_a_constrained_model(builder):
    stock, tied = make(builder, compiled=True), tie(make(builder, compiled=True, seed=8), "constraint")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of several variables under one path
        tied.set_state_tree(stock.get_state_tree(value_format="numpy_array"))

    assert_tied(tied)
    for weight, expected in zip(tied.weights, projected_by_hand(stock), strict=True):
        np.testing.assert_allclose(array(weight), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scaling", ["values", "orthonormal"])
def test_a_state_tree_loads_into_a_model_of_the_same_scaling(scaling):
    tied, loaded = parameterized(scaling), parameterized(scaling, seed=8)

    loaded.set_state_tree(tied.get_state_tree(value_format="numpy_array"))

    assert_same_function(tied, loaded, images(tied))
