"""What becomes of a tying when a process is killed or a file is damaged."""

import contextlib
import functools
import os
import random
import signal
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import layers
from support.backends import array

import kernel_tying as kt

VARIANTS = {
    "constraint": {"mode": "constraint"},
    "values": {"mode": "parameterization", "scaling": "values"},
    "orthonormal": {"mode": "parameterization", "scaling": "orthonormal"},
}
in_all_variants = pytest.mark.parametrize("variant", VARIANTS)


def network():
    """Returns a small tied model of two layers; without Dropout, whose seeds Keras leaves out of backups."""
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(3, 3, activation="relu", name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Conv2D(2, 3, name="second"),
            layers.Flatten(name="flat"),
            layers.Dense(1, name="head"),
        ]
    )


def tied_network(variant):
    keras.utils.set_random_seed(7)
    return kt.apply_tying(network(), {"first": "dihedral", "second": "mirror"}, **VARIANTS[variant])


EPOCHS, BATCHES, KILLED_EPOCH = 4, 3, 2


def train(variant, callbacks=()):
    """Returns a tied model that is trained with slots for each weight, and the epochs that it was trained for."""
    model = tied_network(variant)
    model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=False)
    x = np.random.default_rng(1).normal(size=(4 * BATCHES, 6, 6, 2)).astype("float32")
    y = x.mean(axis=(1, 2, 3))[:, None]
    history = model.fit(x, y, batch_size=4, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=list(callbacks))
    return model, history.epoch


class Kill(keras.callbacks.Callback):
    """Kills its own process in the middle of an epoch, behind a training step."""

    is_due = False

    def on_epoch_begin(self, epoch, logs=None):
        self.is_due = epoch == KILLED_EPOCH

    def on_train_batch_end(self, batch, logs=None):
        if self.is_due and batch == 1:
            kill()


class KillWhileSaving(keras.callbacks.Callback):
    """Kills its own process while weights are being saved, those of the first layers already in the file."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == KILLED_EPOCH:
            vars(self.model.get_layer("head"))["save_own_variables"] = kill


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def backup(folder):
    return keras.callbacks.BackupAndRestore(folder, double_checkpoint=True)


def train_until_killed(variant, killer, folder):
    """Trains in another process that a callback of the name `killer` kills."""
    script = "import sys; import test_faults; test_faults.train_and_be_killed(*sys.argv[1:])"
    finished = subprocess.run(
        [sys.executable, "-c", script, variant, killer, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == -signal.SIGKILL, finished.stderr[-3000:]


def train_and_be_killed(variant, killer, folder):
    train(variant, [backup(folder), globals()[killer]()])


def assert_same_training_state(first, second):
    for one, other in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(array(one), array(other), err_msg=one.path)
    for one, other in zip(first.optimizer.variables, second.optimizer.variables, strict=True):
        np.testing.assert_array_equal(array(one), array(other), err_msg=one.path)


@functools.cache
def undisturbed(variant):
    return train(variant)[0]


def assert_resumes_as_if_undisturbed(variant, folder):
    resumed, epochs = train(variant, [backup(folder)])
    assert epochs == list(range(KILLED_EPOCH, EPOCHS))
    assert_same_training_state(resumed, undisturbed(variant))
    assert kt.tying_error(resumed) == 0.0


# Each process takes seconds to start. The third variant is killed below.
@pytest.mark.parametrize("variant", ["constraint", "values"])
def test_training_that_was_killed_in_an_epoch_resumes_as_if_undisturbed(variant, tmp_path):
    train_until_killed(variant, "Kill", tmp_path)

    assert_resumes_as_if_undisturbed(variant, tmp_path)


def test_training_that_was_killed_while_saving_resumes_from_the_backup_before(tmp_path):
    train_until_killed("orthonormal", "KillWhileSaving", tmp_path)
    with pytest.raises(OSError, match="Unable to"):
        tied_network("orthonormal").load_weights(tmp_path / "latest.weights.h5")

    assert_resumes_as_if_undisturbed("orthonormal", tmp_path)


KINDS = ["tied.keras", "tied.weights.h5"]
DAMAGES = {
    **{f"cut at {part} of 8": ("cut", part) for part in range(8)},
    **{f"flip {seed}": ("flip", seed) for seed in range(12)},
    **{f"flip {seed} in the kernel": ("flip in the kernel", seed) for seed in range(4)},
}


def kernels(model):
    return [array(model.get_layer(name).kernel) for name in ("first", "second")]


def is_tied(first, second):
    """Returns whether two kernels are tied as those of `tied_network` are, wherever they are NaN too."""
    images = [first[:, ::-1], first[::-1], np.swapaxes(first, 0, 1)]
    pairs = [*((first, image) for image in images), (second, second[:, ::-1])]
    return all(np.array_equal(one, other, equal_nan=True) for one, other in pairs)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Returns the bytes of files by variant and name, and where in them the first kernel or its free weights are."""
    folder = tmp_path_factory.mktemp("files")
    found = {}
    for variant in VARIANTS:
        model = tied_network(variant)
        model.save(folder / "tied.keras")
        model.save_weights(folder / "tied.weights.h5")
        values = array(model.get_layer("first").trainable_variables[0]).tobytes()
        for name in KINDS:
            content = (folder / name).read_bytes()
            assert content.count(values) == 1
            found[variant, name] = content, content.index(values), len(values)
    return found


def damaged(content, start, length, damage):
    kind, number = damage
    if kind == "cut":
        return content[: len(content) * number // 8]
    begin, end = (0, len(content)) if kind == "flip" else (start, start + length)
    bit = random.Random(number).randrange(8 * begin, 8 * end)
    flipped = content[bit // 8] ^ 1 << bit % 8
    return content[: bit // 8] + bytes([flipped]) + content[bit // 8 + 1 :]


@functools.cache
def reader(variant):
    return tied_network(variant)


def load(path, variant):
    """Returns the model in a `.keras` file, or one with the weights of a file, as far as they load; None if it is refused."""
    if path.suffix == ".keras":
        with contextlib.suppress(Exception):
            return keras.saving.load_model(path)
        return None
    model = reader(variant)
    with contextlib.suppress(Exception):
        model.load_weights(path)
    return model


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", KINDS)
@in_all_variants
def test_a_damaged_file_is_refused_or_loads_a_tied_model(variant, name, damage, files, tmp_path):
    (tmp_path / name).write_bytes(damaged(*files[variant, name], damage))

    model = load(tmp_path / name, variant)

    if model is not None:
        assert kt.tying_report(model).plan == kt.tying_report(reader(variant)).plan
        assert is_tied(*kernels(model))


@pytest.fixture
def without_checksums(monkeypatch):
    """Reads files from archives as Python 3.12 and later do: those that are read in parts are not checked."""
    seek = zipfile.ZipExtFile.seek

    def seek_unchecked(self, *args):
        self._expected_crc = None
        position = seek(self, *args)
        self._expected_crc = None
        return position

    monkeypatch.setattr(zipfile.ZipExtFile, "seek", seek_unchecked)


@pytest.mark.parametrize("seed", range(4))
@in_all_variants
def test_a_damaged_file_loads_a_tied_model_where_python_does_not_check_it(variant, seed, files, tmp_path, without_checksums):
    (tmp_path / "tied.keras").write_bytes(damaged(*files[variant, "tied.keras"], ("flip in the kernel", seed)))

    model = keras.saving.load_model(tmp_path / "tied.keras")

    assert kt.tying_report(model).plan == kt.tying_report(reader(variant)).plan
    assert is_tied(*kernels(model))


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_of_an_untied_model_are_projected_as_they_load(kind, tmp_path):
    stock = network()
    stock.save(tmp_path / kind) if kind == "tied.keras" else stock.save_weights(tmp_path / kind)
    tied = tied_network("constraint")

    tied.load_weights(tmp_path / kind)

    kernel = array(stock.get_layer("second").kernel)
    np.testing.assert_allclose(array(tied.get_layer("second").kernel), (kernel + kernel[:, ::-1]) / 2, rtol=1e-5, atol=1e-7)
    assert kt.tying_error(tied) == 0.0


@pytest.mark.parametrize("change", [lambda layer: layer.enable_lora(1), lambda layer: layer.quantize("int8")])
@in_all_variants
def test_layers_from_a_file_refuse_lora_and_quantization(variant, change, tmp_path):
    tied_network(variant).save(tmp_path / "tied.keras")
    loaded = keras.saving.load_model(tmp_path / "tied.keras")

    with pytest.raises(kt.TyingError, match="strip_tying"):
        change(loaded.get_layer("first"))


def test_a_stripped_model_loads_kernels_as_they_are(tmp_path):
    stock = network()
    stock.save_weights(tmp_path / "stock.weights.h5")
    tied_network("constraint").save(tmp_path / "tied.keras")
    stripped = kt.strip_tying(keras.saving.load_model(tmp_path / "tied.keras"))

    stripped.load_weights(tmp_path / "stock.weights.h5")

    np.testing.assert_equal(stripped.get_weights(), stock.get_weights())


@in_all_variants
def test_files_need_no_unsafe_mode(variant, tmp_path):
    own = {"kernel_regularizer": kt.TyingPenalty("point"), "kernel_constraint": "non_neg", "kernel_initializer": "he_normal"}
    model = keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2D(2, 3, name="first", **own)])
    kt.apply_tying(model, "mirror", **VARIANTS[variant]).save(tmp_path / "tied.keras")

    loaded = keras.saving.load_model(tmp_path / "tied.keras", safe_mode=True)

    assert list(kt.tying_report(loaded).plan) == ["first"]
