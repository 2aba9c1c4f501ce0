"""What the facts about private names of Keras are checked on: a built layer and a trained model."""

import keras

from support.models import IMAGE, conv, make, skip, train


def built(layer=None):
    layer = layer or conv()
    layer.build((None, *IMAGE))
    return layer


def trained(**options):
    model = make(skip)
    model.compile(keras.optimizers.Adam(0.1, **options), "mse", run_eagerly=True)
    train(model)
    return model


def assert_has(holder, *names):
    missing = [name for name in names if not hasattr(holder, name)]
    assert not missing, f"Keras {keras.__version__}: {type(holder).__name__} has no {missing} any more"
