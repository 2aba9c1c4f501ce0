import numpy as np
import pytest
from helpers import raises_tying_error
from matplotlib import pyplot as plt

import kernel_tying as kt
from kernel_tying import plotting


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("notation", ["AABCC/AABCC/DDEFF/GGHII/GGHII", "AB.-BA", "A/-A/B", "AB-A/"])
def test_plot_pattern_gives_positions_one_colour_if_and_only_if_they_are_tied(notation):
    pattern = kt.TyingPattern.parse(notation)

    image = np.asarray(plotting.plot_pattern(pattern).images[0].get_array()).reshape(pattern.labels.size, -1)

    alike = (image[:, None] == image[None]).all(axis=-1)
    np.testing.assert_array_equal(alike, pattern.labels.ravel()[:, None] == pattern.labels.ravel()[None])


def test_plot_pattern_writes_the_sign_and_the_group_on_tied_positions():
    texts = [text.get_text() for text in plotting.plot_pattern(kt.TyingPattern.parse("A.-A")).texts]

    assert texts == ["0", "-0"]


def test_plot_pattern_draws_on_the_given_axes():
    ax = plt.figure().add_subplot()

    assert plotting.plot_pattern(kt.patterns.mirror((3, 3)), ax) is ax


def test_plot_pattern_refuses_three_tied_axes():
    with raises_tying_error("(2, 2, 2)"):
        plotting.plot_pattern(kt.patterns.constant((2, 2, 2)))


@pytest.mark.parametrize("shape", [(5, 3, 4), (3, 3, 2, 1), (3, 5, 2, 6)])
def test_plot_kernels_shows_the_first_slices_in_one_scale(shape):
    kernel = np.random.default_rng(0).normal(size=shape).astype("float32")

    figure = plotting.plot_kernels(kernel, count=5)

    images = [ax.images[0] for ax in figure.axes if ax.images]
    slices = np.moveaxis(kernel.reshape(*shape[:-2], -1), -1, 0)[:5]
    np.testing.assert_array_equal([np.asarray(image.get_array()).reshape(slices[0].shape) for image in images], slices)
    assert {image.get_clim() for image in images} == {(-np.abs(slices).max(), np.abs(slices).max())}


def test_plot_kernels_refuses_three_spatial_axes():
    with raises_tying_error("(2, 2, 2, 1, 1)"):
        plotting.plot_kernels(np.zeros((2, 2, 2, 1, 1)))
