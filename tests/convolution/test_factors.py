"""Laws of factored kernels: the sum of the factors is the tied kernel."""

import itertools

import numpy as np
import pytest
from hypothesis import given

import kernel_tying as kt
from kernel_tying import testing
from kernel_tying._convolution.factors import factors

QUESTION = kt.TyingPattern.parse("AABCC/AABCC/DDEFF/GGHII/GGHII")


def full_convolution(first, second):
    """Returns the convolution of two dicts from offsets to values."""
    result = {}
    for (offset, value), (other, factor) in itertools.product(first.items(), second.items()):
        position = tuple(np.add(offset, other))
        result[position] = result.get(position, 0) + value * factor
    return result


def on_grid(shape, entries, spacing, start):
    positions = itertools.product(*map(range, shape))
    return {
        tuple(np.add(start, np.multiply(position, spacing))): entry for position, entry in zip(positions, entries, strict=True)
    }


def kernel_of(found, theta, rank):
    """Returns the sum of the factors as a dict from offsets to values."""
    origin = (0,) * rank
    total = {}
    for factor in found:
        weights = [sign * theta[group] for group, sign in zip(factor.groups, factor.group_signs, strict=True)]
        kernel = on_grid(factor.grid.counts, weights, factor.grid.spacing, factor.start)
        for part in factor.parts:
            summand = full_convolution(kernel, {part.start: 1})
            for stage in part.stages:
                summand = full_convolution(summand, on_grid(stage.shape, stage.entries, stage.spacing, origin))
            for position, value in summand.items():
                total[position] = total.get(position, 0) + value
    return {position: value for position, value in total.items() if value}


@given(testing.patterns(max_rank=3, max_side=6))
def test_the_sum_of_the_factors_is_the_tied_kernel(pattern):
    theta = 2 ** np.arange(pattern.num_free, dtype=object)

    found = kernel_of(factors(pattern, pattern.shape), theta, len(pattern.shape))

    signed = np.where(pattern.signs == 0, 0, theta[pattern.labels] * pattern.signs)
    assert found == {position: value for position, value in np.ndenumerate(signed) if value}


@given(testing.patterns(max_rank=2, max_side=5))
def test_each_factor_alone_is_the_factors_of_its_groups(pattern):
    theta = 2 ** np.arange(pattern.num_free, dtype=object)
    found = factors(pattern, pattern.shape)

    alone = [single for factor in found for single in factor.alone()]

    assert all(max(single.grid.counts) == 1 for single in alone)
    assert kernel_of(alone, theta, len(pattern.shape)) == kernel_of(found, theta, len(pattern.shape))


@pytest.mark.parametrize(
    ("pattern", "stages", "weights"),
    [
        pytest.param(QUESTION, 3, [(1, 1), (1, 2), (2, 1), (2, 2)], id="corners, edges and centre"),
        pytest.param(kt.patterns.mirror((3, 3)), 1, [(3, 1), (3, 1)], id="mirrored columns and the middle one"),
        pytest.param(kt.patterns.blocks((8, 8, 8), (5, 5)), 2, [(3, 2)], id="equal blocks"),
        pytest.param(kt.patterns.constant((64, 64)), 2, [(1, 1)], id="a box is a product of lines"),
        pytest.param(kt.patterns.free((3, 3)), 0, [(3, 3)], id="nothing tied"),
        pytest.param(kt.TyingPattern.parse("ABC/D.E/FGH"), 0, [(1, 2), (1, 3), (1, 3)], id="no grid, but lines"),
    ],
)
def test_groups_that_differ_by_a_shift_share_a_factor(pattern, stages, weights):
    found = factors(pattern, pattern.shape)

    assert sum(len(part.stages) for factor in found for part in factor.parts) == stages
    assert sorted(factor.grid.counts for factor in found) == weights


def test_a_ring_is_a_sum_of_few_entries_instead_of_a_box():
    ring = kt.TyingPattern.parse("..A.A../......./A.....A/......./A.....A/......./..A.A..")

    (factor,) = factors(ring, ring.shape)

    assert sum(len(stage.entries) for part in factor.parts for stage in part.stages) == 8
