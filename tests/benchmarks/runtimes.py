"""Times exported group sums against exported stock convolutions, in the runtime of each format, on one thread.

    KERAS_BACKEND=tensorflow python tests/benchmarks/runtimes.py [format ...]

Prints stock / tied, in time and in bytes of the file, and the largest difference from Keras' outputs.
"""

import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from cases import Case
from machines import cpu
from rich.console import Console
from rich.table import Table
from timing import interleaved, ratios

import kernel_tying as kt

BACKEND = keras.backend.backend()
CASES = (
    Case("question", 5, 16, 64, 8),
    Case("rotation", 3, 16, 64, 8),
    Case("dihedral", 5, 28, 128, 1),
    Case("radial", 7, 16, 64, 8),
    Case("radial", 7, 32, 32, 1),
    Case("mirror", 3, 28, 256, 1),
)


def run_onnx(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, {session.get_inputs()[0].name: inputs})[0]


def run_openvino(path):
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    request = openvino.Core().compile_model(str(path), "CPU", options).create_infer_request()
    return lambda inputs: request.infer([inputs], share_inputs=True)[0]


def run_litert(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    allocated = []

    def run(inputs):
        if not allocated:
            if source["shape_signature"][0] == -1:
                interpreter.resize_tensor_input(source["index"], inputs.shape)
            allocated.append(interpreter.allocate_tensors())
        interpreter.set_tensor(source["index"], inputs)
        interpreter.invoke()
        return interpreter.get_tensor(target["index"])

    return run


def run_saved_model(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return lambda inputs: loaded.serve(tf.constant(inputs)).numpy()


def run_torch(path):
    import torch

    module = torch.export.load(path).module()

    def run(inputs):
        with torch.no_grad():
            return module(torch.tensor(inputs)).numpy()

    return run


RUNTIMES = {
    "onnx": ("model.onnx", run_onnx),
    "openvino": ("model.xml", run_openvino),
    "litert": ("model.tflite", run_litert),
    "tf_saved_model": ("saved_model", run_saved_model),
    "torch": ("model.pt2", run_torch),
}
FORMATS = {
    "tensorflow": ("onnx", "openvino", "litert", "tf_saved_model"),
    "jax": ("onnx",),
    "torch": ("onnx", "openvino", "litert", "torch"),
}[BACKEND]


def pin_threads():
    """Gives the backend one thread, as the runtimes have."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
    if BACKEND == "torch":
        import jax
        import torch

        torch.set_num_threads(1)
        jax.config.update("jax_enable_x64", True)  # litert-torch needs it: see the page about deployment


def export_options(format, inputs):
    """Returns what Keras has to be told for a batch of this size."""
    if BACKEND == "torch" and format == "litert":
        return {"input_signature": [keras.InputSpec(shape=inputs.shape, dtype="float32")]}
    if format == "torch":
        import torch

        return {"dynamic_shapes": {0: torch.export.Dim("batch")}}
    return {}


def models(case):
    """Returns a model by group sums, and the stock model with the same kernel."""
    image = keras.Input((case.size, case.size, case.channels))
    stock = keras.Model(image, keras.layers.Conv2D(case.channels, case.k, padding="same", name="conv")(image))
    tied = kt.apply_tying(stock, case.pattern, mode="parameterization", convolution="group_sums")
    return {"tied": tied, "stock": kt.strip_tying(tied)}


def measure(case, format, folder):
    """Returns a row of the table."""
    inputs = np.random.default_rng(0).normal(size=(case.batch, case.size, case.size, case.channels)).astype("float32")
    file, load = RUNTIMES[format]
    functions, sizes, error = {}, {}, 0.0
    for name, model in models(case).items():
        expected = keras.ops.convert_to_numpy(model(inputs))
        path = folder / name / file
        path.parent.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporters
            model.export(str(path), format=format, verbose=False, **export_options(format, inputs))
        run = load(path)
        error = max(error, np.abs(run(inputs) - expected).max())
        functions[name] = lambda run=run: run(inputs)
        sizes[name] = sum(part.stat().st_size for part in path.parent.rglob("*") if part.is_file())
    speed_up = ratios(interleaved(functions, rounds=15), "stock")["tied"]["median"]
    share, size = sizes["tied"] / sizes["stock"], f"{sizes['stock'] // 1024} -> {sizes['tied'] // 1024}"
    return str(case), f"{case.saving:.1f}", format, f"{speed_up:.2f}", f"{share:.2f}", size, f"{error:.0e}"


def main():
    """Measures all cases in the formats that the arguments name, by default all that the backend writes."""
    pin_threads()
    table = Table("case", "k²/K", "format", "stock / tied", "file, tied / stock", "KiB", "error", title=f"{BACKEND}, {cpu()}")
    for case in CASES:
        for format in sys.argv[1:] or FORMATS:
            with tempfile.TemporaryDirectory() as folder:
                table.add_row(*measure(case, format, Path(folder)))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
