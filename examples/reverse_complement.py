"""Compares networks that are equivariant under the reverse complement with stock ones, on DNA.

A strand of DNA read backwards, with A and T, C and G exchanged, is the other strand of the same molecule. A binding site of a
transcription factor may lie on either. The sequences here are random, with a site drawn from a motif of the database JASPAR
on either strand, or from the same motif with its columns in another order. The network tells which.

    python examples/reverse_complement.py [--epochs 30] [--seeds 10] [--out out]
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import keras
import numpy as np
from experiments import EpochSeconds, Row, main, trained_weights
from pyjaspar import jaspardb

import kernel_tying as kt

MOTIFS = {"CTCF": "MA0139", "REST": "MA0138", "YY1": "MA0095", "GATA1": "MA0035", "ETS1": "MA0098"}
LENGTH, TRAIN, TEST = 100, 1000, 4000
COMPLEMENT = np.eye(4, dtype=int)[::-1]  # of the letters ACGT


class Variant(NamedTuple):
    """A network and how it is trained."""

    width: int
    is_equivariant: bool = False
    is_augmented: bool = False


VARIANTS = {
    "stock": Variant(16),
    "stock, augmented": Variant(16, is_augmented=True),
    "equivariant, equal widths": Variant(16, True),
    "equivariant, equal free weights": Variant(24, True),
}


@functools.cache
def load_motif(name: str) -> np.ndarray:
    """Returns the probabilities of the letters ACGT at each position of a motif, `(positions, 4)`."""
    counts = jaspardb(release="JASPAR2026").fetch_motif_by_id(MOTIFS[name]).counts
    table = np.array([counts[letter] for letter in "ACGT"]).T + 1.0
    return table / table.sum(axis=1, keepdims=True)


def reverse_complement(sequences: np.ndarray) -> np.ndarray:
    """Returns the other strands of one-hot sequences, `(batch, length, 4)`."""
    return sequences[:, ::-1, ::-1]


def draw(random: np.random.Generator, probabilities: np.ndarray) -> np.ndarray:
    """Returns one-hot letters drawn by the probabilities along the last axis."""
    letters = (random.random((*probabilities.shape[:-1], 1)) > probabilities.cumsum(axis=-1)).sum(axis=-1)
    return np.eye(4, dtype="float32")[np.minimum(letters, 3)]


def make_sequences(random: np.random.Generator, motif: np.ndarray, decoy: np.ndarray, count: int) -> Any:
    """Returns one-hot sequences, `(count, LENGTH, 4)`, and 1 for each with a site of the motif, 0 for one of the decoy."""
    sequences = draw(random, np.full((count, LENGTH, 4), 0.25))
    labels = np.arange(count) % 2
    for sequence, label in zip(sequences, labels, strict=True):
        start = random.integers(LENGTH - len(motif) + 1)
        sequence[start : start + len(motif)] = draw(random, motif if label else decoy)
    is_turned = random.random(count) < 0.5
    sequences[is_turned] = reverse_complement(sequences[is_turned])
    return sequences, labels


class Sequences(keras.utils.PyDataset):
    """Batches of training sequences, or of either strand of each, drawn again in each epoch."""

    def __init__(self, sequences: np.ndarray, labels: np.ndarray, seed: int, is_augmented: bool, **options: Any):
        super().__init__(**options)
        self._strands = np.stack([sequences, reverse_complement(sequences)])
        self._labels, self._random, self._is_augmented = labels, np.random.default_rng(seed), is_augmented
        self.on_epoch_end()

    def on_epoch_end(self) -> None:
        self._order = self._random.permutation(len(self._labels))
        self._strand = self._random.integers(1 + self._is_augmented, size=len(self._labels))

    def __len__(self) -> int:
        return len(self._labels) // 50

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self._order[index * 50 : (index + 1) * 50]
        return self._strands[self._strand[chosen], chosen], self._labels[chosen]


def make_network(width: int) -> keras.Model:
    """Returns a stock network of two convolutions."""
    return keras.Sequential(
        [
            keras.Input((LENGTH, 4)),
            keras.layers.Conv1D(width, 19, activation="relu", name="motifs"),
            keras.layers.Conv1D(width, 5, activation="relu", name="pairs"),
            keras.layers.GlobalMaxPooling1D(),
            keras.layers.Dense(1, name="site"),
        ]
    )


def train(variant: str, seed: int, epochs: int) -> Row:
    """Returns the test error of a trained network, its free weights, and seconds per epoch. Seeds take turns with motifs."""
    keras.utils.set_random_seed(seed)
    random = np.random.default_rng(seed)
    motif = load_motif(list(MOTIFS)[seed % len(MOTIFS)])
    decoy = random.permutation(motif)
    sequences, labels = make_sequences(random, motif, decoy, TRAIN)
    width, is_equivariant, is_augmented = VARIANTS[variant]
    network = make_network(width)
    if is_equivariant:
        plan = kt.equivariant_plan(network, "reversal", inputs=[COMPLEMENT])
        network = kt.apply_tying(network, plan, mode="parameterization")
    network.compile(keras.optimizers.Adam(3e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    clock = EpochSeconds()
    network.fit(Sequences(sequences, labels, seed, is_augmented), epochs=epochs, verbose=0, callbacks=[clock])
    test_sequences, test_labels = make_sequences(random, motif, decoy, TEST)
    is_site = network.predict(test_sequences, batch_size=500, verbose=0)[:, 0] > 0
    keras.utils.clear_session()
    return {"error": np.mean(is_site != test_labels), "free_weights": trained_weights(network), "seconds": clock.median}


if __name__ == "__main__":
    main(__doc__, "reverse_complement", "Binding sites on either strand", VARIANTS, train, epochs=30, seeds=10)
