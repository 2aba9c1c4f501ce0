from kernel_tying import patterns
from kernel_tying.algebra import average, expand, project
from kernel_tying.constraint import TiedConstraint
from kernel_tying.errors import TyingError
from kernel_tying.initializer import TiedInitializer
from kernel_tying.kernels import register_layer
from kernel_tying.parameterization import Tied
from kernel_tying.pattern import TyingPattern
from kernel_tying.regularizer import TyingPenalty
__version__ = "0.1.0"
