import json

import keras
import numpy as np
import pytest
from helpers import array, train_step
from keras import layers
from models import (
    DESCRIBED,
    IMAGE,
    MODES,
    UNDESCRIBED,
    Trunk,
    assert_equal_values,
    compile_model,
    conv,
    custom_layer,
    head,
    images,
    make,
    multiple,
    nested,
    nested_subclass,
    sequential,
    shared_across,
    skip,
    state,
    targets,
    tie,
    train,
    unbuilt,
    values,
)

import kernel_tying as kt
from kernel_tying.keras_private import inner_optimizers
from kernel_tying.testing import assert_same_function, assert_tied

in_both_modes = pytest.mark.parametrize("mode", MODES)
for_all_models = pytest.mark.parametrize("builder", DESCRIBED + UNDESCRIBED)
for_described_models = pytest.mark.parametrize("builder", DESCRIBED)


def mirrored(model):
    """Makes the 3x3 kernels of a model left-right symmetric."""
    for variable in model.variables:
        if variable.shape[:2] == (3, 3):
            kernel = array(variable)
            variable.assign((kernel + kernel[:, ::-1]) / 2)
    return model


@in_both_modes
@for_all_models
def test_a_model_is_tied_at_once(builder, mode):
    assert kt.tying_error(tie(make(builder), mode)) == 0.0


@in_both_modes
@for_all_models
def test_a_model_that_was_fitted_before_stays_tied_through_fit(builder, mode):
    model = make(builder, compiled=True, run_eagerly=False)
    train(model)
    tied = tie(model, mode)
    before = values(tied.trainable_variables)

    train(tied)

    assert_tied(tied)
    assert all(np.any(old != new) for old, new in zip(before, values(tied.trainable_variables), strict=True))


@in_both_modes
def test_a_model_trained_on_batches_before_stays_tied_through_train_on_batch(mode):
    model = make(skip, compiled=True, run_eagerly=False)
    model.train_on_batch(images(model), targets(model))
    tied = tie(model, mode)

    tied.train_on_batch(images(tied), targets(tied))

    assert_tied(tied)


@in_both_modes
def test_a_model_stays_tied_through_a_training_step_written_by_hand(mode):
    tied = tie(make(skip), mode)
    optimizer = keras.optimizers.Adam(0.1)

    def loss():
        return keras.ops.mean(keras.losses.mean_squared_error(targets(tied), tied(images(tied), training=True)))

    train_step(loss, tied.trainable_variables, optimizer)

    assert_tied(tied)


@in_both_modes
@for_all_models
def test_tying_tied_kernels_leaves_the_function_as_it_was(builder, mode):
    tied = tie(mirrored(make(builder)), mode)

    assert_same_function(tied, mirrored(make(builder)), images(tied))


@for_all_models
def test_both_modes_compute_the_same_function(builder):
    first, second = (tie(make(builder), mode) for mode in MODES)

    assert_same_function(first, second, images(first))


@in_both_modes
@for_described_models
def test_stripping_gives_back_the_config(builder, mode):
    model = make(builder)
    config = model.get_config()

    stripped = kt.strip_tying(tie(model, mode))

    assert stripped.get_config() == config
    assert "kernel_tying" not in json.dumps(keras.saving.serialize_keras_object(stripped))


@in_both_modes
@for_all_models
def test_stripping_leaves_the_function_as_it_was(builder, mode):
    tied = tie(make(builder), mode)
    expected = keras.tree.map_structure(array, tied(images(tied)))

    outputs = kt.strip_tying(tied)(images(tied))

    np.testing.assert_equal(keras.tree.map_structure(array, outputs), expected)


@in_both_modes
@for_all_models
def test_stripping_leaves_no_trace(builder, mode):
    def traces(model):
        set_on_loading = {"is_gptq_calibrated", "is_awq_calibrated"}  # by Dense
        inner = model._flatten_layers(include_self=False)
        return [
            *[(type(layer), layer.name, layer.trainable, set(vars(layer)) - set_on_loading) for layer in inner],
            *[(type(one), one.trainable, one.constraint, one.regularizer) for one in model.variables],
        ]

    model = make(builder)
    before = traces(model)

    stripped = kt.strip_tying(tie(model, mode))

    assert traces(stripped) == before


@in_both_modes
@for_all_models
def test_a_stripped_model_trains_on_untied(builder, mode):
    stripped = kt.strip_tying(tie(make(builder, compiled=True, optimizer="sgd"), mode))
    twin = compile_model(mirrored(make(builder)), optimizer="sgd")
    for one in (stripped, twin):
        train(one)

    for one, other in zip(stripped.variables, twin.variables, strict=True):
        np.testing.assert_allclose(array(one), array(other), atol=1e-5)


@for_described_models
def test_rebuilding_leaves_the_given_model_as_it_was(builder):
    model = make(builder, compiled=True)
    train(model)
    before = state(model)

    train(tie(model, "parameterization"))

    np.testing.assert_equal(state(model), before)


@for_described_models
def test_the_given_model_of_a_rebuilt_one_trains_like_an_untouched_twin(builder):
    model, twin = make(builder, compiled=True), make(builder, compiled=True)
    for one in (model, twin):
        train(one)
    train(tie(model, "parameterization"))

    for one in (model, twin):
        train(one)

    assert_equal_values(model.variables, twin.variables)
    assert_equal_values(model.optimizer.variables, twin.optimizer.variables)


@for_described_models
def test_stripping_a_rebuilt_model_leaves_it_as_it_was(builder):
    tied = tie(make(builder, compiled=True), "parameterization")
    before = state(tied)

    train(kt.strip_tying(tied))

    np.testing.assert_equal(state(tied), before)


@pytest.mark.parametrize("builder", UNDESCRIBED)
@in_both_modes
def test_a_model_whose_config_leaves_layers_out_is_tied_in_place(builder, mode):
    model = make(builder)

    assert tie(model, mode) is model


@in_both_modes
@for_all_models
def test_variables_keep_their_names_paths_order_and_flags(builder, mode):
    model = make(builder)

    def identity(one):
        seeded = (
            variable for variable in one.variables if variable.name != "seed_generator_state"
        )  # each has a path of its own
        return [(variable.name, variable.path, variable.dtype, variable.trainable) for variable in seeded]

    before = identity(model)

    assert identity(tie(model, mode)) == before


@in_both_modes
@pytest.mark.parametrize(
    ("builder", "name"),
    [(sequential, "first"), (sequential, "second"), (skip, "first"), (nested, "outer"), (multiple, "on_left")],
)
def test_features_of_a_tied_model_are_features_of_the_model_with_tied_kernels(builder, name, mode):
    stock = mirrored(make(builder))
    tied = tie(make(builder), mode)

    features = keras.Model(tied.inputs, tied.get_layer(name).output)

    assert_same_function(
        features,
        keras.Model(stock.inputs, stock.get_layer(name).output),
        keras.tree.flatten(images(tied)),
        rtol=1e-5,
        atol=1e-6,
    )


@in_both_modes
def test_a_nested_functional_subclass_keeps_its_class(mode):
    trunk = tie(make(nested_subclass), mode).get_layer("trunk")

    assert type(trunk) is Trunk
    assert trunk.parts() == 3


@in_both_modes
def test_a_layer_shared_with_a_nested_model_stays_shared(mode):
    tied = tie(make(shared_across), mode)

    assert tied.get_layer("shared") is tied.get_layer("trunk").get_layer("shared")


def test_dropout_goes_on_with_the_seeds_of_the_given_model():
    model = make(skip, compiled=True)
    train(model)
    tied = tie(mirrored(model), "parameterization")

    outputs = [array(one(images(model), training=True)) for one in (model, tied)]

    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("builder", [sequential, skip, nested_subclass, shared_across, custom_layer])
def test_orthonormal_free_weights_take_the_steps_of_constrained_kernels(builder):
    constrained, rebuilt = (
        make(builder, compiled=True, optimizer=keras.optimizers.SGD(0.2, momentum=0.9), run_eagerly=True) for _ in range(2)
    )
    constrained = tie(constrained, "constraint")
    rebuilt = tie(rebuilt, "parameterization", scaling="orthonormal")

    for one in (constrained, rebuilt):
        train(one, epochs=3)

    assert_same_function(constrained, rebuilt, images(rebuilt), rtol=1e-4, atol=1e-5)


@in_both_modes
def test_an_unbuilt_sequential_is_tied_when_it_is_built(mode):
    tied = tie(make(unbuilt), mode)

    tied.build((None, *IMAGE))

    assert_tied(tied)
    assert np.ptp(array(tied.layers[0].kernel)) > 0


@in_both_modes
def test_stripping_an_unbuilt_sequential_gives_back_the_config(mode):
    model = make(unbuilt)
    config = model.get_config()

    stripped = kt.strip_tying(tie(model, mode))

    assert stripped.get_config() == config


@pytest.mark.parametrize("layer", [conv(), conv(groups=2, use_bias=False)])
@in_both_modes
def test_a_single_layer_is_tied_and_stripped(layer, mode):
    layer = type(layer).from_config(layer.get_config())
    layer.build((None, *IMAGE))
    config = layer.get_config()

    tied = kt.apply_tying(layer, "mirror", mode=mode)

    assert_tied(tied)
    assert kt.strip_tying(tied).get_config() == config


class TestCompilation:
    """A tied model is compiled like the given one."""

    def schedule(self):
        return keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=1, decay_rate=0.5)

    @in_both_modes
    def test_learning_rate_schedules_go_on(self, mode):
        model = make(skip, compiled=True, optimizer=keras.optimizers.Nadam(self.schedule(), beta_1=0.8))
        train(model, epochs=3)

        optimizer = tie(model, mode).optimizer

        assert type(optimizer) is type(model.optimizer)
        assert optimizer.get_config() == model.optimizer.get_config()
        np.testing.assert_allclose(optimizer.learning_rate, 0.1 * 0.5**3)

    def test_constraint_mode_keeps_the_state_of_the_optimizer(self):
        model, twin = make(skip, compiled=True), make(skip, compiled=True)
        for one in (model, twin):
            train(one)

        assert_equal_values(tie(model, "constraint").optimizer.variables, twin.optimizer.variables)

    def test_a_rebuilt_model_has_an_optimizer_of_its_own(self):
        model = make(skip, compiled=True)
        train(model)
        before = values(model.optimizer.variables)

        train(tie(model, "parameterization"))

        assert_equal_values(model.optimizer.variables, before)

    @in_both_modes
    def test_a_loss_that_no_config_can_hold_is_kept(self, mode):
        def loss(target, output):
            return keras.ops.mean(keras.ops.abs(target - output)) + 7.0

        tied = tie(make(skip, compiled=True, loss=loss, metrics=[lambda target, output: target - output]), mode)

        expected = np.abs(targets(tied) - array(tied(images(tied)))).mean() + 7
        np.testing.assert_allclose(tied.evaluate(images(tied), targets(tied), verbose=0)[0], expected, rtol=1e-5)

    def test_metric_objects_are_not_shared(self):
        model = make(skip, compiled=True, metrics=[keras.metrics.MeanAbsoluteError(name="mine")])
        train(model)
        before = values(model.metrics[1].variables)[1] if len(model.metrics) > 1 else None

        tied = tie(model, "parameterization")
        tied.evaluate(images(tied), targets(tied), verbose=0)

        assert [metric.name for metric in tied.metrics] == [metric.name for metric in model.metrics]
        assert_equal_values(values(model.metrics[1].variables)[1:], [before])
        assert not {id(one) for one in tied._compile_config.config["metrics"]} & {
            id(one) for one in model._compile_config.config["metrics"]
        }

    @in_both_modes
    def test_losses_of_several_outputs_keep_their_weights(self, mode):
        options = {"loss": {"one": "mse", "two": "mae"}, "loss_weights": {"one": 0.5, "two": 2.0}}
        tied = tie(make(multiple, compiled=True, **options), mode)

        outputs, expected = [array(one) for one in tied(images(tied))], targets(tied)
        loss = tied.evaluate(images(tied), dict(zip(["one", "two"], expected, strict=True)), verbose=0)

        one, two = np.square(outputs[0] - expected[0]).mean(), np.abs(outputs[1] - expected[1]).mean()
        np.testing.assert_allclose(np.ravel(loss)[0], 0.5 * one + 2.0 * two, rtol=1e-5)

    @pytest.fixture
    def mixed_precision(self):
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy("mixed_float16")
        yield
        keras.config.set_dtype_policy(before)

    @pytest.mark.usefixtures("mixed_precision")
    @pytest.mark.parametrize("is_scaled", [True, False])
    @in_both_modes
    def test_loss_scaling_is_kept_as_it_was(self, is_scaled, mode):
        model = make(skip, compiled=True, optimizer=keras.optimizers.SGD(0.1), auto_scale_loss=is_scaled)
        train(model)

        tied = tie(model, mode)
        train(tied)

        optimizers = list(inner_optimizers(tied.optimizer))
        assert [type(one).__name__ for one in optimizers] == ["LossScaleOptimizer"] * is_scaled + ["SGD"]
        assert optimizers[-1].iterations == 2
        assert_tied(tied)

    @pytest.mark.parametrize(
        "options", [{"run_eagerly": True}, {"run_eagerly": False}, {"jit_compile": True, "run_eagerly": False}]
    )
    @in_both_modes
    def test_the_way_of_running_is_kept(self, options, mode):
        tied = tie(make(skip, compiled=True, steps_per_execution=2, **options), mode)

        assert {name: getattr(tied, name) for name in options} == options
        assert tied.steps_per_execution == 2

    @in_both_modes
    def test_a_model_that_is_compiled_by_default_stays_tied(self, mode):
        tied = tie(make(sequential, compiled=True, run_eagerly=False, jit_compile="auto"), mode)

        train(tied)

        assert_tied(tied)

    @in_both_modes
    def test_weight_decay_exclusions_are_kept(self, mode):
        model = make(skip, compiled=True, optimizer=keras.optimizers.AdamW(1.0, weight_decay=0.1), loss=lambda y, p: 0.0 * p)
        model.optimizer.exclude_from_weight_decay(var_names=["kernel"])
        tied = tie(model, mode)
        before = values(tied.trainable_variables)

        train(tied)

        kernels = [index for index, one in enumerate(tied.trainable_variables) if one.name == "kernel"]
        assert kernels
        assert_equal_values([tied.trainable_variables[index] for index in kernels], [before[index] for index in kernels])

    @in_both_modes
    def test_a_model_that_was_not_compiled_stays_so(self, mode):
        assert not tie(make(skip), mode).compiled


@in_both_modes
@pytest.mark.parametrize("builder", [sequential, nested_subclass, custom_layer])
def test_frozen_layers_stay_frozen(builder, mode):
    model = make(builder)
    frozen = next(layer for layer in model._flatten_layers(include_self=False) if isinstance(layer, layers.Conv2D))
    frozen.trainable = False
    compile_model(model)
    flags = [one.trainable for one in model.variables]
    tied = tie(model, mode)
    kernel = next(one for one in tied.variables if one.path.endswith(f"{frozen.name}/kernel"))
    before = array(kernel)

    train(tied)

    np.testing.assert_array_equal(array(kernel), before)
    assert [one.trainable for one in tied.variables] == flags


@in_both_modes
def test_a_frozen_model_stays_frozen_and_thaws(mode):
    model = make(nested)
    model.trainable = False
    tied = tie(model, mode)
    counts = [len(tied.trainable_variables)]

    tied.trainable = True
    counts.append(len(tied.trainable_variables))

    assert counts == [0, len(make(nested).trainable_variables)]


@in_both_modes
def test_projecting_starts_from_the_averaged_kernel(mode):
    layer = make(skip).get_layer("first")
    kernel = array(layer.kernel)

    tied = kt.apply_tying(layer, "mirror", mode=mode)

    np.testing.assert_allclose(array(tied.kernel), (kernel + kernel[:, ::-1]) / 2, rtol=1e-5, atol=1e-7)


@in_both_modes
def test_redrawing_sums_what_the_initializer_draws(mode):
    layer = conv(kernel_initializer="ones")
    layer.build((None, *IMAGE))
    layer.kernel.assign(np.random.default_rng(0).normal(size=layer.kernel.shape))

    tied = kt.apply_tying(layer, "mirror", mode=mode, init="redraw")

    row = np.array([np.sqrt(2), 1, np.sqrt(2)])
    np.testing.assert_allclose(array(tied.kernel), np.broadcast_to(row[:, None, None], (3, 3, 2, 2)), rtol=1e-6)


@in_both_modes
@pytest.mark.parametrize("builder", [sequential, nested, custom_layer])
def test_redrawing_leaves_untied_layers_as_they_are(builder, mode):
    model = make(builder)
    kernels = [one.shape[:2] == (3, 3) for one in model.variables]
    before = values(model.variables)

    tied = tie(model, mode, init="redraw")

    after = values(tied.variables)
    assert [not np.array_equal(one, other) for one, other in zip(before, after, strict=True)] == kernels


ALL = {"trunk/narrow", "trunk/wide", "oblong", "narrow_too"}
SWAP = kt.TyingPattern.parse("AB/BA", shape=(1, 1, 2, 2))


class TestPatterns:
    """Which layers `patterns` ties."""

    def model(self):
        inner_x = keras.Input(IMAGE, name="inner_image")
        inner = keras.Model(inner_x, layers.Conv2D(2, 5, padding="same", name="wide")(conv("narrow")(inner_x)), name="trunk")
        x = keras.Input(IMAGE, name="image")
        h = layers.Conv2D(2, (3, 5), padding="same", name="oblong")(inner(x))
        h = layers.Conv2D(2, 1, name="point")(conv("narrow_too")(h))
        return keras.Model(x, head(h), name="zoo")

    @pytest.mark.parametrize(
        ("patterns", "expected"),
        [
            (kt.patterns.mirror((3, 3)), {"trunk/narrow", "narrow_too"}),
            (kt.patterns.mirror((3, 5)), {"oblong"}),
            ("mirror", ALL),
            ("rotation", ALL - {"oblong"}),
            ({"kernel": "mirror"}, ALL),
            ({"kernel": kt.patterns.mirror((5, 5))}, {"trunk/wide"}),
            ({"oblong": "mirror"}, {"oblong"}),
            ({"oblong": {"kernel": "mirror"}}, {"oblong"}),
            ({"narrow": "mirror"}, {"trunk/narrow"}),
            ({"trunk/narrow": "mirror"}, {"trunk/narrow"}),
            ({"trunk/*": "mirror"}, {"trunk/narrow", "trunk/wide"}),
            ({"narrow*": "mirror"}, {"trunk/narrow", "narrow_too"}),
            ({"*": "rotation"}, ALL - {"oblong"}),
            ({"*": kt.patterns.mirror((5, 5))}, {"trunk/wide"}),
            ({"narrow*": None, "*": "mirror"}, {"trunk/wide", "oblong"}),
            ({"*": "mirror", "narrow*": None}, ALL),
            ({"*": "mirror", "oblong": None}, ALL - {"oblong"}),
            ({"*": None, "oblong": "mirror"}, {"oblong"}),
            ({"point": SWAP}, {"point"}),
            (lambda layer: "mirror" if layer.name == "wide" else None, {"trunk/wide"}),
            (lambda layer: {"kernel": SWAP} if layer.name == "point" else None, {"point"}),
        ],
    )
    def test_patterns_tie_the_layers_they_mean(self, patterns, expected):
        tied = kt.apply_tying(make(self.model), patterns)

        assert {row.layer for row in kt.tying_report(tied).rows if row.pattern is not None} == expected

    def test_each_layer_gets_the_pattern_given_for_it(self):
        tied = kt.apply_tying(
            make(self.model), {"oblong": "mirror", "*row*": "dihedral", "trunk/wide": kt.patterns.point((5, 5))}
        )

        assert {row.layer: row.pattern for row in kt.tying_report(tied).rows if row.pattern is not None} == {
            "trunk/narrow": kt.patterns.dihedral((3, 3)),
            "trunk/wide": kt.patterns.point((5, 5)),
            "oblong": kt.patterns.mirror((3, 5)),
            "narrow_too": kt.patterns.dihedral((3, 3)),
        }

    def test_a_shared_layer_is_tied_by_any_of_its_paths(self):
        tied = kt.apply_tying(make(shared_across), {"trunk/shared": "mirror"})

        assert isinstance(tied.get_layer("shared").kernel_constraint, kt.TiedConstraint)
