"""What attaching and stripping do at the edges: objects of this package that users wrote themselves, second calls, names."""

import pathlib

import keras
import numpy as np
import pytest
from helpers import array, raises_tying_error
from keras import layers, ops
from models import MODES, images, make, sequential, skip, subclassed, tie

import kernel_tying as kt
from kernel_tying import kernels, parameterization
from kernel_tying.algebra import average

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


def test_rebuilding_averages_each_kernel_once(monkeypatch):
    averaged = []
    monkeypatch.setattr(
        parameterization, "average", lambda kernel, pattern: averaged.append(pattern) or average(kernel, pattern)
    )

    kt.apply_tying(two_sizes(), "mirror", mode="parameterization")

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
    with raises_tying_error("differs from the pattern's shape (5,)"):
        kt.apply_tying(two_sizes(), kt.TyingPattern.parse("ABCBA"))


def test_a_bare_pattern_of_full_rank_ties_the_kernels_that_it_fits():
    pattern = kt.patterns.per_filter([kt.patterns.mirror((3, 3)), kt.patterns.free((3, 3))])

    report = kt.tying_report(kt.apply_tying(two_sizes(), pattern))

    assert report.plan == {"narrow": {"kernel": pattern}}


@pytest.mark.parametrize("glob", ["*_norm", "wid?"])
def test_a_glob_that_ties_nothing_is_refused(glob):
    with raises_tying_error(f"['{glob}']"):
        kt.apply_tying(two_sizes(), {"narrow": "mirror", glob: kt.patterns.mirror((3, 3))})


def test_a_name_with_the_signs_of_a_glob_is_a_name():
    model = keras.Sequential([keras.Input((9, 9, 2)), layers.Conv2D(2, 3, name="block[0]")])
    tied = kt.apply_tying(model, {"block[0]": "mirror"})

    assert list(kt.tying_report(tied).plan) == ["block[0]"]


def test_tied_refuses_a_constrained_layer():
    with raises_tying_error("'conv'"):
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


@in_both_modes
def test_an_optimizer_that_accumulates_gradients_goes_on_counting(mode):
    model = two_sizes()
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), "mse", run_eagerly=True)
    model.fit(np.ones((6, 9, 9, 2)), np.ones((6, 3, 3, 2)), batch_size=1, verbose=0)

    tied = kt.apply_tying(model, "mirror", mode=mode)

    assert int(tied.optimizer.iterations) == int(model.optimizer.iterations) == 3


class Above(keras.metrics.Mean):
    """A metric whose config leaves its argument out."""

    def __init__(self, threshold, **kwargs):
        super().__init__(**kwargs)
        self.threshold = threshold


class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule without a config."""

    def __call__(self, step):
        return 0.1


@pytest.mark.parametrize(
    "options",
    [{"metrics": [Above(0.9)]}, {"optimizer": keras.optimizers.SGD(Warmup())}],
    ids=["metric without config", "schedule without config"],
)
def test_what_no_config_describes_is_to_be_compiled_again(options):
    model = two_sizes()
    model.compile(**{"optimizer": "sgd", "loss": "mse", **options})

    with pytest.warns(UserWarning, match="does not describe"):
        tied = kt.apply_tying(model, "mirror", mode="parameterization")

    assert not tied.compiled
    assert kt.tying_error(tied) == 0.0


class Scaled(keras.Model):
    """A Functional subclass with an argument that a rebuilt model would lose."""

    def __init__(self, *args, factor=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.factor = factor

    def call(self, inputs, **kwargs):
        return self.factor * super().call(inputs, **kwargs)


def test_a_functional_subclass_with_arguments_of_its_own_is_tied_in_place():
    inputs = keras.Input((9, 9, 2))
    model = Scaled(inputs, layers.Conv2D(2, 3)(inputs), factor=3.0)

    with pytest.warns(UserWarning, match="does not describe"):
        tied = kt.apply_tying(model, "mirror", mode="parameterization")

    assert tied is model
    assert kt.tying_error(tied) == 0.0


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
    monkeypatch.setattr(kernels, "KERNELS", dict(kernels.KERNELS))
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


class Lookup(layers.Layer):
    """A layer whose table is an asset, as the table of IntegerLookup is: neither weights nor config hold it."""

    table = (0, 0, 0)

    def call(self, inputs):
        return ops.take(np.array(self.table), inputs)

    def save_assets(self, path):
        np.save(pathlib.Path(path, "table.npy"), self.table)

    def load_assets(self, path):
        self.table = np.load(pathlib.Path(path, "table.npy"))


def test_a_rebuilt_model_keeps_its_lookup_tables():
    lookup = Lookup()
    lookup.table = (7, 8, 9)
    numbers, inputs = keras.Input((1,), dtype="int32"), keras.Input((9, 9, 2))
    model = keras.Model([numbers, inputs], [lookup(numbers), layers.Conv2D(2, 3)(inputs)])

    tied = kt.apply_tying(model, "mirror", mode="parameterization")

    assert array(tied([np.array([[1]]), np.ones((1, 9, 9, 2), "float32")])[0]).tolist() == [[8]]


def test_a_layer_with_an_unregistered_function_is_refused():
    def double(value):
        return 2 * value

    model = keras.Sequential([keras.Input((9, 9, 2)), layers.Conv2D(2, 3), layers.Activation(double, name="doubled")])

    with raises_tying_error("'doubled'"):
        kt.apply_tying(model, "mirror", mode="parameterization")


@pytest.mark.parametrize("verb", [kt.strip_tying, kt.tying_error, kt.tying_report, kt.project_kernels])
@pytest.mark.parametrize("value", [None, "model"])
def test_verbs_take_models_and_layers_only(verb, value):
    with raises_tying_error(repr(value)):
        verb(value)


def test_keys_of_patterns_are_names():
    with raises_tying_error("[3]"):
        kt.apply_tying(two_sizes(), {3: "mirror"})


def test_tied_freezes_the_layer_if_it_is_to_be_frozen():
    tied = kt.Tied(layers.Conv2D(2, 3), "mirror", trainable=False)

    tied.build((None, 9, 9, 2))

    assert tied.trainable_weights == []


@in_both_modes
def test_predictions_that_were_traced_before_see_the_tied_kernels(mode):
    model = make(subclassed)
    model.predict(images(model), verbose=0)

    tied = tie(model, mode)

    np.testing.assert_allclose(tied.predict(images(tied), verbose=0), array(tied(images(tied))), rtol=1e-5, atol=1e-6)


@in_both_modes
def test_predictions_that_were_traced_before_see_the_stripped_kernels(mode):
    tied = tie(make(subclassed), mode)
    tied.predict(images(tied), verbose=0)

    stripped = kt.strip_tying(tied)
    stripped.set_weights([2 * weight for weight in stripped.get_weights()])

    expected = array(stripped(images(stripped)))
    np.testing.assert_allclose(stripped.predict(images(stripped), verbose=0), expected, rtol=1e-5, atol=1e-6)


def siamese(order):
    """Returns a model that calls a layer and a nested model several times, in an order that their depth does not show."""
    first, second, inner = keras.Input((9, 9, 2)), keras.Input((9, 9, 2)), keras.Input((9, 9, 2))
    shared = layers.Conv2D(2, 3, padding="same", name="shared")
    trunk = keras.Model(inner, layers.Conv2D(2, 3, padding="same", name="inside")(inner), name="trunk")
    outputs = [shared(first), layers.ReLU()(shared(second)), trunk(first), trunk(trunk(second))]
    return keras.Model([first, second], [outputs[index] for index in order])


@in_both_modes
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0)])
def test_the_order_of_calls_survives_tying_and_stripping(order, mode):
    model = siamese(order)
    config = model.get_config()

    assert kt.strip_tying(kt.apply_tying(model, "mirror", mode=mode)).get_config() == config
