"""Laws of the tied convolution: the stock convolution with the expanded kernel is the oracle, for values and derivatives."""

import importlib

import keras
import numpy as np
import pytest
from hypothesis import given
from keras import layers, ops
from support.backends import array, raw_gradients

import kernel_tying as kt
from kernel_tying import testing
from kernel_tying._convolution import generic, sums
from kernel_tying._convolution.geometry import Geometry, padding_of, samples_per_chunk, tile_size
from kernel_tying._convolution.sums import adjoint_sums, group_sums, members, schedule

BACKEND = importlib.import_module(f"kernel_tying._convolution.{keras.backend.backend()}")
QUESTION = kt.TyingPattern.parse("AABCC/AABCC/DDEFF/GGHII/GGHII")
SIGNED = kt.TyingPattern.parse("A B -A/B . B/-A C A")
CONVOLVING = [layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv1D, layers.DepthwiseConv2D]


def summed(steps, groups, kernel):
    """Returns for each group the positions of the kernel that its terms add up, with signs, as an array like the kernel."""
    images = [{(0,) * kernel.ndim: 1}]

    def moved(image, offset, sign):
        return {tuple(np.add(position, offset)): sign * one for position, one in images[image].items()}

    def total(parts):
        result = {}
        for part in parts:
            for position, sign in part.items():
                result[position] = result.get(position, 0) + sign
        return result

    for step in steps:
        images.append(total([moved(step.first, (0,) * kernel.ndim, 1), moved(step.second, step.offset, step.sign)]))
    return [total([moved(*term) for term in terms]) for terms in groups]


@given(testing.patterns(max_rank=3, max_side=5))
def test_shared_sums_add_up_the_members_of_each_group(pattern):
    sums = group_sums(pattern, pattern.shape)

    expected = [dict(group) for group in members(pattern, pattern.shape)]
    assert summed(sums.steps, sums.groups, pattern.labels) == expected


@given(testing.patterns(max_rank=3, max_side=5))
def test_sums_along_lines_add_up_the_members_of_each_group(pattern):
    groups = members(pattern, pattern.shape)

    lines = sums._LineSums().of(groups)

    assert summed(lines.steps, lines.groups, pattern.labels) == [dict(group) for group in groups]


@pytest.mark.parametrize(
    ("pattern", "most"),
    [
        pytest.param(kt.patterns.constant((64, 64)), 12, id="box"),
        pytest.param(kt.patterns.constant((4096,)), 12, id="line"),
        pytest.param(kt.patterns.blocks((8,) * 8, (8,) * 8), 6, id="blocks"),
        pytest.param(kt.patterns.radial((51, 51)), 1100, id="rings"),
    ],
)
def test_sums_of_large_groups_are_found_in_linear_time(monkeypatch, pattern, most):
    monkeypatch.setattr(sums, "_most_frequent", None)  # the search for pairs would take minutes

    assert group_sums(pattern, pattern.shape).num_additions <= most


@given(testing.patterns(max_rank=3, max_side=5))
def test_adjoint_sums_see_each_member_from_the_other_end(pattern):
    sums = adjoint_sums(pattern, pattern.shape)

    last = np.array(pattern.shape) - 1
    expected = [{tuple(last - offset): sign for offset, sign in group} for group in members(pattern, pattern.shape)]
    assert summed(sums.steps, sums.groups, pattern.labels) == expected


@pytest.mark.parametrize(
    ("pattern", "additions"),
    [
        pytest.param(QUESTION, 3, id="boxes"),
        pytest.param(kt.patterns.blocks((8,) * 4, (8,) * 4), 6, id="equal blocks"),
        pytest.param(kt.patterns.mirror((31, 31)), 15, id="mirrored halves"),
        pytest.param(kt.patterns.free((3, 3)), 0, id="nothing tied"),
    ],
)
def test_sums_that_groups_share_are_taken_once(pattern, additions):
    assert group_sums(pattern, pattern.shape).num_additions == additions


@pytest.mark.parametrize(
    ("pattern", "grid"),
    [
        (kt.patterns.blocks((8, 8, 8), (5, 5)), ((3, 2), (8, 5))),
        (kt.TyingPattern.parse("A.B/.../C.D"), ((2, 2), (2, 2))),
        (kt.TyingPattern.parse("ABC/DEF/GH."), None),
        (kt.patterns.free((1, 4)) & kt.TyingPattern.parse("AB.C"), None),
        (QUESTION, None),
        (kt.patterns.dihedral((3, 3)), None),
    ],
    ids=["blocks", "holes", "a corner is missing", "unequal distances", "unequal blocks", "orbits"],
)
def test_groups_that_read_one_image_at_equal_distances_are_a_lattice(pattern, grid):
    assert group_sums(pattern, pattern.shape).grid == grid


def test_free_spatial_axes_multiply_the_groups_in_the_order_of_the_free_weights():
    pattern = kt.TyingPattern.parse("A/B/A")
    kernel = np.arange(12.0, dtype="float32").reshape(3, 4, 1, 1)
    by_group = array(kt.algebra.free_by_group(kt.average(kernel, pattern), pattern))[:, 0, 0]

    means = [np.mean([kernel[offset][0, 0] for offset, _ in group]) for group in members(pattern, (3, 4))]

    np.testing.assert_array_equal(by_group, means)


def test_a_schedule_reads_inside_of_its_images():
    geometry = Geometry(QUESTION, (5, 5), (2, 1), (1, 3), ((2, 2), (6, 6)))
    size = geometry.output_size((9, 7))
    plan = schedule(geometry.sums, geometry.dilation, geometry.strides, size)
    image_sizes = [(9 + 4, 7 + 12), *plan.sizes]

    for read in [read for reads in (*plan.steps, *plan.groups) for read in reads]:
        assert all(0 <= one.start < one.stop <= most for one, most in zip(read.window, image_sizes[read.image], strict=True))


@pytest.mark.parametrize(("batch", "expected"), [(32, 8), (31, 1), (12, 6), (None, 8), (1, 1), (0, 1)])
def test_chunks_divide_a_batch_of_known_size(batch, expected):
    assert samples_per_chunk(batch, sample_bytes=1000, sum_bytes=8000) == expected


def test_large_samples_are_cut_into_tiles_that_cover_them():
    geometry = Geometry(QUESTION, (5, 5), (1, 1), (1, 1), ((2, 2), (2, 2)))

    rows, width = tile_size(geometry, (224, 224), 64, sum_bytes=2**18)

    assert width == 224
    assert 4 <= rows < 10
    assert tile_size(geometry, (16, 16), 64, sum_bytes=2**18) == (16, 16)


@pytest.fixture(params=["whole", "in chunks and tiles"])
def chunks(request, monkeypatch):
    """Lets the batch be computed in one piece, or in pieces as small as can be."""
    if request.param == "whole":
        yield
        return
    monkeypatch.setattr(BACKEND, "_CHUNK_BYTES" if hasattr(BACKEND, "_CHUNK_BYTES") else "_SUM_BYTES", 16)
    monkeypatch.setattr(generic, "_STRIP_BYTES", 16)
    _forget_compiled()
    yield
    _forget_compiled()


def _forget_compiled():
    """Makes functions that are compiled once for each shape see another size of chunks."""
    if keras.backend.backend() == "jax":
        for function in (BACKEND.convolve, BACKEND.forward, BACKEND.backward):
            function.clear_cache()
    if keras.backend.backend() == "tensorflow":
        BACKEND._forward.forget()
        BACKEND._backward.forget()


# pattern, spatial size, channels of one group, filters of one group, groups, options
PROBLEMS = [
    pytest.param(QUESTION, (9, 8), 2, 3, 1, {"padding": "same"}, id="boxes"),
    pytest.param(
        kt.patterns.blocks((2, 2), (3, 3)), (9, 8), 2, 3, 1, {"dilation_rate": (2, 1), "padding": "same"}, id="blocks"
    ),
    pytest.param(SIGNED, (9, 8), 2, 3, 1, {"dilation_rate": (2, 2)}, id="signs and zeros, dilated"),
    pytest.param(SIGNED, (9, 8), 3, 2, 1, {"padding": "same", "strides": (2, 2)}, id="strides"),
    pytest.param(QUESTION, (9, 8), 1, 4, 1, {"padding": "same", "strides": (2, 1)}, id="few channels, strides of rows"),
    pytest.param(SIGNED, (10, 8), 2, 3, 2, {"strides": (2, 3)}, id="strides with a rest, groups"),
    pytest.param(SIGNED, (5, 6), 1, 2, 3, {"padding": "same"}, id="depthwise"),
    pytest.param(kt.TyingPattern.parse("AB-A"), (9,), 2, 2, 1, {"dilation_rate": (2,), "padding": "same"}, id="1D"),
    pytest.param(kt.patterns.mirror((3, 2, 3)), (4, 5, 4), 2, 1, 1, {"padding": "same"}, id="3D"),
    pytest.param(kt.TyingPattern.parse("A/B/A"), (6, 5), 2, 2, 1, {"padding": "same"}, id="a free spatial axis"),
]


class Problem:
    """The same convolution in two ways, as functions of inputs and free weights."""

    def __init__(self, pattern, size, channels, filters, groups, options):
        self.pattern, self.options = pattern, options
        rank, generator = len(size), np.random.default_rng(0)
        kernel_size = tuple(max(own, 1) for own in (*pattern.shape, *[3] * rank)[:rank]) if pattern.shape[-1] > 1 else (3, 2)
        ones = (1,) * rank
        numbers = kernel_size, options.get("strides", ones), options.get("dilation_rate", ones)
        padding = padding_of(options.get("padding", "valid"), size, *numbers)
        self.geometry = Geometry(pattern, *numbers, padding, groups)
        self.inputs = generator.normal(size=(3, *size, channels * groups)).astype("float32")
        kernel = generator.normal(size=(*kernel_size, channels, filters * groups)).astype("float32")
        self.free = array(kt.average(kernel, pattern))

    def stock(self, inputs, free):
        return ops.conv(inputs, kt.expand(free, self.pattern), **self.options)

    def tied(self, inputs, free):
        return BACKEND.convolve(inputs, kt.algebra.free_by_group(free, self.pattern), self.geometry)

    def derivatives(self, function, order):
        """Returns the derivatives of a curved loss in inputs and free weights."""
        variables = [keras.Variable(self.inputs), keras.Variable(self.free)]
        values = [array(function(*[one.value for one in variables]))]

        def loss():
            return ops.sum(ops.sin(function(*[one.value for one in variables])))

        def second():
            return sum(ops.sum(ops.cos(one)) for one in _differentiable_gradients(loss, variables))

        return values + [array(one) for one in raw_gradients(loss if order == 1 else second, variables)]


def _differentiable_gradients(loss, variables):
    """Returns gradients that can be differentiated again."""
    if keras.backend.backend() != "torch":
        return raw_gradients(loss, variables)
    import torch

    return torch.autograd.grad(loss(), [one.value for one in variables], create_graph=True)


def assert_close(results, expected, tolerance):
    for one, other in zip(results, expected, strict=True):
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize(("pattern", "size", "channels", "filters", "groups", "options"), PROBLEMS)
@pytest.mark.parametrize(("order", "tolerance"), [(1, 1e-5), (2, 2e-4)], ids=["first", "second"])
def test_values_and_derivatives_are_those_of_the_stock_convolution(
    pattern, size, channels, filters, groups, options, order, tolerance
):
    problem = Problem(pattern, size, channels, filters, groups, options)

    results = problem.derivatives(problem.tied, order)

    assert_close(results, problem.derivatives(problem.stock, order), tolerance)
