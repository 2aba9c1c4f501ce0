"""What is torch's alone: tied models as modules, loops by hand with torch's own optimizers, and `torch.compile`."""

import copy

import keras
import numpy as np
import pytest
import torch
from helpers import array, dense_adjoint, raw_gradients
from models import (
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

import kernel_tying as kt
from kernel_tying import dispatch
from kernel_tying.testing import assert_same_function, assert_tied

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


def outputs_and_gradients(call, layer):
    """Returns what `call` computes, and the gradients of a curved loss in the weights of a layer."""
    outputs = call(images(layer))
    gradients = torch.autograd.grad(torch.sum(torch.sin(outputs)), [one.value for one in layer.trainable_variables])
    return [array(one) for one in (outputs, *gradients)]


# Dynamo reads `grad` of tensors that have none, with stock models too.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
class TestCompile:
    """`torch.compile`."""

    def test_a_compiled_model_has_the_outputs_and_gradients_of_the_model(self):
        tied = tie(make(sequential), "parameterization")
        compiled = torch.compile(tied, backend="aot_eager")

        np.testing.assert_allclose(array(compiled(images(tied))), array(tied(images(tied))), rtol=1e-5, atol=1e-6)
        found, expected = (
            raw_gradients(lambda call=call: call(images(tied)).sum(), tied.trainable_variables) for call in (compiled, tied)
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)

    def test_a_compiled_layer_keeps_to_the_stock_convolution(self, monkeypatch):
        layer = kt.apply_tying(make(skip).get_layer("first"), "mirror", mode="parameterization", convolution="group_sums")
        expected = outputs_and_gradients(layer, layer)
        monkeypatch.setattr(dispatch, "_convolve", None)  # else group sums serve, which Dynamo traces for long

        found = outputs_and_gradients(torch.compile(layer, backend="aot_eager"), layer)

        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)

    @in_both_modes
    def test_a_compiled_training_step_keeps_kernels_tied(self, mode):
        tied = tie(make(sequential, compiled=True, run_eagerly=False, jit_compile=True), mode)
        before = values(tied.trainable_variables)

        train(tied)

        assert_tied(tied)
        assert all(np.any(old != new) for old, new in zip(before, values(tied.trainable_variables), strict=True))
