"""Pictures of patterns and kernels."""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from support.errors import raises_tying_error

import kernel_tying as kt
from kernel_tying import plotting, testing

NOTATIONS = ["AABCC/AABCC/DDEFF/GGHII/GGHII", "AB.-BA", "A/-A/B", "AB-A/"]
# Linear RGB as a dichromat sees it: Machado, Oliveira and Fernandes, IEEE TVCG 15 (2009), severity 1.
SIMULATIONS = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


def colours(ax):
    """Returns the colour of each position of a picture."""
    return np.asarray(ax.images[0].get_array())


def hatched(ax, hatch):
    """Returns the positions `(column, row)` of a picture that have a hatch which contains `hatch`."""
    centres = [(column, row) for row, column in np.ndindex(colours(ax).shape[:2])]
    patches = [patch for patch in ax.patches if hatch in (patch.get_hatch() or "")]
    return {centre for centre in centres for patch in patches if patch.get_path().contains_point(centre)}


def linear(colour):
    """Returns an sRGB colour in linear light."""
    colour = np.asarray(to_rgb(colour))
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def lightness_and_hue(rgb):
    """Returns linear RGB in the CIELAB space."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1)
    x, y, z = np.cbrt(xyz / (0.9505, 1.0, 1.089))  # no colour here is dark enough for the linear part
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("notation", NOTATIONS)
def test_plot_pattern_gives_positions_one_colour_if_and_only_if_they_are_tied(notation):
    pattern = kt.TyingPattern.parse(notation)

    image = colours(plotting.plot_pattern(pattern)).reshape(pattern.labels.size, -1)

    is_equal = (image[:, None] == image[None]).all(axis=-1)
    np.testing.assert_array_equal(is_equal, pattern.labels.ravel()[:, None] == pattern.labels.ravel()[None])


@pytest.mark.parametrize("size", [(5, 5), (11, 11), (16, 16)])
@pytest.mark.parametrize("name", ["dihedral", "free", "toeplitz", "circulant", "rings"])
def test_plot_pattern_gives_different_colours_to_groups_that_touch(name, size):
    labels = kt.patterns.named(name, size).labels

    image = colours(plotting.plot_pattern(name, size=size))

    for row, column in np.ndindex(size[0] - 1, size[1] - 1):
        square = [(row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1)]
        for first, second in itertools.combinations(square, 2):
            assert (labels[first] == labels[second]) == np.array_equal(image[first], image[second])


def test_plot_pattern_gives_all_groups_their_own_colours_if_more_touch_than_the_palette_has():
    labels = np.array([[group, other] for group in range(24) for other in range(24)]).ravel()[None]

    image = colours(plotting.plot_pattern(kt.TyingPattern(labels)))

    assert len(np.unique(image[0], axis=0)) == 24


@pytest.mark.parametrize("simulation", SIMULATIONS.values(), ids=SIMULATIONS)
def test_plot_pattern_gives_ten_groups_colours_that_colour_blind_readers_tell_apart(simulation):
    image = colours(plotting.plot_pattern(kt.patterns.free((1, 10))))[0]

    seen = [lightness_and_hue(simulation @ linear(colour)) for colour in image]

    assert min(np.linalg.norm(first - second) for first, second in itertools.combinations(seen, 2)) > 15  # CIE76


@pytest.mark.parametrize("notation", [*NOTATIONS, "A.-A/B.-B/A.-A"])
def test_plot_pattern_writes_the_letters_of_the_notation(notation):
    pattern = kt.TyingPattern.parse(notation)
    ax = plotting.plot_pattern(pattern)
    cells = np.full(pattern.labels.size, ".", object)
    for text in ax.texts:
        column, row = text.get_position()
        cells[row * colours(ax).shape[1] + column] = text.get_text()

    assert kt.TyingPattern.parse(" ".join(cells), shape=pattern.shape) == pattern
    assert "".join(cells) == str(pattern).replace("/", "")


def test_plot_pattern_writes_names_of_more_than_52_groups_as_in_the_notation():
    pattern = kt.patterns.free((8, 8))

    texts = [text.get_text() for text in plotting.plot_pattern(pattern).texts]

    assert texts == str(pattern).replace("/", " ").split()


@given(testing.patterns(min_rank=2, max_rank=2))
def test_plot_pattern_hatches_negatives_and_pins(pattern):
    ax = plotting.plot_pattern(pattern)

    assert hatched(ax, "/") == {(column, row) for row, column in np.argwhere(pattern.signs < 0)}
    assert hatched(ax, "x") == {(column, row) for row, column in np.argwhere(pattern.signs == 0)}
    plt.close("all")


def test_plot_pattern_draws_the_edges_of_all_cells():
    ax = plotting.plot_pattern("mirror", size=(3, 5))

    segments = [collection.get_segments() for collection in ax.collections]
    assert sorted(map(len, segments)) == [3 + 1, 5 + 1]


@pytest.mark.parametrize("name", ["free", "dihedral"])
def test_plot_pattern_writes_in_a_colour_that_contrasts_with_the_cell(name):
    ax = plotting.plot_pattern(name, size=(7, 7))

    for text in ax.texts:
        column, row = text.get_position()
        shades = [linear(shade) @ (0.2126, 0.7152, 0.0722) for shade in (text.get_color(), colours(ax)[row, column])]
        assert (max(shades) + 0.05) / (min(shades) + 0.05) >= 4.5  # WCAG 2, level AA


@pytest.mark.parametrize(("side", "count"), [(12, 144), (13, 0)])
def test_plot_pattern_writes_no_text_on_large_patterns(side, count):
    assert len(plotting.plot_pattern("rings", size=(side, side)).texts) == count


def test_plot_pattern_writes_smaller_on_small_axes():
    small, large = (plt.figure(figsize=(side, side)).add_subplot() for side in (1, 4))

    sizes = [plotting.plot_pattern("mirror", ax, size=(5, 5)).texts[0].get_fontsize() for ax in (small, large)]

    assert sizes[0] < sizes[1] / 3


def test_plot_pattern_draws_on_the_given_axes():
    ax = plt.figure().add_subplot()

    assert plotting.plot_pattern(kt.patterns.mirror((3, 3)), ax) is ax


def test_plot_pattern_draws_two_tied_axes_of_a_pattern_that_reaches_the_channels():
    ax = plotting.plot_pattern(kt.patterns.channel_blocks((3, 3), 2, 4, 2))

    assert colours(ax).shape == (2, 4, 3)


@pytest.mark.parametrize(
    ("arguments", "received"),
    [((kt.patterns.constant((2, 2, 2)),), "(2, 2, 2)"), (("mirror",), "'mirror' without"), (("miror",), "miror"), ((3,), "3")],
)
def test_plot_pattern_refuses(arguments, received):
    with raises_tying_error(received):
        plotting.plot_pattern(*arguments)


def slices(figure):
    """Returns what the axes of a figure show, `(count, rows, columns)`, without colour bars."""
    return np.array([ax.images[0].get_array() for ax in figure.axes if ax.images])


def titles(figure):
    return [ax.get_title() for ax in figure.axes if ax.images]


def small_model():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(3, 5, name="wide"),
            keras.layers.Conv2D(2, 1, name="pointwise"),
            keras.layers.DepthwiseConv2D(3, name="each"),
            keras.layers.Dense(3),
        ]
    )


@pytest.mark.parametrize("shape", [(5, 3, 4), (3, 3, 2, 1), (3, 5, 2, 6)])
def test_plot_kernels_shows_the_first_slices_in_one_scale(shape):
    kernel = np.random.default_rng(0).normal(size=shape).astype("float32")

    figure = plotting.plot_kernels(kernel, count=5)

    images = [ax.images[0] for ax in figure.axes if ax.images]
    expected = np.moveaxis(kernel.reshape(*shape[:-2], -1), -1, 0)[:5]
    np.testing.assert_array_equal(slices(figure).reshape(expected.shape), expected)
    assert {image.get_clim() for image in images} == {(-np.abs(expected).max(), np.abs(expected).max())}


def test_plot_kernels_names_the_channels_of_each_slice():
    figure = plotting.plot_kernels(np.ones((3, 3, 2, 2)))

    assert titles(figure) == ["in 0, out 0", "in 0, out 1", "in 1, out 0", "in 1, out 1"]


@pytest.mark.parametrize(
    ("layer", "title"),
    [
        (keras.layers.Conv1D(2, 3), "in 0, out 1"),
        (keras.layers.Conv1DTranspose(2, 3), "out 0, in 1"),
        (keras.layers.DepthwiseConv1D(3), "in 1, copy 0"),
    ],
    ids=["Conv1D", "Conv1DTranspose", "DepthwiseConv1D"],
)
def test_plot_kernels_names_the_channel_axes_of_the_layer(layer, title):
    layer.build((None, 8, 2))

    assert titles(plotting.plot_kernels(layer, count=2))[1] == title


@pytest.mark.parametrize("mode", ["constraint", "parameterization"])
def test_plot_kernels_draws_each_spatial_kernel_of_a_model_with_a_colour_bar(mode):
    model = kt.apply_tying(small_model(), "mirror", mode=mode)

    figure = plotting.plot_kernels(model, count=2)

    images = [ax.images[0].get_array().shape for ax in figure.axes if ax.images]
    assert images == [(5, 5), (5, 5), (3, 3), (3, 3)]
    assert [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()] == ["wide.kernel", "each.kernel"]
    assert len([ax for ax in figure.axes if ax.get_label() == "<colorbar>"]) == 2


def test_plot_kernels_draws_slices_before_and_after_side_by_side_in_one_scale():
    model = small_model()
    kernel = np.moveaxis(keras.ops.convert_to_numpy(model.get_layer("wide").kernel), (2, 3), (0, 1))[0]
    tied = kt.apply_tying(model, "mirror", mode="parameterization", init="project")

    figure = plotting.plot_kernels(tied.get_layer("wide"), count=2, before=model.get_layer("wide"))

    expected = [(values, (values + values[:, ::-1]) / 2) for values in kernel[:2]]
    np.testing.assert_allclose(slices(figure), np.concatenate(expected), rtol=1e-6, atol=1e-7)
    assert titles(figure) == [f"in 0, out {channel}\n{time}" for channel in (0, 1) for time in ("before", "after")]
    limits = {ax.images[0].get_clim() for ax in figure.axes if ax.images}
    assert limits == {(-np.abs(kernel[:2]).max(), np.abs(kernel[:2]).max())}


@pytest.mark.parametrize(
    ("drawn", "received"),
    [
        (np.zeros((2, 2, 2, 1, 1)), "(2, 2, 2, 1, 1)"),
        (keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="dense"), "'dense'"),
        (keras.layers.Conv2D(2, 3, name="unbuilt"), "'unbuilt'"),
    ],
    ids=["volume", "dense", "unbuilt"],
)
def test_plot_kernels_refuses(drawn, received):
    with raises_tying_error(received):
        plotting.plot_kernels(drawn)


def test_plot_kernels_refuses_kernels_before_of_other_shapes():
    with raises_tying_error("(1, 3, 3)"):
        plotting.plot_kernels(np.ones((5, 5, 1, 1)), before=np.ones((3, 3, 1, 1)))


def test_plot_symmetry_has_a_cell_for_each_kernel_and_pattern():
    model = keras.Sequential(
        [keras.Input((9, 9, 1)), keras.layers.Conv2D(2, 3, name="a"), keras.layers.Conv2D(2, (1, 3), name="b")]
    )
    report = kt.symmetry_report(model, ["mirror", "dihedral"])

    ax = report.plot()

    lost = [f"{100 * row.lost:.0f}" for row in report.rows]
    ratios = [[row.lost / row.expected for row in report.rows[:2]], [report.rows[2].lost / report.rows[2].expected, np.nan]]
    assert [text.get_text() for text in ax.texts] == lost
    np.testing.assert_allclose(np.ma.filled(ax.images[0].get_array(), np.nan), ratios)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]


def test_plot_symmetry_draws_on_the_given_axes():
    layer = keras.layers.Conv2D(2, 3)
    layer.build((None, 9, 9, 1))
    ax = plt.figure().add_subplot()

    assert kt.symmetry_report(layer).plot(ax) is ax
