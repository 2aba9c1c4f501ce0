"""Arrays, gradients and training steps as the Keras backend in use gives them; a file for what differs on each."""

import importlib

import keras
from keras import ops

KERAS = tuple(map(int, keras.__version__.split(".")[:2]))
BACKEND = importlib.import_module(f"{__name__}.{keras.backend.backend()}")
MISSING_OPERATIONS = BACKEND.MISSING_OPERATIONS
double_precision = BACKEND.double_precision
raw_gradients = BACKEND.raw_gradients


def array(tensor):
    """Returns a tensor of the backend as a NumPy array."""
    return ops.convert_to_numpy(tensor)


def gradient(function, value, upstream=None):
    """Returns `upstream` times the Jacobian of `function` at the array `value`, as the backend gives it, not converted."""
    variable = keras.Variable(value)

    def loss():
        output = function(variable)
        return ops.sum(output if upstream is None else output * ops.convert_to_tensor(upstream, dtype=output.dtype))

    return raw_gradients(loss, [variable])[0]


def gradients(loss, variables):
    """Returns the gradients of `loss()` in Keras variables as arrays."""
    return [array(one) for one in raw_gradients(loss, variables)]


def train_step(loss, variables, optimizer):
    """Takes a step by hand, with gradients as the backend gives them: a sparse one must reach the optimizer as it is."""
    optimizer.apply(raw_gradients(lambda: optimizer.scale_loss(loss()), variables), variables)
