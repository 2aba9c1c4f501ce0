"""What Keras cannot export from torch, beyond the table of `LIMITS`."""

import jax
import keras
import litert_torch  # turns `jax_enable_x64` on when it is imported, before the tests turn it off
import numpy as np
import pytest
from families import batch, make
from keras import ops
from runtimes import export, exported
from test_limits import with_and_without_tying


@with_and_without_tying
@pytest.mark.usefixtures("int64_constants")
def test_litert_has_one_row_if_it_is_not_told(variant, tmp_path):
    model = make("planes", variant)

    function = exported(model, "litert", tmp_path)

    with pytest.raises(ValueError, match="Got 3 but expected 1 for dimension 0"):
        function(batch(model, 3))


@with_and_without_tying
def test_torch_has_one_row_if_it_is_not_told(variant, tmp_path):
    model = make("planes", variant)

    function = exported(model, "torch", tmp_path)

    with pytest.raises(AssertionError, match=r"Guard failed: args_0.size\(\)\[0\] == 1"):
        function(batch(model, 3))


@with_and_without_tying
def test_saved_model_of_a_fixed_number_of_rows_wants_torch_xla(variant, tmp_path):
    model = make("planes", variant)
    signature = [keras.InputSpec(shape=batch(model, 1).shape, dtype="float32")]

    with pytest.raises(ImportError, match="This requires the torch_xla module"):
        export(model, "tf_saved_model", tmp_path, input_signature=signature)


@with_and_without_tying
def test_onnx_takes_volumes_in_a_fixed_number_of_rows_alone(variant, tmp_path):
    model = make("volumes", variant)
    inputs = batch(model, 3)
    signature = [keras.InputSpec(shape=inputs.shape, dtype="float32")]

    function = exported(model, "onnx", tmp_path, input_signature=signature)

    np.testing.assert_allclose(function(inputs), ops.convert_to_numpy(model(inputs)), rtol=0, atol=1e-5)


def permuted():
    """Returns a stock model with a constant of int64, as a tied one has to expand its free weights."""
    x = keras.Input((4,), name="row")
    return keras.Model(x, ops.take(x, np.array([2, 0, 1, 3]), axis=1))


@pytest.mark.parametrize("build", [permuted, lambda: make("planes", "values")], ids=["stock", "tied"])
def test_litert_loses_constants_of_int64_after_the_first_export_of_a_process(build, tmp_path):
    assert litert_torch
    jax.config.update("jax_enable_x64", False)  # as Keras leaves it behind the first export

    with pytest.raises(RuntimeError, match=r"expected operand type 'tensor<.*xi32>', but provided 'tensor<.*xi64>'"):
        export(build(), "litert", tmp_path)
