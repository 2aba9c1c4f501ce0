"""The given model of a tied copy is untied, and errors, reports and a warning point to the copy."""

import gc
import warnings

import pytest
from support.errors import raises_tying_error
from support.models import compile_model, images, make, sequential, skip, targets, tie, train

import kernel_tying as kt

FORGOTTEN = "stays untied.*'sequential'.*Train the returned model"


def assert_trains_silently(model):
    """Raises the first warning of a training."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model)


@pytest.mark.parametrize("is_collected", [False, True])
def test_training_the_given_model_after_the_copy_was_forgotten_warns_once(is_collected):
    model = make(sequential, compiled=True)
    tie(model, "parameterization")
    if is_collected:
        gc.collect()

    with pytest.warns(UserWarning, match=FORGOTTEN):
        train(model)

    assert_trains_silently(model)


def test_training_the_given_model_before_its_copy_warns_and_trains_it():
    model, twin = make(sequential, compiled=True), make(sequential, compiled=True)
    tied = tie(model, "parameterization")
    with pytest.warns(UserWarning, match=FORGOTTEN):
        train(model)
    train(twin)

    assert_trains_silently(tied)

    assert [weight.tolist() for weight in model.get_weights()] == [weight.tolist() for weight in twin.get_weights()]


def test_training_the_given_model_after_its_copy_does_not_warn():
    model = make(sequential, compiled=True)
    tied = tie(model, "parameterization")
    train(tied)

    assert_trains_silently(model)


def test_training_the_given_model_after_its_copy_was_trained_and_dropped_does_not_warn():
    model = make(sequential, compiled=True)
    train(tie(model, "parameterization"))
    gc.collect()

    assert_trains_silently(model)


def test_training_a_model_that_is_tied_after_all_does_not_warn():
    model = make(sequential, compiled=True)
    tie(model, "parameterization")

    assert_trains_silently(tie(model, "constraint"))


def test_training_batches_warns_too():
    model = make(sequential, compiled=True)
    tie(model, "parameterization")

    with pytest.warns(UserWarning, match=FORGOTTEN):
        model.train_on_batch(images(model), targets(model))


@pytest.mark.parametrize("verb", [kt.tying_error, kt.project_kernels])
def test_verbs_for_tied_kernels_point_from_the_given_model_to_the_copy(verb):
    model = make(skip)
    tie(model, "parameterization")

    with raises_tying_error("'skip'") as caught:
        verb(model)

    assert "Use the returned model" in str(caught.value)


def test_the_report_of_the_given_model_points_to_the_copy():
    model = make(skip)
    tied = tie(model, "parameterization", {"first": "mirror"})

    assert {row.reason for row in kt.tying_report(model).rows} == {"not tied; use the model that `apply_tying` returned"}
    assert {row.reason for row in kt.tying_report(tied).rows if row.pattern is None} == {"not named"}


def test_a_second_copy_of_the_given_model_is_independent_of_the_first():
    model = make(skip, compiled=True)
    first, second = tie(model, "parameterization"), tie(model, "parameterization")

    assert_trains_silently(compile_model(second))
    assert_trains_silently(first)

    assert "make_train_function" not in vars(second)
