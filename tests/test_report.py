"""What the report, its plan and the tying error tell about a model."""

import json
import re
from html.parser import HTMLParser

import keras
import numpy as np
import pytest
from keras import layers
from matplotlib import pyplot as plt
from support.backends import array
from support.errors import raises_tying_error
from support.models import (
    IMAGE,
    MODES,
    compile_model,
    conv,
    head,
    make,
    nested,
    shared_across,
    skip,
    subclassed,
    tie,
    train,
    unbuilt,
)
from support.oracles import dense_project

import kernel_tying as kt
from kernel_tying import TyingError, TyingPattern

in_both_modes = pytest.mark.parametrize("mode", MODES)
MIRROR = kt.patterns.mirror((3, 3))


def rows(model):
    return {row.layer: row for row in kt.tying_report(model).rows}


def zoo():
    x = keras.Input(IMAGE, name="image")
    h = layers.Conv2D(2, 1, name="point")(layers.Conv2D(2, (3, 5), padding="same", name="oblong")(conv("first", 4)(x)))
    return keras.Model(x, head(layers.BatchNormalization(name="norm")(h)), name="zoo")


@in_both_modes
def test_a_row_tells_what_is_tied_how(mode):
    row = rows(tie(make(zoo), mode, {"first": MIRROR}))["first"]

    assert (row.layer_class, row.kernel, row.mode, row.pattern) == ("Conv2D", "kernel", mode, MIRROR)
    assert (row.free_weights, row.full_weights) == (6 * 2 * 4, 9 * 2 * 4)
    assert (row.error, row.convolution, row.reason) == (0.0, "kernel", "")


@in_both_modes
@pytest.mark.parametrize("builder", [skip, subclassed, nested])
def test_the_lost_norm_is_the_distance_from_the_tied_kernels(builder, mode):
    kernels = [array(one) for one in make(builder).variables if one.shape[:2] == (3, 3)]
    expected = [np.linalg.norm(kernel - dense_project(kernel, MIRROR)) / np.linalg.norm(kernel) for kernel in kernels]

    tied = tie(make(builder), mode)

    assert [row.lost for row in kt.tying_report(tied).rows if row.pattern] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scaling", ["values", "orthonormal"])
def test_a_kernel_that_was_symmetric_lost_nothing(scaling):
    model = make(skip)
    kernel = model.get_layer("first").kernel
    kernel.assign(kt.project(kernel, MIRROR))

    tied = kt.apply_tying(model, {"first": MIRROR}, mode="parameterization", scaling=scaling)

    assert rows(tied)["first"].lost == 0.0


@in_both_modes
def test_redrawn_kernels_lost_nothing_that_is_known(mode):
    assert rows(tie(make(skip), mode, init="redraw"))["first"].lost is None


@in_both_modes
@pytest.mark.parametrize(
    ("patterns", "layer", "reason"),
    [
        ("mirror", "point", r"kernel_size=\(1, 1\) has no axis to tie"),
        ("mirror", "norm", "BatchNormalization keeps only weights that are tied by name"),
        ("mirror", "head", "Dense is tied only where it is named"),
        (MIRROR, "oblong", r"kernel_size=\(3, 5\) differs from the pattern's shape \(3, 3\)"),
        ("rotation", "oblong", "square"),
        ({"first": "mirror"}, "oblong", "not named"),
        ({"ob*": None, "*": "mirror"}, "oblong", r"left out by 'ob\*'"),
        (lambda layer: "mirror" if layer.name == "first" else None, "oblong", "left out by the callable"),
    ],
)
def test_a_layer_that_is_passed_over_is_listed_with_the_reason(patterns, layer, reason, mode):
    row = rows(tie(make(zoo), mode, patterns))[layer]

    assert re.search(reason, row.reason)
    assert (row.pattern, row.mode, row.kernel, row.error) == (None, "", "", None)


@in_both_modes
def test_layers_without_weights_are_left_out(mode):
    assert set(rows(tie(make(zoo), mode))) == {"first", "oblong", "point", "norm", "head"}


def test_an_untied_model_is_reported_too():
    assert {row.reason for row in kt.tying_report(make(zoo)).rows} == {"not tied"}


@in_both_modes
def test_a_layer_that_is_shared_is_reported_once(mode):
    tied = tie(make(shared_across), mode)

    assert sorted(row.layer for row in kt.tying_report(tied).rows if row.pattern) == ["trunk/inner", "trunk/shared"]


@in_both_modes
def test_a_layer_that_is_not_built_is_reported_without_numbers(mode):
    report = kt.tying_report(tie(make(unbuilt), mode))

    assert (report.rows[0].pattern, report.rows[0].full_weights, report.rows[0].error) == (MIRROR, None, None)
    assert "not built" in str(report)


def test_a_constraint_put_in_by_hand_is_reported():
    model = keras.Sequential([keras.Input(IMAGE), conv("first", kernel_constraint=kt.TiedConstraint("mirror"))])

    assert (rows(model)["first"].mode, rows(model)["first"].pattern) == ("constraint", MIRROR)


@in_both_modes
def test_to_dict_is_json_that_holds_each_row(mode):
    report = kt.tying_report(tie(make(zoo), mode))

    read = json.loads(json.dumps(report.to_dict()))

    assert read["name"] == "zoo"
    for row, one in zip(report.rows, read["rows"], strict=True):
        assert (one["layer"], one["free_weights"], one["error"], one["lost"], one["reason"]) == (
            row.layer,
            row.free_weights,
            row.error,
            row.lost,
            row.reason,
        )
        assert row.pattern == (one["pattern"] and TyingPattern.from_config(one["pattern"]))


def lines(model):
    """Returns the lines of a report, without blanks at their ends."""
    return [line.strip() for line in repr(kt.tying_report(model)).splitlines()]


@in_both_modes
def test_the_text_states_the_totals_first(mode):
    first, second, *_ = lines(tie(make(zoo), mode))

    assert first == "Tying of zoo: 2 tied kernels, 120 free of 192 weights (62%)"
    assert second == f"{mode} mode; all tied to the bit; stock convolutions"


@in_both_modes
def test_the_text_names_each_layer_with_its_pattern_and_numbers(mode):
    text = "\n".join(lines(tie(make(zoo), mode)))

    assert re.search(r"1 Conv2D +mirror +48/72 +projected\nfirst +3x3, 6 groups +lost \d+%\nABA\nCDC\nEFE\n", text)
    assert "untied: kernel_size=(1, 1) has no axis to tie\n1 Conv2D: point\n" in text


def many():
    convolutions = [conv(f"conv_{index}", 2) for index in range(13)]
    return keras.Sequential([keras.Input(IMAGE), *convolutions, layers.Conv2D(4, 3, name="last")], name="many")


def test_equal_rows_are_written_once_with_their_number():
    found = lines(tie(make(many), "constraint", {"conv_*": "mirror", "last": "point"}))

    starts = [line for line in found if re.search("^[0-9]+ Conv2D ", line)]
    assert [line.split() for line in starts] == [
        ["13", "Conv2D", "mirror", "312/468", "projected"],
        ["1", "Conv2D", "point", "40/72", "projected"],
    ]
    names = [line.split()[0] for line in found[found.index(starts[0]) + 1 :]]
    assert names[:4] == ["conv_0", "conv_1", "...", "conv_12"]
    assert re.search("lost [0-9]+-[0-9]+%$", found[found.index(starts[0]) + 1])


def test_untied_layers_are_grouped_by_reason_and_class():
    found = lines(tie(make(many), "constraint", {"last": "point"}))

    assert found[-2:] == ["untied: not named", "13 Conv2D: conv_0, conv_1, ..., conv_12"]


@pytest.mark.parametrize("width", [50, 80, 160])
def test_the_text_is_as_wide_as_the_terminal_and_ends_no_word_in_a_table_of_80_columns(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    model = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3))

    text = str(kt.tying_report(tie(model, "constraint", "dihedral")))

    assert max(map(len, text.splitlines())) <= width
    assert width < 80 or len(text.splitlines()) < 30
    assert width < 80 or {"expanded_conv_depthwise", "21,408/64,224"} <= set(text.split())


@pytest.mark.parametrize(
    ("pattern", "drawn"),
    [("mirror", True), ("rings", True), (kt.patterns.mirror((3, 3, 2, 1)), False)],
    ids=["2", "rings", "3"],
)
def test_small_patterns_are_drawn_and_others_summed_up(pattern, drawn):
    tied = kt.apply_tying(keras.Sequential([keras.Input(IMAGE), layers.Conv2D(4, 3, name="first")]), {"first": pattern})

    resolved = rows(tied)["first"].pattern

    assert ("\nABA\n" in "\n".join(lines(tied)) or "\nAAA\n" in "\n".join(lines(tied))) == drawn
    assert f"{'x'.join(map(str, resolved.shape))}, {resolved.num_free} groups" in repr(kt.tying_report(tied))


def test_columns_say_what_the_second_line_cannot_say_for_all():
    model = tie(make(many), "constraint", {"conv_*": "mirror"})
    mixed = kt.apply_tying(model, {"last": "point"}, mode="parameterization", convolution="group_sums")
    kernel = mixed.get_layer("conv_3").kernel
    kernel.assign(kernel + np.random.default_rng(0).normal(size=kernel.shape))

    _, second, *_ = lines(mixed)

    assert re.fullmatch(r"constraint and parameterization mode; largest tying error 0\.\d+, of conv_3\.kernel", second)
    assert re.search(r"kernels +pattern +free/full .*convolves +error", "\n".join(lines(mixed)))
    assert re.search(r"1 Conv2D, +point +40/72 .*group_sums", "\n".join(lines(mixed)))


def test_plot_draws_each_pattern_once():
    figure = kt.tying_report(tie(make(many), "constraint", {"conv_*": "mirror", "last": "point"})).plot()

    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["mirror, 3x3, 6 groups\n13 kernels", "point, 3x3, 5 groups\n1 kernel"]
    plt.close(figure)


def test_plot_leaves_places_without_a_pattern_empty():
    families = ["mirror", "mirror(axis=0)", "point", "dihedral", "transpose"]
    model = keras.Sequential([keras.Input(IMAGE), *(conv(f"conv_{index}") for index in range(5))])

    figure = kt.tying_report(tie(model, "constraint", {f"conv_{index}": name for index, name in enumerate(families)})).plot()

    assert [bool(ax.get_title()) for ax in figure.axes] == [ax.axison for ax in figure.axes] == [True] * 5 + [False] * 3
    plt.close(figure)


def test_the_html_draws_no_picture_of_a_pattern_that_is_too_large():
    model = keras.Sequential([keras.Input((40,)), layers.Dense(40, name="dense")])

    page = kt.tying_report(tie(model, "constraint", {"dense": kt.patterns.circulant((40, 40))}))._repr_html_()

    assert "40x40" in page
    assert "<rect" not in page


def test_the_html_folds_the_names_of_many_layers():
    page = kt.tying_report(tie(make(many), "constraint", {"conv_*": "mirror"}))._repr_html_()

    assert page.count("<details>") >= 1


def test_plot_refuses_a_report_without_pictures():
    with raises_tying_error("'zoo'"):
        kt.tying_report(make(zoo)).plot()


def test_the_html_draws_a_cell_for_each_position():
    page = kt.tying_report(tie(make(zoo), "constraint", {"first": "mirror(antisymmetric=True)"}))._repr_html_()

    assert (page.count("<rect"), page.count("<line"), page.count(">-A<")) == (9, 3, 1)


def test_the_html_is_well_formed_and_escapes_names():
    class Reader(HTMLParser):
        tags, open_tags = [], []

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)
            self.open_tags.append(tag)

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    model = keras.Sequential([keras.Input(IMAGE), conv("<b>&bold"), layers.Dense(1, name="<i>dense")], name="<script>")
    page = kt.tying_report(tie(model, "constraint"))._repr_html_()
    reader = Reader()
    reader.feed(page)

    assert not reader.open_tags
    assert not {"b", "i", "script"} & set(reader.tags)
    assert "&lt;b&gt;&amp;bold" in page
    assert "&lt;i&gt;dense" in page


@in_both_modes
@pytest.mark.parametrize("builder", [zoo, nested, shared_across, subclassed])
def test_the_plan_ties_an_equal_model_in_the_same_way(builder, mode):
    tied = tie(make(builder), mode)

    again = tie(make(builder), mode, kt.tying_report(tied).plan)

    ties = [[(row.key, row.kernel, row.pattern, row.mode) for row in kt.tying_report(one).rows] for one in (tied, again)]
    assert ties[0] == ties[1]


@pytest.mark.parametrize("scale", [1e-6, 0.1, 10.0])
def test_the_tying_error_is_the_largest_relative_distance(scale):
    tied = tie(make(nested), "constraint")
    random = np.random.default_rng(0)
    distances = []
    for name, size in (("inner", 1.0), ("outer", scale)):
        layer = tied.get_layer("trunk").get_layer(name) if name == "inner" else tied.get_layer(name)
        kernel = array(layer.kernel) + size * random.normal(size=layer.kernel.shape).astype("float32")
        layer.kernel.assign(kernel)
        distances.append(np.linalg.norm(kernel - dense_project(kernel, MIRROR)) / np.linalg.norm(kernel))

    assert kt.tying_error(tied) == pytest.approx(max(distances), rel=1e-4)


def test_the_tying_error_of_one_changed_bit_is_not_zero():
    layer = kt.apply_tying(make(skip).get_layer("first"), "mirror")
    kernel = array(layer.kernel).copy()
    kernel[0, 0, 0, 0] = np.nextafter(kernel[0, 0, 0, 0], np.float32(np.inf))
    layer.kernel.assign(kernel)

    assert kt.tying_error(layer) > 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@in_both_modes
def test_the_tying_error_of_kernels_that_are_not_finite_is_nan(value, mode):
    tied = tie(make(nested), mode)
    variable = next(one for one in tied.variables if one.path.endswith("outer/kernel"))
    variable.assign(np.full(variable.shape, value))

    assert np.isnan(kt.tying_error(tied))


@in_both_modes
def test_a_kernel_of_zeros_is_tied(mode):
    tied = tie(make(skip), mode)
    tied.set_weights([np.zeros(one.shape) for one in tied.weights])

    assert kt.tying_error(tied) == 0.0


def test_an_untied_model_has_no_tying_error():
    with pytest.raises(TyingError, match=r"nothing is tied.*apply_tying"):
        kt.tying_error(make(skip))


@in_both_modes
def test_a_model_that_is_not_built_has_no_tying_error(mode):
    with pytest.raises(TyingError, match=r"unbuilt layers \['first'\]"):
        kt.tying_error(tie(make(unbuilt), mode))


def replaced(**options):
    """Returns a tied model whose first kernel runs another constraint, and that kernel."""
    model = tie(make(skip), "constraint", {"first": MIRROR}, **options)
    kernel = model.get_layer("first").kernel
    kernel.constraint = keras.constraints.NonNeg()
    return compile_model(model), kernel


def test_a_kernel_whose_constraint_was_replaced_is_untied_by_training_and_reported_so():
    model, kernel = replaced()
    train(model)

    row = rows(model)["first"]

    assert not np.array_equal(array(kernel), array(kt.project(kernel, MIRROR)))
    assert (row.pattern, row.mode, row.error, row.kernel) == (None, "", None, "kernel")
    assert row.reason == "the constraint of `kernel` was replaced by NonNeg"
    assert kt.tying_report(model).plan == {}
    assert "untied: the constraint of `kernel` was replaced by NonNeg\n1 Conv2D: first" in "\n".join(lines(model))
    with pytest.raises(TyingError, match="nothing is tied"):
        kt.tying_error(model)


def test_a_kernel_whose_constraint_was_removed_is_reported_so():
    model, kernel = replaced()
    kernel.constraint = None

    assert rows(model)["first"].reason == "the constraint of `kernel` was replaced by None"


def test_a_kernel_whose_constraint_was_replaced_can_be_tied_again_with_both():
    model, kernel = replaced()

    train(tie(model, "constraint", {"first": MIRROR}))

    assert rows(model)["first"].error == 0.0
    assert array(kernel).min() >= 0


def test_a_layer_whose_constraint_was_replaced_after_building_stays_tied_and_is_reported_so():
    model = compile_model(tie(make(skip), "constraint", {"first": MIRROR}))
    model.get_layer("first").kernel_constraint = "non_neg"

    train(model)

    assert (rows(model)["first"].mode, rows(model)["first"].error) == ("constraint", 0.0)


def test_one_of_two_kernels_whose_constraint_was_replaced_is_reported_beside_the_other():
    pointwise = kt.TyingPattern([[[[0, 0], [1, 1]]]])
    layer = layers.SeparableConv2D(2, 3, name="one")
    layer.build((None, *IMAGE))
    kt.apply_tying(layer, {"depthwise_kernel": MIRROR, "pointwise_kernel": pointwise})
    layer.pointwise_kernel.constraint = keras.constraints.NonNeg()

    found = [(row.kernel, row.pattern, row.reason) for row in kt.tying_report(layer).rows]

    assert found == [
        ("depthwise_kernel", MIRROR, ""),
        ("pointwise_kernel", None, "the constraint of `pointwise_kernel` was replaced by NonNeg"),
    ]
    assert kt.tying_report(layer).plan == {"one": {"depthwise_kernel": MIRROR}}


def test_stripping_leaves_the_constraint_that_replaced_the_tying():
    model, kernel = replaced()

    stripped = kt.strip_tying(model)

    assert isinstance(kernel.constraint, keras.constraints.NonNeg)
    assert "kernel_tying" not in str(stripped.get_config())


def test_stripping_removes_the_tying_that_runs_without_the_layer_saying_so():
    model = tie(make(skip), "constraint", {"first": MIRROR})
    layer = model.get_layer("first")
    layer.kernel_constraint = None

    kt.strip_tying(model)

    assert layer.kernel.constraint is None


@pytest.mark.parametrize("scaling", ["values", "orthonormal"])
def test_a_tied_layer_with_another_constraint_is_reported_as_tied(scaling):
    tied = tie(make(skip), "parameterization", {"first": MIRROR}, scaling=scaling)
    tied.get_layer("first").kernel.constraint = kt.TiedConstraint("dihedral")

    (row,) = [row for row in kt.tying_report(tied).rows if row.layer == "first"]

    assert (row.mode, row.pattern) == ("parameterization", MIRROR)


def test_a_layer_that_is_not_built_and_has_a_constraint_for_an_unknown_size_was_not_changed():
    model = keras.Sequential([layers.Dense(2, kernel_constraint=kt.TiedConstraint("mirror"))])

    assert kt.tying_report(model).rows == []


def test_fields_are_counted_and_large_families_are_written_as_their_call():
    model = keras.Sequential([keras.Input((5, 5, 16)), layers.Conv2D(24, 3, name="deep")])
    pattern = kt.patterns.equivariant((3, 3), "p4m", "regular", "regular")

    report = kt.tying_report(kt.apply_tying(model, {"deep": pattern}))

    assert report.rows[0].fields == (1, 1, 2, 3)
    assert "2 x 3 fields" in str(report)
    assert "(group='p4m'," in str(report)
