"""What differs between backends when functions are timed: threads, compiling, gradients, waiting for the result."""

import contextlib
import os


def set_threads(backend, threads):
    """Lets a backend compute with a number of threads. Call it before the backend does anything."""
    if backend == "jax":
        os.environ["XLA_FLAGS"] = "" if threads > 1 else "--xla_cpu_multi_thread_eigen=false"
    elif backend.startswith("tensorflow"):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    else:
        import torch

        torch.set_num_threads(threads)
    os.sched_setaffinity(0, range(threads))


def compiled(way, function):
    """Returns a function of tensors as a way of running it makes it: "jax", "tensorflow", "tensorflow jit", "torch"."""
    if way == "jax":
        import jax

        return jax.jit(function)
    if way.startswith("tensorflow"):
        import tensorflow as tf

        return tf.function(function, jit_compile=way == "tensorflow jit", autograph=False)
    return function


def with_gradients(way, function):
    """Returns a function `(inputs, weights, upstream) -> (outputs, input gradient, weight gradient)`."""
    if way == "jax":
        import jax

        def run(inputs, weights, upstream):
            outputs, pull_back = jax.vjp(function, inputs, weights)
            return outputs, pull_back(upstream)

        return run
    if way.startswith("tensorflow"):
        import tensorflow as tf

        def run(inputs, weights, upstream):
            with tf.GradientTape() as tape:
                tape.watch([inputs, weights])
                outputs = function(inputs, weights)
            return outputs, tape.gradient(outputs, [inputs, weights], upstream)

        return run
    import torch

    def run(inputs, weights, upstream):
        inputs, weights = (one.detach().requires_grad_() for one in (inputs, weights))
        outputs = function(inputs, weights)
        return outputs, torch.autograd.grad(outputs, [inputs, weights], upstream)

    return run


def wait(way, result):
    """Waits until a result is there. Other backends than JAX return it then."""
    if way == "jax":
        import jax

        jax.block_until_ready(result)


def inference(way):
    """Returns a context in which nothing is kept for gradients."""
    if way == "torch":
        import torch

        return torch.no_grad()
    return contextlib.nullcontext()
