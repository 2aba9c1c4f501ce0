"""Patterns of equivariant kernels, against averages over all elements of a group, Burnside's count and convolutions."""

import json
import pickle
from functools import partial

import keras
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.backends import array
from support.errors import raises_tying_error

import kernel_tying as kt
from kernel_tying.patterns import calls, constant, equivariant

PLANE, SPACE = [(), (1, 1), (2, 2), (3, 3)], [(), (1, 1, 1), (2, 2, 2)]
TURN, MIRROR = [[0, -1], [1, 0]], [[1, 0], [0, -1]]  # of vectors (y, x)
TURN_YX, TURN_XZ = [[0, -1, 0], [1, 0, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
SIZES_AND_SIGNED_TYPES = {
    "p4": (PLANE, [[TURN], [[[-1]]]]),
    "p4m": (PLANE, [[TURN, MIRROR], [[[1]], [[-1]]]]),
    "p2": ([*PLANE, (2, 3)], [[[[-1]]], [-np.eye(2)]]),
    "flip(1)": ([*PLANE, (2, 3), (1, 3, 2)], [[[[-1]]], [MIRROR]]),
    "reversal": ([(), (3,), (4,), (2, 3)], [[np.eye(4)[::-1]], [-np.eye(4, dtype=int)[::-1]]]),
    "octahedral": (SPACE, [[TURN_YX, TURN_XZ]]),
    "full_octahedral": (SPACE, [[TURN_YX, TURN_XZ, -np.eye(3)]]),
}
MADE_HERE = {
    "transposes": (kt.Group([np.transpose]), [(), (3, 3), (2, 2, 3)], [[[[-1]]]]),
    "flips": (kt.Group([np.flipud, np.fliplr]), [(), (2, 3)], [[[[-1]], [[1]]], [np.diag([-1, 1]), MIRROR]]),
}
GROUPS = {name: (kt.groups.get(name), *row) for name, row in SIZES_AND_SIGNED_TYPES.items()} | MADE_HERE
CONVOLUTIONS = [
    pytest.param("p4m", (3, 3), "trivial", "regular", id="lifting"),
    pytest.param("p4m", (3, 3), "regular", "regular", id="regular"),
    pytest.param("p4m", (1, 1), "regular", "trivial", id="pooled over the group"),
    pytest.param("p4", (2, 2), "regular", "regular", id="even size"),
    pytest.param("p4", (3, 3), "regular", [TURN], id="to vectors"),
    pytest.param("p4m", (3, 3), [TURN, MIRROR], "regular", id="from vectors"),
    pytest.param("p2", (3, 5), "regular", "regular", id="half turn"),
    pytest.param("flip(1)", (3, 2), "trivial", "regular", id="mirror"),
    pytest.param("reversal", (5,), [np.eye(4)[::-1]], "regular", id="reverse complement"),
    pytest.param("octahedral", (3, 3, 3), "trivial", "regular", id="turns of the cube"),
    pytest.param("full_octahedral", (3, 3, 3), [TURN_YX, TURN_XZ, -np.eye(3)], "trivial", id="divergence"),
]


def channel_matrix(group, element, of_type):
    """Returns the matrix by which an element acts on the channels of a field."""
    if isinstance(of_type, str):
        products = group.table[group.elements.index(element)]
        return np.eye(group.order)[:, products] if of_type == "regular" else np.eye(1)
    matrix = np.eye(len(of_type[0]))
    for generator in reversed(element.word):
        matrix = np.asarray(of_type[generator]) @ matrix
    return matrix


def acted(group, element, kernel, in_type, out_type):
    """Returns the kernel that an element makes: moved in space, and its channels by their matrices."""
    moved = element(kernel) if kernel.ndim > 2 else kernel
    matrices = [channel_matrix(group, element, of_type) for of_type in (in_type, out_type)]
    return np.einsum("...hg,ih,jg->...ij", moved, *matrices)


def burnside_count(size, group, in_type, out_type):
    """Returns the mean trace of the action on kernels: the dimension of the space of equivariant ones."""
    numbers = np.arange(np.prod(size, dtype=int)).reshape(size)
    fixed = [np.sum(element(numbers) == numbers) if size else 1 for element in group.elements]
    traces = [[np.trace(channel_matrix(group, element, t)) for element in group.elements] for t in (in_type, out_type)]
    return round(np.mean(np.prod([fixed, *traces], axis=0)))


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@st.composite
def problems(draw):
    """A size, a group and two types for which some kernel is equivariant."""
    group, sizes, signed_types = draw(st.sampled_from(list(GROUPS.values())))
    types = st.sampled_from(["trivial", "regular", *signed_types])
    problem = draw(st.sampled_from(sizes)), group, draw(types), draw(types)
    assume(burnside_count(*problem) > 0)
    return problem


@st.composite
def tied_problems(draw):
    """Arguments of a pattern that ties an axis, and the pattern."""
    problem = draw(problems())
    size, group, *types = problem
    widths = [len(channel_matrix(group, group.elements[0], of_type)) for of_type in types]
    assume(max(*size, *widths) > 1)
    return problem, equivariant(*problem)


@given(tied_problems())
def test_number_of_groups_is_burnsides_count(problem):
    problem, pattern = problem

    assert pattern.num_free == burnside_count(*problem)


@given(tied_problems())
def test_shape_is_the_size_and_the_channels_of_both_fields(problem):
    (size, group, *types), pattern = problem

    assert pattern.shape == (*size, *(len(channel_matrix(group, group.elements[0], of_type)) for of_type in types))


@given(tied_problems())
def test_project_is_the_average_over_all_elements(problem):
    (_, group, *types), pattern = problem
    kernel = random(pattern.shape)
    expected = np.mean([acted(group, element, kernel, *types) for element in group.elements], axis=0)

    np.testing.assert_allclose(array(kt.project(kernel, pattern)), expected, atol=1e-6)


@given(tied_problems())
def test_every_element_fixes_the_projected_kernel(problem):
    (_, group, *types), pattern = problem
    projected = array(kt.project(random(pattern.shape), pattern))

    for element in group.elements:
        np.testing.assert_array_equal(acted(group, element, projected, *types), projected)


@pytest.mark.parametrize(
    ("arguments", "shape", "count"),
    [
        (((3, 3), "p4m"), (3, 3, 1, 8), 9),
        (((3, 3), "p4m", "regular", "regular"), (3, 3, 8, 8), 72),
        (((3, 3), "p4", "regular", "regular"), (3, 3, 4, 4), 36),
        (((3, 3), "p4m", "trivial", "trivial"), (3, 3, 1, 1), 3),
        (((5,), "reversal", [np.eye(4)[::-1]], "regular"), (5, 4, 2), 20),
        (((3, 3, 3), "full_octahedral", "regular", "regular"), (3, 3, 3, 48, 48), 27 * 48),
    ],
)
def test_patterns_counted_by_hand(arguments, shape, count):
    pattern = equivariant(*arguments)

    assert (pattern.shape, pattern.num_free) == (shape, count)


def test_types_are_trivial_to_regular_by_default():
    assert equivariant((3, 3), "p4") == equivariant((3, 3), kt.groups.p4, "trivial", "regular")


@pytest.mark.parametrize("name", SIZES_AND_SIGNED_TYPES)
def test_an_invariant_dense_kernel_is_constant_along_each_field(name):
    order = kt.groups.get(name).order

    assert equivariant((), name, "regular", "trivial") == constant((order, 1))


def test_trivial_kernels_are_those_of_the_symmetry():
    dihedral = kt.patterns.dihedral((3, 3))

    assert equivariant((3, 3), "p4m", "trivial", "trivial") == kt.TyingPattern(dihedral.labels[..., None, None])


def test_a_position_that_moves_to_its_own_negative_is_pinned():
    assert equivariant((3,), "reversal", "trivial", [[[-1]]]) == kt.TyingPattern(
        np.reshape([0, -1, 0], (3, 1, 1)), np.reshape([1, 0, -1], (3, 1, 1))
    )


def field_acted(group, element, images, of_type):
    """Returns a batch of images `(batch, *spatial, channels)` on which an element has acted."""
    moved = np.stack([element(image) for image in images])
    return moved @ channel_matrix(group, element, of_type).T


def assert_commutes(layer, group, size, in_type, out_type):
    """Checks that the layer's output turns with its input, for every element of the group."""
    images = random((2, *[6] * len(size), len(channel_matrix(group, group.elements[0], in_type))), seed=1)
    outputs = array(layer(images))
    for element in group.elements:
        turned = array(layer(field_acted(group, element, images, in_type).astype("float32")))
        np.testing.assert_allclose(turned, field_acted(group, element, outputs, out_type), atol=1e-4)
    assert np.abs(outputs).max() > 0.1


@pytest.mark.parametrize(("name", "size", "in_type", "out_type"), CONVOLUTIONS)
def test_a_convolution_with_the_kernel_commutes_with_the_group(name, size, in_type, out_type):
    pattern = equivariant(size, name, in_type, out_type)
    kernel = kt.project(random(pattern.shape), pattern)

    assert_commutes(lambda images: keras.ops.conv(images, kernel), kt.groups.get(name), size, in_type, out_type)


@pytest.mark.parametrize(("name", "size", "in_type", "out_type"), CONVOLUTIONS)
def test_a_transposed_convolution_commutes_with_the_group_if_the_types_are_swapped(name, size, in_type, out_type):
    pattern = equivariant(size, name, out_type, in_type)
    kernel = kt.project(random(pattern.shape), pattern)
    transposed = partial(keras.ops.conv_transpose, kernel=kernel)

    assert_commutes(transposed, kt.groups.get(name), size, in_type, out_type)


@pytest.mark.parametrize("name", ["p4", "p4m", "p2"])
def test_a_depthwise_convolution_of_a_regular_field_commutes_with_the_group(name):
    pattern = equivariant((3, 3), name, "regular", "trivial")
    kernel = kt.project(random(pattern.shape), pattern)

    layer = partial(keras.ops.depthwise_conv, kernel=kernel)

    assert_commutes(layer, kt.groups.get(name), (3, 3), "regular", "regular")


def test_logits_of_a_tied_network_are_invariant():
    layers = [
        kt.Tied(keras.layers.Conv2D(8, 3, use_bias=False, activation="relu"), equivariant((3, 3), "p4m")),
        kt.Tied(keras.layers.Conv2D(8, 3, use_bias=False, activation="relu"), equivariant((3, 3), "p4m", "regular", "regular")),
        keras.layers.GlobalAveragePooling2D(),
        kt.Tied(keras.layers.Dense(3), equivariant((), "p4m", "regular", "trivial")),
    ]
    model = keras.Sequential([keras.Input((9, 9, 2)), *layers])
    images = random((2, 9, 9, 2))
    logits = array(model(images))

    for element in kt.groups.p4m.elements:
        turned = np.stack([element(image) for image in images])
        np.testing.assert_allclose(array(model(turned)), logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SIZES_AND_SIGNED_TYPES)
def test_config_of_a_built_in_group_is_the_call_with_its_name(name):
    size = (3,) * kt.groups.get(name).rank
    pattern = equivariant(size, kt.groups.get(name), "regular")

    config = json.loads(json.dumps(pattern.get_config()))

    assert config["arguments"] == {"size": list(size), "group": name, "in_type": "regular", "out_type": "regular"}
    assert kt.TyingPattern.from_config(config) == pickle.loads(pickle.dumps(pattern)) == pattern


@pytest.mark.parametrize(
    "make",
    [
        lambda: equivariant((3, 3), MADE_HERE["flips"][0]),
        lambda: equivariant((3, 3), "p4", [TURN]),
        lambda: equivariant((7, 7), "p4m", "regular", [TURN, MIRROR]),
        lambda: equivariant((3,), "reversal", [np.eye(4)[::-1]]),
    ],
)
def test_config_of_other_groups_and_types_holds_labels(make):
    config = json.loads(json.dumps(make().get_config()))

    assert "family" not in config
    assert kt.TyingPattern.from_config(config) == make()


@pytest.mark.parametrize(
    "changes",
    [
        {"group": "p6"},
        {"group": ["p4"]},
        {"group": 4},
        {"group": "trivial"},
        {"group": "eval"},
        {"size": "p4"},
        {"size": [3, 5]},
        {"size": [3]},
        {"size": [[]]},
        {"size": [2**30, 2**30]},
        {"in_type": "p4"},
        {"in_type": 3},
        {"in_type": []},
        {"in_type": [[1]]},
        {"in_type": ["regular"]},
        {"out_type": "vector"},
        {"out_type": None},
        {"out_type": "A" * 10**6},
    ],
    ids=range(18),
)
def test_a_malformed_call_is_refused_with_rule_received_and_way_out(changes):
    config = equivariant((3, 3), "p4").get_config()

    with raises_tying_error("") as caught:
        kt.TyingPattern.from_config({**config, "arguments": {**config["arguments"], **changes}})

    assert len(str(caught.value)) < 1000


def test_a_call_that_makes_another_pattern_now_is_refused(monkeypatch):
    config = equivariant((3, 3), "p4").get_config()
    other = equivariant((3, 3), "p4", "regular")
    monkeypatch.setitem(calls._families, "equivariant", lambda size, group, in_type, out_type: other)

    with raises_tying_error("checksum"):
        kt.TyingPattern.from_config(config)


@pytest.mark.parametrize(
    ("call", "received"),
    [
        pytest.param(lambda: equivariant((3, 5), "p4"), "'rot90' for size=(3, 5)", id="an oblong under quarter turns"),
        pytest.param(lambda: equivariant((3,), "p4"), "'rot90' for size=(3,)", id="a line under quarter turns"),
        pytest.param(lambda: equivariant((3, 3, 5), "octahedral"), "size=(3, 3, 5)", id="a cuboid under turns of the cube"),
        pytest.param(lambda: equivariant((3,), "flip(1)"), "size=(3,)", id="a mirror along a missing axis"),
        pytest.param(lambda: equivariant((3,), MADE_HERE["transposes"][0]), "size=(3,)", id="a line transposed"),
        pytest.param(lambda: equivariant((3, 0), "p4"), "size=(3, 0)", id="an empty size"),
        pytest.param(lambda: equivariant("", "p4"), "size=''", id="a text as size"),
        pytest.param(lambda: equivariant((3, 3), "p6"), "'p6'", id="an unknown group"),
        pytest.param(lambda: equivariant((3, 3), np.rot90), "rot90", id="a function as group"),
        pytest.param(lambda: equivariant((3, 3), "p4", "vector"), "in_type='vector'", id="an unknown type"),
        pytest.param(lambda: equivariant((3, 3), "p4", out_type=None), "out_type=None", id="no type"),
        pytest.param(lambda: equivariant((3, 3), "p4m", [TURN]), "for 2 generator(s)", id="a matrix too few"),
        pytest.param(lambda: equivariant((3, 3), "p4", TURN), "in_type=[[0, -1], [1, 0]]", id="a matrix without a list"),
        pytest.param(lambda: equivariant((3, 3), "p4", [[[1, 0]]]), "in_type=[[[1, 0]]]", id="an oblong matrix"),
        pytest.param(
            lambda: equivariant((3, 3), "p4", [[[1, 1], [0, 0]]]),
            "[[[1, 1], [0, 0]]] for 1 generator(s)",
            id="two entries in a row",
        ),
        pytest.param(
            lambda: equivariant((3, 3), "p4", [[[1, 0], [1, 0]]]),
            "[[[1, 0], [1, 0]]] for 1 generator(s)",
            id="two entries in a column",
        ),
        pytest.param(lambda: equivariant((3, 3), "p4", [[[2]]]), "[[[2]]]", id="a scale"),
        pytest.param(lambda: equivariant((3, 3), "p4", [[[-(2**63), 1], [1, -(2**63)]]]), "in_type=", id="large numbers"),
        pytest.param(lambda: equivariant((3, 3), "p4", [np.array([[1.5]])]), "1.5", id="a fraction"),
        pytest.param(lambda: equivariant((3, 3), "p4", [[[1], [0, 1]]]), "[[[1], [0, 1]]]", id="ragged rows"),
        pytest.param(lambda: equivariant((3, 3), "p4", [[]]), "in_type=[[]]", id="an empty matrix"),
        pytest.param(lambda: equivariant((3, 3), "p2", [TURN]), "breaks g0 g0 = 1 in groups.p2", id="a matrix of order 4"),
        pytest.param(lambda: equivariant((3, 3), "p4m", [TURN, np.eye(2)]), "breaks g", id="matrices that do not commute so"),
        pytest.param(lambda: equivariant((1, 1), "p4", "trivial", "trivial"), "shape=(1, 1, 1, 1)", id="nothing to tie"),
        pytest.param(lambda: equivariant((1, 1), "p4", "trivial", [TURN]), "pinned to zero", id="only the zero kernel"),
    ],
)
def test_malformed_arguments_are_refused_with_rule_received_and_way_out(call, received):
    with raises_tying_error(received):
        call()
