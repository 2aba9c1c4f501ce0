"""Facts that come first of all tests, and errors about private names, which tell the versions of Keras that are supported."""

import keras
import pytest
from support.facts import built

import kernel_tying as kt
from kernel_tying import _keras


def test_these_facts_are_the_first_tests(request):
    folders = [item.path.parent.name for item in request.session.items]

    assert set(folders[: folders.count("keras_private")]) == {"keras_private"}


def test_a_private_name_that_has_moved_is_an_import_error_that_names_the_supported_versions():
    with pytest.raises(
        ImportError, match=rf"Keras 3\.12 to 3\.15\. Received Keras {keras.__version__} without keras\.src\.gone\.name\. Inst"
    ):
        _keras.private_name("keras.src.gone", "name")


def test_an_error_about_a_private_name_notes_the_supported_versions(monkeypatch):
    monkeypatch.delattr(keras.Layer, "_untrack_variable")

    with pytest.raises(AttributeError, match="_untrack_variable") as caught:
        kt.apply_tying(built(), "mirror", mode="parameterization")

    (note,) = caught.value.__notes__
    assert "Keras 3.12 to 3.15. Received Keras" in note


def test_an_error_about_a_name_of_the_user_notes_nothing():
    with pytest.raises(AttributeError) as caught:
        kt.apply_tying(built(), lambda layer: layer.color)

    assert not hasattr(caught.value, "__notes__")
