"""Laws of training: every optimizer of Keras steps tied kernels as it steps plain variables, through an explicit `B`."""

import contextlib
import functools
import inspect

import keras
import numpy as np
import pytest
from keras import layers, ops, optimizers
from support.backends import KERAS, array
from support.oracles import dense_project
from support.training import (
    VARIANTS,
    Looking,
    Problem,
    apply,
    assert_bit_tied,
    assert_tied,
    dense,
    fit,
    kernel_of,
    look,
    seen,
    seen_gradient,
    step,
)

import kernel_tying as kt


def plain(cls):
    return lambda **options: cls(**{"learning_rate": 0.1, **options})


def several(**options):
    default = optimizers.Adam(**{"learning_rate": 0.1, **options})
    return optimizers.MultiOptimizer(optimizers.OptimizerMap(default, {".*bias": optimizers.SGD(0.1, **options)}))


# Each optimizer that Keras ships, made with the options that all of them take.
OPTIMIZERS = {
    optimizers.Adadelta: plain(optimizers.Adadelta),
    optimizers.Adafactor: plain(optimizers.Adafactor),
    optimizers.Adagrad: plain(optimizers.Adagrad),
    optimizers.Adam: plain(optimizers.Adam),
    optimizers.AdamW: plain(optimizers.AdamW),
    optimizers.Adamax: plain(optimizers.Adamax),
    optimizers.Ftrl: plain(optimizers.Ftrl),
    optimizers.Lamb: plain(optimizers.Lamb),
    optimizers.Lion: plain(optimizers.Lion),
    optimizers.LossScaleOptimizer: lambda **options: optimizers.LossScaleOptimizer(plain(optimizers.Adam)(**options)),
    optimizers.Muon: plain(optimizers.Muon),
    optimizers.Nadam: plain(optimizers.Nadam),
    optimizers.RMSprop: plain(optimizers.RMSprop),
    optimizers.SGD: plain(optimizers.SGD),
}
if KERAS >= (3, 14):
    OPTIMIZERS[optimizers.ScheduleFreeAdamW] = plain(optimizers.ScheduleFreeAdamW)
if KERAS >= (3, 15):
    OPTIMIZERS[optimizers.MultiOptimizer] = several
OPTIONS = {
    "accumulation": {"gradient_accumulation_steps": 2},
    "clipped norm": {"clipnorm": 0.1},
    "clipped global norm": {"global_clipnorm": 0.1},
    "clipped values": {"clipvalue": 0.01},
    "decay": {"weight_decay": 0.1},
    "scaled loss": {"loss_scale_factor": 64.0},
    "averages": {"use_ema": True, "ema_momentum": 0.5},
    "overwriting averages": {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
    "several options": {"clipnorm": 0.5, "weight_decay": 0.1, "gradient_accumulation_steps": 2},
}


def nested(**options):
    return optimizers.LossScaleOptimizer(several(**options), initial_scale=8.0)


MAKERS = {
    **{cls.__name__: make for cls, make in OPTIMIZERS.items()},
    "momentum": functools.partial(plain(optimizers.SGD), momentum=0.9, nesterov=True),
    **{name: functools.partial(plain(optimizers.SGD), **options) for name, options in OPTIONS.items()},
    "scheduled": lambda **options: optimizers.SGD(optimizers.schedules.ExponentialDecay(0.1, 1, 0.5), **options),
}
if KERAS >= (3, 15):
    MAKERS |= {"nested": nested, "nested averages": functools.partial(nested, **OPTIONS["averages"])}
STEPPED = list(MAKERS)
if KERAS < (3, 13) and keras.backend.backend() == "tensorflow":
    STEPPED.remove("Muon")  # asks a variable of TensorFlow for its `path`, stock models' too
MAKERS["muon without scale"] = functools.partial(plain(optimizers.Muon), rms_rate=None)
# Built inside a compiled step of TensorFlow, it starts from zeros instead of the weights, those of a stock layer too.
BUILT_FIRST = ["ScheduleFreeAdamW"]
PROBLEM = Problem()
# Accumulators that begin above zero, and epsilons, count for nothing beside gradients of this scale.
EQUAL = Problem(pattern=kt.TyingPattern.parse("A B C/B -C A/-C A -B"), scale=1e6)

in_all_variants = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(scope="module", params=STEPPED)
def optimizer(request):
    """The name of each optimizer in turn, so that tests which share its runs stand side by side."""
    return request.param


def test_the_table_names_every_optimizer_that_keras_ships():
    shipped = {one for one in vars(optimizers).values() if inspect.isclass(one) and issubclass(one, optimizers.Optimizer)}

    assert set(OPTIMIZERS) == shipped - {optimizers.Optimizer}, f"Keras {keras.__version__} ships other optimizers"


def plain_variables(problem):
    """Returns what the optimizer is to see of `problem`: for each variant a kernel or its free weights, and the bias."""
    return [
        keras.Variable(value, dtype="float32", name=f"{variant}_{name}")  # Muon of Keras 3.12 finds slots by the path
        for variant in VARIANTS
        for name, value in (("kernel", seen(problem.kernel, problem.pattern, variant)), ("bias", problem.bias))
    ]


def plain_gradients(problem, kernel_gradient, bias_gradient):
    values = [one for variant in VARIANTS for one in (seen_gradient(kernel_gradient, problem.pattern, variant), bias_gradient)]
    return [ops.convert_to_tensor(value, dtype="float32") for value in values]


@functools.cache
def expected_kernels(optimizer, problem=PROBLEM):
    """Returns the kernels of each variant after each step, as the stock optimizer steps plain variables."""
    variables, stepper, kernels = plain_variables(problem), MAKERS[optimizer](), []
    for kernel_gradient, bias_gradient in problem.gradients:
        kernels.append(plain_step(stepper, variables, plain_gradients(problem, kernel_gradient, bias_gradient), problem))
    return kernels


def plain_step(optimizer, variables, gradients, problem):
    scale = array(optimizer.scale_loss(ops.ones(())))
    apply(optimizer, [ops.multiply(gradient, scale) for gradient in gradients], variables)
    kernels = {
        variant: kernel_of(array(one), problem.pattern, variant) for variant, one in zip(VARIANTS, variables[::2], strict=True)
    }
    variables[0].assign(kernels["constraint"])
    return kernels


@functools.cache
def kernels_by_hand(optimizer, problem=PROBLEM):
    """Returns the kernels of each variant after each step of a loop written by hand."""
    model, stepper, kernels = problem.model(), MAKERS[optimizer](), []
    for index in range(problem.steps):
        step(model, problem, index, stepper)
        kernels.append(look(model))
    return kernels


@functools.cache
def fitted(optimizer):
    """Returns the kernels of each variant after each step of `fit`, and at its end."""
    model, looking = PROBLEM.model(), Looking()
    fit(model, PROBLEM, MAKERS[optimizer](), [looking, kt.KeepTied()], is_built=optimizer in BUILT_FIRST)
    return [*looking.kernels, look(model)]


@in_all_variants
def test_kernels_are_tied_to_the_bit_after_every_step_by_hand(optimizer, variant):
    assert_tied([PROBLEM.kernel, *(kernels[variant] for kernels in kernels_by_hand(optimizer))])


@in_all_variants
def test_kernels_are_tied_to_the_bit_after_every_step_of_fit_and_at_its_end(optimizer, variant):
    assert_tied([PROBLEM.kernel, *(kernels[variant] for kernels in fitted(optimizer))])


@in_all_variants
def test_optimizer_steps_tied_kernels_as_plain_variables_through_a_dense_basis(optimizer, variant):
    steps = [kernels[variant] for kernels in kernels_by_hand(optimizer)]

    np.testing.assert_allclose(steps, [kernels[variant] for kernels in expected_kernels(optimizer)], rtol=1e-4, atol=2e-5)


@in_all_variants
def test_fit_takes_the_steps_that_a_loop_by_hand_takes(optimizer, variant):
    steps = [kernels[variant] for kernels in fitted(optimizer)[:-1]]

    np.testing.assert_allclose(steps, [kernels[variant] for kernels in kernels_by_hand(optimizer)], rtol=1e-4, atol=2e-5)


# The options with which a step is linear in the gradients.
LINEAR = ["SGD", "momentum", "accumulation", "decay", "scaled loss", "averages", "overwriting averages", "scheduled"]


@pytest.mark.parametrize("name", LINEAR)
def test_orthonormal_free_weights_take_the_sgd_steps_of_constraint_mode(name):
    constrained, orthonormal = (
        [kernels[variant] for kernels in kernels_by_hand(name)] for variant in ("constraint", "orthonormal")
    )

    np.testing.assert_allclose(orthonormal, constrained, rtol=1e-5, atol=2e-6)


# In these scalings free weights step as the stock kernel does at the projected gradient.
ADAPTIVE = ["Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Ftrl", "Lion", "Muon", "Nadam", "RMSprop", "ScheduleFreeAdamW"]
STOCK_STEPS = [
    *((name, "orthonormal") for name in ("SGD", "momentum", "decay")),
    *((name, "values") for name in ADAPTIVE if name in STEPPED),
    *((name, variant) for name in ("Adafactor", "Lamb") for variant in ("values", "orthonormal")),
]


def stock_kernels_of_projected_gradients(name, problem):
    """Returns the kernel after each step that a stock optimizer takes at the projected gradients, without any tying."""
    variable, stepper = keras.Variable(problem.kernel, dtype="float32", name="kernel"), MAKERS[name]()
    kernels = []
    for kernel_gradient, _ in problem.gradients:
        projected = dense_project(kernel_gradient, problem.pattern)
        stepper.apply([ops.convert_to_tensor(projected, dtype="float32")], [variable])
        kernels.append(np.array(array(variable)))
    return kernels


@pytest.mark.parametrize(("name", "variant"), STOCK_STEPS)
def test_free_weights_step_as_the_stock_kernel_does_at_the_projected_gradient(name, variant):
    expected = stock_kernels_of_projected_gradients(name, EQUAL)

    steps = [kernels[variant] for kernels in kernels_by_hand(name, EQUAL)]

    np.testing.assert_allclose(steps, expected, rtol=1e-3, atol=1e-3 * np.abs(np.diff(expected, axis=0)).max())


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_kernels_stay_tied_to_the_bit_in_tiny_and_huge_steps(scale):
    kernels = kernels_by_hand("SGD", Problem(scale=scale))

    for variant in VARIANTS:
        assert_bit_tied([one[variant] for one in kernels])


# Kernels of rank 2, to which Muon and Adafactor apply rules of their own: tied along one axis, and along both.
MATRICES = {
    "inputs": Problem(dense, (4,), kt.TyingPattern.parse("A B -A B", shape=(4, 1)), scale=10.0),
    "outputs": Problem(dense, (4,), kt.TyingPattern.parse("A B -A B", shape=(1, 4)), scale=10.0),
    "both": Problem(dense, (4,), kt.patterns.circulant((4, 4)), scale=10.0),
}


@in_all_variants
@pytest.mark.parametrize("axes", MATRICES)
@pytest.mark.parametrize("name", [name for name in ("Muon", "Adafactor", "Lamb") if name in STEPPED])
def test_optimizer_steps_tied_matrices_as_plain_variables_through_a_dense_basis(name, axes, variant):
    problem = MATRICES[axes]

    steps = [kernels[variant] for kernels in kernels_by_hand(name, problem)]

    assert_tied([problem.kernel, *steps], problem.pattern)
    np.testing.assert_allclose(steps, [kernels[variant] for kernels in expected_kernels(name, problem)], rtol=1e-4, atol=2e-5)


@pytest.mark.skipif(KERAS < (3, 13), reason="Muon of Keras 3.12 scales its steps by the sizes of the matrix")
@pytest.mark.parametrize("axes", ["inputs", "outputs"])
def test_muon_steps_orthonormal_free_weights_of_a_matrix_as_the_stock_kernel_at_the_projected_gradient(axes):
    problem = MATRICES[axes]
    expected = stock_kernels_of_projected_gradients("muon without scale", problem)

    steps = [kernels["orthonormal"] for kernels in kernels_by_hand("muon without scale", problem)]

    np.testing.assert_allclose(steps, expected, rtol=1e-3, atol=1e-4)


CIRCULANT = kt.patterns.circulant((4, 4))
MUON_RULES = {  # layer, input shape, pattern, options of Muon, whether it steps the kernel by the rule of AdamW
    "convolution": (lambda: layers.Conv2D(2, 3, name="layer"), (None, 5, 5, 2), "mirror", {}, True),
    "rank 3": (lambda: layers.Conv1D(2, 3, name="layer"), (None, 5, 2), "mirror", {}, KERAS >= (3, 13)),
    "matrix": (lambda: layers.Dense(4, name="layer"), (None, 4), CIRCULANT, {}, False),
    "excluded": (lambda: layers.Dense(4, name="layer"), (None, 4), CIRCULANT, {"exclude_layers": ["^layer/kernel"]}, True),
    "embedding": (lambda: layers.Dense(4, name="embedding"), (None, 4), CIRCULANT, {}, True),
    "included": (lambda: layers.Dense(4, name="embedding"), (None, 4), CIRCULANT, {"exclude_embeddings": False}, False),
}


def slots(layer, **options):
    """Returns the slots that Muon makes for a layer: a velocity for what it steps by the rule of AdamW."""
    optimizer = optimizers.Muon(0.1, **options)
    optimizer.build(layer.trainable_variables)
    return [variable.name for variable in optimizer.variables]


@in_all_variants
@pytest.mark.parametrize("case", MUON_RULES)
def test_muon_steps_a_tied_kernel_by_the_rule_of_the_stock_kernel(case, variant):
    make_layer, shape, pattern, options, is_adamw = MUON_RULES[case]
    stock, layer = make_layer(), make_layer()
    for one in (stock, layer):
        one.build(shape)

    tied = kt.apply_tying(layer, {layer.name: pattern}, **VARIANTS[variant])

    assert slots(tied, **options) == slots(stock, **options)
    assert any("kernel_velocity" in name for name in slots(tied, **options)) == is_adamw


@in_all_variants
@pytest.mark.parametrize("names", [["kernel"], ["bias"]], ids=str)
def test_weight_decay_passes_over_what_is_excluded_by_the_name_of_the_stock_variable(names, variant):
    layer = PROBLEM.tied(variant)
    before = array(layer.kernel)
    optimizer = optimizers.AdamW(0.5, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=names)

    optimizer.apply([ops.zeros(one.shape) for one in layer.trainable_variables], layer.trainable_variables)

    decay = {"kernel": 1.0, "bias": 1.0, names[0]: 0.0}
    np.testing.assert_allclose(array(layer.kernel), before * (1 - 0.25 * decay["kernel"]), rtol=1e-6)
    np.testing.assert_allclose(array(layer.bias), PROBLEM.bias * (1 - 0.25 * decay["bias"]), rtol=1e-6)


def forgets_weights(optimizer):
    """Returns whether an optimizer that `fit` builds takes a stock layer's kernel of ones to about zero in a tiny step."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, kernel_initializer="ones")])
    model.compile(optimizer, "mse", jit_compile=False)
    model.fit(np.ones((2, 2)), np.zeros((2, 2)), verbose=0)
    return bool(np.abs(array(model.layers[0].kernel)).max() < 0.1)


@pytest.mark.skipif(KERAS < (3, 14), reason="Keras 3.13 and older have no ScheduleFreeAdamW")
def test_schedule_free_adamw_built_in_a_compiled_step_forgets_stock_weights_on_tensorflow_alone():
    assert forgets_weights(optimizers.ScheduleFreeAdamW(1e-3)) == (keras.backend.backend() == "tensorflow")


def test_loss_scaling_by_hand_is_stateless_on_jax_alone():
    optimizer, variable = optimizers.LossScaleOptimizer(optimizers.SGD(0.1)), keras.Variable([1.0])
    is_jax = keras.backend.backend() == "jax"

    with pytest.raises(Exception, match="leaked") if is_jax else contextlib.nullcontext():
        optimizer.apply([ops.ones((1,))], [variable])

    assert optimizer.built
