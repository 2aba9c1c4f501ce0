import json
import re
from html.parser import HTMLParser

import keras
import numpy as np
import pytest
from helpers import array, dense_project
from keras import layers
from models import IMAGE, MODES, conv, head, make, nested, shared_across, skip, subclassed, tie, unbuilt

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
        ("mirror", "norm", "BatchNormalization keeps no kernel"),
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


@in_both_modes
def test_the_text_names_each_layer_with_its_numbers(mode):
    text = str(kt.tying_report(tie(make(zoo), mode)))

    assert "2 tied kernels, 120 free of 192 weights" in text
    assert re.search(rf"first\.kernel +{mode} .*48/72 +0 +\d+%", text)
    assert "untied: point (kernel_size=(1, 1) has no axis to tie)" in text
    assert max(map(len, text.splitlines())) <= 120


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
