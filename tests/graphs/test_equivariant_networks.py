"""Networks of `keras.applications` that one line makes equivariant, and what stands in the way of others."""

import keras
import numpy as np
import pytest
from support.backends import array
from support.errors import raises_tying_error

import kernel_tying as kt

SIZES = {
    "ResNet50": 33,
    "ResNet50V2": 33,
    "MobileNetV2": 33,
    "MobileNetV3Small": 33,
    "EfficientNetB0": 33,
    "DenseNet121": 61,
    "VGG16": 32,
}


def network(name, size):
    """Returns a network without softmax: the logits of a fresh network are small, and their probabilities all equal."""
    keras.utils.set_random_seed(0)
    options = {"weights": None, "input_shape": (size, size, 3), "classes": 3, "classifier_activation": None}
    return getattr(keras.applications, name)(**options)


@pytest.mark.parametrize("name", SIZES)
def test_logits_stay_if_the_image_is_turned_or_mirrored(name):
    model = network(name, SIZES[name])
    images = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype("float32")

    tied = kt.apply_tying(model, kt.equivariant_plan(model, "p4m"), init="redraw")

    assert kt.equivariance_error(tied, "p4m", images) < 1e-5
    first, second = array(tied(images))
    assert np.abs(first - second).max() > 1e-3 * np.abs(first).max()


REFUSED = {
    "MobileNet": (33, "padding=((0, 1), (0, 1)) in layer 'conv_pad_2'"),
    "ResNet50": (32, "size 38 along axis 0, window 7, stride 2"),
    "ConvNeXtTiny": (32, "LayerScale"),
    "InceptionV3": (75, "window=(7, 1)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_stands_in_the_way_is_named(name):
    size, received = REFUSED[name]
    model = network(name, size)

    with raises_tying_error(received):
        kt.equivariant_plan(model, "p4m")
