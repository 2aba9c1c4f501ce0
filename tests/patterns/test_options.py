"""Families by name with options, by function and by partial; refused options, and hints at what was meant."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.errors import raises_tying_error
from support.hostile import texts

import kernel_tying as kt
from kernel_tying.patterns import registry

families = kt.patterns

WRITTEN = [
    ("mirror(axis=0)", (3, 5), families.mirror((3, 5), axis=0)),
    ("mirror(axis=(0, 1), antisymmetric=True)", (3, 5), families.mirror((3, 5), axis=(0, 1), antisymmetric=True)),
    (" mirror ( axis = -2 ) ", (3, 5), families.mirror((3, 5), axis=-2)),
    ("rotation(order=2)", (3, 5), families.rotation((3, 5), order=2)),
    ("point(antisymmetric=True)", (3, 3), families.point((3, 3), antisymmetric=True)),
    ("dihedral(antisymmetric=False)", (3, 3), families.dihedral((3, 3))),
]


@pytest.mark.parametrize(("text", "size", "pattern"), WRITTEN)
def test_options_in_a_name_are_those_of_the_function(text, size, pattern):
    assert families.named(text, size) == pattern


@pytest.mark.parametrize(("text", "size", "pattern"), WRITTEN)
def test_a_constraint_by_name_with_options_is_saved_as_such(text, size, pattern):
    constraint = kt.TiedConstraint(text)

    loaded = kt.TiedConstraint.from_config(constraint.get_config())

    assert constraint.get_config()["pattern"] == text
    assert loaded.pattern_for((*size, 2, 2)) == pattern


@pytest.mark.parametrize(
    ("family", "text"),
    [
        (families.mirror, "mirror"),
        (families.radial, "radial"),
        (partial(families.mirror, axis=0), "mirror(axis=0)"),
        (partial(families.mirror, axis=np.array([0, 1])), "mirror(axis=(0, 1))"),
        (partial(partial(families.rotation, order=2), antisymmetric=True), "rotation(order=2, antisymmetric=True)"),
    ],
    ids=["mirror", "radial", "partial", "array", "two partials"],
)
def test_a_function_of_a_family_means_its_name(family, text):
    assert kt.TiedConstraint(family).get_config() == kt.TiedConstraint(text).get_config()


def test_a_registered_family_takes_options_by_name(monkeypatch):
    monkeypatch.setattr(registry, "_families", dict(registry._families))
    own = partial(families.mirror, antisymmetric=True)
    families.register("odd-mirror", own)

    assert families.named("odd-mirror(axis=0)", (3, 3)) == families.mirror((3, 3), axis=0, antisymmetric=True)
    assert kt.TiedConstraint(own).pattern == "odd-mirror"


def test_a_registered_name_may_have_brackets(monkeypatch):
    monkeypatch.setattr(registry, "_families", dict(registry._families))
    families.register("mirror(odd)", families.point)

    assert families.named("mirror(odd)", (3, 3)) == families.point((3, 3))


@pytest.mark.parametrize(
    ("text", "way_out"),
    [
        ("miror", "Did you mean 'mirror'?"),
        ("Mirror", "Did you mean 'mirror'?"),
        ("rotations(order=2)", "Did you mean 'rotation'?"),
        ("mirror(axes=0)", "Did you mean 'axis'?"),
        ("mirror(size=(3, 3))", "the kernel size comes from the layer"),
        ("radial(order=2)", "the kernel size comes from the layer"),
        ("mirror(0)", "Example: 'mirror(axis=0"),
        ("mirror()", "Example: 'mirror(axis=0"),
        ("mirror(axis=0", "Example: 'mirror(axis=0"),
        ("mirror(axis=0)(1)", "Example: 'mirror(axis=0"),
        ("mirror(axis=0, axis=1)", "Example: 'mirror(axis=0"),
        ("mirror(**{})", "Example: 'mirror(axis=0"),
        ("mirror(axis=len('a'))", "Example: 'mirror(axis=0"),
        ("mirror(axis=__import__('os'))", "Example: 'mirror(axis=0"),
        ("mirror(axis=" + "(" * 5000 + ")" * 5000 + ")", "Example: 'mirror(axis=0"),
        ("point(antisymmetric='no')", "True or False"),
        ("AABCC/AABCC", "`TyingPattern.parse`"),
    ],
    ids=lambda text: text[:24],
)
def test_malformed_options_and_names_are_refused_with_a_hint(text, way_out):
    with raises_tying_error("") as caught:
        kt.TiedConstraint(text)

    assert way_out in str(caught.value)


@given(texts | st.builds("mirror({})".format, texts))
def test_hostile_text_is_a_family_or_refused(text):
    try:
        assert kt.TiedConstraint(text).pattern == text
    except kt.TyingError as error:
        assert len(str(error)) < 1500  # noqa: PT017 - both outcomes are legal


@pytest.mark.parametrize(
    "family",
    [
        families.tile,
        families.from_symmetry,
        partial(families.from_symmetry, generators=[np.rot90]),
        partial(families.mirror, (3, 3)),
        partial(families.mirror, axis=None),
    ],
    ids=["tile", "from_symmetry", "generators", "size", "None"],
)
def test_a_family_that_text_cannot_describe_is_refused_with_the_way_to_register_it(family):
    with raises_tying_error("") as caught:
        kt.TiedConstraint(family)

    assert "patterns.register(" in str(caught.value)


@pytest.mark.parametrize("name", families.names())
def test_a_size_of_two_arguments_is_refused_with_the_tuple_to_write(name):
    with raises_tying_error(f"{name}(5, 5)") as caught:
        getattr(families, name)(5, 5)

    assert f"Write {name}((5, 5))" in str(caught.value)


@pytest.mark.parametrize("axis", [0, -1])
def test_a_size_of_one_axis_may_be_an_integer_next_to_an_axis(axis):
    assert families.mirror(5, axis) == families.mirror((5,))
