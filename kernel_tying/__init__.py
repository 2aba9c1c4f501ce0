"""Ties the weights inside convolution kernels of stock Keras 3 layers.

>>> import keras, kernel_tying as kt
>>> model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Conv2D(8, 5)])
>>> model = kt.apply_tying(model, "dihedral")
>>> kt.tying_error(model)
0.0
"""

from kernel_tying import patterns
from kernel_tying.algebra import average, expand, project
from kernel_tying.callbacks import KeepTied
from kernel_tying.constraint import TiedConstraint
from kernel_tying.errors import TyingError
from kernel_tying.initializer import TiedInitializer
from kernel_tying.kernels import register_layer
from kernel_tying.models import apply_tying, project_kernels, strip_tying
from kernel_tying.parameterization import Tied
from kernel_tying.pattern import TyingPattern
from kernel_tying.regularizer import TyingPenalty
from kernel_tying.report import tying_error, tying_report

__version__ = "0.1.0"

__all__ = [
    "KeepTied",
    "Tied",
    "TiedConstraint",
    "TiedInitializer",
    "TyingError",
    "TyingPattern",
    "TyingPenalty",
    "apply_tying",
    "average",
    "expand",
    "patterns",
    "project",
    "project_kernels",
    "register_layer",
    "strip_tying",
    "tying_error",
    "tying_report",
]
