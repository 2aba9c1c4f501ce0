"""Laws of precision: in every dtype kernels are tied to the bit, and their steps are those of float64 within its rounding."""

import functools
import itertools

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import layers, optimizers
from support.backends import array
from support.models import make, sequential, skip
from support.oracles import dense_project
from support.training import (
    PATTERN,
    VARIANTS,
    Looking,
    Problem,
    assert_bit_tied,
    assert_tied,
    conv,
    fit,
    kernel_of,
    look,
    seen,
    seen_gradient,
    step,
)

import kernel_tying as kt

# The dtypes of variables and of what is computed, by dtype policy.
DTYPES = {
    "float32": ("float32", "float32"),
    "float64": ("float64", "float64"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "float16": ("float16", "float16"),
    "mixed_bfloat16": ("float32", "bfloat16"),
    "mixed_float16": ("float32", "float16"),
}
HALF = ["bfloat16", "float16"]
RATE = 0.125  # exact in every dtype
in_all_variants = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(params=DTYPES)
def dtype(request):
    """Each dtype policy in turn."""
    if request.param == "float64":
        request.getfixturevalue("double_precision")
    return request.param


@functools.cache
def problem_in(dtype):
    return Problem(dtype=dtype)


def sgd(dtype, **options):
    """Returns plain SGD, with the loss scaled where Keras scales it."""
    optimizer = optimizers.SGD(RATE, **options)
    return optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**8) if dtype == "mixed_float16" else optimizer


def fit_and_look(model, problem, optimizer):
    looking = Looking()
    fit(model, problem, optimizer, [looking])
    return looking.kernels


def step_and_look(model, problem, optimizer):
    kernels = []
    for index in range(problem.steps):
        step(model, problem, index, optimizer)
        kernels.append(look(model))
    return kernels


@functools.cache
def kernels_of(run, dtype):
    """Returns the kernels of each variant, before the first and after each step."""
    problem = problem_in(dtype)
    model = problem.model()
    return [look(model), *run(model, problem, sgd(dtype))]


def convolution_gradient(inputs, upstream):
    """Returns the gradient in the kernel of a convolution without padding, averaged over the batch, in float64."""
    windows = np.lib.stride_tricks.sliding_window_view(inputs.astype("float64"), (3, 3), axis=(1, 2))
    return np.einsum("bxycij,bxyo->ijco", windows, upstream.astype("float64")) / len(inputs)


def expected_kernels(problem, variant):
    """Returns the kernels before the first and after each step, in float64."""
    variable = seen(problem.kernel.astype("float64"), problem.pattern, variant)
    kernels = [kernel_of(variable, problem.pattern, variant)]
    for upstream in problem.upstreams:
        gradient = convolution_gradient(problem.inputs, upstream)
        variable = variable - RATE * seen_gradient(gradient, problem.pattern, variant)
        kernels.append(kernel_of(variable, problem.pattern, variant))
        variable = seen(kernels[-1], problem.pattern, variant)
    return kernels


def assert_close(values, expected, dtype, units):
    """Raises unless `values` are within some units of rounding, at the scale of `expected`."""
    eps = max(float(ml_dtypes.finfo(one).eps) for one in DTYPES[dtype])
    values, expected = np.asarray(values, "float64"), np.asarray(expected, "float64")
    np.testing.assert_allclose(values, expected, rtol=0, atol=units * eps * np.abs(expected).max())


by_hand_and_in_fit = pytest.mark.parametrize("run", [step_and_look, fit_and_look])


@in_all_variants
@by_hand_and_in_fit
def test_kernels_are_tied_to_the_bit_after_every_step(dtype, run, variant):
    assert_tied([kernels[variant] for kernels in kernels_of(run, dtype)])


@in_all_variants
@by_hand_and_in_fit
def test_steps_are_those_of_float64_within_rounding(dtype, run, variant):
    steps = [kernels[variant] for kernels in kernels_of(run, dtype)]

    assert_close(steps, expected_kernels(problem_in(dtype), variant), dtype, units=4)


@in_all_variants
def test_free_weights_and_their_slots_have_the_dtype_of_the_stock_kernel(dtype, variant):
    stock, tied = problem_in(dtype).stock("stock"), problem_in(dtype).tied(variant)
    optimizer = optimizers.SGD(RATE, momentum=0.5, use_ema=True, gradient_accumulation_steps=2)

    optimizer.build(tied.trainable_variables)

    variable, _ = DTYPES[dtype]
    assert stock.kernel.dtype == tied.kernel.dtype == variable
    assert [one.dtype for one in tied.weights] == [variable] * 2
    assert [one.dtype for one in optimizer.variables[2:]] == [variable] * 6


@in_all_variants
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_averaged_in_float32_and_rounded_once(dtype, variant):
    layer = layers.Conv2D(2, 5, dtype=dtype, name="conv")
    layer.build((None, 9, 9, 2))
    layer.kernel.assign(10 ** np.random.default_rng(0).uniform(-1, 1, size=layer.kernel.shape))
    expected = dense_project(array(layer.kernel), kt.patterns.constant((5, 5)))

    tied = kt.apply_tying(layer, kt.patterns.constant((5, 5)), **VARIANTS[variant])

    # Orthonormal free weights are rounded when they are stored, and again when they are divided.
    half_units = 3 if variant == "orthonormal" else 1
    unit = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(array(tied.kernel).astype("float64"), expected, rtol=1.001 * half_units * unit / 2)


def trained(dtype):
    """Returns a compiled model of all variants after a step."""
    problem = problem_in(dtype)
    model = problem.model()
    optimizer = optimizers.SGD(RATE, momentum=0.5)
    model.compile(optimizer, "mse", run_eagerly=True, jit_compile=False, auto_scale_loss=False)
    model.train_on_batch(problem.inputs, problem.targets()[0])
    return model


def described(model):
    """Returns dtype and bits of each variable of a model and its optimizer, by path."""
    variables = [*model.variables, *model.optimizer.variables]
    return [(one.path, one.dtype, np.array(array(one)).tobytes()) for one in variables]


def test_files_keep_dtypes_and_bits(dtype, tmp_path):
    model = trained(dtype)
    model.save(tmp_path / "tied.keras")

    loaded = keras.saving.load_model(tmp_path / "tied.keras")

    assert described(loaded) == described(model)
    for variant in VARIANTS:
        assert loaded.get_layer(variant).dtype_policy == model.get_layer(variant).dtype_policy
        assert_bit_tied([array(loaded.get_layer(variant).kernel)])


def test_training_goes_on_from_a_file_bit_for_bit(dtype, tmp_path):
    model, problem = trained(dtype), problem_in(dtype)
    model.save(tmp_path / "tied.keras")
    loaded = keras.saving.load_model(tmp_path / "tied.keras")

    for one in (model, loaded):
        one.train_on_batch(problem.inputs, problem.targets()[1])

    assert described(loaded) == described(model)


@pytest.mark.parametrize("dtype", HALF)
def test_float32_weights_load_into_a_layer_of_half_precision(dtype, tmp_path):
    wide, narrow = problem_in("float32").model(), problem_in(dtype).model()
    wide.save_weights(tmp_path / "wide.weights.h5")

    narrow.load_weights(tmp_path / "wide.weights.h5")

    for variant in VARIANTS:
        assert_close(array(narrow.get_layer(variant).kernel), array(wide.get_layer(variant).kernel), dtype, units=2)
        assert_bit_tied([array(narrow.get_layer(variant).kernel)])


@by_hand_and_in_fit
def test_a_loss_scale_that_overflows_skips_steps_until_it_fits(run):
    problem, initial_exponent = Problem(dtype="mixed_float16", steps=8), 18
    optimizer = optimizers.LossScaleOptimizer(optimizers.SGD(RATE), initial_scale=2.0**initial_exponent)
    model = problem.model()

    steps = [look(model), *run(model, problem, optimizer)]

    skipped = initial_exponent - np.log2(float(array(optimizer.dynamic_scale)))
    assert 0 < skipped < problem.steps
    for variant in VARIANTS:
        kernels = [step[variant] for step in steps]
        assert sum(np.array_equal(old, new) for old, new in itertools.pairwise(kernels)) == skipped
        assert_tied(kernels)


@in_all_variants
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_dtype_policy_that_is_set_later_is_that_of_the_stock_layer(policy, variant):
    problem = problem_in("float32")
    stock, tied = problem.stock("stock"), problem.tied(variant)
    stock.kernel.assign(problem.kernel)
    stock.bias.assign(problem.bias)

    for layer in (stock, tied):
        layer.dtype_policy = policy

    assert tied.compute_dtype == stock.compute_dtype
    assert tied(problem.inputs).dtype == stock(problem.inputs).dtype
    np.testing.assert_array_equal(array(tied(problem.inputs)), array(stock(problem.inputs)))


@in_all_variants
def test_a_map_of_dtype_policies_finds_a_tied_layer_by_the_path_of_the_stock_layer(variant):
    policies = keras.dtype_policies.DTypePolicyMap("float32")  # without a default, its config forgets the policies
    policies[variant] = keras.DTypePolicy("mixed_float16")
    problem = Problem(dtype=policies)

    tied = problem.tied(variant)

    assert tied.compute_dtype == "float16"
    assert array(tied(problem.inputs)).dtype == "float16"


@pytest.mark.parametrize("build", [sequential, skip])
def test_a_tied_model_keeps_the_dtype_policy_under_which_its_model_was_made(build):
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        model = make(build)
    finally:
        keras.config.set_dtype_policy(before)

    tied = kt.apply_tying(model, "mirror", mode="parameterization")

    found = [one.dtype_policy.name for one in (model, tied, kt.strip_tying(tied))]
    assert found == ["mixed_bfloat16"] * 3


@pytest.fixture
def floatx(request):
    """Sets the dtype of layers that are given none."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    if request.param == "float64":
        request.getfixturevalue("double_precision")
    keras.config.set_floatx(request.param)
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


in_every_floatx = pytest.mark.parametrize("floatx", ["float64", "float16", "bfloat16"], indirect=True)


@in_all_variants
@in_every_floatx
def test_layers_without_a_dtype_are_drawn_and_trained_in_floatx(floatx, variant):
    tied = kt.apply_tying(conv("conv"), PATTERN, **VARIANTS[variant])
    tied.build((None, 5, 5, 2))
    drawn = np.array(array(tied.kernel))

    optimizers.SGD(RATE).apply([keras.ops.ones(one.shape) for one in tied.trainable_variables], tied.trainable_variables)

    assert [one.dtype for one in tied.weights] == [floatx] * 2
    assert_tied([drawn, array(tied.kernel)])


@in_all_variants
@in_every_floatx
def test_layers_with_a_dtype_keep_it_whatever_floatx_is(floatx, variant):
    problem = Problem(dtype="float32")
    kernel = array(problem.tied(variant).kernel)

    assert kernel.dtype == "float32"
    np.testing.assert_allclose(kernel, problem.kernel, rtol=1e-6)
