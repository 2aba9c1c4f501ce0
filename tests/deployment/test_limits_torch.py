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

import kernel_tying as kt


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


@pytest.fixture
def int32_constants():
    """What Keras leaves behind the first export of a process."""
    assert litert_torch
    jax.config.update("jax_enable_x64", False)


@pytest.mark.usefixtures("int32_constants")
def test_litert_loses_constants_of_int64_after_the_first_export_of_a_process(tmp_path):
    x = keras.Input((4,), name="row")
    model = keras.Model(x, ops.take(x, np.array([2, 0, 1, 3]), axis=1))

    with pytest.raises(RuntimeError, match=r"expected operand type 'tensor<.*xi32>', but provided 'tensor<.*xi64>'"):
        export(model, "litert", tmp_path)


@pytest.mark.usefixtures("int32_constants")
@pytest.mark.parametrize("pattern", ["dihedral", "transpose", kt.patterns.point((12, 12), antisymmetric=True), "cross"])
def test_litert_takes_tied_kernels_of_any_size_any_number_of_times(pattern, tmp_path):
    x = keras.Input((16, 16, 1), name="image")
    model = kt.apply_tying(keras.Model(x, keras.layers.Conv2D(1, 12)(x)), pattern, mode="parameterization")

    function = exported(model, "litert", tmp_path)

    np.testing.assert_allclose(function(batch(model, 1)), ops.convert_to_numpy(model(batch(model, 1))), rtol=0, atol=1e-5)
