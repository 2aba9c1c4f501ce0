"""Ties the weights inside convolution kernels of stock Keras 3 layers.

>>> import keras, kernel_tying as kt
>>> model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Conv2D(8, 5)])
>>> model = kt.apply_tying(model, "dihedral")
>>> kt.tying_error(model)
0.0
"""

from kernel_tying import patterns
from kernel_tying._layers.constraint import TiedConstraint
from kernel_tying._layers.initializer import TiedInitializer
from kernel_tying._layers.regularizer import TyingPenalty
from kernel_tying._layers.table import register_layer
from kernel_tying._layers.tied import Tied
from kernel_tying.algebra import average, expand, project
from kernel_tying.callbacks import KeepTied, TieGradually
from kernel_tying.equivariance import equivariance_error, equivariant_plan
from kernel_tying.errors import TyingError
from kernel_tying.models import apply_tying, penalize, project_kernels, strip_tying
from kernel_tying.patterns import groups
from kernel_tying.patterns.groups import Group
from kernel_tying.patterns.pattern import TyingPattern
from kernel_tying.report import tying_error, tying_report
from kernel_tying.symmetry import symmetry_report
from kernel_tying.tuning import tune

__version__ = "0.1.0"

__all__ = [
    "Group",
    "KeepTied",
    "TieGradually",
    "Tied",
    "TiedConstraint",
    "TiedInitializer",
    "TyingError",
    "TyingPattern",
    "TyingPenalty",
    "apply_tying",
    "average",
    "equivariance_error",
    "equivariant_plan",
    "expand",
    "groups",
    "patterns",
    "penalize",
    "project",
    "project_kernels",
    "register_layer",
    "strip_tying",
    "symmetry_report",
    "tune",
    "tying_error",
    "tying_report",
]
