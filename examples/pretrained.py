"""Ties a network that is trained already: tie, see what that took away, fine-tune, compare.

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


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    epochs = parser.parse_args().epochs
    console = Console()
    images, labels, test_images, test_labels = load_digits()
    keras.utils.set_random_seed(0)
    stock = make_model()
    stock.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    stock.fit(images, labels, batch_size=128, epochs=epochs, verbose=0)

    models = {name: kt.apply_tying(stock, pattern, mode="parameterization") for name, pattern in PATTERNS.items()}
    models["stock"] = stock  # trained on like the others, so that the last column compares like with like
    table = Table("kernels", "lost norm, conv1 / conv2", "accuracy", "trained on", title="A trained network, tied")
    for name, model in models.items():
        lost = " / ".join(f"{row.lost:.0%}" for row in kt.tying_report(model).rows if row.pattern)
        before = model.evaluate(test_images, test_labels, verbose=0)[1]
        model.fit(images, labels, batch_size=128, epochs=max(1, epochs // 2), verbose=0)
        table.add_row(name, lost, f"{before:.1%}", f"{model.evaluate(test_images, test_labels, verbose=0)[1]:.1%}")
    console.print(table)


if __name__ == "__main__":
    main()
