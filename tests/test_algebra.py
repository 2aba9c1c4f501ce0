"""The algebra against the dense matrix `B` of each pattern, to the bit where bits are promised."""

import tracemalloc

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops
from support.backends import array, gradient
from support.errors import raises_tying_error
from support.oracles import dense_adjoint, dense_average, dense_expand, dense_project, root_sizes

import kernel_tying as kt
from kernel_tying import testing
from kernel_tying.algebra import relative_distance
from kernel_tying.testing import dense_basis, kernels, patterns, tied_problems

pytestmark = pytest.mark.usefixtures("double_precision")

FREE_AXES_IN_THE_MIDDLE = [(3, 1, 2), (1, 3, 2), (2, 1, 1, 3), (3, 3, 1, 4), (1, 1, 2, 2)]
LOW_PRECISION = ["float16", "bfloat16"]
LARGE_GROUPS = {
    "question": kt.TyingPattern.parse("AABCC/AABCC/DDEFF/GGHII/GGHII"),
    "dihedral": kt.patterns.dihedral((7, 7)),
    "anti-dihedral": kt.patterns.dihedral((7, 7), antisymmetric=True),
    "constant": kt.patterns.constant((49,)),
}
SIGNED = kt.TyingPattern.parse("AB-A/.CC")


def random_array(*shape, dtype="float32"):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def two_groups(shape):
    """A pattern of two groups, spread at random, with negative members; the last position is pinned."""
    random = np.random.default_rng(1)
    labels = random.permutation(np.arange(np.prod(shape) - 1) % 2)
    signs = random.choice([1, -1], labels.size)
    return kt.TyingPattern(np.append(labels, -1).reshape(shape), np.append(signs, 0).reshape(shape))


def tolerance(kernel):
    return 1e-5 * max(1.0, float(np.abs(kernel).max()))


@given(tied_problems())
def test_average_of_expanded_free_weights_is_the_free_weights_to_the_bit(problem):
    pattern, kernel = problem
    free = array(kt.average(kernel, pattern))

    again = kt.average(kt.expand(free, pattern), pattern)

    np.testing.assert_array_equal(again, free)


@given(tied_problems())
def test_expand_copies_free_weights_as_b_does(problem):
    pattern, kernel = problem
    free = array(kt.average(kernel, pattern))

    np.testing.assert_array_equal(kt.expand(free, pattern), dense_expand(free, pattern))


@given(tied_problems())
def test_average_is_the_pseudoinverse_of_b(problem):
    pattern, kernel = problem

    np.testing.assert_allclose(kt.average(kernel, pattern), dense_average(kernel, pattern), rtol=0, atol=tolerance(kernel))


@given(tied_problems())
def test_project_is_the_orthogonal_projection_onto_the_range_of_b(problem):
    pattern, kernel = problem

    np.testing.assert_allclose(kt.project(kernel, pattern), dense_project(kernel, pattern), rtol=0, atol=tolerance(kernel))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@given(data=st.data())
def test_project_is_idempotent_to_the_bit(dtype, data):
    pattern = data.draw(patterns(max_rank=2))
    projected = array(kt.project(data.draw(kernels(pattern, dtype=dtype)), pattern))

    np.testing.assert_array_equal(kt.project(projected, pattern), projected)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", LARGE_GROUPS)
def test_project_of_random_kernels_is_idempotent_to_the_bit(name, dtype):
    pattern = LARGE_GROUPS[name]
    projected = array(kt.project(random_array(*pattern.shape, 8, 8, dtype=dtype), pattern))

    np.testing.assert_array_equal(kt.project(projected, pattern), projected)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", LARGE_GROUPS)
def test_average_of_expanded_random_weights_is_these_weights_to_the_bit(name, dtype):
    pattern = LARGE_GROUPS[name]
    free = random_array(pattern.num_free, *[1] * (len(pattern.shape) - 1), 8, 8, dtype=dtype)

    np.testing.assert_array_equal(kt.average(kt.expand(free, pattern), pattern), free)


@given(patterns(max_rank=2), st.integers(0, 99))
def test_project_is_self_adjoint(pattern, seed):
    first, second = np.random.default_rng(seed).normal(size=(2, *pattern.shape, 2, 1))

    left = np.vdot(array(kt.project(first, pattern)), second)

    np.testing.assert_allclose(left, np.vdot(first, array(kt.project(second, pattern))), atol=1e-12)


@pytest.mark.parametrize("shape", FREE_AXES_IN_THE_MIDDLE)
def test_free_axes_may_stand_anywhere(shape):
    pattern = two_groups(shape)
    kernel = random_array(*(5 if size == 1 else size for size in shape), 2)

    np.testing.assert_allclose(kt.project(kernel, pattern), dense_project(kernel, pattern), atol=1e-6)


def test_expand_with_a_free_axis_in_the_middle_is_an_einsum():
    pattern = two_groups((3, 1, 2))
    free = random_array(2, 4, 1, 5)
    expected = np.einsum("xzg,gyof->xyzf", dense_basis(pattern).reshape(3, 2, 2), free)

    np.testing.assert_allclose(kt.expand(free, pattern), expected, atol=1e-6)


def test_average_with_a_free_axis_in_the_middle_is_an_einsum():
    pattern = two_groups((3, 1, 2))
    kernel = random_array(3, 4, 2, 5)
    expected = np.einsum("gxz,xyzf->gyf", np.linalg.pinv(dense_basis(pattern)).reshape(2, 3, 2), kernel)

    np.testing.assert_allclose(kt.average(kernel, pattern), expected[:, :, None], atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "kernel_shape", "free_shape"),
    [
        ((5, 5), (5, 5, 2, 4), (2, 1, 2, 4)),
        ((1, 5), (7, 5, 2, 4), (7, 2, 2, 4)),
        ((3, 1, 2), (3, 4, 2, 5), (2, 4, 1, 5)),
        ((3, 3, 1, 4), (3, 3, 2, 4), (2, 1, 2, 1)),
        ((3,), (3,), (2,)),
    ],
)
def test_free_weights_hold_the_groups_along_the_first_tied_axis(shape, kernel_shape, free_shape):
    assert tuple(kt.average(random_array(*kernel_shape), two_groups(shape)).shape) == free_shape


@pytest.mark.parametrize("dtype", [*LOW_PRECISION, "float32", "float64"])
@pytest.mark.parametrize("verb", [kt.average, kt.project])
def test_dtype_is_kept(verb, dtype):
    assert keras.backend.standardize_dtype(verb(keras.ops.ones((2, 3, 2, 2), dtype), SIGNED).dtype) == dtype


@pytest.mark.parametrize(("dtype", "half_unit"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_low_precision_kernels_are_averaged_in_float32_and_rounded_once(dtype, half_unit):
    kernel = random_array(3, 3, 4, 4).astype(np.dtype(dtype))
    expected = dense_average(kernel, kt.patterns.constant((3, 3)))

    averaged = array(kt.average(kernel, kt.patterns.constant((3, 3)))).astype("float64")

    np.testing.assert_allclose(averaged, expected, rtol=1.01 * half_unit, atol=1e-6)


def test_float16_members_that_are_far_apart_do_not_overflow():
    assert array(kt.average(np.array([6e4, -6e4], "float16"), kt.patterns.constant((2,)))).tolist() == [0.0]


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 6e4), ("bfloat16", 3e38)])
def test_sums_of_large_members_do_not_overflow(dtype, largest):
    kernel = np.full(8, largest, np.dtype(dtype))

    np.testing.assert_array_equal(array(kt.project(kernel, kt.patterns.constant((8,)))), kernel)


def test_float64_kernels_are_averaged_in_float64():
    kernel = random_array(2, 3, 2, 2, dtype="float64")

    np.testing.assert_allclose(kt.project(kernel, SIGNED), dense_project(kernel, SIGNED), rtol=1e-14)


@pytest.mark.parametrize(("verb", "oracle"), [(kt.average, dense_average), (kt.project, dense_project)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)])
def test_nan_and_infinity_stay_in_their_own_group(verb, oracle, bad, position):
    kernel = random_array(2, 3, 2, 2)
    expected = array(verb(kernel, SIGNED))
    hit = np.zeros_like(kernel)
    hit[(*position, 0, 1)] = 1
    is_reached = np.abs(oracle(hit, SIGNED)) > 0.1
    kernel[(*position, 0, 1)] = bad

    result = array(verb(kernel, SIGNED))

    np.testing.assert_array_equal(result[~is_reached], expected[~is_reached])
    assert not np.isfinite(result[is_reached]).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pinned_positions_are_zero_whatever_the_free_weights_hold(bad):
    pinned = array(kt.expand(np.full((3, 1, 2, 2), bad, "float32"), SIGNED))[1, 0]

    np.testing.assert_array_equal(pinned, np.zeros((2, 2)))


@given(tied_problems())
def test_gradient_of_expand_is_b_transposed(problem):
    pattern, kernel = problem
    free = array(kt.average(kernel, pattern))

    found = gradient(lambda theta: kt.expand(theta, pattern), free, kernel)

    np.testing.assert_allclose(found, dense_adjoint(kernel, pattern), rtol=0, atol=tolerance(kernel))


def test_gradient_of_expand_is_zero_for_what_comes_from_pinned_positions():
    upstream = np.zeros((2, 3, 1, 1), "float32")
    upstream[1, 0] = np.nan
    free = np.full((3, 1, 1, 1), 2.0, "float32")

    found = gradient(lambda theta: kt.expand(theta, SIGNED), free, upstream)

    np.testing.assert_array_equal(found, np.zeros_like(free))


@given(tied_problems())
def test_gradient_of_project_is_the_projection(problem):
    pattern, kernel = problem
    upstream = kernel[..., ::-1].copy()

    found = gradient(lambda variable: kt.project(variable, pattern), kernel, upstream)

    np.testing.assert_allclose(found, dense_project(upstream, pattern), rtol=0, atol=tolerance(kernel))


@given(tied_problems())
def test_gradient_of_average_is_b_over_the_group_sizes(problem):
    pattern, kernel = problem
    upstream = array(kt.average(kernel, pattern))[..., ::-1].copy()
    sizes = root_sizes(pattern, upstream) ** 2

    found = gradient(lambda variable: kt.average(variable, pattern), kernel, upstream)

    np.testing.assert_allclose(found, dense_expand(upstream / sizes, pattern), rtol=0, atol=tolerance(kernel))


@pytest.mark.parametrize("shape", [(3, 5, 1, 1), (5, 3, 1, 1), (5,), ()])
@pytest.mark.parametrize("verb", [kt.average, kt.project])
def test_kernel_of_another_size_is_refused(verb, shape):
    with raises_tying_error(f"(5, 5) for a kernel of shape {shape}"):
        verb(np.zeros(shape, "float32"), kt.patterns.mirror((5, 5)))


@pytest.mark.parametrize("shape", [(5, 5, 1, 1), (15, 5, 1, 1), (1, 15, 1, 1), (14, 1, 1, 1), (15,), ()])
def test_free_weights_of_another_shape_are_refused(shape):
    with raises_tying_error(f"shape {shape}"):
        kt.expand(np.zeros(shape, "float32"), kt.patterns.mirror((5, 5)))


def distance(kernel, pattern):
    """Returns `||k - P k|| / ||k||`."""
    return relative_distance(kernel, kt.project(kernel, pattern))


@given(tied_problems())
def test_relative_distance_is_the_share_of_the_norm_that_projection_removes(problem):
    pattern, kernel = problem
    kernel = kernel.astype("float64")
    kernel[(0,) * kernel.ndim] += 1.0
    expected = np.linalg.norm(kernel - dense_project(kernel, pattern)) / np.linalg.norm(kernel)

    np.testing.assert_allclose(distance(kernel, pattern), expected, atol=1e-7)


@given(tied_problems())
def test_relative_distance_of_a_projected_kernel_is_exactly_zero(problem):
    pattern, kernel = problem

    assert distance(kt.project(kernel, pattern), pattern) == 0.0


@pytest.mark.parametrize("dtype", [*LOW_PRECISION, "float32", "float64"])
@pytest.mark.parametrize("scale", [1.0, 3e4])
def test_relative_distance_sees_a_single_bit(dtype, scale):
    kernel = np.full((3, 1, 1), scale, np.dtype(dtype))
    kernel[2] = np.nextafter(kernel[2], kernel.dtype.type(0))

    assert distance(kernel, kt.patterns.mirror((3,))) > 0.0


@pytest.mark.parametrize(("dtype", "tiny"), [("float32", 1e-38), ("float32", 1e-30), ("float64", 1e-300)])
def test_relative_distance_of_tiny_values_does_not_underflow(dtype, tiny):
    kernel = np.array([[[tiny]], [[-tiny]]], dtype)

    assert distance(kernel, kt.patterns.mirror((2,))) == pytest.approx(1.0)


def test_relative_distance_of_the_zero_kernel_is_zero():
    assert distance(np.zeros((3, 1, 1), "float32"), kt.patterns.mirror((3,))) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("position", [0, 1])
def test_relative_distance_of_a_kernel_that_is_not_finite_is_nan(bad, position):
    kernel = np.zeros((3, 1, 1), "float32")
    kernel[position] = bad

    assert np.isnan(distance(kernel, kt.patterns.mirror((3,))))


def peak_memory(act):
    act()  # what is imported and compiled takes memory too
    tracemalloc.start()
    act()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_relative_distance_takes_the_memory_of_both_kernels_and_their_difference():
    values = random_array(3, 3, 256, 256)
    kernel = ops.convert_to_tensor(values)  # converted here: on torch, when such a copy is freed is up to the collector
    tied = kt.project(kernel, kt.patterns.mirror((3, 3)))

    both = peak_memory(lambda: [ops.convert_to_numpy(ops.cast(tensor, "float32")) for tensor in (kernel, tied)])

    assert peak_memory(lambda: relative_distance(kernel, tied)) < both + 1.5 * values.nbytes


@pytest.mark.parametrize("operation", [kt.expand, kt.average, kt.project])
def test_operations_take_patterns_only(operation):
    with raises_tying_error("'mirror'"):
        operation(np.ones((3, 3, 1, 1), "float32"), "mirror")


def test_average_takes_floats_only():
    with raises_tying_error("dtype='int64'"):
        kt.average(np.ones((3,), "int64"), kt.TyingPattern.parse("ABA"))


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_patterns_of_many_positions_obey_the_same_laws(is_signed, dtype):
    generator = np.random.default_rng(0)
    signs = generator.integers(-1, 2, (13, 11)) if is_signed else None
    labels = generator.integers(0, 20, (13, 11))
    pattern = kt.TyingPattern(labels if signs is None else np.where(signs == 0, -1, labels), signs)
    kernel = generator.normal(size=(13, 11, 2, 3)).astype(dtype)

    testing.assert_projection(pattern, kernel)
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(array(kt.average(kernel, pattern)), dense_average(kernel, pattern), atol=tolerance)
    np.testing.assert_allclose(array(kt.project(kernel, pattern)), dense_project(kernel, pattern), atol=tolerance)


def skewed():
    """A pattern of one large group, some pairs, and many groups of one member."""
    labels = np.concatenate([np.zeros(60, int), np.arange(100) + 1, np.arange(8) + 101, np.arange(8) + 101])
    return kt.TyingPattern(np.random.default_rng(0).permutation(labels).reshape(16, 11))


def test_groups_of_very_different_sizes_obey_the_same_laws():
    pattern = skewed()
    kernel = random_array(16, 11, 2, 3)

    testing.assert_projection(pattern, kernel)
    np.testing.assert_allclose(array(kt.project(kernel, pattern)), dense_project(kernel, pattern), atol=1e-6)


@given(patterns())
def test_members_are_gathered_at_most_twice_each(pattern):
    tables = pattern.gathering.members

    assert sum(table.positions.size for table in tables) <= 2 * np.sum(pattern.signs != 0)
    assert sorted(np.concatenate([table.labels for table in tables])) == list(range(pattern.num_free))


@pytest.mark.parametrize("pattern", [kt.TyingPattern.parse("ABCA"), skewed()], ids=["small", "large"])
def test_a_group_of_one_member_keeps_its_bits(pattern):
    values = np.resize(np.array([-0.0, np.inf, -np.inf, 0.0, 1e-30], "float32"), pattern.shape)
    is_single = (pattern.group_sizes == 1)[pattern.labels]

    result = array(kt.project(values, pattern))

    np.testing.assert_array_equal(result[is_single].view("int32"), values[is_single].view("int32"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("verb", [kt.average, kt.project])
def test_nan_and_infinity_stay_in_their_own_group_of_a_large_pattern(verb, bad):
    labels = np.random.default_rng(0).integers(-1, 9, 200)
    pattern = kt.TyingPattern(labels, np.where(labels < 0, 0, 1 - 2 * (np.arange(200) % 2)))
    kernel = random_array(200, 1, 2)
    expected = array(verb(kernel, pattern))
    is_hit = np.arange(9) == 4 if verb is kt.average else pattern.labels == 4
    kernel[np.flatnonzero(pattern.labels == 4)[1:3]] = bad
    kernel[pattern.labels < 0] = bad

    found = array(verb(kernel, pattern))

    assert not np.isfinite(found[is_hit]).any()
    np.testing.assert_array_equal(found[~is_hit], expected[~is_hit])


@pytest.mark.parametrize("columns", [1, 2, 2**14])
@pytest.mark.parametrize("name", LARGE_GROUPS)
def test_kernels_of_any_number_of_channels_obey_the_same_laws(name, columns):
    pattern = LARGE_GROUPS[name]
    kernel = random_array(*pattern.shape, columns)

    testing.assert_projection(pattern, kernel)
    np.testing.assert_allclose(array(kt.project(kernel, pattern)), dense_project(kernel, pattern), atol=1e-6)


@pytest.mark.parametrize("verb", [kt.project, kt.average])
def test_equal_patterns_are_compiled_once(monkeypatch, verb):
    calls = []
    average_rows = kt.algebra._average_rows
    monkeypatch.setattr(kt.algebra, "_average_rows", lambda *arguments: calls.append(1) or average_rows(*arguments))
    monkeypatch.setattr(kt.algebra, "_project_rows", lambda *arguments: calls.append(1) or list(arguments[0]))
    labels = [[0, 1, 2], [2, 1, 3]]  # a pattern of this test alone
    verb(random_array(2, 3, 5, 7), kt.TyingPattern(labels))
    first = len(calls)

    for _ in range(3):
        verb(random_array(2, 3, 5, 7), kt.TyingPattern(labels))

    assert len(calls) == first


@pytest.mark.parametrize(
    ("pattern", "kernel_shape", "free_shape"),
    [
        (kt.patterns.circulant((4, 4)), (12, 8), (12, 2)),
        (kt.patterns.constant((4,)), (12,), (3,)),
        (kt.patterns.constant((4, 1)), (12, 5), (3, 5)),
        (two_groups((3, 2, 4)), (3, 4, 12), (2, 2, 3)),
        (two_groups((3, 1, 4)), (3, 5, 12), (2, 5, 3)),
        (two_groups((1, 2, 4)), (3, 4, 12), (3, 4, 3)),
        (two_groups((3, 3, 2, 1)), (3, 3, 4, 7), (2, 1, 2, 7)),
    ],
)
def test_fields_are_tied_alike_and_have_free_weights_of_their_own(pattern, kernel_shape, free_shape):
    kernel = random_array(*kernel_shape)
    free, projected = array(kt.average(kernel, pattern)), array(kt.project(kernel, pattern))
    counts = np.array(kernel_shape) // (*pattern.shape, *[1] * (kernel.ndim - len(pattern.shape)))

    assert free.shape == free_shape
    np.testing.assert_array_equal(kt.expand(free, pattern), projected)
    for field in np.ndindex(*counts):
        of_kernel, of_free = (
            tuple(
                slice(i * size // count, (i + 1) * size // count) for i, size, count in zip(field, shape, counts, strict=True)
            )
            for shape in (kernel_shape, free_shape)
        )
        np.testing.assert_allclose(kt.average(kernel[of_kernel], pattern), free[of_free], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(kt.project(kernel[of_kernel], pattern), projected[of_kernel], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("verb", [kt.average, kt.project])
@pytest.mark.parametrize("shape", [(3, 5, 4), (6, 4, 4), (3, 4, 0)])
def test_sizes_that_do_not_divide_and_multiples_of_spatial_axes_are_refused(verb, shape):
    with raises_tying_error(f"(3, 2, 4) for a kernel of shape {shape}"):
        verb(np.zeros(shape, "float32"), two_groups((3, 2, 4)))


@pytest.mark.parametrize("shape", [(2, 2, 3, 1), (4, 1, 3, 1), (1, 1, 3, 1), (2, 1, 0, 1)])
def test_free_weights_that_hold_no_whole_fields_are_refused(shape):
    with raises_tying_error(f"shape {shape} for a pattern"):
        kt.expand(np.zeros(shape, "float32"), two_groups((3, 3, 2, 1)))
