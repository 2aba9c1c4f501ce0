"""Small models of every kind, most from images (6, 6, 2) to three outputs."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers

import kernel_tying as kt
from support.backends import array

IMAGE = (6, 6, 2)
# Dropout layers below have seeds: on torch those without draw from one generator for the whole process.


def conv(name="conv", filters=2, **options):
    return layers.Conv2D(filters, 3, padding="same", name=name, **options)


def head(features, name="head"):
    return layers.Dense(3, name=name)(layers.GlobalAveragePooling2D(name=f"{name}_pool")(features))


def sequential():
    return keras.Sequential(
        [
            keras.Input(IMAGE),
            conv("first", activation="relu"),
            layers.BatchNormalization(name="norm"),
            layers.Dropout(0.5, seed=1, name="drop"),
            conv("second", 3),
            layers.GlobalAveragePooling2D(name="pool"),
        ],
        name="sequential",
    )


def skip():
    x = keras.Input(IMAGE, name="image")
    h = layers.Dropout(0.3, seed=2, name="drop")(layers.BatchNormalization(name="norm")(conv("first")(x)))
    return keras.Model(x, head(keras.ops.relu(h + x)), name="skip")


def _trunk(cls, name):
    x = keras.Input(IMAGE, name=f"{name}_image")
    return cls(x, layers.BatchNormalization(name="norm")(conv("inner")(x)), name=name)


def nested():
    x = keras.Input(IMAGE, name="image")
    return keras.Model(x, head(conv("outer")(_trunk(keras.Model, "trunk")(x))), name="nested")


@keras.saving.register_keras_serializable(package="tests")
class Trunk(keras.Model):
    """A Functional subclass that is made from inputs and outputs."""

    def parts(self):
        return len(self.layers)


def nested_subclass():
    x = keras.Input(IMAGE, name="image")
    return keras.Model(x, head(conv("outer")(_trunk(Trunk, "trunk")(x))), name="nested_subclass")


def shared_twice():
    x, shared = keras.Input(IMAGE, name="image"), conv("shared")
    return keras.Model(x, head(shared(keras.ops.tanh(shared(x)))), name="shared_twice")


def shared_across():
    x, shared = keras.Input(IMAGE, name="image"), conv("shared")
    inner_x = keras.Input(IMAGE, name="inner_image")
    inner = keras.Model(inner_x, shared(conv("inner")(inner_x)), name="trunk")
    return keras.Model(x, head(shared(inner(x))), name="shared_across")


def multiple():
    x, z = keras.Input(IMAGE, name="left"), keras.Input(IMAGE, name="right")
    h = layers.Concatenate(name="both")([conv("on_left")(x), conv("on_right")(z)])
    return keras.Model([x, z], [head(h, "one"), head(conv("after")(h), "two")], name="multiple")


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """Its layers have automatic names, and its config does not describe them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = (layers.Conv2D(2, 3, padding="same") for _ in range(2))
        self.norm, self.drop = layers.BatchNormalization(), layers.Dropout(0.5, seed=3)
        self.pool, self.head = layers.GlobalAveragePooling2D(), layers.Dense(3)

    def call(self, inputs, training=None):
        h = self.drop(self.norm(self.first(inputs), training=training), training=training)
        return self.head(self.pool(self.second(h)))


def subclassed():
    model = Subclassed(name="subclassed")
    model(np.zeros((1, *IMAGE), "float32"))
    return model


@keras.saving.register_keras_serializable(package="tests")
class Preset(keras.Model):
    """A Functional subclass whose constructor makes the layers, as backbones with presets do."""

    def __init__(self, filters=2, **kwargs):
        x = keras.Input(IMAGE, name="image")
        super().__init__(x, head(conv("first", filters)(x)), **kwargs)
        self.filters = filters

    def get_config(self):
        return {"filters": self.filters, "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def preset():
    return Preset(name="preset")


@keras.saving.register_keras_serializable(package="tests")
class Block(layers.Layer):
    """A layer with a Conv2D inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inside = conv("inside")

    def build(self, input_shape):
        self.inside.build(input_shape)

    def call(self, inputs):
        return self.inside(inputs)


def custom_layer():
    x = keras.Input(IMAGE, name="image")
    return keras.Model(x, head(Block(name="block")(conv("first")(x))), name="custom_layer")


def unbuilt():
    return keras.Sequential([conv("first"), layers.GlobalAveragePooling2D(), layers.Dense(3, name="head")], name="unbuilt")


def two_sizes(**options):
    """Returns a model with a 5x5 and a 3x3 convolution."""
    convolutions = [layers.Conv2D(2, 5, name="wide", **options), layers.Conv2D(2, 3, name="narrow", **options)]
    return keras.Sequential([keras.Input((9, 9, 2)), *convolutions])


DESCRIBED = [sequential, skip, nested, nested_subclass, shared_twice, shared_across, multiple]
UNDESCRIBED = [subclassed, preset, custom_layer]
MODES = ["constraint", "parameterization"]


def make(builder, *, compiled=False, seed=7, **options):
    """Returns a model; two calls return twins of equal weights and seeds."""
    keras.utils.set_random_seed(seed)
    model = builder()
    if compiled:
        compile_model(model, **options)
    return model


def compile_model(model, **options):
    model.compile(
        **{"optimizer": keras.optimizers.Adam(0.05), "loss": "mse", "run_eagerly": True, "jit_compile": False, **options}
    )
    return model


def tie(model, mode, patterns="mirror", init="project", **options):
    """Returns the tied model, with projected kernels; checks that exactly undescribed models draw a warning of it."""
    is_undescribed = model.name in [builder.__name__ for builder in UNDESCRIBED]
    with pytest.warns(UserWarning, match="does not describe") if is_undescribed else contextlib.nullcontext():
        return kt.apply_tying(model, patterns, mode=mode, init=init, **options)


def images(model, rows=4):
    x = np.random.default_rng(1).normal(size=(rows, *IMAGE)).astype("float32")
    return [x, x[::-1].copy()] if model.name == "multiple" else x


def targets(model, rows=4):
    y = np.random.default_rng(2).normal(size=(rows, 3)).astype("float32")
    return [y, -y] if model.name == "multiple" else y


def train(model, rows=4, epochs=1, **options):
    """Fits one step an epoch."""
    return model.fit(
        images(model, rows), targets(model, rows), batch_size=rows, epochs=epochs, verbose=0, shuffle=False, **options
    )


def values(variables):
    """Returns a copy of each variable as it is now."""
    return [np.array(array(variable)) for variable in variables]


def state(model):
    """Returns all that a verb which promises to leave a model alone must leave alone."""
    return {
        "layers": [id(layer) for layer in model._flatten_layers()],
        "config": None if model.name == "subclassed" else model.get_config(),
        "paths": [variable.path for variable in model.variables],
        "variables": [id(variable) for variable in model.variables],
        "weights": values(model.variables),
        "constraints": [variable.constraint for variable in model.variables],
        "attributes": [sorted(vars(layer)) for layer in model._flatten_layers()],
        "optimizer": values(model.optimizer.variables) if getattr(model, "optimizer", None) else [],
    }


def assert_equal_values(first, second):
    """Compares lists of variables with ==, NaN apart."""
    np.testing.assert_equal(values(first), values(second))
