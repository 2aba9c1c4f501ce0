"""The formats that Keras exports to, the runtimes that read them, and what Keras cannot export."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

BACKEND = keras.backend.backend()


def load_saved_model(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return lambda inputs: loaded.serve(tf.constant(inputs)).numpy()


def load_litert(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(inputs):
        if source["shape_signature"][0] == -1:
            interpreter.resize_tensor_input(source["index"], inputs.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(source["index"], inputs)
        interpreter.invoke()
        return interpreter.get_tensor(target["index"])

    return run


def load_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, {session.get_inputs()[0].name: inputs})[0]


def load_openvino(path):
    import openvino

    # Else processors that can compute in bfloat16 or float16 do: three digits instead of seven.
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: compiled(inputs)[0]


def load_torch(path):
    import torch

    module = torch.export.load(path).module()
    return lambda inputs: module(torch.tensor(inputs)).detach().numpy()


class Format(NamedTuple):
    """A format of `model.export`: the file that holds it, and how its runtime makes a function of that file."""

    file: str
    load: Callable[[Path], Callable[[np.ndarray], np.ndarray]]


FORMATS = {
    "tf_saved_model": Format("saved_model", load_saved_model),
    "litert": Format("model.tflite", load_litert),
    "onnx": Format("model.onnx", load_onnx),
    "openvino": Format("model.xml", load_openvino),
    "torch": Format("model.pt2", load_torch),
}
EXPORTED = {
    "tensorflow": ("tf_saved_model", "litert", "onnx", "openvino"),
    "jax": ("tf_saved_model", "onnx"),
    "torch": ("litert", "onnx", "openvino", "torch"),
}[BACKEND]


class Limit(NamedTuple):
    """What Keras cannot export, of stock models either: the error comes on export, or when the runtime reads the file."""

    backend: str
    format: str
    family: str
    error: str


LIMITS = (
    Limit("tensorflow", "onnx", "grouped", "StatefulPartitionedCall"),
    Limit("tensorflow", "litert", "looped", "Select TensorFlow op(s), included in the given model, is(are) not supported"),
    Limit("tensorflow", "openvino", "looped", "TensorList"),
    Limit("jax", "litert", "planes", "LiteRT export requires TensorFlow or PyTorch backend."),
    Limit("jax", "openvino", "planes", "XlaCallModule"),
    Limit("jax", "onnx", "volumes", "Unsupported conv layouts: lhs=(0, 4, 1, 2, 3)"),
    Limit("jax", "onnx", "transposed_volumes", "Unsupported conv layouts: lhs=(0, 4, 1, 2, 3)"),
    Limit("torch", "tf_saved_model", "planes", "Detected mismatch between the structure of `inputs` and `dynamic_shapes`"),
    Limit("torch", "litert", "transposed_volumes", "Didn't find op for builtin opcode 'STABLEHLO_CONVOLUTION'"),
    Limit("torch", "onnx", "volumes", "onnx memory_format support is not implemented"),
    Limit("torch", "openvino", "subclassed_with_norm", "aten::subtract"),
)


def can_export(format, family):
    """Returns whether Keras can export a family of stock models on this backend."""
    return not any((limit.backend, limit.format, limit.family) == (BACKEND, format, family) for limit in LIMITS)


def export(model, format, folder, **options):
    """Returns the path of the exported model."""
    path = folder / FORMATS[format].file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters
        model.export(str(path), format=format, verbose=False, **options)
    return path


def exported(model, format, folder, **options):
    """Returns the function from arrays to arrays that a runtime makes of the exported model."""
    return FORMATS[format].load(export(model, format, folder, **options))


def batch_options(format, inputs):
    """Returns what Keras has to be told for any number of rows, or for just these where the format fixes it."""
    if (BACKEND, format) == ("torch", "litert"):
        return {"input_signature": [keras.InputSpec(shape=inputs.shape, dtype="float32")]}
    if format == "torch":
        import torch

        return {"dynamic_shapes": {0: torch.export.Dim("batch")}}
    return {}
