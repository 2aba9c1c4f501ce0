"""Stock twins of tied layers, random weights and a loss; gradients and constraints of free weights through a dense `B`."""

import numpy as np
from keras import ops

from support.backends import array
from support.oracles import dense_adjoint, dense_average, dense_expand, root_sizes

SCALINGS = ["values", "orthonormal"]


def randomize(layer, seed=0):
    """Gives random values to all weights of a layer, variances positive."""
    generator = np.random.default_rng(seed)
    for weight in layer.weights:
        value = generator.normal(size=weight.shape)
        weight.assign(np.abs(value) if "variance" in weight.name else value)


def total_loss(layer, inputs):
    """Returns a loss that no symmetry of a kernel leaves alone, with the losses of the layer itself."""
    return ops.mean(ops.square(ops.cast(layer(inputs), "float32") - 0.3)) + sum(layer.losses)


def free_values(tied, name):
    """Returns the values of the groups that free weights stand for, `theta` in scaling "values"."""
    theta = array(tied.free_weights[name]).astype("float64")
    return theta if tied.scaling == "values" else theta / root_sizes(tied.patterns[name], theta)


def stock_twin(tied):
    """Returns a stock layer of the same configuration that holds the expanded kernels."""
    stock = type(tied.layer).from_config(tied.layer.get_config())
    stock.build_from_config(tied.get_build_config())
    free = {id(variable): name for name, variable in tied.free_weights.items()}
    for own, variable in zip(tied.weights, stock.weights, strict=True):
        name = free.get(id(own))
        variable.assign(own if name is None else dense_expand(free_values(tied, name), tied.patterns[name]))
    return stock


def free_gradient(kernel_gradient, tied):
    """Returns `B^T` times a gradient in the kernel, with columns of `B` of norm 1 in orthonormal scaling."""
    adjoint = dense_adjoint(kernel_gradient, tied.pattern)
    return adjoint if tied.scaling == "values" else adjoint / root_sizes(tied.pattern, adjoint)


def constrained(constraint, value):
    return array(value if constraint is None else constraint(ops.convert_to_tensor(value, "float32")))


def constrained_free(constraint, theta, tied):
    """Returns `average(constraint(expand(theta)))`, in the scaling of `tied`."""
    roots = 1 if tied.scaling == "values" else root_sizes(tied.pattern, theta)
    kernel = dense_expand(theta / roots, tied.pattern)
    return dense_average(constrained(constraint, kernel), tied.pattern) * roots
