"""Networks to train, and what tied kernels are compared with: the two custom layers of the question and others' constraints."""

import keras
import numpy as np
from cases import pattern_of
from keras import layers, ops

import kernel_tying as kt

WIDTHS = (32, 64, 128)
IMAGE = (32, 32, 3)


def residual_network(convolution, k):
    """Returns a network of three residual blocks whose k x k convolutions are made by `convolution(filters, k)`."""
    inputs = keras.Input(IMAGE)
    x = convolution(WIDTHS[0], k)(inputs)
    for width in WIDTHS:
        shortcut = x if x.shape[-1] == width else layers.Conv2D(width, 1)(x)
        x = convolution(width, k)(layers.ReLU()(convolution(width, k)(x)))
        x = layers.AveragePooling2D(2)(layers.ReLU()(layers.Add()([x, shortcut])))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def resnet18(k):
    """Returns a ResNet-18 with k x k convolutions in its basic blocks, for 64x64 images."""
    inputs = keras.Input((64, 64, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(64, 3, padding="same")(inputs)))
    for filters, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        x = _basic_block(x, filters, k, stride)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def _basic_block(x, filters, k, stride):
    shortcut = x if stride == 1 else layers.Conv2D(filters, 1, strides=stride)(x)
    for own_stride, activation in ((stride, layers.ReLU()), (1, layers.Identity())):
        x = activation(layers.BatchNormalization()(stock(filters, k, strides=own_stride)(x)))
    return layers.ReLU()(layers.Add()([x, shortcut]))


def plain_network(count, filters, k):
    """Returns a network of nothing but k x k convolutions, of 8x8 images."""
    return keras.Sequential([keras.Input((8, 8, filters)), *[stock(filters, k) for _ in range(count)]])


def stock(filters, k, **options):
    """Returns a stock layer."""
    return layers.Conv2D(filters, k, padding="same", **options)


def competitors(family, k):
    """Returns the networks to compare, by name, not compiled."""
    pattern = pattern_of(family, k)
    parameterized = {
        f"parameterization, {way}": kt.apply_tying(
            residual_network(stock, k), pattern, mode="parameterization", init="redraw", convolution=way
        )
        for way in ("kernel", "group_sums", "auto")
    }
    networks = {
        "stock": residual_network(stock, k),
        **parameterized,
        "constraint": kt.apply_tying(residual_network(stock, k), pattern, mode="constraint", init="redraw"),
        "SpectralNormalization": residual_network(lambda *size: layers.SpectralNormalization(stock(*size)), k),
        "square rings (as RadialConstraint)": residual_network(lambda *size: stock(*size, kernel_constraint=SquareRings()), k),
    }
    if family == "question":
        networks["custom layer, rows and columns stacked"] = residual_network(StackedConv2D, k)
        networks["custom layer, a row tiled"] = residual_network(TiledConv2D, k)
    return networks


class SquareRings(keras.constraints.Constraint):
    """What the RadialConstraint of tf.keras meant: each square ring takes the value at its middle, ring by ring."""

    def __call__(self, kernel):
        kernel = ops.convert_to_tensor(kernel)
        k = kernel.shape[0]
        rows, columns = np.indices((k, k))
        ring = np.maximum(abs(rows - k // 2), abs(columns - k // 2))
        values = ops.zeros_like(kernel)
        for radius in range(k // 2 + 1):
            mask = ops.convert_to_tensor((ring == radius).astype("float32")[..., None, None])
            values = values + mask * kernel[k // 2, k // 2 + radius]
        return values


class SmallKernelConv2D(layers.Layer):
    """A convolution with a k x k kernel made of a small one, with bias and padding "same"."""

    def __init__(self, filters, k):
        super().__init__()
        self.filters, self.k = filters, k

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(*self.small_size(), input_shape[-1], self.filters))
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros")

    def call(self, inputs):
        return ops.conv(inputs, self.full_kernel(ops.convert_to_tensor(self.kernel)), padding="same") + self.bias


class StackedConv2D(SmallKernelConv2D):
    """The first answer to the question: the outer rows and columns of a 3x3 kernel are stacked twice."""

    def small_size(self):
        return 3, 3

    def full_kernel(self, kernel):
        rows = ops.stack([kernel[index] for index in (0, 0, 1, 2, 2)], axis=0)
        return ops.stack([rows[:, index] for index in (0, 0, 1, 2, 2)], axis=1)


class TiledConv2D(SmallKernelConv2D):
    """The second answer: a row is tiled into a square."""

    def small_size(self):
        return 1, self.k

    def full_kernel(self, kernel):
        return ops.tile(kernel, (self.k, 1, 1, 1))
