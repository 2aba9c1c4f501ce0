"""What the symmetry report says that tying would take, and what its plans tie."""

import json

import keras
import numpy as np
import pytest
from hypothesis import given
from keras import layers
from support.backends import array
from support.errors import raises_tying_error
from support.models import IMAGE, compile_model, conv, images, make, nested, sequential, subclassed, targets, tie, train
from support.oracles import dense_project

import kernel_tying as kt
from kernel_tying._layers.shares import lost_by_filter, lost_share
from kernel_tying.testing import tied_problems

TURNS = {
    "mirror": lambda kernel: kernel[:, ::-1],
    "mirror, axis 0": lambda kernel: kernel[::-1],
    "point": lambda kernel: kernel[::-1, ::-1],
    "rotation": np.rot90,
    "transpose": lambda kernel: np.swapaxes(kernel, 0, 1),
}


def share(kernel, pattern):
    return np.linalg.norm(kernel - dense_project(kernel, pattern)) / np.linalg.norm(kernel.astype("float64"))


def one_layer(values, cls=layers.Conv2D, **options):
    """Returns a layer of three axes of channels whose kernel has these values."""
    *size, channels, filters = values.shape
    layer = cls(filters, size, name="conv", **options)
    layer.build((None, *(9 for _ in size), channels))
    layer.kernel.assign(values)
    return layer


def random_kernel(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def rows(report):
    return {(row.layer, row.pattern): row for row in report.rows}


@given(tied_problems())
def test_the_lost_share_is_what_the_dense_projector_takes(problem):
    pattern, kernel = problem
    taken = kernel - dense_project(kernel, pattern)
    axes = tuple(range(kernel.ndim - 1))
    norms = np.sqrt(np.sum(np.square(kernel, dtype="float64"), axes))

    by_filter = lost_by_filter(kernel, pattern)

    np.testing.assert_allclose(by_filter * norms, np.sqrt(np.sum(taken**2, axes)), rtol=1e-6, atol=1e-9 * norms.max())
    assert lost_share(kernel, pattern) * np.linalg.norm(norms) == pytest.approx(np.linalg.norm(taken), rel=1e-6)


@given(tied_problems())
def test_a_tied_kernel_loses_exactly_nothing(problem):
    pattern, kernel = problem

    assert lost_share(array(kt.project(kernel, pattern)), pattern) == 0.0


def test_a_random_kernel_loses_what_is_expected():
    report = kt.symmetry_report(one_layer(random_kernel(5, 5, 24, 32)))

    assert len(report.rows) == 20
    assert [row.lost for row in report.rows] == pytest.approx([row.expected for row in report.rows], rel=0.02)


@pytest.mark.parametrize("sign", [1, -1], ids=["symmetric", "antisymmetric"])
@pytest.mark.parametrize("label", TURNS)
def test_a_kernel_loses_nothing_to_the_symmetry_that_it_has(label, sign):
    kernel = orbit = random_kernel(3, 3, 2, 4)
    for _ in range(3):
        orbit = sign * TURNS[label](orbit)
        kernel = kernel + orbit

    found = rows(kt.symmetry_report(one_layer(kernel)))

    assert found["conv", label if sign == 1 else f"anti-{label}"].lost == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("label", ["mirror, all axes", "anti-mirror, all axes", "dihedral", "radial", "cross", "constant"])
def test_shares_of_mean_and_filters_are_those_of_slices(label):
    kernel = random_kernel(3, 3, 4, 2)

    row = rows(kt.symmetry_report(one_layer(kernel)))["conv", label]

    assert row.filters == pytest.approx([share(kernel[..., index], row.tying) for index in range(2)], rel=1e-5)
    assert row.mean_lost == pytest.approx(share(kernel.mean((2, 3)), row.tying), rel=1e-5)
    assert row.lost == pytest.approx(share(kernel, row.tying), rel=1e-5)


@pytest.mark.parametrize("builder", [sequential, nested, subclassed])
def test_saved_weights_are_those_that_tying_saves(builder):
    model = make(builder)
    report, full = kt.symmetry_report(model, "mirror"), model.count_params()

    tied = tie(model, "parameterization", report.plan(1.0))

    assert full - tied.count_params() == sum(row.saved for row in report.rows) > 0


def test_patterns_are_labelled_by_the_caller():
    mine, block = kt.TyingPattern.parse("ABA/CDC/EFE"), kt.patterns.circulant((2, 2))
    layer = one_layer(random_kernel(3, 3, 2, 2))

    assert [row.pattern for row in kt.symmetry_report(layer, [mine, "point", "free", "toeplitz"]).rows] == [
        "ABA/CDC/EFE",
        "point",
        "toeplitz",
    ]
    assert [row.pattern for row in kt.symmetry_report(layer, {"mine": mine, "block": block}).rows] == ["mine"]


def test_a_pattern_that_ties_channels_has_no_share_of_the_mean():
    layer = one_layer(random_kernel(3, 3, 4, 4))

    (row,) = kt.symmetry_report(layer, kt.patterns.channel_blocks((3, 3), 4, 4, 2)).rows

    assert row.mean_lost is None
    assert row.lost == pytest.approx(share(array(layer.kernel), row.tying), rel=1e-5)


def test_each_kernel_with_spatial_axes_is_measured():
    model = make(lambda: keras.Sequential([keras.Input((3, *IMAGE)), layers.ConvLSTM2D(2, 3, name="memory")]))

    assert [row.kernel for row in kt.symmetry_report(model, "point").rows] == ["kernel", "recurrent_kernel"]
    assert [set(patterns) for patterns in kt.symmetry_report(model, "point").plan(1.0).values()] == [
        {"kernel", "recurrent_kernel"}
    ]


def test_layers_that_are_not_measured_are_listed_with_the_reason():
    model = kt.apply_tying(make(sequential), {"first": "mirror"})

    report = kt.symmetry_report(model, "mirror")

    assert {row.layer for row in report.rows} == {"second"}
    assert report.skipped == {"first": "tied already"}
    assert "not measured: first (tied already)" in str(report)


def test_a_matrix_is_measured_if_its_layer_is_passed_alone():
    layer = layers.Dense(4, name="dense")
    layer.build((None, 4))

    assert {"circulant", "toeplitz"} <= {row.pattern for row in kt.symmetry_report(layer).rows}


@pytest.mark.parametrize("patterns", [None, "mirror"])
def test_a_model_without_kernels_that_fit_is_refused(patterns):
    with raises_tying_error("no spatial axes"):
        kt.symmetry_report(keras.Sequential([keras.Input((4,)), layers.Dense(2, name="dense")], name="plain"), patterns)


def data(model):
    return images(model), targets(model)


@pytest.mark.parametrize("builder", [sequential, nested, subclassed])
def test_metrics_are_those_of_the_model_with_that_kernel_alone_projected(builder):
    model = make(builder, compiled=True, metrics=["mae"])
    kernels = [weight for weight in model.trainable_variables if len(weight.shape) == 4]

    report = kt.symmetry_report(model, {"flipped": "mirror", "cross": "cross"}, data=data(model))

    assert report.baseline == pytest.approx(model.evaluate(*data(model), verbose=0, return_dict=True))
    for row, kernel in zip(report.rows, [kernel for kernel in kernels for _ in range(2)], strict=True):
        values = array(kernel).copy()
        kernel.assign(dense_project(values, row.tying))
        assert row.metrics == pytest.approx(model.evaluate(*data(model), verbose=0, return_dict=True), rel=1e-4)
        kernel.assign(values)


class Interrupt(keras.callbacks.Callback):
    """Raises an exception while a batch is evaluated, after as many batches."""

    def __init__(self, exception, batches):
        super().__init__()
        self.exception, self.batches = exception, batches

    def on_test_batch_end(self, batch, logs=None):
        self.batches -= 1
        if self.batches < 0:
            raise self.exception


class Interrupted(keras.Sequential):
    """A model whose evaluation has a callback."""

    callback = keras.callbacks.Callback()

    def evaluate(self, *args, **kwargs):
        return super().evaluate(*args, callbacks=[self.callback], **kwargs)


def state(model):
    return [array(variable).copy() for variable in (*model.variables, *model.metrics_variables, *model.optimizer.variables)]


@pytest.mark.parametrize(("exception", "batches"), [(None, None), (RuntimeError, 0), (KeyboardInterrupt, 3), (RuntimeError, 4)])
def test_data_leaves_the_model_as_it_was_to_the_bit(exception, batches):
    model = make(
        lambda: Interrupted([keras.Input(IMAGE), conv(), layers.Dropout(0.5, seed=1), layers.GlobalAveragePooling2D()])
    )
    compile_model(model, metrics=["mae"], run_eagerly=False)
    x, y = images(model), targets(model)[:, :2]
    model.fit(x, y, verbose=0)
    before = state(model)

    if exception is None:
        kt.symmetry_report(model, "cross", data=(x, y))
    else:
        model.callback = Interrupt(exception, batches)
        with pytest.raises(exception):
            kt.symmetry_report(model, ["cross", "point"], data=(np.repeat(x, 16, 0), np.repeat(y, 16, 0)))

    model.callback = keras.callbacks.Callback()
    getattr(model, "jax_state_sync", lambda: None)()  # as callbacks and `save` do
    for old, new in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(old, new)
    assert np.isfinite(model.evaluate(x, y, verbose=0)[0])


def test_data_for_a_model_that_is_not_compiled_is_refused():
    model = make(sequential)

    with raises_tying_error("'sequential'"):
        kt.symmetry_report(model, data=data(model))


def test_data_that_can_be_read_once_is_refused():
    model = make(sequential, compiled=True)

    with raises_tying_error("generator"):
        kt.symmetry_report(model, data=(batch for batch in [data(model)]))


class Batches(keras.utils.PyDataset):
    """The data in two batches."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return tuple(array[2 * index : 2 * index + 2] for array in data(make(sequential)))


def test_data_may_be_a_dataset():
    model = make(sequential, compiled=True)

    by_arrays = kt.symmetry_report(model, "point", data=data(model))

    by_batches = kt.symmetry_report(model, "point", data=Batches())

    assert by_batches.rows[0].metrics == pytest.approx(by_arrays.rows[0].metrics, rel=1e-5)


BUDGETS = [0.0, 0.05, 0.3, 0.6, 0.8]


@pytest.mark.parametrize("builder", [sequential, nested, subclassed])
def test_a_plan_ties_within_the_budget(builder):
    model = make(builder)
    kernels = [weight for weight in model.trainable_variables if len(weight.shape) == 4]
    kernels[0].assign(dense_project(array(kernels[0]), kt.patterns.radial((3, 3))))
    kernels[1].assign(array(kernels[1]) + 2.0)

    for budget in BUDGETS:
        plan = kt.symmetry_report(model).plan(budget + 1e-6)
        twin = make(builder)
        twin.set_weights(model.get_weights())
        lost = [row.lost for row in kt.tying_report(tie(twin, "constraint", plan)).rows if row.pattern]

        assert len(lost) == len(plan) >= 1
        assert max(lost) <= budget + 1e-5


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_plan_saves_as_much_as_any_pattern_within_the_budget(budget):
    kernel = random_kernel(3, 3, 2, 1) + 1.5
    layer = one_layer(kernel)
    report = kt.symmetry_report(layer)
    saved = [row.saved for row in report.rows if share(kernel, row.tying) <= budget]

    plan = report.plan(budget)

    assert 2 * (9 - plan["conv"].num_free if plan else 0) == max(saved, default=0)


def test_filters_that_differ_get_a_mixture():
    kernel = random_kernel(3, 3, 2, 3)
    kernel[..., 0] = dense_project(kernel[..., 0], kt.patterns.dihedral((3, 3)))
    kernel[..., 2] = dense_project(kernel[..., 2], kt.patterns.mirror((3, 3), antisymmetric=True))
    by_filter = [kt.patterns.dihedral((3, 3)), kt.patterns.free((3, 3)), kt.patterns.mirror((3, 3), antisymmetric=True)]

    layer = one_layer(kernel)

    assert kt.symmetry_report(layer).plan(1e-5) == {"conv": kt.patterns.per_filter(by_filter)}
    assert kt.tying_error(kt.apply_tying(layer, kt.symmetry_report(layer).plan(1e-5))) == 0.0


def test_a_plan_leaves_out_layers_where_nothing_fits():
    model = make(sequential)
    kernel = model.get_layer("second").kernel
    kernel.assign(dense_project(array(kernel), kt.patterns.point((3, 3))))

    assert set(kt.symmetry_report(model).plan(1e-5)) == {"second"}
    assert kt.symmetry_report(make(sequential)).plan(1e-5) == {}


def test_nothing_is_a_mixture_where_no_family_is_measured():
    report = kt.symmetry_report(one_layer(random_kernel(3, 3, 2, 2)), {"by hand": kt.patterns.channel_blocks((3, 3), 2, 2, 2)})

    assert report.plan(0.0) == {}


def test_kernels_that_are_not_square_are_measured_by_the_families_that_fit():
    labels = {row.pattern for row in kt.symmetry_report(one_layer(random_kernel(3, 5, 2, 2))).rows}

    assert labels >= {"mirror", "point"}
    assert not labels & {"rotation", "transpose", "dihedral"}


SIGNS = {"loss": -1, "mae": -1, "cosine_similarity": 1}


@pytest.mark.parametrize("metrics", [["mae"], ["mae", "cosine_similarity"]], ids=["one metric", "several"])
def test_a_plan_by_a_metric_worsens_it_by_no_more_than_the_drop(metrics):
    model = make(sequential, compiled=True, metrics=metrics)
    train(model, epochs=3)
    report = kt.symmetry_report(model, ["mirror", "dihedral", "constant"], data=data(model))

    for metric in ["loss", *metrics] if len(metrics) > 1 else [None]:
        assert_within_drop(report, metric)


def assert_within_drop(report, metric):
    """Checks the plan by a metric. None is the only metric there is."""
    name = metric or "mae"
    sign = SIGNS[name]
    drops = {(row.layer, row.tying): sign * (report.baseline[name] - row.metrics[name]) for row in report.rows}
    limit = sorted(drops.values())[len(drops) // 3]

    plan = report.plan(metric_drop=max(limit, 0), metric=metric)

    chosen = {layer: pattern.num_free for layer, pattern in plan.items()}
    allowed = [(layer, pattern.num_free) for (layer, pattern), drop in drops.items() if drop <= max(limit, 0)]
    assert chosen == {layer: min(free for other, free in allowed if other == layer) for layer, _ in allowed}


@pytest.mark.parametrize("metric", ["precision", "odd", None])
def test_a_metric_that_is_missing_or_of_unknown_direction_is_refused(metric):
    def odd(y_true, y_pred):
        return keras.ops.mean(y_pred)

    model = make(sequential, compiled=True, metrics=[odd, "mae"])

    with raises_tying_error(f"metric={metric!r}"):
        kt.symmetry_report(model, "point", data=data(model)).plan(metric_drop=0.1, metric=metric)


@pytest.mark.parametrize("options", [{"budget": -1}, {"budget": "small"}, {"metric_drop": float("nan")}], ids=repr)
def test_a_budget_that_is_no_number_from_zero_is_refused(options):
    ((name, value),) = options.items()

    with raises_tying_error(f"{name}={value!r}"):
        kt.symmetry_report(make(sequential), "point").plan(**options)


def test_a_report_is_json_with_the_keys_of_its_rows():
    model = make(sequential, compiled=True)

    report = json.loads(json.dumps(kt.symmetry_report(model, "mirror", data=data(model)).to_dict()))

    assert set(report["rows"][0]) >= {"layer", "kernel", "pattern", "lost", "expected", "mean_lost", "saved", "metrics"}
    assert (report["rows"][0]["layer"], report["rows"][0]["pattern"]) == ("first", "mirror")
    assert kt.TyingPattern.from_config(report["rows"][0]["tying"]) == kt.patterns.mirror((3, 3))
    assert "filters" not in report["rows"][0]


def test_a_report_lists_filters_where_asked():
    kernel = random_kernel(3, 3, 4, 2)

    (row,) = kt.symmetry_report(one_layer(kernel), "point", per_filter=True).to_dict()["rows"]

    assert row["filters"] == pytest.approx(
        [share(kernel[..., index], kt.patterns.point((3, 3))) for index in range(2)], rel=1e-5
    )


def test_a_table_shows_the_patterns_that_are_closest_to_the_kernel():
    kernel = random_kernel(3, 3, 2, 2)
    kernel += kernel[:, ::-1]

    report = kt.symmetry_report(one_layer(kernel))

    lines = [line.split() for line in str(report).splitlines() if line.strip().startswith("conv.kernel")]
    assert lines[0][1] == "mirror" or lines[0][1:3] == ["mirror,", "all"]
    assert len(lines) == 6
    assert repr(report) == str(report)
    assert report._repr_html_().count("<tr>") == 7
