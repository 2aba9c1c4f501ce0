"""Compares ways to tie a network that is trained already: projecting, fine-tuning, tying gradually, and plans within a budget.

The network is trained here on real digits, once for each seed. Plans come from `symmetry_report`: they tie what costs little.
`recover_emotion.py` does the same with a network of others.

    python examples/recover.py [--epochs 4] [--seeds 5] [--out out]
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from experiments import EpochSeconds, Row, parse_options, run, show, trained_weights
from quickstart import load_digits
from rich.console import Console

import kernel_tying as kt

Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Task(NamedTuple):
    """A trained network and its data.

    Attributes:
        title: title of the table and the figure.
        error_name: what is measured.
        load: function of a seed that returns the trained network.
        data: function of a seed that returns inputs and targets to train on, and to test.
        budgets: budgets of plans, in percent of the kernels' norms.
        drop: budget of a plan, in percent of accuracy.
        batch_size: images of a training step.
        loss: the loss, by the form of the targets.
    """

    title: str
    error_name: str
    load: Callable[[int], keras.Model]
    data: Callable[[int], Data]
    budgets: tuple[int, ...]
    drop: int
    batch_size: int
    loss: str = "sparse_categorical_crossentropy"

    def variants(self) -> list[str]:
        """Returns the names of what is compared."""
        ways = ("projected", "constraint", "parameterization", "gradual")
        tied = [f"{pattern}, {way}" for pattern in ("mirror", "dihedral") for way in ways]
        return ["untied", *tied, *(f"plan, {budget}% of norms" for budget in self.budgets), f"plan, {self.drop}% of accuracy"]


def make_network() -> keras.Model:
    """Returns a network with two 5x5 convolutions."""
    convolution = functools.partial(keras.layers.Conv2D, kernel_size=5, padding="same", activation="relu")
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            convolution(8, name="conv1"),
            keras.layers.MaxPooling2D(),
            convolution(16, name="conv2"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax", name="classifier"),
        ]
    )


def load_network(seed: int, out: pathlib.Path) -> keras.Model:
    """Returns the network that is trained for 8 epochs, from a file if there is one."""
    file = out / f"recover_{seed}.keras"
    if not file.exists():
        keras.utils.set_random_seed(seed)
        network, (images, labels, *_) = compiled(make_network()), load_digits()
        network.fit(images, labels, batch_size=64, epochs=8, verbose=0)
        network.save(file)
    return keras.saving.load_model(file)


def compiled(network: keras.Model, loss: str = "sparse_categorical_crossentropy") -> keras.Model:
    """Returns the network with a fresh optimizer. Statistics of batches stay as they are, because data may be few."""
    for layer in network.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    network.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"], jit_compile=False)
    return network


def patterns_of(variant: str, network: keras.Model, data: Data) -> Any:
    """Returns the `patterns` of a variant for a compiled network: the name of a family, or a plan from the report."""
    name, _, rest = variant.partition(", ")
    if name != "plan":
        return name
    budget = int(rest.partition("%")[0]) / 100
    if rest.endswith("norms"):
        return kt.symmetry_report(network).plan(budget)
    report = kt.symmetry_report(network, ["mirror", "point", "dihedral"], data=(data[0][:500], data[1][:500]))
    return report.plan(metric_drop=budget)


def tied(variant: str, network: keras.Model, data: Data, epochs: int, fit: Callable[..., Any]) -> keras.Model:
    """Returns the tied network, fine-tuned unless it is only projected. `fit` trains a network with more callbacks."""
    patterns, way = patterns_of(variant, network, data), variant.rpartition(", ")[2]
    if way == "gradual":
        gradually = kt.TieGradually(patterns, max(1, epochs // 2), mode="parameterization")
        fit(network, gradually)
        return gradually.tied_model
    if patterns:  # a plan may find nothing to tie
        mode = "constraint" if way == "constraint" else "parameterization"
        network = kt.apply_tying(network, patterns, mode=mode)
    if way != "projected":
        fit(network)
    return network


def free_weights(network: keras.Model) -> int:
    """Returns how many independent numbers are trained."""
    rows = [row for row in kt.tying_report(network).rows if row.mode == "constraint"]
    return trained_weights(network) - sum((row.full_weights or 0) - (row.free_weights or 0) for row in rows)


def train(task: Task, variant: str, seed: int, epochs: int) -> Row:
    """Returns the test error of a tied network, its free weights, and seconds per epoch."""
    network, data = compiled(task.load(seed), task.loss), task.data(seed)
    clock = EpochSeconds()
    keras.utils.set_random_seed(seed)

    def fit(model: keras.Model, *callbacks: keras.callbacks.Callback) -> None:
        compiled(model, task.loss)
        model.fit(data[0], data[1], task.batch_size, epochs, verbose=0, callbacks=[clock, *callbacks])

    if variant == "untied":
        fit(network)
    else:
        network = tied(variant, network, data, epochs, fit)
    accuracy = compiled(network, task.loss).evaluate(data[2], data[3], verbose=0)[1]
    row = {"error": 1 - accuracy, "free_weights": free_weights(network), "seconds": clock.median}
    keras.utils.clear_session()
    return row


def compare(task: Task, name: str, options: argparse.Namespace) -> None:
    """Trains all variants, prints a table, and writes `name` as CSV and as a figure."""
    rows = run(
        options.out / f"{name}.csv", task.variants(), range(options.seeds), options.epochs, functools.partial(train, task)
    )
    show(Console(), task.title, rows, options.out / f"{name}.png", task.error_name)


def main() -> None:
    """Runs the example."""
    options = parse_options(__doc__, epochs=4, seeds=5)
    load = functools.partial(load_network, out=options.out)
    task = Task("Digits, tied after training", "test error", load, lambda seed: load_digits(), (60, 80), 10, batch_size=64)
    compare(task, "recover", options)


if __name__ == "__main__":
    main()
