"""Compares ways to tie the trained network for emotions in faces that the package fer ships.

The data that it was trained on cannot be had. Its own answers on the faces that scikit-image ships are the targets. Each of
five seeds tests another fifth of 100 faces, and trains on the rest and their mirror images.

    python examples/recover_emotion.py [--epochs 4] [--seeds 5] [--out out]
"""

from __future__ import annotations

import functools
import warnings

import emotion  # first, because it sets an option of TensorFlow
import keras
import numpy as np
from experiments import parse_options
from recover import Data, Task, compare
from skimage.data import lfw_subset


@functools.cache
def load_faces(seed: int) -> Data:
    """Returns faces to train on and to test, (batch, 64, 64, 1), each with the answers of the stock network."""
    faces = keras.ops.image.resize(lfw_subset()[:100, ..., None].astype("float32"), (64, 64))
    faces = keras.ops.convert_to_numpy(faces) * 2 - 1
    is_test = np.arange(len(faces)) % 5 == seed % 5
    images = np.concatenate([faces[~is_test], faces[~is_test, :, ::-1]]), faces[is_test]
    network = emotion.load_network()
    targets = [emotion.answers(network, part) for part in images]
    return images[0], targets[0], images[1], targets[1]


def main() -> None:
    """Runs the example."""
    options = parse_options(__doc__, epochs=4, seeds=5)
    warnings.filterwarnings("ignore", message="The structure of `inputs`")  # the file is of an older Keras
    task = Task(
        "Emotions in faces, tied after training",
        "answers that change",
        lambda seed: emotion.load_network(),
        load_faces,
        budgets=(45, 60),
        drop=5,
        batch_size=16,
        loss="categorical_crossentropy",
    )
    compare(task, "recover_emotion", options)


if __name__ == "__main__":
    main()
