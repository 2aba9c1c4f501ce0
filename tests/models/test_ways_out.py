"""Errors of `apply_tying` and of loading name the way out that fits the model."""

from functools import partial

import keras
import pytest
from keras import layers
from support.errors import raises_tying_error
from support.models import MODES, make, nested, sequential, skip, subclassed, tie, two_sizes

import kernel_tying as kt

WIDE = kt.patterns.mirror((7, 7))


def pooled():
    return keras.Sequential([keras.Input((9, 9, 2)), layers.Conv2D(2, 3, name="conv"), layers.MaxPooling2D(name="pool")])


def dense():
    return keras.Sequential([keras.Input((4,)), layers.Dense(4, name="hidden"), layers.Dense(4, name="top")])


def pointwise():
    return keras.Sequential([keras.Input((9, 9, 2)), layers.Conv2D(2, 1, name="conv")])


def weightless():
    return keras.Sequential([keras.Input((9, 9, 2)), layers.MaxPooling2D(name="pool")])


class Unknown(layers.Layer):
    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(3, 3))

    def call(self, inputs):
        return inputs


def unknown():
    return keras.Sequential([keras.Input((9, 9, 2)), Unknown(name="mine"), layers.Conv2D(2, 3, name="conv")])


ADVICE = {
    "a glob of no layer": (two_sizes, {"wides*": "mirror"}, "'wides*'", ["Did you mean 'wide'?", "['wide', 'narrow']"]),
    "a glob that fits nowhere": (
        two_sizes,
        {"wid*": WIDE},
        "'wid*'",
        ["wide: kernel_size=(5, 5)", "kernel size of these layers, [(5, 5)]"],
    ),
    "a glob of layers without kernels": (pooled, {"po*": "mirror"}, "'po*'", ["without kernels only: ['pool']", "['conv']"]),
    "a glob behind another": (two_sizes, {"w*": "mirror", "wide*": "mirror"}, "'wide*'", ["Put it before"]),
    "a name of no layer": (two_sizes, {"Wide": "mirror"}, "'Wide'", ["Did you mean 'wide'?", "['wide', 'narrow']"]),
    "a name of an inner model": (nested, {"trunk": "mirror"}, "'trunk'", ["did you mean 'trunk/*'?"]),
    "a pooling layer": (
        pooled,
        {"pool": "mirror"},
        "'pool'",
        ["MaxPooling2D keeps no kernel", "layers that keep kernels: ['conv']"],
    ),
    "a layer of one's own": (unknown, {"mine": "mirror"}, "'mine'", ["register_layer"]),
    "Dense layers only": (dense, "mirror", "'mirror'", ["Name the layers to tie, for example {'hidden': 'mirror'}"]),
    "no names": (two_sizes, {}, "{}", ["Name some of the layers that keep kernels: ['wide', 'narrow']"]),
    "kernels of size 1": (pointwise, "mirror", "'mirror'", ["fits all axes of its kernel"]),
    "no kernels": (weightless, "mirror", "'mirror'", ["No layer of it keeps a kernel"]),
    "a size that no layer has": (two_sizes, WIDE, "(wide: ", ["kernel size of these layers, [(3, 3), (5, 5)]"]),
    "a misspelt family": (two_sizes, "dihedrel", "'dihedrel'", ["Did you mean 'dihedral'?"]),
    "a misspelt option": (two_sizes, "mirror(axes=0)", "axes", ["Did you mean 'axis'?"]),
    "an axis that kernels lack": (two_sizes, "mirror(axis=2)", "axis=2", ["Use -2 to 1"]),
    "a function that is no family": (two_sizes, {"wide": len}, "len", ["patterns.register"]),
}


@pytest.mark.parametrize(("builder", "patterns", "received", "advice"), ADVICE.values(), ids=ADVICE)
def test_a_refusal_names_the_way_out(builder, patterns, received, advice):
    with raises_tying_error(received) as caught:
        kt.apply_tying(builder(), patterns)

    assert [part for part in advice if part not in str(caught.value)] == []
    assert ("register_layer" in str(caught.value)) == (builder in (unknown, weightless))


@pytest.mark.parametrize("option", ["mode", "init", "convolution", "scaling"])
def test_a_misspelt_option_is_answered_with_the_one_that_was_meant(option):
    meant = {"mode": "constraint", "init": "redraw", "convolution": "kernel", "scaling": "values"}[option]

    with raises_tying_error(f"{option}='{meant[:-1]}'") as caught:
        kt.apply_tying(two_sizes(), "mirror", **{option: meant[:-1]})

    assert f"Did you mean {meant!r}?" in str(caught.value)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", [lambda family: family, lambda family: {"first": family}, lambda family: lambda layer: family])
@pytest.mark.parametrize(
    ("family", "name"),
    [(kt.patterns.point, "point"), (partial(kt.patterns.mirror, axis=0), "mirror(axis=0)")],
    ids=["function", "partial"],
)
def test_functions_of_families_tie_as_their_names_do(family, name, how, mode):
    by_function, by_name = (tie(make(skip), mode, how(tying)) for tying in (family, name))

    plans = [kt.tying_report(model).plan for model in (by_function, by_name)]
    assert plans[0] == plans[1]
    assert plans[0]["first"]["kernel"] == kt.patterns.named(name, (3, 3))


@pytest.mark.parametrize("scaling", ["values", "orthonormal"])
@pytest.mark.parametrize("name", ["tied.weights.h5", "tied.keras"])
def test_free_weights_that_a_stock_model_loads_are_explained(tmp_path, name, scaling):
    path = tmp_path / name
    tied = tie(make(sequential), "parameterization", scaling=scaling)
    (tied.save if name.endswith(".keras") else tied.save_weights)(path)
    stock = make(sequential)

    with raises_tying_error(str(path)) as caught:
        stock.load_weights(path)

    assert "strip_tying" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_other_files_that_do_not_fit_are_explained_by_keras(tmp_path):
    two_sizes().save_weights(tmp_path / "stock.weights.h5")
    tie(make(sequential), "parameterization").save_weights(tmp_path / "tied.weights.h5")
    for model, name in [(make(sequential), "stock"), (tie(two_sizes(), "parameterization"), "tied")]:
        with pytest.raises(ValueError, match="could not be loaded") as caught:
            model.load_weights(tmp_path / f"{name}.weights.h5")

        assert not isinstance(caught.value, kt.TyingError)


def test_rescaled_weights_of_a_subclassed_model_are_explained(tmp_path):
    tie(make(subclassed), "parameterization", scaling="orthonormal").save_weights(tmp_path / "tied.weights.h5")

    with raises_tying_error("'subclassed', which has none"):
        make(subclassed).load_weights(tmp_path / "tied.weights.h5")
