"""Groups that act on grids: their Cayley tables, their action on arrays, and what is no group."""

import itertools
import pickle
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.errors import raises_tying_error

import kernel_tying as kt
from kernel_tying import groups

BUILT_IN = {
    "p4": (groups.p4, 4, 2),
    "p4m": (groups.p4m, 8, 2),
    "p2": (groups.p2, 2, 2),
    "reversal": (groups.reversal, 2, 1),
    "flip(1)": (groups.flip(1), 2, 2),
    "flip(2)": (groups.flip(2), 2, 3),
    "flip(3)": (groups.flip(3), 2, 4),
    "octahedral": (groups.octahedral, 24, 3),
    "full_octahedral": (groups.full_octahedral, 48, 3),
}
OTHERS = {
    "transpose": (kt.Group([np.transpose]), 2, 2),
    "flips": (kt.Group([np.flipud, np.fliplr]), 4, 2),
    "identity": (kt.Group([np.copy], rank=1), 1, 1),
    "hyperoctahedral": (kt.Group([partial(np.swapaxes, axis1=i, axis2=i + 1) for i in range(3)] + [np.flipud]), 384, 4),
}
GROUPS = BUILT_IN | OTHERS
of_all_groups = pytest.mark.parametrize(("group", "order", "rank"), GROUPS.values(), ids=GROUPS)
group_elements = st.sampled_from(list(GROUPS.values())).flatmap(
    lambda row: st.tuples(st.just(row[0]), *[st.integers(0, row[1] - 1)] * 3)
)


def numbered(rank, side=3):
    return np.arange(side**rank * 2).reshape(*[side] * rank, 2)


def signed_axes(rank, proper):
    """Returns all images of a numbered cube under permutations and reversals of its axes; proper: rotations alone."""
    cube = numbered(rank)
    images = set()
    for order in itertools.permutations(range(rank)):
        for flips in itertools.product([1, -1], repeat=rank):
            determinant = np.linalg.det(np.eye(rank)[list(order)]) * np.prod(flips)
            if determinant > 0 or not proper:
                images.add(cube.transpose(*order, rank)[tuple(slice(None, None, step) for step in flips)].tobytes())
    return images


@of_all_groups
def test_a_group_has_the_order_and_rank_of_the_table(group, order, rank):
    assert (group.order, group.rank) == (order, rank)
    assert len(group.elements) == order
    assert group.table.shape == (order, order)


@of_all_groups
def test_elements_of_a_group_differ(group, order, rank):
    assert len({element(numbered(rank)).tobytes() for element in group.elements}) == order


@of_all_groups
def test_rows_and_columns_of_the_table_hold_every_element_once(group, order, rank):
    every = np.arange(order)

    np.testing.assert_array_equal(np.sort(group.table, axis=0), np.tile(every[:, None], order))
    np.testing.assert_array_equal(np.sort(group.table, axis=1), np.tile(every, (order, 1)))


@of_all_groups
def test_element_0_is_the_identity(group, order, rank):
    np.testing.assert_array_equal(group.table[0], np.arange(order))
    np.testing.assert_array_equal(group.table[:, 0], np.arange(order))
    np.testing.assert_array_equal(group.elements[0](numbered(rank)), numbered(rank))


@given(group_elements)
def test_products_are_associative(problem):
    group, a, b, c = problem

    assert group.table[group.table[a, b], c] == group.table[a, group.table[b, c]]


@given(group_elements, st.integers(1, 5))
def test_a_product_is_the_first_factor_applied_after_the_second(problem, side):
    group, a, b, _ = problem
    array = numbered(group.rank, side)

    expected = group.elements[a](group.elements[b](array))

    np.testing.assert_array_equal(group.elements[group.table[a, b]](array), expected)


@of_all_groups
def test_an_element_is_the_product_of_the_generators_in_its_word(group, order, rank):
    for element in group.elements:
        expected = numbered(rank)[..., 0]
        for index in reversed(element.word):
            expected = group.generators[index](expected)

        np.testing.assert_array_equal(element(numbered(rank)[..., 0]), expected)


@pytest.mark.parametrize(
    ("group", "rank", "proper"),
    [
        (groups.p4, 2, True),
        (groups.p4m, 2, False),
        (groups.octahedral, 3, True),
        (groups.full_octahedral, 3, False),
        (OTHERS["hyperoctahedral"][0], 4, False),
    ],
    ids=repr,
)
def test_rotations_and_symmetries_of_a_cube_permute_and_reverse_its_axes(group, rank, proper):
    assert {element(numbered(rank)).tobytes() for element in group.elements} == signed_axes(rank, proper)


@pytest.mark.parametrize(
    ("group", "function"),
    [
        (groups.p4, np.rot90),
        (groups.flip(1), np.fliplr),
        (OTHERS["transpose"][0], partial(np.swapaxes, axis1=0, axis2=1)),
    ],
    ids=["p4", "flip", "transpose"],
)
def test_elements_act_on_the_first_axes_alone(group, function):
    images = np.random.default_rng(0).normal(size=(4, 6, 3, 2))

    np.testing.assert_array_equal(group.elements[1](images), function(images))


def test_an_element_refuses_arrays_of_fewer_axes():
    with raises_tying_error("shape=(3,)"):
        groups.p4.elements[1](np.zeros(3))


def test_flip_0_is_the_reversal():
    assert groups.flip(0) == groups.reversal
    np.testing.assert_array_equal(groups.reversal.elements[1]([1, 2, 3]), [3, 2, 1])


def test_groups_are_equal_where_their_generators_move_alike():
    twin = kt.Group([partial(np.flip, axis=1)])

    assert (twin, hash(twin)) == (groups.flip(1), hash(groups.flip(1)))
    assert groups.flip(1) != kt.Group([np.fliplr], rank=3)
    assert groups.p4 != kt.Group([partial(np.rot90, k=3)])
    assert groups.p4 != "p4"


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_group_is_found_under_its_name(name):
    assert groups.get(name) is BUILT_IN[name][0]
    assert repr(groups.get(name)) == f"groups.{name}"
    assert groups.get(name).name == name


def test_get_returns_the_group_that_is_given():
    group = OTHERS["transpose"][0]

    assert groups.get(group) is group
    assert group.name is None
    assert repr(group) == "<Group order=2, rank=2>"


def test_names_are_those_of_all_groups():
    assert set(groups.names()) == {*BUILT_IN, "flip(0)"}


@of_all_groups
def test_a_group_of_named_functions_pickles(group, order, rank):
    twin = pickle.loads(pickle.dumps(group))

    assert twin == group
    np.testing.assert_array_equal(twin.table, group.table)


def test_the_table_is_read_only():
    with pytest.raises(ValueError, match="read-only"):
        groups.p4.table[0, 0] = 1


@pytest.mark.parametrize(
    ("call", "received"),
    [
        pytest.param(lambda: kt.Group([]), "[]", id="no generators"),
        pytest.param(lambda: kt.Group(np.rot90), "rot90", id="a function without a list"),
        pytest.param(lambda: kt.Group(["p4"]), "['p4']", id="a name"),
        pytest.param(lambda: kt.Group([np.negative]), "negative", id="a change of sign"),
        pytest.param(lambda: kt.Group([np.ravel], rank=2), "'ravel'", id="another shape"),
        pytest.param(lambda: kt.Group([np.zeros_like], rank=2), "'zeros_like'", id="entries lost"),
        pytest.param(lambda: kt.Group([np.rot90], rank=1), "'rot90' for size=(3,)", id="too low a rank"),
        pytest.param(lambda: kt.Group([np.rot90], rank=5), "rank=5", id="too high a rank"),
        pytest.param(lambda: kt.Group([np.rot90], rank=2.0), "rank=2.0", id="a rank of another type"),
        pytest.param(lambda: kt.Group([np.copy]), "copy", id="the identity without a rank"),
        pytest.param(lambda: kt.Group([partial(np.roll, shift=1, axis=0)]), "g0 g0 g0 = 1", id="a shift"),
        pytest.param(
            lambda: kt.Group([np.transpose, partial(np.roll, shift=1)], rank=2), "more products", id="too many elements"
        ),
        pytest.param(lambda: groups.flip(4), "axis=4", id="too high an axis"),
        pytest.param(lambda: groups.flip(-1), "axis=-1", id="a negative axis"),
        pytest.param(lambda: groups.flip("x"), "axis='x'", id="an axis of another type"),
        pytest.param(lambda: groups.get("p6"), "'p6'", id="an unknown name"),
        pytest.param(lambda: groups.get(["p4"]), "['p4']", id="a list"),
    ],
)
def test_malformed_arguments_are_refused_with_rule_received_and_way_out(call, received):
    with raises_tying_error(received):
        call()


def test_an_unknown_name_is_refused_with_the_known_ones():
    with raises_tying_error("'P4'") as caught:
        groups.get("P4")

    assert ", ".join(groups.names()) in str(caught.value)
