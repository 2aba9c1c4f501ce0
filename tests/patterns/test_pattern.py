"""`TyingPattern`: labels, signs and pins, equality, and the order of patterns."""

import copy
import json
import math
import pickle

import keras
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.errors import raises_tying_error
from support.oracles import dense_project

import kernel_tying as kt
from kernel_tying.testing import dense_basis, patterns

QUESTION = kt.TyingPattern.parse("AABCC/AABCC/DDEFF/GGHII/GGHII")


@st.composite
def signed_partitions(draw):
    """Labels and signs as a user may write them: any numbers, any member negative."""
    shape = draw(st.sampled_from([(3,), (4, 1), (2, 3), (2, 1, 3)]))
    size = math.prod(shape)
    labels = np.array(draw(st.lists(st.integers(0, 9), min_size=size, max_size=size)))
    signs = np.array(draw(st.lists(st.sampled_from([1, -1, 0]), min_size=size, max_size=size).filter(any)))
    return labels.reshape(shape), signs.reshape(shape)


@st.composite
def compatible_patterns(draw):
    """Two patterns that broadcast against each other: axes may have size 1, or be missing, in either."""
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    kept = st.lists(st.booleans(), min_size=1, max_size=len(shape))
    shapes = [tuple(size if keep else 1 for size, keep in zip(shape, draw(kept), strict=False)) for _ in range(2)]
    assume(min(map(math.prod, shapes)) > 1)
    return tuple(draw(patterns(shape=own_shape)) for own_shape in shapes)


@st.composite
def nested_patterns(draw):
    """A pattern and a coarser one, made by joining groups of the first with any signs."""
    fine = draw(patterns(max_side=3))
    joined, sign = (
        np.array(draw(st.lists(values, min_size=fine.num_free, max_size=fine.num_free)))
        for values in (st.integers(0, 1), st.sampled_from([1, -1]))
    )
    return fine, kt.TyingPattern(np.where(fine.signs == 0, -1, joined[fine.labels]), fine.signs * sign[fine.labels])


def projectors(*some_patterns):
    """Returns dense projectors, one for each pattern, on all kernels of the shape to which the patterns broadcast."""
    rank = max(len(pattern.shape) for pattern in some_patterns)
    shape = np.broadcast_shapes(*(pattern.shape + (1,) * (rank - len(pattern.shape)) for pattern in some_patterns))
    size = math.prod(shape)
    unit_kernels = np.eye(size).reshape(*shape, size)
    return [dense_project(unit_kernels, pattern).reshape(size, size) for pattern in some_patterns]


def projector_onto_intersection(first, second):
    """Returns the projector onto the kernels that both projectors leave as they are, the null space of their residuals."""
    residuals = np.concatenate([np.eye(len(first)) - first, np.eye(len(second)) - second])
    _, singular_values, directions = np.linalg.svd(residuals)
    common = directions[singular_values < 1e-9]
    return common.T @ common


@given(signed_partitions())
def test_pattern_ties_the_same_kernels_as_the_arrays_it_is_made_of(partition):
    labels, signs = partition
    basis = (labels.reshape(-1, 1) == np.unique(labels[signs != 0])) * signs.reshape(-1, 1)
    expected = basis @ np.linalg.pinv(basis)

    (projector,) = projectors(kt.TyingPattern(labels, signs))

    np.testing.assert_allclose(projector, expected, atol=1e-12)


@given(signed_partitions())
def test_labels_count_from_zero_by_first_appearance_and_pins_have_label_minus_one(partition):
    labels, signs = partition
    in_order = list(dict.fromkeys(label for label, sign in zip(labels.flat, signs.flat, strict=True) if sign))
    expected = [in_order.index(label) if sign else -1 for label, sign in zip(labels.flat, signs.flat, strict=True)]

    assert kt.TyingPattern(labels, signs).labels.ravel().tolist() == expected


@given(signed_partitions())
def test_first_member_of_each_group_has_sign_plus_one(partition):
    pattern = kt.TyingPattern(*partition)

    first_signs = [pattern.signs[pattern.labels == label][0] for label in range(pattern.num_free)]

    assert first_signs == [1] * pattern.num_free


@given(signed_partitions(), st.permutations(range(10)), st.lists(st.sampled_from([1, -1]), min_size=10, max_size=10))
def test_renumbered_and_negated_groups_make_an_equal_pattern_with_equal_hash(partition, new_labels, new_signs):
    labels, signs = partition
    pattern = kt.TyingPattern(labels, signs)

    same = kt.TyingPattern(np.array(new_labels)[labels], signs * np.array(new_signs)[labels])

    assert (same, hash(same)) == (pattern, hash(pattern))


@pytest.mark.parametrize("other", ["ABA/", "AAB", "AB-A", "AB.", "ABAB", "A/B/A"])
def test_patterns_of_other_groups_signs_pins_or_shape_are_unequal(other):
    assert kt.TyingPattern.parse("ABA") != kt.TyingPattern.parse(other)


def test_pattern_differs_from_its_own_text():
    assert kt.TyingPattern.parse("ABA") != "ABA"


@given(patterns())
def test_group_sizes_count_the_members_of_each_column_of_the_basis(pattern):
    assert pattern.group_sizes.tolist() == np.abs(dense_basis(pattern)).sum(axis=0).tolist()


def test_question_pattern_has_nine_free_weights_with_its_group_sizes():
    assert (QUESTION.shape, QUESTION.num_free, QUESTION.group_sizes.tolist()) == ((5, 5), 9, [4, 2, 4, 2, 1, 2, 4, 2, 4])


def test_pattern_keeps_its_labels_when_the_given_array_changes():
    labels = np.array([0, 1, 0])
    pattern = kt.TyingPattern(labels)

    labels[:] = 0

    assert pattern.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize("name", ["labels", "signs", "group_sizes"])
def test_arrays_of_a_pattern_are_read_only(name):
    with pytest.raises(ValueError, match="read-only"):
        getattr(kt.TyingPattern.parse("AB-A"), name)[0] = 1


@pytest.mark.parametrize("name", ["labels", "num_free", "group_sizes", "shape", "note"])
def test_attributes_of_a_pattern_cannot_be_set(name):
    with pytest.raises(AttributeError, match="immutable"):
        setattr(kt.TyingPattern.parse("AB-A"), name, 1)


def test_attributes_of_a_pattern_cannot_be_deleted():
    with pytest.raises(AttributeError, match="immutable"):
        del kt.TyingPattern.parse("AB-A").labels


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda pattern: pickle.loads(pickle.dumps(pattern))])
def test_copied_pattern_is_equal_and_still_read_only(duplicate):
    twin = duplicate(kt.TyingPattern.parse("AB./-A.C"))

    assert twin == kt.TyingPattern.parse("AB./-A.C")
    assert not twin.labels.flags.writeable


@given(patterns())
def test_config_round_trips_through_json(pattern):
    assert kt.TyingPattern.from_config(json.loads(json.dumps(pattern.get_config()))) == pattern


@given(patterns(max_side=3))
def test_repr_evaluates_to_an_equal_pattern(pattern):
    assert eval(repr(pattern), {"TyingPattern": kt.TyingPattern}) == pattern


def test_repr_of_a_large_pattern_is_a_short_summary():
    assert repr(kt.patterns.free((15, 15))) == "patterns.free((15, 15))"
    assert repr(kt.TyingPattern(np.arange(225).reshape(15, 15))) == "<TyingPattern shape=(15, 15), num_free=225>"


@given(compatible_patterns())
def test_and_ties_exactly_the_kernels_that_both_patterns_tie(pair):
    expected = projector_onto_intersection(*projectors(*pair))
    assume(expected.any())

    both = pair[0] & pair[1]

    np.testing.assert_allclose(projectors(both, *pair)[0], expected, atol=1e-9)


@pytest.mark.parametrize(("first", "second"), [("AA", "A-A"), ("A.", ".A"), ("AB/A.", "../AA")])
def test_and_without_a_common_kernel_is_refused(first, second):
    first, second = kt.TyingPattern.parse(first), kt.TyingPattern.parse(second)

    with raises_tying_error("pinned to zero"):
        first & second


def test_and_of_contradictory_signs_pins_the_group_to_zero():
    assert kt.TyingPattern.parse("ABA") & kt.TyingPattern.parse("AB-A") == kt.TyingPattern.parse(".A.")


def test_and_broadcasts_axes_of_size_one_and_missing_axes():
    rows_alike, columns_alike = kt.TyingPattern.parse("A/A"), kt.TyingPattern.parse("AA/")

    assert rows_alike & columns_alike == kt.TyingPattern.parse("AA/AA")


def test_and_of_other_sizes_is_refused():
    with raises_tying_error("(2,) and (3,)"):
        kt.TyingPattern.parse("AB") & kt.TyingPattern.parse("ABC")


def test_and_with_anything_but_a_pattern_is_a_type_error():
    with pytest.raises(TypeError):
        kt.TyingPattern.parse("AB") & "AB"


@given(compatible_patterns() | nested_patterns() | nested_patterns().map(lambda pair: pair[::-1]))
def test_pattern_refines_another_if_and_only_if_it_ties_all_kernels_of_the_other(pair):
    own, other = projectors(*pair)

    assert pair[0].refines(pair[1]) == np.allclose(own @ other, other)


def test_refines_is_false_where_no_kernel_is_tied_by_both():
    assert not kt.TyingPattern.parse("A-A").refines(kt.TyingPattern.parse("AA"))


@pytest.mark.parametrize(
    ("labels", "signs", "received"),
    [
        pytest.param([[0, 1], [0]], None, "[[0, 1], [0]]", id="ragged rows"),
        pytest.param([], None, "shape=(0,)", id="empty"),
        pytest.param(np.zeros((3, 0), int), None, "shape=(3, 0)", id="empty rows"),
        pytest.param(3, None, "shape=()", id="scalar"),
        pytest.param([0.0, 1.0], None, "(entries of type float)", id="floats"),
        pytest.param([True, False], None, "bool", id="booleans"),
        pytest.param("ABA", None, "<U3", id="text"),
        pytest.param(None, None, "object", id="None"),
        pytest.param([0, 2**70], None, "1180591620717411303424", id="beyond int64"),
        pytest.param(np.array([2**64 - 1, 1], "uint64"), None, "uint64", id="beyond int64, unsigned"),
        pytest.param([0, 1], [1.0, 1.0], "(entries of type float)", id="signs that are floats"),
        pytest.param([0, 1], [1, 1, 1], "(3,) and (2,)", id="signs of another shape"),
        pytest.param([0, 1], [1, 2], "[2]", id="sign out of range"),
        pytest.param([0, -3], None, "-3", id="label below -1"),
        pytest.param([0, -1], [1, -1], "without a label", id="sign without label"),
        pytest.param([-1, -1], None, "pinned to zero", id="no free weight left"),
        pytest.param([0, 1], [0, 0], "pinned to zero", id="no sign left"),
        pytest.param([[0]], None, "shape=(1, 1)", id="no tied axis"),
    ],
)
def test_malformed_arrays_are_refused_with_rule_received_and_way_out(labels, signs, received):
    with raises_tying_error(received):
        kt.TyingPattern(labels, signs)


@pytest.mark.parametrize("config", [None, ["labels"], {}, {"label": [0, 1]}, {"labels": [0, 1], "shape": [2]}])
def test_malformed_config_is_refused_with_rule_received_and_way_out(config):
    with raises_tying_error(repr(config)):
        kt.TyingPattern.from_config(config)


def test_pattern_that_reaches_some_channel_axes_only_is_refused_by_the_layer():
    pattern = kt.TyingPattern(np.zeros((3, 3, 2), int))

    with raises_tying_error("(3, 3, 2)"):
        kt.Tied(keras.layers.Conv2D(2, 3), pattern)
