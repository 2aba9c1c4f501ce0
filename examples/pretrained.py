"""Ties a network that is trained already: see what tying would take away, tie, fine-tune, compare.

python examples/pretrained.py [--epochs 4]
"""

from __future__ import annotations

import argparse

import keras
from quickstart import NINE_VALUES, load_digits, make_model
from rich.console import Console
from rich.table import Table

import kernel_tying as kt

PATTERNS = {"nine values": NINE_VALUES, "mirror": "mirror", "dihedral": "dihedral"}


def compiled(model: keras.Model, learning_rate: float) -> keras.Model:
    """Returns `model`, compiled for training."""
    model.compile(keras.optimizers.Adam(learning_rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    epochs = parser.parse_args().epochs
    console = Console()
    images, labels, test_images, test_labels = load_digits()
    keras.utils.set_random_seed(0)
    stock = compiled(make_model(), 1e-3)
    stock.fit(images, labels, batch_size=128, epochs=epochs, verbose=0)

    table = Table("kernels", "lost norm, conv1 / conv2", "accuracy", "fine-tuned", title="A trained network, tied")
    table.add_row("stock", "", f"{stock.evaluate(test_images, test_labels, verbose=0)[1]:.1%}", "")
    for name, pattern in PATTERNS.items():
        tied = compiled(kt.apply_tying(stock, pattern, mode="parameterization"), 1e-3)
        lost = " / ".join(f"{row.lost:.0%}" for row in kt.tying_report(tied).rows if row.pattern)
        before = tied.evaluate(test_images, test_labels, verbose=0)[1]
        tied.fit(images, labels, batch_size=128, epochs=max(1, epochs // 2), verbose=0)
        table.add_row(name, lost, f"{before:.1%}", f"{tied.evaluate(test_images, test_labels, verbose=0)[1]:.1%}")
    console.print(table)


if __name__ == "__main__":
    main()
