"""What attaching and stripping do at the edges: objects of this package that users wrote themselves, second calls, names."""

import keras
import numpy as np
import pytest
from helpers import array, refuses
from keras import layers
from models import MODES, make, sequential, skip, tie

import kernel_tying as kt

in_both_modes = pytest.mark.parametrize("mode", MODES)


def two_sizes(**options):
    """Returns a model with a 5x5 and a 3x3 convolution."""
    convolutions = [layers.Conv2D(2, 5, name="wide", **options), layers.Conv2D(2, 3, name="narrow", **options)]
    return keras.Sequential([keras.Input((9, 9, 2)), *convolutions])


def lost(model):
    return {row.layer: row.lost for row in kt.tying_report(model).rows}


@in_both_modes
def test_a_second_tying_keeps_the_losses_of_the_first(mode):
    tied = kt.apply_tying(two_sizes(), kt.patterns.mirror((5, 5)), mode=mode)
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


class CompilesItself(keras.Sequential):
    def compile(self, learning_rate=0.1):
        super().compile(keras.optimizers.SGD(learning_rate), "mse")


def test_a_model_with_a_compile_of_its_own_is_to_be_compiled_again():
    model = CompilesItself([keras.Input((9, 9, 2)), layers.Conv2D(2, 3)])
    model.compile()

    with pytest.warns(UserWarning, match="its own `compile`"):
        tied = kt.apply_tying(model, "mirror", mode="parameterization")

    assert isinstance(tied, CompilesItself)
    assert not tied.compiled


def test_warnings_point_at_the_line_of_the_caller():
    model = make(sequential)
    model.compile(keras.optimizers.SGD(use_ema=True), "mse")

    with pytest.warns(UserWarning, match="KeepTied") as record:
        kt.apply_tying(model, "mirror")

    assert {warning.filename for warning in record if warning.category is UserWarning} == {__file__}


def test_a_bare_pattern_of_lower_rank_ties_nothing():
    with refuses("differs from the pattern's shape (5,)"):
        kt.apply_tying(two_sizes(), kt.TyingPattern.parse("ABCBA"))


def test_a_bare_pattern_of_full_rank_ties_the_kernels_that_it_fits():
    pattern = kt.patterns.per_filter([kt.patterns.mirror((3, 3)), kt.patterns.free((3, 3))])

    report = kt.tying_report(kt.apply_tying(two_sizes(), pattern))

    assert report.plan == {"narrow": {"kernel": pattern}}


@pytest.mark.parametrize("glob", ["*_norm", "wid?"])
def test_a_glob_that_ties_nothing_is_refused(glob):
    with refuses(f"['{glob}']"):
        kt.apply_tying(two_sizes(), {"narrow": "mirror", glob: kt.patterns.mirror((3, 3))})


def test_a_name_with_the_signs_of_a_glob_is_a_name():
    model = keras.Sequential([keras.Input((9, 9, 2)), layers.Conv2D(2, 3, name="block[0]")])
    tied = kt.apply_tying(model, {"block[0]": "mirror"})

    assert list(kt.tying_report(tied).plan) == ["block[0]"]


def test_tied_refuses_a_constrained_layer():
    with refuses("'conv'"):
        kt.Tied(layers.Conv2D(2, 3, kernel_constraint=kt.TiedConstraint("mirror"), name="conv"), "point")


def test_an_earlier_tying_inside_a_custom_layer_survives_a_second_one():
    class Block(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.conv = layers.Conv2D(2, 3, padding="same", name="inside")

        def build(self, input_shape):
            self.conv.build(input_shape)

        def call(self, inputs):
            return inputs + self.conv(inputs)

    model = keras.Sequential([keras.Input((9, 9, 2)), Block(name="block"), layers.Conv2D(2, 3, name="outside")])
    with pytest.warns(UserWarning, match="does not describe"):
        model = kt.apply_tying(model, {"block/inside": "mirror"}, mode="parameterization")

    model = kt.apply_tying(model, {"outside": "mirror"}, mode="parameterization")

    assert [row.layer for row in kt.tying_report(model).rows if row.pattern] == ["block/inside", "outside"]


@pytest.mark.parametrize("first", MODES)
def test_the_mode_is_changed_by_stripping_and_tying_again(first):
    (second,) = set(MODES) - {first}
    tied = tie(make(skip), first)
    kernel = array(tied.get_layer("first").kernel)

    changed = kt.apply_tying(kt.strip_tying(tied), "mirror", mode=second)

    np.testing.assert_equal(array(changed.get_layer("first").kernel), kernel)
    assert {row.mode for row in kt.tying_report(changed).rows if row.pattern} == {second}
