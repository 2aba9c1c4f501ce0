"""Which kernels `patterns` ties: by names, globs, calls and shapes."""

import keras
import pytest
from keras import layers
from support.errors import raises_tying_error
from support.models import (
    IMAGE,
    conv,
    head,
    make,
    shared_across,
    two_sizes,
)

import kernel_tying as kt


@pytest.mark.parametrize("mode", ["constraint", "parameterization"])
def test_a_key_that_is_the_name_of_a_layer_means_the_layer(mode):
    convolutions = [layers.Conv2D(2, 3, name=name) for name in ("kernel", "other")]
    model = keras.Sequential([keras.Input((8, 8, 2)), *convolutions])

    report = kt.tying_report(kt.apply_tying(model, {"kernel": "mirror"}, mode=mode))

    assert list(report.plan) == ["kernel"]


def test_a_bare_pattern_of_lower_rank_ties_nothing():
    with raises_tying_error("differs from the pattern's shape (5,)"):
        kt.apply_tying(two_sizes(), kt.TyingPattern.parse("ABCBA"))


def test_a_bare_pattern_of_full_rank_ties_the_kernels_that_it_fits():
    pattern = kt.patterns.per_filter([kt.patterns.mirror((3, 3)), kt.patterns.free((3, 3))])

    report = kt.tying_report(kt.apply_tying(two_sizes(), pattern))

    assert report.plan == {"narrow": {"kernel": pattern}}


@pytest.mark.parametrize("glob", ["*_norm", "wid?"])
def test_a_glob_that_ties_nothing_is_refused(glob):
    with raises_tying_error(f"'{glob}'"):
        kt.apply_tying(two_sizes(), {"narrow": "mirror", glob: kt.patterns.mirror((3, 3))})


def test_a_name_with_the_signs_of_a_glob_is_a_name():
    model = keras.Sequential([keras.Input((9, 9, 2)), layers.Conv2D(2, 3, name="block[0]")])
    tied = kt.apply_tying(model, {"block[0]": "mirror"})

    assert list(kt.tying_report(tied).plan) == ["block[0]"]


def test_keys_of_patterns_are_names():
    with raises_tying_error("[3]"):
        kt.apply_tying(two_sizes(), {3: "mirror"})


ALL = {"trunk/narrow", "trunk/wide", "oblong", "narrow_too"}
SWAP = kt.TyingPattern.parse("AB/BA", shape=(1, 1, 2, 2))


class TestPatterns:
    """Which layers `patterns` ties."""

    def model(self):
        inner_x = keras.Input(IMAGE, name="inner_image")
        inner = keras.Model(inner_x, layers.Conv2D(2, 5, padding="same", name="wide")(conv("narrow")(inner_x)), name="trunk")
        x = keras.Input(IMAGE, name="image")
        h = layers.Conv2D(2, (3, 5), padding="same", name="oblong")(inner(x))
        h = layers.Conv2D(2, 1, name="point")(conv("narrow_too")(h))
        return keras.Model(x, head(h), name="zoo")

    @pytest.mark.parametrize(
        ("patterns", "expected"),
        [
            (kt.patterns.mirror((3, 3)), {"trunk/narrow", "narrow_too"}),
            (kt.patterns.mirror((3, 5)), {"oblong"}),
            ("mirror", ALL),
            ("rotation", ALL - {"oblong"}),
            ({"kernel": "mirror"}, ALL),
            ({"kernel": kt.patterns.mirror((5, 5))}, {"trunk/wide"}),
            ({"oblong": "mirror"}, {"oblong"}),
            ({"oblong": {"kernel": "mirror"}}, {"oblong"}),
            ({"narrow": "mirror"}, {"trunk/narrow"}),
            ({"trunk/narrow": "mirror"}, {"trunk/narrow"}),
            ({"trunk/*": "mirror"}, {"trunk/narrow", "trunk/wide"}),
            ({"narrow*": "mirror"}, {"trunk/narrow", "narrow_too"}),
            ({"*": "rotation"}, ALL - {"oblong"}),
            ({"*": kt.patterns.mirror((5, 5))}, {"trunk/wide"}),
            ({"narrow*": None, "*": "mirror"}, {"trunk/wide", "oblong"}),
            ({"*": "mirror", "narrow*": None}, ALL),
            ({"*": "mirror", "oblong": None}, ALL - {"oblong"}),
            ({"*": None, "oblong": "mirror"}, {"oblong"}),
            ({"point": SWAP}, {"point"}),
            (lambda layer: "mirror" if layer.name == "wide" else None, {"trunk/wide"}),
            (lambda layer: {"kernel": SWAP} if layer.name == "point" else None, {"point"}),
        ],
    )
    def test_patterns_tie_the_layers_they_mean(self, patterns, expected):
        tied = kt.apply_tying(make(self.model), patterns)

        assert {row.layer for row in kt.tying_report(tied).rows if row.pattern is not None} == expected

    def test_each_layer_gets_the_pattern_given_for_it(self):
        tied = kt.apply_tying(
            make(self.model), {"oblong": "mirror", "*row*": "dihedral", "trunk/wide": kt.patterns.point((5, 5))}
        )

        assert {row.layer: row.pattern for row in kt.tying_report(tied).rows if row.pattern is not None} == {
            "trunk/narrow": kt.patterns.dihedral((3, 3)),
            "trunk/wide": kt.patterns.point((5, 5)),
            "oblong": kt.patterns.mirror((3, 5)),
            "narrow_too": kt.patterns.dihedral((3, 3)),
        }

    def test_a_shared_layer_is_tied_by_any_of_its_paths(self):
        tied = kt.apply_tying(make(shared_across), {"trunk/shared": "mirror"})

        assert isinstance(tied.get_layer("shared").kernel_constraint, kt.TiedConstraint)
