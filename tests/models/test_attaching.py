"""What attaching and stripping do at the edges: objects of this package that users wrote themselves, and second calls."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from support.backends import array
from support.errors import raises_tying_error
from support.models import MODES, make, sequential, skip, subclassed, tie, two_sizes

import kernel_tying as kt
from kernel_tying._layers import table, view
from kernel_tying.algebra import average

in_both_modes = pytest.mark.parametrize("mode", MODES)


def lost(model):
    return {row.layer: row.lost for row in kt.tying_report(model).rows}


@in_both_modes
def test_a_second_tying_keeps_the_losses_of_the_first(mode):
    tied = kt.apply_tying(two_sizes(), kt.patterns.mirror((5, 5)), mode=mode, init="project")
    before = lost(tied)["wide"]

    tied = kt.apply_tying(tied, kt.patterns.mirror((3, 3)), mode=mode)

    assert lost(tied)["wide"] == before > 0
    assert kt.tying_error(tied) == 0.0


@pytest.mark.parametrize("attach", [kt.Tied, kt.apply_tying], ids=["Tied", "apply_tying"])
def test_an_initializer_that_is_tied_already_keeps_its_variance(attach):
    initializer = kt.TiedInitializer("mirror", keras.initializers.RandomNormal(stddev=1.0, seed=0))
    layer = attach(layers.Conv2D(64, 3, kernel_initializer=initializer), "mirror")

    layer.build((None, 9, 9, 64))

    assert np.var(array(layer.kernel)) == pytest.approx(1.0, rel=0.05)


def test_rebuilding_averages_each_kernel_once(monkeypatch):
    averaged = []
    monkeypatch.setattr(view, "average", lambda kernel, pattern: averaged.append(pattern) or average(kernel, pattern))

    kt.apply_tying(two_sizes(), "mirror", mode="parameterization", init="project")

    assert averaged == [kt.patterns.mirror((5, 5)), kt.patterns.mirror((3, 3))]


@in_both_modes
def test_stripping_removes_penalties_and_initializers_that_users_wrote(mode):
    options = {
        "kernel_regularizer": kt.TyingPenalty("mirror", 0.1),
        "kernel_initializer": kt.TiedInitializer("mirror", "he_normal"),
    }
    plain = two_sizes(kernel_initializer="he_normal")

    stripped = kt.strip_tying(kt.apply_tying(two_sizes(**options), "mirror", mode=mode))

    assert [layer.get_config() for layer in stripped.layers] == [layer.get_config() for layer in plain.layers]
    assert stripped.losses == []


def test_warnings_point_at_the_line_of_the_caller():
    model = make(sequential)
    model.compile(keras.optimizers.SGD(use_ema=True), "mse")

    with pytest.warns(UserWarning, match="KeepTied") as record:
        kt.apply_tying(model, "mirror")

    assert {warning.filename for warning in record if warning.category is UserWarning} == {__file__}


@pytest.mark.parametrize("first", MODES)
def test_the_mode_is_changed_by_stripping_and_tying_again(first):
    (second,) = set(MODES) - {first}
    tied = tie(make(skip), first)
    kernel = array(tied.get_layer("first").kernel)

    changed = kt.apply_tying(kt.strip_tying(tied), "mirror", mode=second)

    np.testing.assert_equal(array(changed.get_layer("first").kernel), kernel)
    assert {row.mode for row in kt.tying_report(changed).rows if row.pattern} == {second}


class Convolution(layers.Layer):
    """A layer of one's own with the attributes that the table asks for, and nothing else."""

    kernel_size = (3,)

    def __init__(self, kernel_initializer="glorot_uniform", kernel_constraint=None, kernel_regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, input_shape):
        self.kernel = self.add_weight(
            shape=(3, input_shape[-1], 2), initializer=self.kernel_initializer, constraint=self.kernel_constraint, name="kernel"
        )

    def call(self, inputs):
        return ops.conv(inputs, self.kernel)


@in_both_modes
def test_a_registered_layer_of_ones_own_is_tied(mode, monkeypatch):
    monkeypatch.setattr(table, "KERNELS", dict(table.KERNELS))
    kt.register_layer(Convolution, ["kernel"])
    inputs = keras.Input((9, 2))

    tied = kt.apply_tying(keras.Model(inputs, Convolution(name="own")(inputs)), "mirror", mode=mode)

    assert list(kt.tying_report(tied).plan) == ["own"]
    assert kt.tying_error(tied) == 0.0


def test_a_kernel_that_another_layer_keeps_too_is_not_replaced():
    model = keras.Sequential([keras.Input((9, 9, 2)), layers.SpectralNormalization(layers.Conv2D(2, 3, name="conv"))])
    weights = [id(weight) for weight in model.weights]

    with raises_tying_error("conv"):
        kt.apply_tying(model, "mirror", mode="parameterization")

    assert [id(weight) for weight in model.weights] == weights


@in_both_modes
def test_stripping_in_place_leaves_no_attribute_behind(mode):
    model = subclassed()
    attributes = set(vars(model.first))

    with pytest.warns(UserWarning, match="does not describe"):
        kt.strip_tying(kt.apply_tying(model, "mirror", mode=mode))

    assert set(vars(model.first)) == attributes
