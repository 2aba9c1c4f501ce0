"""Measures one way of running with a number of threads, in a process of its own: `measure.py WAY THREADS SECTION FILE ...`."""

import json
import os
import sys

way, threads, section, file = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
os.environ["KERAS_BACKEND"] = way.partition(" ")[0]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

from backends import compiled, inference, set_threads, wait

set_threads(way.partition(" ")[0], threads, min(os.sched_getaffinity(0)))

import ctypes
import functools
import gc
import importlib
import math
import time
from pathlib import Path

import cases
import keras
import networks
import numpy as np
from keras import ops
from timing import interleaved, ratios

import kernel_tying as kt
from kernel_tying._convolution.geometry import Geometry, padding_of
from kernel_tying._layers import algorithm

backend = importlib.import_module(f"kernel_tying._convolution.{keras.backend.backend()}")


# With one thread, the time of the process leaves out what other processes take.
clock = time.process_time if threads == 1 else time.perf_counter


def tensors(*shapes):
    """Returns random tensors."""
    generator = np.random.default_rng(0)
    return [ops.convert_to_tensor(generator.normal(size=shape).astype("float32")) for shape in shapes]


def timed(functions, arguments, **options):
    """Returns summaries of functions of tensors, each run as `way` says."""
    runs = {name: compiled(way, function) for name, function in functions.items()}
    calls = {name: lambda name=name: wait(way, runs[name](*arguments[name])) for name in functions}
    return interleaved(calls, clock=clock, **options)


def convolution(case, is_depthwise=False, with_training=True, depth=1):
    """Returns how many times faster the tied convolution of a case is than the stock one with the expanded kernel.

    Args:
        case: the configuration.
        is_depthwise: whether each channel is convolved on its own.
        with_training: whether gradients are timed too.
        depth: how many such convolutions follow one another.
    """
    channels = (case.channels, 1 if is_depthwise else case.outputs)
    count, ones = case.pattern.num_free, [1] * (case.rank - 1)
    images, free = tensors((case.batch, *[case.size] * case.rank, case.channels), (count, *channels))
    kernel = kt.expand(ops.reshape(free, (count, *ones, *channels)), case.pattern)
    stock = ops.depthwise_conv if is_depthwise else ops.conv
    geometry = geometry_of(case, case.pattern, is_depthwise)
    layers = {
        "stock": lambda inputs, kernel: stock(inputs, kernel, strides=case.stride, padding="same"),
        "tied": by_group_sums(geometry, (count, *sorted(channels)) if is_depthwise else (count, *channels)),
    }
    arguments = {"stock": (images, kernel), "tied": (images, free)}
    if is_depthwise:  # the other way around XLA's slow one: shifted inputs, each times a tap of the kernel
        each_on_its_own = geometry_of(case, kt.patterns.free((case.k, case.k)), is_depthwise)
        layers["taps"] = by_group_sums(each_on_its_own, (case.k**2, *sorted(channels)))
        arguments["taps"] = arguments["stock"]
    functions = {name: repeated(layer, depth) for name, layer in layers.items()}
    with inference(way):
        times = timed(functions, arguments)
    row = {"case": str(case), "saving": case.saving, "channels": case.channels, "is_fitted": case in cases.FITTED}
    row |= {"forward_ms": milliseconds(times), **ratios_of("forward", times), **work(case, geometry, is_depthwise)}
    savings = backend.break_even_reductions("depthwise" if is_depthwise else case.kind, way == "tensorflow jit") or {}
    counted = case.outputs if case.is_first else min(case.channels, case.outputs)
    row["pays"] = any(counted >= one and case.saving >= savings[one] for one in savings)
    if with_training:
        is_compiled = way == "tensorflow jit"
        times = interleaved(
            {name: training_step(case, function, arguments[name], is_compiled) for name, function in functions.items()},
            clock=clock,
        )
        row |= {"training_ms": milliseconds(times), **ratios_of("training", times)}
    return row


def training_step(case, function, tensors, is_compiled):
    """Returns a function that computes outputs and gradients, those of inputs only if the layer is not the first."""
    if case.is_first:
        images, *tensors = tensors
        return backend.training_step(functools.partial(function, images), tensors, is_compiled)
    return backend.training_step(function, tensors, is_compiled)


def geometry_of(case, pattern, is_depthwise):
    """Returns the geometry of a case with a pattern."""
    sizes = [(length,) * case.rank for length in (case.size, case.k, case.stride, 1)]
    return Geometry(pattern, *sizes[1:], padding_of("same", *sizes), case.channels if is_depthwise else 1)


def by_group_sums(geometry, shape):
    """Returns a convolution by group sums with weights that are brought into a shape."""
    return lambda inputs, weights: backend.convolve(inputs, ops.reshape(weights, shape), geometry)


def work(case, geometry, is_depthwise):
    """Returns the products that a tied convolution takes, and the bytes that its group sums read and write."""
    positions, sums = case.batch * math.prod(geometry.output_size((case.size,) * case.rank)), geometry.sums
    reads = 2 * len(sums.steps) + sum(map(len, sums.groups))
    writes = len(sums.steps) + len(sums.groups)
    products = positions * case.channels * case.pattern.num_free * (1 if is_depthwise else case.outputs)
    return {"products": products, "moved_bytes": 4 * positions * case.channels * (reads + writes)}


def ratios_of(what, times):
    """Returns how many times faster than the stock convolution the tied one is, and taps if they were timed."""
    all_ratios = ratios(times, "stock")
    return {what: all_ratios["tied"]} | ({f"{what}_taps": all_ratios["taps"]} if "taps" in all_ratios else {})


def repeated(layer, depth):
    """Returns a function that applies a layer several times."""

    def function(inputs, weights):
        for _ in range(depth):
            inputs = layer(inputs, weights)
        return inputs

    return function


def milliseconds(times):
    """Returns medians in milliseconds."""
    return {name: 1e3 * one["median"] for name, one in times.items()}


def convolutions():
    """Yields the grid: configurations that the dispatch rule was fitted to, and others."""
    for case in cases.FITTED + cases.HELD_OUT:
        yield convolution(case)


def special():
    """Yields huge kernels in equal blocks, and depthwise layers."""
    for case in cases.HUGE:
        yield {"kind": "huge", **convolution(case, with_training=False)}
    for case in cases.DEPTHWISE:
        yield {"kind": "depthwise", **convolution(case, is_depthwise=True)}


def dimensions():
    """Yields convolutions of one and three dimensions."""
    for case in cases.DIMENSIONS:
        yield convolution(case)


def strides():
    """Yields convolutions with strides, and first layers."""
    for case in cases.STRIDES:
        yield convolution(case)


def compiled_by_torch():
    """Yields layers under torch.compile."""
    import torch

    for case in cases.COMPILED:
        torch.compiler.reset()  # layers share their code, of which torch compiles eight versions at most
        (images,) = tensors((case.batch, *[case.size] * case.rank, case.channels))
        images.requires_grad_()
        stock, inner = (keras.layers.Conv2D(case.outputs, case.k, padding="same") for _ in range(2))
        layers = {"stock": stock, "tied": kt.Tied(inner, case.pattern, convolution="group_sums")}
        calls, steps = {}, {}
        for name, layer in layers.items():
            layer.build(images.shape)
            calls[name] = functools.partial(torch.compile(layer, dynamic=False), images)
            weights = [variable.value for variable in layer.trainable_variables]
            steps[name] = functools.partial(gradients, calls[name], [images, *weights])
        with inference(way):
            row = {"case": str(case), "saving": case.saving, **ratios_of("forward", interleaved(calls, clock=clock))}
        yield row | ratios_of("training", interleaved(steps, clock=clock))


def gradients(call, tensors):
    """Returns the gradients of a call's outputs with respect to tensors."""
    import torch

    outputs = call()
    return torch.autograd.grad(outputs, tensors, outputs)


def growth():
    """Yields times as one thing about the question's 5x5 layer grows."""
    base = {"size": 16, "channels": 64, "batch": 8, "k": 5, "layers": 1}
    for name, values in {
        "size": (8, 16, 32, 64),
        "channels": (32, 64, 128, 256),
        "batch": (1, 4, 16, 64),
        "k": (3, 5, 7, 9),
        "layers": (1, 2, 4, 8),
    }.items():
        for value in values:
            numbers = {**base, name: value}
            family = "dihedral" if name == "k" else "question"
            case = cases.Case(family, numbers["k"], numbers["size"], numbers["channels"], numbers["batch"])
            yield {"grows": name, "value": value, **convolution(case, with_training=False, depth=numbers["layers"])}


def training():
    """Yields whole training steps of a small residual network, relative to the stock network."""
    images, labels = np.random.default_rng(0).normal(size=(128, *networks.IMAGE)).astype("float32"), np.arange(128) % 10
    for family, k in (("question", 5), ("radial", 7)):
        functions = {}
        for name, network in networks.competitors(family, k).items():
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            network.compile("adam", loss, jit_compile=way in ("jax", "tensorflow jit"))
            functions[name] = lambda network=network: epoch(network, images, labels)
        times = interleaved(functions, rounds=7, seconds=0)
        for name, ratio in ratios(times, "stock").items():
            time = {"median": 1 / ratio["median"], "low": 1 / ratio["high"], "high": 1 / ratio["low"]}
            yield {"network": f"{family} {k}x{k}", "name": name, "time": time, "step_ms": 1e3 * times[name]["median"] / 4}


def epoch(network, images, labels):
    """Trains a network on batches of 32. TensorFlow's `fit` waits for pinned threads in steps of 0.64 s, 1.28 s, ..."""
    if not way.startswith("tensorflow"):
        network.fit(images, labels, batch_size=32, verbose=0)
        return
    for start in range(0, len(images), 32):
        network.train_on_batch(images[start : start + 32], labels[start : start + 32])


def projection():
    """Yields the time to project a kernel, in memory that JAX may reuse, relative to a copy of its memory."""
    for family, shape in (("rotation", (3, 3, 512, 512)), ("question", (5, 5, 512, 1024))):
        pattern = cases.pattern_of(family, shape[0])
        kernel = np.random.default_rng(0).normal(size=shape).astype("float32")
        tensors, target = [ops.convert_to_tensor(kernel)], np.empty_like(kernel)
        run = compiled(way, lambda value, pattern=pattern: kt.project(value, pattern), donates=True)

        def project(run=run, tensors=tensors):
            tensors.append(run(tensors.pop()))
            wait(way, tensors[0])

        with inference(way):
            times = interleaved({"copy": lambda a=target, b=kernel: np.copyto(a, b), "project": project})
        yield {
            "kernel": f"{family} {shape}, {math.prod(shape) * 4 / 1e6:.1f} MB",
            "copies": times["project"]["median"] / times["copy"]["median"],
            "project_ms": 1e3 * times["project"]["median"],
        }


def eager():
    """Yields times of eager calls and training steps relative to those of stock layers, and of projections to a gather."""
    if way == "tensorflow jit":
        return
    yield from (relative(what, times) for what, times in (("call", calls()), ("step", steps())))
    for kernel, pattern in (((5, 5, 16, 16), kt.patterns.dihedral((5, 5))), ((256, 256), kt.patterns.toeplitz((256, 256)))):
        yield relative(f"project {kernel}", projections(kernel, pattern))
    yield relative("project channel blocks (3, 3, 256, 256)", projections_of_channel_blocks())
    yield relative("constraint, radial (7, 7, 16, 16)", constraints())
    yield relative("choice of the convolution", choices())


def relative(what, times):
    """Returns medians in microseconds, and how they compare with that of "stock"."""
    micros = {name: 1e6 * time["median"] for name, time in times.items()}
    return {"what": what, "micros": micros, "relative": {name: time / micros["stock"] for name, time in micros.items()}}


def calls():
    """Returns times of eager calls of a 5x5 layer of 16 channels."""
    network = networks.plain_network(1, 16, 5)
    (images,) = tensors((1, 8, 8, 16))
    functions = {"stock": network.layers[0]}
    for name in ("auto", "kernel"):
        tied = kt.apply_tying(network, "dihedral", mode="parameterization", convolution=name)
        functions |= {f"tied, {name}": tied.layers[0], f"tied, {name}, stock layer inside": tied.layers[0].layer}
    with inference(way):
        return interleaved({name: lambda layer=layer: wait(way, layer(images)) for name, layer in functions.items()}, rounds=21)


def steps():
    """Returns times of eager training steps of twelve 5x5 layers of 8 channels."""
    images = np.random.default_rng(0).normal(size=(32, 8, 8, 8)).astype("float32")
    functions = {}
    for name in ("stock", "constraint", "parameterization"):
        network = networks.plain_network(12, 8, 5)
        network = network if name == "stock" else kt.apply_tying(network, "dihedral", mode=name)
        network.compile("adam", "mse", run_eagerly=True, jit_compile=False)
        functions[name] = lambda network=network: network.train_on_batch(images, images)
    return interleaved(functions, rounds=15, seconds=0.1)


def projections(shape, pattern):
    """Returns the time of an eager projection, and as "stock" that of one gather of as many rows."""
    (kernel,) = tensors(shape)
    rows = ops.reshape(kernel, (pattern.labels.size, -1))
    indices = ops.convert_to_tensor(np.random.default_rng(0).permutation(pattern.labels.size))
    functions = {"stock": lambda: ops.take(rows, indices, axis=0), "project": lambda: kt.project(kernel, pattern)}
    with inference(way):
        return interleaved({name: lambda run=run: wait(way, run()) for name, run in functions.items()}, rounds=21)


def projections_of_channel_blocks():
    """Returns the time of an eager projection onto a large pattern, and as "stock" that of averaging and expanding."""
    (kernel,), blocks = tensors((3, 3, 256, 256)), kt.patterns.channel_blocks((3, 3), 256, 256, 4)
    functions = {
        "stock": lambda: kt.expand(kt.average(kernel, blocks), blocks),
        "project": lambda: kt.project(kernel, blocks),
    }
    with inference(way):
        return interleaved({name: lambda run=run: wait(way, run()) for name, run in functions.items()}, rounds=21)


def constraints():
    """Returns the time of a call of a constraint with a family's name, and as "stock" that of one with its pattern."""
    (kernel,) = tensors((7, 7, 16, 16))
    functions = {"stock": kt.TiedConstraint(kt.patterns.radial((7, 7))), "name": kt.TiedConstraint("radial")}
    with inference(way):
        return interleaved({name: lambda run=run: wait(way, run(kernel)) for name, run in functions.items()}, rounds=21)


def choices():
    """Returns the time that eager calls of a 5x5 layer take to choose the convolution, and as "stock" that of a stock call."""
    network = networks.plain_network(1, 16, 5)
    (images,) = tensors((1, 8, 8, 16))
    functions = {"stock": lambda: wait(way, network.layers[0](images))}
    for name in ("auto", "group_sums"):
        tied = kt.apply_tying(network, "dihedral", mode="parameterization", convolution=name).layers[0].layer
        functions[name] = lambda tied=tied: algorithm._algorithm_for(tied, images, tied.kernel)
    with inference(way):
        return interleaved(functions, rounds=21)


def roofline():
    """Yields what bounds a tied convolution: products of matrices in GFLOP/s, copies of memory in GB/s.

    On torch products are taken as there, by oneDNN's convolutions.
    """
    multiply = (lambda a, b: backend._multiply(a, b.T.contiguous()[..., None, None])) if way == "torch" else ops.matmul
    for rows, inner, columns in ((1024, 1024, 1024), (8192, 9 * 32, 32), (8192, 9 * 64, 64), (8192, 9 * 128, 128)):
        a, b = tensors((rows, inner), (inner, columns))
        with inference(way):
            time = timed({"product": multiply}, {"product": (a, b)})["product"]["median"]
        yield {"what": f"product {rows} x {inner} x {columns}", "rate": 2e-9 * rows * inner * columns / time, "unit": "GFLOP/s"}
    for size in (2**18, 2**26):
        source, target = np.ones(size, "uint8"), np.ones(size, "uint8")
        time = interleaved({"copy": lambda source=source, target=target: np.copyto(target, source)})["copy"]["median"]
        yield {"what": f"copy of {size / 2**20:g} MiB", "rate": 1e-9 * size / time, "unit": "GB/s"}


def memory(name):
    """Yields the most memory that training steps of one of the networks take, in MB, that of all variables included."""
    network = networks.competitors("radial", 7)[name]
    images, labels = np.zeros((64, *networks.IMAGE), "float32"), np.arange(64) % 10
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile("adam", loss, jit_compile=way in ("jax", "tensorflow jit"))
    network.fit(images, labels, batch_size=32, verbose=0)
    variables = sum(4 * math.prod(one.shape) for one in network.variables + network.optimizer.variables)
    steps = peak_bytes(lambda: network.fit(images, labels, batch_size=32, verbose=0))
    yield {"name": name, "megabytes": (variables + steps) / 1e6}


def compiling(what, name):
    """Yields the seconds that the first training step or prediction of a ResNet-18 takes beyond the second.

    Args:
        what: "training" or "forward".
        name: "stock", or the `convolution` of its 5x5 layers, tied by "dihedral".
    """
    network = networks.resnet18(5)
    if name != "stock":
        kernels = {layer.name: "dihedral" for layer in network.layers if getattr(layer, "kernel_size", None) == (5, 5)}
        network = kt.apply_tying(network, kernels, mode="parameterization", convolution=name)
    network.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=True)
    images, labels = np.zeros((4, 64, 64, 3), "float32"), np.arange(4)
    calls = {"training": (network.train_on_batch, images, labels), "forward": (network.predict_on_batch, images)}
    step = functools.partial(*calls[what])
    seconds = []
    for _ in range(2):
        start = clock()
        step()
        seconds.append(clock() - start)
    yield {"what": what, "name": name, "seconds": seconds[0] - seconds[1], "step_seconds": seconds[1]}


def equivariant():
    """Yields times of training steps and of inference of equivariant networks, relative to e2cnn, interleaved."""
    import peers

    for case in peers.CASES:
        networks_of_case = {name: build(case) for name, build in peers.NETWORKS.items()}
        images = peers.images_of(case)
        for what, step in peers.STEPS.items():
            steps_of_case = {name: step(network, images) for name, network in networks_of_case.items()}
            times = interleaved(steps_of_case, clock=clock)
            for name, ratio in ratios(times, "e2cnn").items():
                row = {"case": str(case), "what": what, "name": name, "ratio": ratio, "ms": 1e3 * times[name]["median"]}
                yield {**row, "free_weights": peers.free_weights(networks_of_case[name])}


def equivariant_memory(what, case, name):
    """Yields the most memory that five steps of a new network take beyond what is taken before the first, in MB.

    A small network of torch's layers takes a step before, so that libraries are loaded.
    """
    import peers

    small = peers.Case("p4", 8, 2, width=4, batch=1)
    peers.STEPS["training"](peers.stock_of_torch(small), peers.images_of(small))()
    chosen = peers.CASES[int(case)]
    step = peers.STEPS[what](peers.NETWORKS[name](chosen), peers.images_of(chosen))
    yield {"case": str(chosen), "what": what, "name": name, "megabytes": peak_bytes(lambda: [step() for _ in range(5)]) / 1e6}


def peak_bytes(function):
    """Returns the most memory that a function takes beyond what is taken before, not counting what compilers keep.

    TensorFlow does not give memory back, but counts what is in use. The others allocate by the C library, which `run.py` tells
    to give back what is freed.
    """
    if way.startswith("tensorflow"):
        import tensorflow as tf

        before = tf.config.experimental.get_memory_info("CPU:0")["current"]
        tf.config.experimental.reset_memory_stats("CPU:0")
        function()
        return tf.config.experimental.get_memory_info("CPU:0")["peak"] - before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far, which is that of compiling
    function()
    return resident("VmHWM") - before


def resident(field):
    """Returns a field of this process' status on Linux, in bytes: VmRSS, the memory taken now, or VmHWM, its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


SECTIONS = {
    "convolutions": convolutions,
    "special": special,
    "dimensions": dimensions,
    "strides": strides,
    "torch.compile": compiled_by_torch,
    "growth": growth,
    "training": training,
    "projection": projection,
    "eager": eager,
    "roofline": roofline,
    "memory stock": lambda: memory("stock"),
    "memory tied": lambda: memory("parameterization, auto"),
    "compile": lambda: compiling(*sys.argv[5:]),
    "equivariant": equivariant,
    "equivariant memory": lambda: equivariant_memory(*sys.argv[5:]),
}

rows = []
for row in SECTIONS[section]():
    rows.append({"way": way, "threads": threads, **row})
    with open(file, "w") as target:
        json.dump(rows, target)
