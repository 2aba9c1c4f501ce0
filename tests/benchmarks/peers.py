"""Equivariant networks on torch: tied ones of stock Keras layers, untied ones, and those of e2cnn."""

import math
from typing import NamedTuple

import e2cnn.kernels.utils
import keras
import numpy as np
import torch
from e2cnn import gspaces
from e2cnn import nn as enn
from keras import layers

import kernel_tying as kt

SPACES = {"p4": (gspaces.Rot2dOnR2, 4), "p4m": (gspaces.FlipRot2dOnR2, 8)}
# e2cnn has a Gaussian ring of radius 0 and one of radius 1, with frequencies up to 2. A ring through the corners completes
# the basis: 88 functions where regular fields of p4m have 72 dimensions. These are linearly dependent.
FULL_BASIS = {"rings": [0.0, 1.0, 2**0.5], "sigma": [0.005, 0.4, 0.2], "frequencies_cutoff": lambda r: 2.0 if r else 0.0}


class NumPy1:
    """NumPy whose `array(copy=False)` copies where it must, as before version 2. e2cnn 0.2.3 needs that."""

    def __getattr__(self, name):
        return getattr(np, name)

    @staticmethod
    def array(value, copy=True):
        return np.array(value, copy=copy or None)


e2cnn.kernels.utils.np = NumPy1()


class Case(NamedTuple):
    """A network to compare.

    Attributes:
        group: "p4" or "p4m".
        size: size of the square images, with one channel if there are several layers.
        depth: number of 3x3 convolutions, each followed by BatchNormalization and ReLU unless it is the only one.
        width: number of channels of each layer's output.
        batch: number of images.
    """

    group: str
    size: int
    depth: int
    width: int = 64
    batch: int = 32

    @property
    def order(self):
        """The number of elements of the group."""
        return SPACES[self.group][1]

    @property
    def in_channels(self):
        """The number of channels of the images: those of regular fields for a single layer."""
        return self.width if self.depth == 1 else 1

    def __str__(self):
        what = "one layer" if self.depth == 1 else f"{self.depth} layers"
        return f"{self.group}, {what}, {self.size}x{self.size}, {self.width} ch, batch {self.batch}"


CASES = [Case(group, size, depth) for group in SPACES for depth in (3, 1) for size in (28, 14)]
CASES.append(Case("p4m", 14, 1, width=256, batch=1))  # many weights to expand for little work


def stock(case):
    """Returns the untied Keras network, with the data format of torch."""
    network = keras.Sequential([keras.Input((case.in_channels, case.size, case.size))])
    options = {"padding": "same", "data_format": "channels_first", "use_bias": case.depth == 1}
    for index in range(case.depth):
        network.add(layers.Conv2D(case.width, 3, **options, name=f"conv_{index}"))
        if case.depth > 1:
            network.add(layers.BatchNormalization(axis=1, momentum=0.9, epsilon=1e-5, name=f"norm_{index}"))
            network.add(layers.ReLU())
    return network


def tied(case, mode):
    """Returns the tied Keras network."""
    regular = kt.patterns.equivariant((3, 3), case.group, "regular", "regular")
    per_field = kt.patterns.constant((case.order,))
    if case.depth == 1:
        plan = {"conv_0": {"kernel": regular, "bias": per_field}}
    else:
        lifting = kt.patterns.equivariant((3, 3), case.group)
        plan = {"conv_0": {"kernel": lifting}, "conv_*": {"kernel": regular}, "norm_*": {"gamma": per_field, "beta": per_field}}
    return kt.apply_tying(stock(case), plan, mode=mode, init="redraw")


def stock_of_torch(case):
    """Returns the untied network of torch's own layers."""
    modules = []
    for index in range(case.depth):
        channels = case.width if index else case.in_channels
        modules.append(torch.nn.Conv2d(channels, case.width, 3, padding=1, bias=case.depth == 1))
        if case.depth > 1:
            modules += [torch.nn.BatchNorm2d(case.width), torch.nn.ReLU()]
    return torch.nn.Sequential(*modules)


class Steerable(torch.nn.Module):
    """The network of e2cnn. Options are those of `R2Conv`."""

    def __init__(self, case, **options):
        super().__init__()
        space = SPACES[case.group][0](4)
        fields = enn.FieldType(space, case.width // case.order * [space.regular_repr])
        self.in_type = fields if case.depth == 1 else enn.FieldType(space, [space.trivial_repr])
        modules = []
        for index in range(case.depth):
            in_type = fields if index else self.in_type
            modules.append(enn.R2Conv(in_type, fields, 3, padding=1, bias=case.depth == 1, **options))
            if case.depth > 1:
                modules += [enn.InnerBatchNorm(fields), enn.ReLU(fields)]
        self.network = enn.SequentialModule(*modules)

    def forward(self, images):
        return self.network(enn.GeometricTensor(images, self.in_type)).tensor


NETWORKS = {
    "e2cnn": Steerable,
    "e2cnn, full basis": lambda case: Steerable(case, **FULL_BASIS),
    "parameterization": lambda case: tied(case, "parameterization"),
    "constraint": lambda case: tied(case, "constraint"),
    "stock Keras": stock,
    "stock torch": stock_of_torch,
}


def free_weights(network):
    """Returns the number of weights to train. What a constraint ties counts once."""
    if not isinstance(network, keras.Model):
        return sum(weight.numel() for weight in network.parameters())
    return sum(free_values(variable) for variable in network.trainable_variables)


def free_values(variable):
    """Returns the number of values of a Keras variable that its constraint leaves free."""
    values = math.prod(variable.shape)
    if variable.constraint is None:
        return values
    pattern = variable.constraint.pattern
    return values // pattern.labels.size * pattern.num_free


def constrained(network):
    """Returns the variables of a Keras network that have a constraint."""
    return [variable for variable in network.trainable_variables if variable.constraint is not None]


def images_of(case):
    """Returns a batch of images."""
    return torch.randn((case.batch, case.in_channels, case.size, case.size), generator=torch.Generator().manual_seed(0))


def training_step(network, images):
    """Returns a training step with Adam: one plain loop of torch for all networks, with the constraints of Keras' variables."""
    is_keras = isinstance(network, keras.Model)
    weights = [variable.value for variable in network.trainable_variables] if is_keras else list(network.parameters())
    optimizer = torch.optim.Adam(weights)
    ties = constrained(network) if is_keras else []
    options = {"training": True} if is_keras else {}
    network.train()

    def step():
        optimizer.zero_grad()
        output = network(images, **options)
        torch.nn.functional.mse_loss(output, images.mean().expand_as(output)).backward()
        optimizer.step()
        with torch.no_grad():
            for variable in ties:
                variable.assign(variable.constraint(variable))

    return step


def inference_step(network, images):
    """Returns a forward pass. In this mode e2cnn keeps the expanded kernels."""
    options = {"training": False} if isinstance(network, keras.Model) else {}
    network.eval()

    def step():
        with torch.no_grad():
            return network(images, **options)

    return step


STEPS = {"training": training_step, "inference": inference_step}
