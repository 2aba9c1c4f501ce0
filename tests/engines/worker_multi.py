"""One worker of a `MultiWorkerMirroredStrategy`; the environment variable TF_CONFIG says which.

Writes what it holds at the end of each case of the task to a file of its own.
"""

import json
import os
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from task import BATCH, CASES, EPOCHS, OPTIMIZERS, data, kernels, stock, tied, weights

import kernel_tying as kt


def batches(strategy):
    """Returns global batches; each worker reads its part of each."""
    dataset = tf.data.Dataset.from_tensor_slices(data()).batch(BATCH)
    return strategy.experimental_distribute_dataset(dataset)


def train(strategy, model):
    """Takes the training steps of `fit` in a loop of one's own."""
    step = tf.function(lambda batch: strategy.run(model.train_step, args=(batch,)))
    for _ in range(EPOCHS):
        for batch in batches(strategy):
            step(batch)
    return model


def compiled(model, optimizer):
    model.compile(OPTIMIZERS[optimizer](), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def errors_of_keras(strategy):
    """Returns what Keras says when a stock model is trained by `fit`, and when it is evaluated."""
    with strategy.scope():
        model = compiled(stock(), "sgd")
    errors = []
    for verb in (model.fit, model.evaluate):
        try:
            verb(tf.data.Dataset.from_tensor_slices(data()).batch(BATCH), verbose=0)
        except ValueError as error:
            errors.append(str(error))
    return errors


def main(folder):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # TensorFlow wants it before any operation
    rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    found = {}
    for mode, optimizer in CASES:
        with strategy.scope():
            model = compiled(tied(mode), optimizer)
        train(strategy, model)
        found |= {f"{mode} {optimizer} weight {index}": value for index, value in enumerate(weights(model))}
        found |= {f"{mode} {optimizer} kernel {index}": value for index, value in enumerate(kernels(model))}
        found[f"{mode} {optimizer} error"] = kt.tying_error(model)
        model.save(folder / f"{mode}-{optimizer}-{rank}.keras")
    np.savez(folder / f"{rank}.npz", replicas=strategy.num_replicas_in_sync, errors_of_keras=errors_of_keras(strategy), **found)


if __name__ == "__main__":
    keras.utils.disable_interactive_logging()
    main(Path(sys.argv[1]))
