"""Files, checkpoints, pickles and clones hold the state of training, and the patterns in little space."""

import copy
import pickle
import subprocess
import sys
import textwrap
import zipfile
import zlib

import h5py
import keras
import numpy as np
import pytest
from keras import layers
from support.backends import array
from support.models import (
    DESCRIBED,
    IMAGE,
    MODES,
    UNDESCRIBED,
    Subclassed,
    assert_equal_values,
    custom_layer,
    head,
    images,
    make,
    nested,
    nested_subclass,
    sequential,
    shared_across,
    skip,
    subclassed,
    tie,
    train,
)

import kernel_tying as kt
from kernel_tying import patterns as families
from kernel_tying.testing import assert_same_function, assert_tied

VARIANTS = {
    "constraint": {"mode": "constraint"},
    "values": {"mode": "parameterization", "scaling": "values"},
    "orthonormal": {"mode": "parameterization", "scaling": "orthonormal"},
}
in_all_variants = pytest.mark.parametrize("variant", VARIANTS)
across_scalings = pytest.mark.parametrize(("source", "target"), [("values", "orthonormal"), ("orthonormal", "values")])


def fitted(variant, builder=skip):
    """Returns a tied model, compiled and trained for one step."""
    tied = tie(make(builder, compiled=True), **VARIANTS[variant])
    train(tied)
    return tied


def stored(variables):
    """Returns the variables that Keras stores: the state of Dropout's seeds stays out of files, with stock layers too."""
    return [variable for variable in variables if variable.name != "seed_generator_state"]


def copy_seeds(source, target):
    for old, new in zip(source.variables, target.variables, strict=True):
        if old.name == "seed_generator_state":
            new.assign(array(old))


def assert_same_state(first, second):
    assert_equal_values(stored(first.variables), stored(second.variables))
    assert_equal_values(first.optimizer.variables, second.optimizer.variables)


def assert_trains_on_alike(first, second):
    copy_seeds(first, second)
    for one in (first, second):
        train(one)
    assert_same_state(first, second)


# Keras cannot load the file of a stock model that shares a layer with a nested one either.
@in_all_variants
@pytest.mark.parametrize("builder", [builder for builder in DESCRIBED if builder is not shared_across])
def test_a_keras_file_holds_the_whole_state(builder, variant, tmp_path):
    tied = fitted(variant, builder)
    tied.save(tmp_path / "tied.keras")

    loaded = keras.saving.load_model(tmp_path / "tied.keras")

    assert kt.tying_report(loaded).plan == kt.tying_report(tied).plan
    assert_same_state(tied, loaded)
    assert_same_function(tied, loaded, images(tied))


@in_all_variants
def test_a_model_from_a_keras_file_trains_on_alike(variant, tmp_path):
    tied = fitted(variant)
    tied.save(tmp_path / "tied.keras")

    loaded = keras.saving.load_model(tmp_path / "tied.keras")

    assert_trains_on_alike(tied, loaded)
    assert_tied(loaded)


@in_all_variants
@pytest.mark.parametrize("builder", [skip, shared_across])
def test_a_weights_file_holds_the_whole_state(builder, variant, tmp_path):
    tied, other = fitted(variant, builder), tie(make(builder, compiled=True, seed=8), **VARIANTS[variant])
    other.optimizer.build(other.trainable_variables)
    tied.save_weights(tmp_path / "tied.weights.h5")

    other.load_weights(tmp_path / "tied.weights.h5")

    assert_same_state(tied, other)
    assert_trains_on_alike(tied, other)


def question():
    x = keras.Input(IMAGE, name="image")
    return keras.Model(x, head(layers.Conv2D(4, 5, name="first")(x)), name="question")


def stored_kernels(path):
    """Returns the shapes of the arrays of rank 4 in a weights file."""
    shapes = []
    with h5py.File(path) as file:
        file.visititems(lambda name, one: shapes.append(one.shape) if isinstance(one, h5py.Dataset) and one.ndim == 4 else None)
    return shapes


@pytest.mark.parametrize(
    ("variant", "kernel"), [("constraint", (5, 5, 2, 4)), ("values", (9, 1, 2, 4)), ("orthonormal", (9, 1, 2, 4))]
)
@pytest.mark.parametrize("kind", ["keras", "weights.h5"])
def test_files_hold_free_weights_alone(kind, variant, kernel, tmp_path):
    nine_values = kt.TyingPattern.parse("AABCC/AABCC/DDEFF/GGHII/GGHII")
    tied = tie(make(question), patterns=nine_values, **VARIANTS[variant])

    if kind == "keras":
        tied.save(tmp_path / "tied.keras")
        zipfile.ZipFile(tmp_path / "tied.keras").extract("model.weights.h5", tmp_path)
    else:
        tied.save_weights(tmp_path / "model.weights.h5")

    assert stored_kernels(tmp_path / "model.weights.h5") == [kernel]


@across_scalings
def test_free_weights_load_across_scalings(source, target, tmp_path):
    tied, other = fitted(source), tie(make(skip, seed=8), **VARIANTS[target])
    tied.save_weights(tmp_path / "tied.weights.h5")

    other.load_weights(tmp_path / "tied.weights.h5", skip_mismatch=False)

    assert_same_function(tied, other, images(tied), rtol=1e-6, atol=1e-6)


@in_all_variants
def test_a_tied_subclassed_model_averages_stock_kernels_from_a_file(variant, tmp_path):
    stock, tied = make(subclassed), tie(make(subclassed, seed=8), **VARIANTS[variant])
    stock.save_weights(tmp_path / "stock.weights.h5")

    tied.load_weights(tmp_path / "stock.weights.h5")
    kt.project_kernels(tied)

    for one, other in ((stock.first, tied.first), (stock.second, tied.second)):
        kernel = array(one.kernel)
        np.testing.assert_allclose(array(other.kernel), (kernel + kernel[:, ::-1]) / 2, rtol=1e-5, atol=1e-7)


def test_a_rebuilt_model_refuses_stock_weights(tmp_path):
    stock, tied = make(skip), tie(make(skip), "parameterization")
    stock.save_weights(tmp_path / "stock.weights.h5")

    with pytest.raises(ValueError, match=r"A tied layer reads one array .* Received 0 arrays for layer 'first'"):
        tied.load_weights(tmp_path / "stock.weights.h5")


@in_all_variants
def test_a_checkpoint_holds_the_tied_model(variant, tmp_path):
    tied = fitted(variant)

    train(tied, callbacks=[keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")])

    loaded = keras.saving.load_model(tmp_path / "1.keras")
    assert_tied(loaded)
    assert_same_state(tied, loaded)


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


@in_all_variants
def test_an_interrupted_training_is_resumed_from_its_backup(variant, tmp_path):
    interrupted, resumed, uninterrupted = (tie(make(nested, compiled=True), **VARIANTS[variant]) for _ in range(3))
    with pytest.raises(KeyboardInterrupt):
        train(interrupted, epochs=4, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup"), Interrupt()])

    history = train(resumed, epochs=4, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup")])

    train(uninterrupted, epochs=4)
    assert history.epoch == [2, 3]
    assert_same_state(resumed, uninterrupted)


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


@in_all_variants
@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize("builder", [skip, nested_subclass])
def test_copies_are_tied_and_train_on_alike(builder, duplicate, variant):
    tied = fitted(variant, builder)

    duplicated = duplicate(tied)

    assert_same_state(tied, duplicated)
    assert_trains_on_alike(tied, duplicated)
    assert_tied(duplicated)


@in_all_variants
@pytest.mark.parametrize("builder", [sequential, skip])
def test_a_clone_is_tied_with_weights_of_its_own(builder, variant):
    tied = tie(make(builder), **VARIANTS[variant])

    clone = keras.models.clone_model(tied)

    assert_tied(clone)
    assert kt.tying_report(clone).plan == kt.tying_report(tied).plan
    assert np.any(array(clone.get_layer("first").kernel) != array(tied.get_layer("first").kernel))


@in_all_variants
@pytest.mark.parametrize("builder", DESCRIBED + UNDESCRIBED)
def test_weights_are_set_as_they_were_got(builder, variant):
    tied, other = (tie(make(builder, seed=seed), **VARIANTS[variant]) for seed in (7, 8))

    other.set_weights(tied.get_weights())

    assert_equal_values(tied.weights, other.weights)
    assert_same_function(tied, other, images(tied))


@in_all_variants
@pytest.mark.parametrize("builder", [subclassed, custom_layer])
def test_the_recipe_restores_models_whose_config_leaves_layers_out(builder, variant, tmp_path):
    tied = fitted(variant, builder)
    tied.save_weights(tmp_path / "tied.weights.h5")
    plan = kt.tying_report(tied).plan

    restored = tie(make(builder, compiled=True, seed=8), patterns=plan, **VARIANTS[variant])
    restored.optimizer.build(restored.trainable_variables)
    restored.load_weights(tmp_path / "tied.weights.h5")

    assert_same_state(tied, restored)
    assert_trains_on_alike(tied, restored)
    assert_tied(restored)


def test_instances_of_a_subclassed_model_differ_in_automatic_names():
    first, second = make(subclassed), make(subclassed)

    assert type(first) is Subclassed
    assert first.first.name != second.first.name


def run_in_fresh_process(script, *arguments):
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]


def test_files_load_in_a_fresh_process_to_the_bit(tmp_path):
    saved = {}
    for variant in VARIANTS:
        for builder in (skip, nested):
            tied = saved[f"{variant}_{builder.__name__}"] = fitted(variant, builder)
            tied.save(tmp_path / f"{variant}_{builder.__name__}.keras")
    np.save(tmp_path / "images.npy", images(tied))

    run_in_fresh_process(
        """
        import pathlib, sys
        import keras, numpy as np
        import kernel_tying

        folder = pathlib.Path(sys.argv[1])
        for path in folder.glob("*.keras"):
            model = keras.saving.load_model(path)
            arrays = [*model.variables, *model.optimizer.variables, model(np.load(folder / "images.npy"))]
            np.savez(path.with_suffix(".npz"), *map(keras.ops.convert_to_numpy, arrays))
        """,
        tmp_path,
    )

    for name, tied in saved.items():
        loaded = np.load(tmp_path / f"{name}.npz")
        expected = [*tied.variables, *tied.optimizer.variables, tied(images(tied))]
        seeds = [index for index, one in enumerate(expected) if getattr(one, "name", "") == "seed_generator_state"]
        for index in set(range(len(expected))) - set(seeds):
            np.testing.assert_array_equal(loaded[f"arr_{index}"], array(expected[index]), err_msg=f"{name} {index}")


def test_a_stripped_model_loads_without_kernel_tying(tmp_path):
    outputs = {}
    for mode in MODES:
        for builder in (sequential, skip, nested, custom_layer):
            name = f"{mode}_{builder.__name__}"
            stripped = kt.strip_tying(tie(make(builder, compiled=True), mode))
            stripped.save(tmp_path / f"{name}.keras")
            outputs[name] = array(stripped(images(stripped)))
    np.save(tmp_path / "images.npy", images(stripped))

    run_in_fresh_process(
        """
        import pathlib, sys
        sys.modules["kernel_tying"] = None  # importing it fails from now on
        import keras, numpy as np

        @keras.saving.register_keras_serializable(package="tests")
        class Block(keras.layers.Layer):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.inside = keras.layers.Conv2D(2, 3, padding="same", name="inside")
            def build(self, input_shape):
                self.inside.build(input_shape)
            def call(self, inputs):
                return self.inside(inputs)

        folder = pathlib.Path(sys.argv[1])
        for path in folder.glob("*.keras"):
            model = keras.saving.load_model(path)
            np.save(path.with_suffix(".npy"), keras.ops.convert_to_numpy(model(np.load(folder / "images.npy"))))
        """,
        tmp_path,
    )

    for name, expected in outputs.items():
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), expected, err_msg=name)


def saved(pattern, mode, path, shape):
    """Returns the sizes in bytes of the file of a model with one tied Dense kernel, and of the stock weights."""
    model = keras.Sequential([keras.Input(shape[:1]), keras.layers.Dense(shape[1], name="dense")])
    tied = kt.apply_tying(model, {"dense": pattern}, mode=mode)
    tied.save(path)
    tied.save_weights(path.with_name("tied.weights.h5"))
    return path.stat().st_size, path.with_name("tied.weights.h5").stat().st_size


@pytest.mark.parametrize("mode", MODES)
def test_file_of_a_family_takes_ten_kilobytes_more_than_the_weights(mode, tmp_path):
    file, weights = saved(families.circulant((128, 128)), mode, tmp_path / "tied.keras", (128, 128))

    assert file < weights + 10_000


@pytest.mark.parametrize(("mode", "times"), [("constraint", 2), ("parameterization", 1)])
def test_file_of_a_mask_takes_its_compressed_bits_more_than_the_weights(mode, times, tmp_path):
    keep = np.random.default_rng(0).random((256, 256)) < 0.5
    bits = len(zlib.compress(np.packbits(keep).tobytes()))

    file, weights = saved(families.mask(keep), mode, tmp_path / "tied.keras", keep.shape)

    assert file < weights + 10_000 + times * 4 / 3 * bits


def test_constraint_and_initializer_of_a_file_share_the_pattern(tmp_path):
    for pattern in (families.circulant((16, 16)), families.mask(np.eye(16) == 0)):
        saved(pattern, "constraint", tmp_path / "tied.keras", (16, 16))

        layer = keras.saving.load_model(tmp_path / "tied.keras").get_layer("dense")

        assert layer.kernel_constraint.pattern is layer.kernel_initializer.pattern
