"""`keras.distribution` on four virtual devices of JAX: `DataParallel`, and `ModelParallel` with a `LayoutMap`."""

import functools

import keras
import numpy as np
import pytest
from keras import layers
from support.backends import KERAS
from support.models import make, subclassed
from task import (
    CASES,
    MODES,
    PATTERNS,
    ROUNDING,
    assert_as_on_one_device,
    assert_tied_to_the_bit,
    data,
    fit,
    kernels,
    stock,
    tied,
    weights,
)

import kernel_tying as kt

BY_OUTPUT_CHANNEL = {r".*conv\d/kernel": (None, None, None, "model"), r".*conv\d/bias": ("model",)}
in_both_modes = pytest.mark.parametrize("mode", MODES)


def data_parallel():
    return keras.distribution.DataParallel(devices=keras.distribution.list_devices("cpu"))


def model_parallel(rules=BY_OUTPUT_CHANNEL):
    """Returns a distribution over two halves of the batch and two of what the rules shard."""
    mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"), keras.distribution.list_devices("cpu"))
    layout_map = keras.distribution.LayoutMap(mesh)
    for path, axes in rules.items():
        layout_map[path] = axes
    return keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch")


ENGINES = [data_parallel, model_parallel]
with_each_engine = pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.__name__)


@functools.cache
def trained(engine, mode, optimizer):
    """Returns the distribution and the model of a case, trained once for all tests, which leave it as it is."""
    distribution = engine()
    with distribution.scope():
        return distribution, fit(tied(mode), optimizer)


def axes(tensor):
    """Returns the mesh axes over which a tensor is sharded really, one for each of its axes."""
    spec = tuple(tensor.sharding.spec)
    return spec + (None,) * (tensor.ndim - len(spec))


def layouts(model):
    return [axes(variable.value) for variable in model.variables]


def test_there_are_four_devices():
    assert len(keras.distribution.list_devices("cpu")) == 4


@with_each_engine
@pytest.mark.parametrize(("mode", "optimizer"), CASES)
def test_training_on_four_devices_equals_training_on_one(engine, mode, optimizer):
    _, model = trained(engine, mode, optimizer)

    assert all(len(variable.value.addressable_shards) == 4 for variable in model.variables)
    assert_as_on_one_device(weights(model), mode, optimizer)


@with_each_engine
@pytest.mark.parametrize(("mode", "optimizer"), CASES)
def test_devices_hold_bit_equal_tied_kernels(engine, mode, optimizer):
    _, model = trained(engine, mode, optimizer)

    for name in PATTERNS:
        parts = {}
        for shard in model.get_layer(name).kernel.value.addressable_shards:
            parts.setdefault(str(shard.index), []).append(np.array(shard.data))
        assert len(parts) == (2 if engine is model_parallel else 1)
        for copies in parts.values():
            np.testing.assert_equal(copies[1:], copies[:-1])
    assert_tied_to_the_bit(kernels(model))
    assert kt.tying_error(model) == 0.0


@with_each_engine
@in_both_modes
def test_a_loaded_and_a_stripped_model_have_the_layouts_of_the_trained_and_the_stock_model(engine, mode, tmp_path):
    distribution, model = trained(engine, mode, "adam")
    model.save(tmp_path / "model.keras")

    with distribution.scope():
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        found = [layouts(loaded), layouts(kt.strip_tying(loaded))]
        expected = [layouts(model), layouts(stock())]

    assert found == expected


@with_each_engine
@in_both_modes
def test_a_stripped_model_predicts_the_same(engine, mode, tmp_path):
    distribution, model = trained(engine, mode, "adam")
    model.save(tmp_path / "model.keras")

    with distribution.scope():
        stripped = kt.strip_tying(keras.saving.load_model(tmp_path / "model.keras"))
        found, expected = (one.predict(data()[0], verbose=0) for one in (stripped, model))

    np.testing.assert_array_equal(found, expected)


KERNELS = {
    "Conv1D": (lambda: layers.Conv1D(4, 3, name="layer"), (8, 2), "kernel", (None, None, "model")),
    "Conv2D": (lambda: layers.Conv2D(4, 3, name="layer"), (8, 8, 2), "kernel", (None, None, None, "model")),
    "Conv3D": (lambda: layers.Conv3D(4, 3, name="layer"), (4, 4, 4, 2), "kernel", (None, None, None, None, "model")),
    "Conv2DTranspose": (lambda: layers.Conv2DTranspose(4, 3, name="layer"), (8, 8, 2), "kernel", (None, None, "model", None)),
    "DepthwiseConv2D": (lambda: layers.DepthwiseConv2D(3, name="layer"), (8, 8, 2), "kernel", (None, None, "model", None)),
    "SeparableConv2D": (
        lambda: layers.SeparableConv2D(4, 3, name="layer"),
        (8, 8, 2),
        "depthwise_kernel",
        (None, None, "model", None),
    ),
    "a rule with fewer axes": (lambda: layers.Conv2D(4, 3, name="layer"), (8, 8, 2), "kernel", (None, None, "model")),
}


@pytest.mark.parametrize("case", KERNELS)
def test_free_weights_and_tied_kernels_are_sharded_like_the_stock_kernel(case):
    make_layer, shape, kernel, rule = KERNELS[case]
    with model_parallel({f"layer/{kernel}": rule}).scope():
        stock_layer, tied_layer = make_layer(), kt.Tied(make_layer(), "mirror")
        for layer in (stock_layer, tied_layer):
            layer.build((None, *shape))

    stock_kernel, free = getattr(stock_layer, kernel).value, tied_layer.free_weights[kernel].value
    assert "model" in axes(stock_kernel)
    assert axes(free) == axes(getattr(tied_layer.layer, kernel).value) == axes(stock_kernel)
    halved = [size // 2 if axis == "model" else size for size, axis in zip(free.shape, axes(free), strict=True)]
    assert list(free.addressable_shards[0].data.shape) == halved


@pytest.mark.parametrize("rule", [(None, "model"), ("model", None), ("batch", "model")])
def test_free_weights_are_sharded_along_axes_of_which_each_device_has_whole_fields(rule):
    with model_parallel({"layer/kernel": rule}).scope():
        layer = kt.Tied(layers.Dense(8, name="layer"), kt.patterns.circulant((4, 4)))
        layer.build((None, 8))

    assert axes(layer.free_weights["kernel"].value) == axes(layer.kernel.value) == rule


@in_both_modes
def test_slots_of_the_optimizer_are_sharded_like_what_they_belong_to(mode):
    _, model = trained(model_parallel, mode, "adam")

    slots = {slot.name: axes(slot.value) for slot in model.optimizer.variables}

    for name in PATTERNS:
        assert slots[f"network_{name}_kernel_momentum"][-1] == slots[f"network_{name}_kernel_velocity"][-1] == "model"


def test_a_rule_that_shards_a_tied_axis_leaves_the_free_weights_whole_and_warns():
    layer = layers.Conv2D(4, 4, name="layer")
    with model_parallel({"layer/kernel": ("model", None, None, "batch")}).scope():
        layer.build((None, 8, 8, 2))
        with pytest.warns(UserWarning, match=r"(?s)replicated along .* Received .*'model'.* 'layer/kernel' .* Shard free axes"):
            tied_layer = kt.Tied(layer, "mirror")

    assert axes(tied_layer.free_weights["kernel"].value) == (None, None, None, "batch")
    assert axes(tied_layer.kernel.value) == ("model", None, None, "batch")


@in_both_modes
@pytest.mark.filterwarnings("ignore:Free weights are replicated")
def test_training_with_a_sharded_tied_axis_equals_training_on_one_device(mode):
    def network():
        keras.utils.set_random_seed(5)
        return keras.Sequential([keras.Input((8, 8, 2)), layers.Conv2D(4, 4, name="conv"), layers.GlobalAveragePooling2D()])

    expected = fit(kt.apply_tying(network(), "mirror", mode=mode), "sgd")
    with model_parallel({".*/conv/kernel": ("model", None, None, None)}).scope():
        model = fit(kt.apply_tying(network(), "mirror", mode=mode), "sgd")

    for found, value in zip(weights(model), weights(expected), strict=True):
        np.testing.assert_allclose(found, value, rtol=0, atol=ROUNDING)
    assert kt.tying_error(model) == 0.0


@in_both_modes
@pytest.mark.filterwarnings("ignore:The config of 'subclassed' does not describe")
def test_a_subclassed_model_that_is_tied_in_place_keeps_its_layouts(mode):
    with model_parallel({".*/conv2d.*/kernel": (None, None, "model", None)}).scope():
        model = make(subclassed)
        expected = layouts(model)
        found = layouts(kt.apply_tying(model, "mirror", mode=mode))

    assert (None, None, "model", None) in expected
    assert found == expected


@with_each_engine
def test_a_tied_layer_draws_the_kernel_that_it_draws_on_one_device(engine):
    def drawn():
        layer = kt.Tied(layers.Conv2D(4, 3, kernel_initializer=keras.initializers.HeNormal(seed=3), name="conv1"), "mirror")
        layer.build((None, 8, 8, 2))
        return layer

    with engine().scope():
        spread = drawn()

    np.testing.assert_array_equal(np.array(spread.kernel.value), np.array(drawn().kernel.value))


@pytest.mark.skipif(KERAS < (3, 13), reason="Keras 3.12 compiles no initializers")
@in_both_modes
def test_kernels_that_keras_initializes_in_a_compiled_function_can_be_tied(mode, monkeypatch):
    """Keras does so from 250 MB times devices on."""
    monkeypatch.setattr("keras.src.backend.jax.core.should_shard_at_init", lambda *_: True)
    with model_parallel().scope():
        model = tied(mode)

    assert_tied_to_the_bit(kernels(model))
    assert [axes(model.get_layer(name).kernel.value)[-1] for name in PATTERNS] == ["model", "model"]
