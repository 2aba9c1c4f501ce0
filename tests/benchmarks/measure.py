"""Measures one backend with a number of threads, in a process of its own: `measure.py WAY THREADS SECTION FILE`."""

import json
import os
import sys

way, threads, section, file = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
os.environ["KERAS_BACKEND"] = way.partition(" ")[0]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

from backends import compiled, set_threads, wait, with_gradients

set_threads(way.partition(" ")[0], threads)

import importlib

import keras
import numpy as np
from cases import FITTED, HELD_OUT
from keras import ops
from timing import interleaved, ratios

import kernel_tying as kt
from kernel_tying.convolution.geometry import Geometry, padding_of

backend = importlib.import_module(f"kernel_tying.convolution.on_{keras.backend.backend()}")


def tensors(*shapes):
    generator = np.random.default_rng(0)
    return [ops.convert_to_tensor(generator.normal(size=shape).astype("float32")) for shape in shapes]


def convolutions():
    """Yields for each case how many times faster the tied convolution is than the stock one with the expanded kernel."""
    for case in FITTED + HELD_OUT:
        images, free = tensors((case.batch, case.size, case.size, case.channels), (case.pattern.num_free, *[case.channels] * 2))
        kernel = kt.expand(ops.reshape(free, (case.pattern.num_free, 1, *free.shape[1:])), case.pattern)
        sizes = [(case.size,) * 2, (case.k,) * 2, (1, 1), (1, 1)]
        geometry = Geometry(case.pattern, *sizes[1:], padding_of("same", *sizes))
        pays = case.saving >= backend.saving_that_pays(case.channels)

        def stock(inputs, kernel):
            return ops.conv(inputs, kernel, padding="same")

        def tied(inputs, free, geometry=geometry):
            return backend.convolve(inputs, free, geometry)

        row = {"case": str(case), "saving": case.saving, "is_fitted": case.is_fitted, "channels": case.channels, "pays": pays}
        for name, wrap in {"forward": lambda one: one, "training": lambda one: with_gradients(way, one)}.items():
            functions = {}
            for kind, function, weights in (("stock", stock, kernel), ("tied", tied, free)):
                run = compiled(way, wrap(function))
                arguments = (images, weights) if name == "forward" else (images, weights, images)
                functions[kind] = lambda run=run, arguments=arguments: wait(way, run(*arguments))
            if way == "torch" and name == "forward":
                import torch

                with torch.no_grad():
                    times = interleaved(functions)
            else:
                times = interleaved(functions)
            row[name] = ratios(times, "stock")["tied"]
            row[f"{name}_ms"] = {kind: 1e3 * one["median"] for kind, one in times.items()}
        yield row
        print(
            way,
            threads,
            row["case"],
            f"{case.saving:.2f}",
            *(f"{name} {row[name]['median']:.2f}" for name in ("forward", "training")),
            pays,
            flush=True,
        )


rows = list({"convolutions": convolutions}[section]())
with open(file, "w") as target:
    json.dump(rows, target)
