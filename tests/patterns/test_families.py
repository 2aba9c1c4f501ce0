"""Families of patterns: what each ties, in how many groups, and what it refuses."""

import keras
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.backends import array
from support.errors import raises_tying_error
from support.oracles import dense_project

import kernel_tying as kt
from kernel_tying import patterns as families
from kernel_tying.patterns import registry
from kernel_tying.testing import kernels, patterns

FREE_WEIGHTS_OF_3_5_7 = {
    "mirror": (families.mirror, {}, (6, 15, 28)),
    "mirror up-down": (families.mirror, {"axis": 0}, (6, 15, 28)),
    "mirror both axes": (families.mirror, {"axis": (0, 1)}, (4, 9, 16)),
    "anti-mirror": (families.mirror, {"antisymmetric": True}, (3, 10, 21)),
    "point": (families.point, {}, (5, 13, 25)),
    "anti-point": (families.point, {"antisymmetric": True}, (4, 12, 24)),
    "half turn": (families.rotation, {"order": 2}, (5, 13, 25)),
    "rotation": (families.rotation, {}, (3, 7, 13)),
    "dihedral": (families.dihedral, {}, (3, 6, 10)),
    "transpose": (families.transpose, {}, (6, 15, 28)),
    "anti-transpose": (families.transpose, {"antisymmetric": True}, (3, 10, 21)),
    "radial": (families.radial, {}, (3, 6, 10)),
    "rings": (families.rings, {}, (2, 3, 4)),
    "cross": (families.cross, {}, (5, 9, 13)),
    "toeplitz": (families.toeplitz, {}, (5, 9, 13)),
    "circulant": (families.circulant, {}, (3, 5, 7)),
    "constant": (families.constant, {}, (1, 1, 1)),
    "free": (families.free, {}, (9, 25, 49)),
}

SIZES = [(3, 3), (4, 4), (5, 5)]
OBLONG_SIZES = [*SIZES, (2, 3), (4, 1), (5,)]
SYMMETRIES = {
    "mirror": (families.mirror, {}, [lambda k: np.flip(k, -1)], [*SIZES, (2, 3), (5,), (2, 3, 3)]),
    "mirror up-down": (families.mirror, {"axis": 0}, [lambda k: np.flip(k, 0)], [*OBLONG_SIZES, (2, 3, 3)]),
    "mirror both axes": (families.mirror, {"axis": (0, -1)}, [np.flipud, np.fliplr], [*SIZES, (2, 3)]),
    "point": (families.point, {}, [np.flip], [*OBLONG_SIZES, (2, 3, 3)]),
    "half turn": (families.rotation, {"order": 2}, [lambda k: np.rot90(k, 2)], [*SIZES, (2, 3)]),
    "rotation": (families.rotation, {}, [np.rot90], SIZES),
    "dihedral": (families.dihedral, {}, [np.rot90, np.fliplr], SIZES),
    "transpose": (families.transpose, {}, [np.transpose], SIZES),
}
SYMMETRIC = [
    pytest.param(family, size, options, generators, sign, id=f"{'anti-' * (sign < 0)}{name} {size}")
    for name, (family, options, generators, sizes) in SYMMETRIES.items()
    for size in sizes
    for sign in (1, -1)
]


def centred(position, size):
    """Returns twice the offset from the centre along each axis."""
    return [2 * index - (length - 1) for index, length in zip(position, size, strict=True)]


DEFINITIONS = {
    "mirror": (lambda p, size: (p[:-1], abs(centred(p, size)[-1])), OBLONG_SIZES),
    "point": (lambda p, size: frozenset({p, tuple(n - 1 - i for i, n in zip(p, size, strict=True))}), OBLONG_SIZES),
    "rotation": (lambda p, size: frozenset(complex(*centred(p, size)) * turn for turn in (1, 1j, -1, -1j)), SIZES),
    "dihedral": (lambda p, size: tuple(sorted(map(abs, centred(p, size)))), SIZES),
    "transpose": (lambda p, size: frozenset(p), SIZES),
    "radial": (lambda p, size: sum(offset**2 for offset in centred(p, size)), [*OBLONG_SIZES, (11, 11), (2, 3, 3)]),
    "rings": (lambda p, size: max(map(abs, centred(p, size))), [*OBLONG_SIZES, (2, 3, 3)]),
    "cross": (lambda p, size: p if sum(abs(offset) > 1 for offset in centred(p, size)) < 2 else None, OBLONG_SIZES),
    "toeplitz": (lambda p, size: p[1] - p[0], [*SIZES, (2, 3), (4, 1)]),
    "circulant": (lambda p, size: (p[1] - p[0]) % size[0], SIZES),
    "constant": (lambda p, size: 0, OBLONG_SIZES),
    "free": (lambda p, size: p, OBLONG_SIZES),
}


def labels_by_definition(key, size):
    """Returns labels that count the keys of the positions by first appearance, -1 for the key None."""
    keys = [key(position, size) for position in np.ndindex(*size)]
    in_order = list(dict.fromkeys(key for key in keys if key is not None))
    return np.array([-1 if key is None else in_order.index(key) for key in keys]).reshape(size)


def generated_group(generators, size):
    """Returns all images of the numbers 1, 2, ... under the group that `generators` generate, one tuple for each element."""
    identity = tuple(range(1, int(np.prod(size)) + 1))
    group, new = {identity}, [identity]
    while new:
        images = {tuple(generator(np.reshape(element, size)).ravel().tolist()) for element in new for generator in generators}
        new = list(images - group)
        group |= images
    return group


def burnside_count(generators, size):
    """Returns the mean, over the group, of the trace of the signed permutation matrix: the dimension that it leaves fixed."""
    group = generated_group(generators, size)
    traces = [sum(np.sign(image) for number, image in enumerate(element, 1) if abs(image) == number) for element in group]
    return round(sum(traces) / len(group))


def random_kernel(shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def signed(generators, sign):
    return [lambda kernel, generator=generator: sign * generator(kernel) for generator in generators]


@st.composite
def signed_permutations(draw):
    """A size of up to four positions and one or two signed permutations of them."""
    size = draw(st.sampled_from([(3,), (4, 1), (2, 2)]))
    count = int(np.prod(size))

    def generator():
        order, signs = (
            draw(st.permutations(range(count))),
            draw(st.lists(st.sampled_from([1, -1]), min_size=count, max_size=count)),
        )
        return lambda kernel: (np.array(signs) * kernel.ravel()[order]).reshape(size)

    return size, [generator() for _ in range(draw(st.integers(1, 2)))]


@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("family", FREE_WEIGHTS_OF_3_5_7)
def test_square_kernels_have_the_free_weights_of_the_table(family, k):
    function, options, counts = FREE_WEIGHTS_OF_3_5_7[family]

    assert function((k, k), **options).num_free == counts[k // 2 - 1]


@pytest.mark.parametrize("k", [2, 3, 4, 5, 6, 7, 9])
def test_radial_equals_dihedral_for_small_squares(k):
    assert families.radial((k, k)) == families.dihedral((k, k))


@pytest.mark.parametrize(("k", "radial", "dihedral"), [(8, 9, 10), (11, 20, 21)])
def test_radial_has_fewer_free_weights_than_dihedral_where_distances_coincide(k, radial, dihedral):
    assert (families.radial((k, k)).num_free, families.dihedral((k, k)).num_free) == (radial, dihedral)


@pytest.mark.parametrize(("family", "size", "options", "generators", "sign"), SYMMETRIC)
def test_every_generator_fixes_the_projected_kernel(family, size, options, generators, sign):
    projected = array(kt.project(random_kernel(size), family(size, antisymmetric=sign < 0, **options)))

    for generator in signed(generators, sign):
        np.testing.assert_array_equal(generator(projected), projected)


@pytest.mark.parametrize(("family", "size", "options", "generators", "sign"), SYMMETRIC)
def test_symmetry_has_as_many_groups_as_burnside_counts(family, size, options, generators, sign):
    assert family(size, antisymmetric=sign < 0, **options).num_free == burnside_count(signed(generators, sign), size)


@given(signed_permutations())
def test_from_symmetry_has_as_many_groups_as_burnside_counts(symmetry):
    expected = burnside_count(symmetry[1], symmetry[0])
    assume(expected > 0)

    assert families.from_symmetry(*symmetry).num_free == expected


@given(signed_permutations())
def test_every_generator_fixes_the_kernel_projected_by_from_symmetry(symmetry):
    size, generators = symmetry
    assume(burnside_count(generators, size) > 0)

    projected = array(kt.project(random_kernel(size), families.from_symmetry(size, generators)))

    for generator in generators:
        np.testing.assert_array_equal(generator(projected), projected)


def test_from_symmetry_without_generators_is_free():
    assert families.from_symmetry((2, 2), []) == families.free((2, 2))


def test_from_symmetry_that_only_zero_has_is_refused():
    with raises_tying_error("pinned to zero"):
        families.from_symmetry((2, 2), [np.negative])


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, (_, sizes) in DEFINITIONS.items() for size in sizes])
def test_family_ties_the_positions_that_its_definition_ties(name, size):
    expected = kt.TyingPattern(labels_by_definition(DEFINITIONS[name][0], size))

    assert families.named(name, size) == expected


def test_blocks_of_the_question_are_its_nine_letters():
    assert families.blocks((2, 1, 2), (2, 1, 2)) == kt.TyingPattern.parse("AABCC/AABCC/DDEFF/GGHII/GGHII")


@given(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=1, max_size=3).filter(
        lambda rows: np.sum(np.concatenate(rows)) > len(rows)
    )
)
def test_blocks_repeat_the_rows_and_columns_of_a_small_kernel(lengths):
    pattern = families.blocks(*lengths)
    expected = small = random_kernel([len(along_axis) for along_axis in lengths])
    for axis, repeats in enumerate(lengths):
        expected = np.repeat(expected, repeats, axis)

    expanded = kt.expand(np.reshape(small, kt.average(expected, pattern).shape), pattern)

    np.testing.assert_array_equal(expanded, expected)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3).filter(lambda axes: np.prod(axes) > 1))
def test_tile_repeats_a_small_kernel(axes):
    size, repeats = zip(*axes, strict=True)
    pattern = families.tile(size, repeats)
    expected = np.tile(random_kernel(size), repeats)

    expanded = kt.expand(np.reshape(random_kernel(size), kt.average(expected, pattern).shape), pattern)

    np.testing.assert_array_equal(expanded, expected)


@given(st.data())
def test_per_filter_ties_each_filter_by_its_own_pattern(data):
    size = data.draw(st.sampled_from([(3,), (2, 2)]))
    own_patterns = data.draw(st.lists(patterns(shape=size), min_size=1, max_size=3))
    pattern = families.per_filter(own_patterns)
    kernel = data.draw(kernels(pattern, free_axes=0))
    expected = [dense_project(kernel[..., index], own) for index, own in enumerate(own_patterns)]

    projected = kt.project(kernel[..., : len(own_patterns)], pattern)

    np.testing.assert_allclose(projected, np.stack(expected, axis=-1), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("channels", "filters", "blocks"), [(4, 6, 2), (2, 2, 2), (3, 6, 3), (2, 3, 1)])
def test_channel_blocks_are_equal_blocks_on_the_diagonal(channels, filters, blocks):
    kernel = random_kernel((3, channels, filters))
    parts = [kernel[:, i * channels // blocks :, i * filters // blocks :] for i in range(blocks)]
    block = np.mean([part[:, : channels // blocks, : filters // blocks] for part in parts], axis=0)
    expected = np.stack([np.kron(np.eye(blocks), matrix) for matrix in block])

    projected = kt.project(kernel, families.channel_blocks((3,), channels, filters, blocks))

    np.testing.assert_allclose(projected, expected, atol=1e-6)


def test_channel_blocks_convolve_like_groups_that_share_one_kernel():
    pattern = families.channel_blocks((3, 3), 4, 6, 2)
    block = random_kernel((3, 3, 2, 3))
    images = random_kernel((2, 5, 5, 4))
    expected = keras.layers.Conv2D(6, 3, groups=2, use_bias=False)
    expected.build(images.shape)
    expected.kernel.assign(np.tile(block, 2))

    kernel = kt.expand(block.reshape(3, 3, 6, 1), pattern)

    np.testing.assert_allclose(keras.ops.conv(images, kernel), array(expected(images)), atol=1e-5)


@given(st.data())
def test_mask_pins_exactly_the_positions_that_are_false(data):
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=6, max_size=6).filter(any))).reshape(2, 3)
    kernel = random_kernel((2, 3, 2, 2))

    np.testing.assert_array_equal(kt.project(kernel, families.mask(keep)), kernel * keep[..., None, None])


def test_mask_joins_any_tying_by_and():
    assert families.mask([[1, 1, 0], [1, 1, 1]]) & families.mirror((2, 3)) == kt.TyingPattern.parse(".A./BCB")


@pytest.fixture
def _own_registry(monkeypatch):
    """Forgets after the test what the test registers."""
    monkeypatch.setattr(registry, "_families", dict(registry._families))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_family_is_found_under_its_name(name):
    assert families.named(name, (3, 3)) == getattr(families, name)((3, 3))


def test_names_are_those_of_the_families_that_need_a_size_only():
    assert families.names() == sorted(DEFINITIONS)


@pytest.mark.usefixtures("_own_registry")
def test_registered_family_is_found_under_its_name():
    families.register("all-alike", lambda size: families.constant(size))

    assert families.named("all-alike", (2, 3)) == families.constant((2, 3))


@pytest.mark.usefixtures("_own_registry")
@pytest.mark.parametrize("first", [families.mirror, lambda size: families.point(size)])
def test_register_replaces_a_family_of_ones_own(first):
    families.register("mine", first)

    families.register("mine", families.constant)

    assert families.named("mine", (2, 3)) == families.constant((2, 3))


@pytest.mark.usefixtures("_own_registry")
@pytest.mark.parametrize("name", DEFINITIONS)
def test_register_keeps_the_families_of_the_package(name):
    with raises_tying_error(f"name='{name}'"):
        families.register(name, lambda size: families.constant(size))


@pytest.mark.usefixtures("_own_registry")
@pytest.mark.parametrize(("name", "function"), [("", families.free), (3, families.free), ("mine", "free"), ("mine", None)])
def test_register_refuses_what_is_no_named_function(name, function):
    with raises_tying_error(f"name={name!r}"):
        families.register(name, function)


@pytest.mark.usefixtures("_own_registry")
@pytest.mark.parametrize("result", [families.free((2, 2)), np.zeros((3, 3), int)])
def test_family_that_returns_another_size_or_no_pattern_is_refused(result):
    families.register("mine", lambda size: result)

    with raises_tying_error("'mine' for (3, 3)"):
        families.named("mine", (3, 3))


def test_unknown_name_is_refused_with_the_known_ones():
    with raises_tying_error("'miror'") as caught:
        families.named("miror", (3, 3))

    assert "mirror, point, radial" in str(caught.value)


@pytest.mark.parametrize("size", [(), (0, 3), (-1, 3), (2.0, 3), "33", None, (None, 3)], ids=repr)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_size_that_is_no_tuple_of_positive_integers_is_refused(name, size):
    with raises_tying_error(f"size={size!r}"):
        getattr(families, name)(size)


@pytest.mark.parametrize(
    ("call", "received"),
    [
        pytest.param(lambda: families.rotation((3, 5)), "(3, 5)", id="rotation of an oblong"),
        pytest.param(lambda: families.rotation((3,), order=2), "(3,)", id="half turn of a line"),
        pytest.param(lambda: families.rotation((3, 3), order=3), "order=3", id="third of a turn"),
        pytest.param(lambda: families.dihedral((3, 5)), "(3, 5)", id="dihedral of an oblong"),
        pytest.param(lambda: families.transpose((3, 3, 3)), "(3, 3, 3)", id="transpose of a cube"),
        pytest.param(lambda: families.circulant((2, 3)), "(2, 3)", id="circulant oblong"),
        pytest.param(lambda: families.toeplitz((3,)), "(3,)", id="Toeplitz line"),
        pytest.param(lambda: families.mirror((3, 3), axis=2), "axis=2", id="mirror along a missing axis"),
        pytest.param(lambda: families.mirror((3, 3), axis=(0, "x")), "axis='x'", id="mirror along a text"),
        pytest.param(lambda: families.mirror((1, 1)), "shape=(1, 1)", id="nothing to tie"),
        pytest.param(lambda: families.blocks(), "none", id="no blocks"),
        pytest.param(lambda: families.blocks((2, 0)), "lengths=(2, 0)", id="empty block"),
        pytest.param(lambda: families.tile((1, 5), (5,)), "repeats=(5,)", id="repeats of another rank"),
        pytest.param(lambda: families.tile((1, 5), (5, 0)), "repeats=(5, 0)", id="repeated never"),
        pytest.param(lambda: families.per_filter([]), "[]", id="no filters"),
        pytest.param(lambda: families.per_filter(["mirror"]), "['mirror']", id="names of filters"),
        pytest.param(lambda: families.per_filter(3), "3", id="a number of filters"),
        pytest.param(
            lambda: families.per_filter([families.free((2,)), families.free((3,))]),
            "[TyingPattern.parse('AB'), TyingPattern.parse('ABC')]",
            id="unequal filters",
        ),
        pytest.param(lambda: families.channel_blocks((3,), 4, 6, 4), "blocks=4", id="blocks that do not divide"),
        pytest.param(lambda: families.channel_blocks((3,), 4, 6, 0), "(4, 6, 0)", id="no channel blocks"),
        pytest.param(lambda: families.mask([0.5, 1.0]), "[0.5, 1.0]", id="weights as mask"),
        pytest.param(lambda: families.mask([[1, 0], [1]]), "[[1, 0], [1]]", id="ragged mask"),
        pytest.param(lambda: families.mask([0, 2]), "[0, 2]", id="mask of numbers"),
        pytest.param(lambda: families.mask([0, 0]), "pinned to zero", id="mask of nothing"),
        pytest.param(lambda: families.from_symmetry((2, 3), [np.rot90]), "'rot90'", id="generator that changes the shape"),
        pytest.param(lambda: families.from_symmetry((2, 2), [3]), "[3]", id="generator that is no function"),
        pytest.param(lambda: families.from_symmetry((2, 2), np.rot90), "rot90", id="generator without a list"),
        pytest.param(lambda: families.from_symmetry((2, 2), [lambda k: 2 * k]), "'<lambda>'", id="generator that scales"),
        pytest.param(lambda: families.from_symmetry((2, 2), [np.zeros_like]), "'zeros_like'", id="generator that forgets"),
    ],
)
def test_malformed_arguments_are_refused_with_rule_received_and_way_out(call, received):
    with raises_tying_error(received):
        call()
