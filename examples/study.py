"""Compares tying patterns of several sizes in both modes: test error, free weights and time on real digits.

A small network with two convolutions is trained with each pattern in both of them, in the manner of SymNet
(https://arxiv.org/abs/1906.04252). "Nine values" is a 5x5 pattern whose corners and edges are tied; with 7x7 its blocks are
larger, with 3x3 it would tie nothing.

    python examples/study.py [--shard 2/4] [--epochs 15] [--seeds 5] [--out out]
"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import keras
from experiments import EpochSeconds, Row, main, summary
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator
from quickstart import load_digits
from recover import free_weights
from rich.console import Console
from rich.table import Table

import kernel_tying as kt

SIZES = (3, 5, 7)
MODES = ("constraint", "parameterization")


def patterns(size: int) -> dict[str, kt.TyingPattern | None]:
    """Returns the patterns for square kernels of a size by name, None for untied kernels."""
    shape, margin = (size, size), (size - 1) // 2
    named = {
        "stock": None,
        "mirror": kt.patterns.mirror(shape),
        "both mirrors": kt.patterns.mirror(shape, axis=(0, 1)),
        "point": kt.patterns.point(shape),
        "anti-point": kt.patterns.point(shape, antisymmetric=True),
        "rotation": kt.patterns.rotation(shape),
        "dihedral": kt.patterns.dihedral(shape),
        "radial": kt.patterns.radial(shape),
    }
    blocks = (margin, 1, margin)
    return named | ({"nine values": kt.patterns.blocks(blocks, blocks)} if margin > 1 else {})


def variant_of(name: str, size: int, mode: str) -> str:
    """Returns the name of a variant, such as "dihedral 5x5, constraint". Untied kernels have no mode."""
    return f"{name} {size}x{size}, {'untied' if name == 'stock' else mode}"


def variants() -> list[str]:
    """Returns the names of all variants."""
    each = [(name, size, mode) for size in SIZES for name, mode in itertools.product(patterns(size), MODES)]
    return list(dict.fromkeys(variant_of(*one) for one in each))


def parse(variant: str) -> tuple[str, int, str]:
    """Returns pattern, size and mode of a variant."""
    kernel, mode = variant.split(", ")
    name, _, size = kernel.rpartition(" ")
    return name, int(size.partition("x")[0]), mode


def make_network(size: int) -> keras.Model:
    """Returns a stock network with two convolutions with kernels of a size."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, size, padding="same", activation="relu", name="conv1"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, size, padding="same", activation="relu", name="conv2"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax", name="classifier"),
        ]
    )


def train(variant: str, seed: int, epochs: int) -> Row:
    """Returns the test error of a trained network, its free weights, and seconds per epoch."""
    keras.utils.set_random_seed(seed)
    name, size, mode = parse(variant)
    network, pattern = make_network(size), patterns(size)[name]
    if pattern:
        network = kt.apply_tying(network, {"conv*": pattern}, mode=mode)
    network.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    clock, (images, labels, test_images, test_labels) = EpochSeconds(), load_digits()
    network.fit(images, labels, batch_size=50, epochs=epochs, verbose=0, callbacks=[clock])
    accuracy = network.evaluate(test_images, test_labels, batch_size=500, verbose=0)[1]
    row = {"error": round(1 - accuracy, 4), "free_weights": free_weights(network), "seconds": clock.median}
    keras.utils.clear_session()
    return row


class Line(NamedTuple):
    """A line of the table.

    Attributes:
        name: name of the pattern.
        size: size of the square kernels.
        modes: for each mode the summary of its trainings, with "time" relative to the stock network of the size.
    """

    name: str
    size: int
    modes: dict[str, Row]

    def cells(self) -> list[str]:
        """Returns the line as text, in the order of `COLUMNS`."""
        rows = self.modes.values()
        errors = [f"{100 * row['error']:.1f} ± {100 * row['standard_error']:.1f}" for row in rows]
        free, *_ = (f"{row['free_weights']:,}" for row in rows)
        return [f"{self.name} {self.size}x{self.size}", *errors, free, *(f"{row['time']:.2f}" for row in rows)]


COLUMNS = (
    *("pattern", "error in %, constraint", "error in %, parameterization"),
    *("free weights", "time, constraint", "time, parameterization"),
)


def table(rows: Sequence[Row], timed: Sequence[Row] = ()) -> list[Line]:
    """Returns the lines of the table.

    Args:
        rows: results of trainings.
        timed: results of a run whose seconds count, those of `rows` by default.
    """
    summaries = {each["variant"]: each for each in summary(rows)}
    seconds = {each["variant"]: each["seconds"] for each in summary(timed or rows)}

    def line(name: str, size: int) -> Line:
        chosen = {mode: variant_of(name, size, mode) for mode in MODES}
        stock = seconds[variant_of("stock", size, "untied")]
        return Line(name, size, {mode: {**summaries[key], "time": seconds[key] / stock} for mode, key in chosen.items()})

    return [line(name, size) for size in SIZES for name in patterns(size)]


def draw(rows: Sequence[Row], file: pathlib.Path) -> None:
    """Draws errors over free weights to a file, with a panel for each size of kernels."""
    figure, axes = plt.subplots(1, len(SIZES), figsize=(3.6 * len(SIZES), 4), sharey=True, layout="constrained")
    styles = {
        name: (marker, f"C{index}") for index, (name, marker) in enumerate(zip(patterns(SIZES[-1]), "osD^vP*Xd", strict=True))
    }
    for line in table(rows):
        (marker, color), ax = styles[line.name], axes[SIZES.index(line.size)]
        for fill, (mode, row) in zip((color, "white"), line.modes.items(), strict=True):
            label = line.name if mode == MODES[0] else None
            percent = 100 * row["error"], 100 * row["standard_error"]
            ax.errorbar(row["free_weights"], *percent, fmt=marker, color=color, markerfacecolor=fill, capsize=3, label=label)
    for ax, size in zip(axes, SIZES, strict=True):
        ax.set(title=f"{size}x{size}", xlabel="free weights")
        ax.xaxis.set_major_locator(MaxNLocator(4))
    axes[0].set(ylabel="test error in %", ylim=(0, None))
    figure.suptitle("filled: constraint mode, hollow: parameterization mode", fontsize="medium")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=len(styles), fontsize="small")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def show(console: Console, title: str, rows: list[Row], file: pathlib.Path) -> None:
    """Prints the table, and draws the figure to `file`."""
    grid = Table(*COLUMNS, title=title, caption="times relative to the stock network of the size")
    for line in table(rows):
        grid.add_row(*line.cells())
    console.print(grid)
    draw(rows, file)


if __name__ == "__main__":
    main(__doc__, "study", "Tying patterns on digits", variants(), train, epochs=15, seeds=5, show=show)
