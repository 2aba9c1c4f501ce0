"""What differs between backends when functions are timed: threads, compiling, gradients, waiting for the result."""

import contextlib
import os


def set_threads(backend, threads, first=0):
    """Lets a backend compute with a number of threads, on cores from `first` on. Call it before the backend does anything."""
    if backend == "jax":
        os.environ["XLA_FLAGS"] = "" if threads > 1 else "--xla_cpu_multi_thread_eigen=false"
    elif backend.startswith("tensorflow"):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    else:
        import torch

        torch.set_num_threads(threads)
    os.sched_setaffinity(0, range(first, first + threads))


def compiled(way, function, donates=False):
    """Returns a function of tensors as a way of running it makes it: "jax", "tensorflow", "tensorflow jit", "torch".

    Args:
        way: the way.
        function: the function.
        donates: whether JAX may write results to the memory of the first argument, as in Keras' training steps.
    """
    if way == "jax":
        import jax

        return jax.jit(function, donate_argnums=0 if donates else None)
    if way.startswith("tensorflow"):
        import tensorflow as tf

        return tf.function(function, jit_compile=way == "tensorflow jit", autograph=False)
    return function


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
