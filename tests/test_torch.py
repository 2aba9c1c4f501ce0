"""What is torch's alone: tied models as modules, loops by hand with torch's own optimizers, and `torch.compile`."""

import copy

import keras
import numpy as np
import pytest
import torch
from keras import layers
from support.backends import array, raw_gradients
from support.keepers import PLACES, autoencoder, theta_of, tied_dense
from support.models import (
    DESCRIBED,
    MODES,
    UNDESCRIBED,
    assert_equal_values,
    images,
    make,
    sequential,
    skip,
    subclassed,
    targets,
    tie,
    train,
    values,
)
from support.oracles import dense_adjoint
from torch.utils._python_dispatch import TorchDispatchMode

import kernel_tying as kt
from kernel_tying._convolution import torch as on_torch
from kernel_tying.testing import assert_same_function, assert_tied, dense_basis

MIRROR = kt.patterns.mirror((3, 3))
in_both_modes = pytest.mark.parametrize("mode", MODES)
for_all_models = pytest.mark.parametrize("builder", DESCRIBED + UNDESCRIBED)


def assert_lists_its_variables(model):
    """Raises unless the parameters of a module are the variables of the model, no more and no less."""
    assert {id(one) for one in model.parameters()} == {id(variable.value) for variable in model.variables}


def test_a_layer_lists_its_parameters_in_torch_params_and_track_variables_lists_them_anew():
    layer = make(sequential).layers[0]
    assert hasattr(layer, "_torch_params"), "built layers keep their parameters elsewhere than in `_torch_params`"
    listed = set(layer._torch_params)
    layer._torch_params.clear()

    layer._track_variables()

    assert listed == set(layer._torch_params) == {variable.path for variable in layer.variables}, (
        "`_torch_params` lists other variables, or `_track_variables` does not fill it"
    )


@in_both_modes
@for_all_models
def test_parameters_of_a_tied_model_are_its_variables(builder, mode):
    model = make(builder, compiled=True)
    train(model)

    tied = tie(model, mode)

    assert_lists_its_variables(tied)
    assert_lists_its_variables(model)


@in_both_modes
@for_all_models
def test_parameters_of_a_stripped_model_are_its_variables(builder, mode):
    tied = tie(make(builder, compiled=True), mode)
    train(tied)

    stripped = kt.strip_tying(tied)

    assert_lists_its_variables(stripped)
    assert_lists_its_variables(tied)


def listed(module):
    """Returns the shape of each parameter of a module by its path, in order."""
    named = ((name.rpartition(".")[2], tuple(parameter.shape)) for name, parameter in module.named_parameters())
    return {path: shape for path, shape in named if not path.endswith("seed_generator_state")}  # each has a path of its own


@in_both_modes
@for_all_models
def test_named_parameters_keep_their_paths_and_order(builder, mode):
    model = make(builder)
    before = listed(model)

    assert list(listed(tie(model, mode))) == list(before)


def test_named_parameters_of_a_layer_list_its_free_weights_and_no_kernel():
    layer = make(skip).get_layer("first")
    before = listed(layer)

    tied = kt.apply_tying(layer, "mirror", mode="parameterization")

    assert listed(tied) == {**before, "first/kernel": (6, 1, 2, 2)}


@in_both_modes
@pytest.mark.parametrize("builder", [skip, subclassed])
def test_a_state_dict_holds_the_tied_model(builder, mode):
    keras.utils.clear_session()  # torch sorts parameters by path, and layers are numbered: conv2d_9 would follow conv2d_10
    tied, other = (tie(make(builder, seed=seed), mode) for seed in (7, 8))
    kept = [value.detach().clone() for value in tied.state_dict().values()]

    other.load_state_dict(dict(zip(other.state_dict(), kept, strict=True)))

    assert_equal_values(tied.weights, other.weights)
    assert_tied(other)


def test_a_state_dict_can_untie_a_constrained_model_which_is_seen_and_mended():
    tied = tie(make(skip), "constraint")
    tied.load_state_dict({name: torch.randn(value.shape) for name, value in tied.state_dict().items()})

    assert kt.tying_error(tied) > 0.0
    kt.project_kernels(tied)
    assert_tied(tied)


@in_both_modes
def test_a_copied_layer_has_parameters_of_its_own(mode):
    layer = kt.apply_tying(make(skip).get_layer("first"), "mirror", mode=mode)
    before = values(layer.weights)

    duplicate = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in duplicate.parameters():
            parameter.add_(1.0)

    assert_equal_values(layer.weights, before)
    assert_equal_values(duplicate.weights, [value + 1 for value in before])


def test_hooks_of_a_tied_layer_are_called():
    layer = kt.apply_tying(make(skip).get_layer("first"), "mirror", mode="parameterization")
    seen = []
    layer.register_forward_hook(lambda *arguments: seen.append(arguments))

    layer(images(layer))

    assert len(seen) == 1


def test_kernel_of_a_tied_layer_is_differentiable_in_the_free_weights():
    layer = kt.apply_tying(make(skip).get_layer("first"), "mirror", mode="parameterization")
    upstream = np.random.default_rng(0).normal(size=layer.kernel.shape).astype("float32")

    (layer.kernel.value * torch.from_numpy(upstream)).sum().backward()

    found = layer.free_weights["kernel"].value.grad
    np.testing.assert_allclose(found, dense_adjoint(upstream, MIRROR), rtol=1e-5, atol=1e-6)


def loss_of(model):
    return torch.mean((model(images(model), training=True) - torch.from_numpy(targets(model))) ** 2)


def steps_by_torch(model, optimizer_class, after=lambda: None, **options):
    """Trains three steps with an optimizer of torch."""
    optimizer = optimizer_class(model.parameters(), **options)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        after()
        assert_tied(model)
    return model


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("builder", [skip, subclassed])
def test_optimizers_of_torch_train_free_weights(builder, optimizer_class):
    model = tie(make(builder), "parameterization")
    before = values(model.trainable_variables)

    steps_by_torch(model, optimizer_class, lr=0.1)

    assert all(np.any(old != new) for old, new in zip(before, values(model.trainable_variables), strict=True))


def test_optimizers_of_torch_train_constrained_kernels_that_are_projected_by_hand():
    constrained, parameterized = tie(make(skip), "constraint"), tie(make(skip), "parameterization", scaling="orthonormal")

    steps_by_torch(constrained, torch.optim.SGD, lambda: kt.project_kernels(constrained), lr=0.1, momentum=0.9)
    steps_by_torch(parameterized, torch.optim.SGD, lr=0.1, momentum=0.9)

    assert_same_function(constrained, parameterized, images(constrained), rtol=1e-4, atol=1e-5)


def directional(function):
    """Returns the function that computes the derivative of `function` in the direction of its argument."""
    return lambda x: torch.func.jvp(function, (x,), (x,))[1]


def one_by_one(function):
    """Returns the function that maps `function` over single images; stock convolutions of Keras refuse `torch.vmap`."""
    return lambda x: torch.stack([function(one) for one in x])


@pytest.mark.parametrize(
    ("transform", "reference"),
    [
        (torch.func.grad, torch.func.grad),
        (torch.func.jacrev, torch.func.jacrev),
        (directional, directional),
        (torch.func.hessian, lambda f: lambda x: torch.autograd.functional.hessian(f, x)),
        (lambda f: torch.func.vmap(lambda one: f(one[None])), lambda f: one_by_one(lambda one: f(one[None]))),
        (
            lambda f: torch.func.vmap(torch.func.grad(lambda one: f(one[None]))),
            lambda f: one_by_one(torch.func.grad(lambda one: f(one[None]))),
        ),
    ],
    ids=["grad", "jacrev", "jvp", "hessian", "vmap", "gradients per sample"],
)
def test_transformed_group_sums_are_the_transformed_stock_convolution(transform, reference):
    layer = kt.apply_tying(make(skip).get_layer("first"), "mirror", mode="parameterization", convolution="group_sums")
    stock, inputs = kt.strip_tying(layer), torch.from_numpy(images(layer))[:2, :4, :3]

    results = transform(lambda x: torch.sum(torch.sin(layer(x))))(inputs)

    expected = reference(lambda x: torch.sum(torch.sin(stock(x))))(inputs)
    np.testing.assert_allclose(array(results), array(expected), rtol=0, atol=1e-5 * np.abs(array(expected)).max())


@pytest.mark.parametrize(
    ("transform", "reference"),
    [
        (torch.func.jacrev, torch.func.jacrev),
        (directional, directional),
        (torch.func.hessian, lambda f: lambda x: torch.autograd.functional.hessian(f, x)),
        (lambda f: lambda x: torch.func.vmap(f)(torch.stack([x, -x])), lambda f: lambda x: torch.stack([f(x), f(-x)])),
    ],
    ids=["jacrev", "jvp", "hessian", "vmap"],
)
def test_the_algebra_is_transformed_as_the_products_with_dense_matrices(transform, reference):
    pattern = kt.TyingPattern.parse("A B -A/B . B/-A C A")
    basis = torch.from_numpy(dense_basis(pattern))
    projection = basis @ torch.linalg.pinv(basis)
    kernel = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 3, 2)))

    found = transform(lambda k: torch.sum(torch.sin(kt.project(k, pattern))))(kernel)

    expected = reference(lambda k: torch.sum(torch.sin(projection @ k.reshape(9, 2))))(kernel)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


class Counting(TorchDispatchMode):
    """Counts operations."""

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += 1
        return function(*args, **(kwargs or {}))


def operations(function, *arguments):
    with Counting() as mode:
        function(*arguments)
    return mode.operations


@pytest.mark.parametrize(("verb", "most"), [(kt.expand, 6), (kt.project, 20)], ids=["expand", "project"])
def test_eager_verbs_take_a_few_operations_whatever_the_number_of_positions(verb, most):
    counts = set()
    for size in (3, 7, 12):
        pattern = kt.patterns.dihedral((size, size))
        shape = (size, size, 2, 2) if verb is kt.project else (pattern.num_free, 1, 2, 2)
        counts.add(operations(verb, torch.ones(shape), pattern))

    assert max(counts) <= most


def test_a_pattern_that_was_used_in_inference_mode_trains():
    layer = kt.apply_tying(make(skip).get_layer("first"), "mirror", mode="parameterization")
    with torch.inference_mode():
        expected = array(layer(images(layer)))

    outputs = layer(images(layer))
    outputs.sum().backward()

    np.testing.assert_array_equal(array(outputs), expected)
    assert torch.count_nonzero(layer.free_weights["kernel"].value.grad) > 0


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("options", [{}, {"strides": 2}, {"groups": 2}, {"padding": "same", "dilation_rate": 2}], ids=str)
def test_group_sums_need_no_onednn(options):
    layer = keras.layers.Conv2D(4, 3, **options)
    layer.build((None, 9, 8, 4))
    by_sums = kt.apply_tying(layer, "mirror", mode="parameterization", convolution="group_sums")
    inputs = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 9, 8, 4)).astype("float32"))
    results = []

    for is_enabled in (True, False):
        with torch.backends.mkldnn.flags(enabled=is_enabled):
            outputs = by_sums(inputs)
            gradients = torch.autograd.grad(torch.sin(outputs).sum(), [one.value for one in by_sums.trainable_variables])
        results.append([array(one) for one in (outputs, *gradients)])

    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def outputs_and_gradients(call, layer, inputs):
    """Returns what `call` computes, and the gradients of a curved loss in the weights of a layer."""
    outputs = call(inputs)
    gradients = torch.autograd.grad(torch.sum(torch.sin(outputs)), [one.value for one in layer.trainable_variables])
    return [array(one) for one in (outputs, *gradients)]


# Dynamo reads `grad` of tensors that have none, with stock models too.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
class TestCompile:
    """`torch.compile`."""

    @pytest.fixture(autouse=True)
    def _forgetful(self):
        """Forgets the shapes of earlier tests: torch 2.9 fails to compile a stock layer again for shapes that vary."""
        torch.compiler.reset()

    def test_a_compiled_model_has_the_outputs_and_gradients_of_the_model(self):
        tied = tie(make(sequential), "parameterization")
        compiled = torch.compile(tied, backend="aot_eager")

        np.testing.assert_allclose(array(compiled(images(tied))), array(tied(images(tied))), rtol=1e-5, atol=1e-6)
        found, expected = (
            raw_gradients(lambda call=call: call(images(tied)).sum(), tied.trainable_variables) for call in (compiled, tied)
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("convolution", "pattern", "strides"), [("auto", "dihedral", 1), ("group_sums", "mirror", 2), ("tune", "mirror", 1)]
    )
    def test_a_compiled_layer_has_the_outputs_and_gradients_of_the_layer(self, convolution, pattern, strides):
        layer = layers.Conv2D(32, 3, strides=strides, padding="same", name="conv")
        layer.build((2, 9, 9, 32))
        inputs = np.random.default_rng(0).normal(size=(2, 9, 9, 32)).astype("float32")
        layer = kt.apply_tying(layer, {"conv": pattern}, mode="parameterization", convolution=convolution)
        expected = outputs_and_gradients(layer, layer, inputs)

        found = outputs_and_gradients(torch.compile(layer, backend="aot_eager"), layer, inputs)

        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("strides", [1, 2])
    @pytest.mark.parametrize("pattern", ["point", "rotation"])
    def test_later_calls_compile_nothing(self, pattern, strides):
        layer = layers.Conv2D(4, 3, strides=strides, padding="same")
        layer = kt.Tied(layer, pattern, convolution="group_sums")
        inputs = torch.ones(2, 9, 9, 4)
        layer(inputs)
        graphs = []
        compiled = torch.compile(layer, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)

        for _ in range(2):  # torch 2.9 compiles parts at the second call
            compiled(inputs)
        expected = len(graphs)
        for _ in range(2):
            compiled(inputs)

        assert len(graphs) == expected

    @pytest.mark.parametrize("convolution", ["kernel", "group_sums"])
    def test_a_layer_may_be_built_while_torch_compiles_it(self, convolution):
        layer = kt.Tied(layers.Conv2D(4, 3), "rings", convolution=convolution)
        inputs = torch.ones(2, 9, 9, 4)

        outputs = torch.compile(layer, backend="eager")(inputs)

        np.testing.assert_allclose(array(outputs), array(layer(inputs)), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        "make_tied",
        [kt.TiedConstraint("rings"), kt.TyingPenalty("rings"), lambda kernel: kt.TiedInitializer("rings")(kernel.shape)],
    )
    def test_a_family_makes_its_pattern_while_torch_compiles(self, make_tied):
        kernel = torch.ones(7, 7, 2, 2)

        found = torch.compile(make_tied, backend="eager")(kernel)

        assert found.shape in ((), kernel.shape)

    @in_both_modes
    def test_a_compiled_training_step_keeps_kernels_tied(self, mode):
        tied = tie(make(sequential, compiled=True, run_eagerly=False, jit_compile=True), mode)
        before = values(tied.trainable_variables)

        train(tied)

        assert_tied(tied)
        assert all(np.any(old != new) for old, new in zip(before, values(tied.trainable_variables), strict=True))


@pytest.mark.parametrize("place", PLACES)
def test_parameters_of_a_model_that_keeps_a_tied_kernel_twice_are_the_free_weights_once(place):
    tied = tied_dense()
    model = autoencoder(tied, place)
    value = np.arange(4.0, dtype="float32").reshape(4, 1)

    assert [id(one) for one in model.parameters()] == [id(theta_of(tied).value)]
    model.load_state_dict({name: torch.from_numpy(value) for name in model.state_dict()})
    np.testing.assert_array_equal(array(theta_of(tied)), value)


def test_a_tensor_that_was_read_from_a_tied_kernel_is_written_without_the_kernel():
    kernel = tied_dense().kernel
    before = array(kernel)

    torch.nn.init.ones_(kernel.value)

    np.testing.assert_array_equal(array(kernel), before, "docs/modes.md says that this is lost")


@pytest.mark.parametrize("make_step", [on_torch.inference_step, on_torch.training_step], ids=["inference", "training"])
def test_timed_steps_wait_for_accelerators(monkeypatch, make_step):
    waits = []
    monkeypatch.setattr(on_torch, "_accelerators", lambda: "accelerators")
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waits.append("waited"))

    make_step(torch.square, [torch.ones(3)], False)()

    assert waits == ["waited"]
