"""Files that are hostile are refused, or load a tied model; none runs code through classes of this package."""

import contextlib
import json
import math
import zipfile

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers
from support.backends import array
from support.hostile import attempt, json_values, nested, nested_config
from support.models import MODES

import kernel_tying as kt
from kernel_tying import TyingError


def leave_a_trace(value):
    leave_a_trace.is_run = True
    return value


CODE = layers.Lambda(
    lambda x: __import__("test_hostile_files").leave_a_trace(x), name="code"
)  # where it runs, it has no globals


def code():
    """Returns the config of a function with its code, as a hostile file would carry it."""
    with pytest.warns(UserWarning, match="lambda"):
        return keras.saving.serialize_keras_object(CODE.function)


def lambda_layer():
    return {"module": "keras.layers", "class_name": "Lambda", "config": CODE.get_config()}


def conv_with(**options):
    config = {**layers.Conv2D(1, 3, name="first").get_config(), **options}
    return {"module": "keras.layers", "class_name": "Conv2D", "config": config}


def tied(layer, pattern="mirror"):
    config = {"layer": layer, "pattern": {"kernel": pattern}, "name": "first"}
    return {"registered_name": "kernel_tying>Tied", "class_name": "Tied", "module": None, "config": config}


def ours(name, **config):
    return {"registered_name": f"kernel_tying>{name}", "class_name": name, "module": None, "config": config}


def constrained(then):
    return conv_with(kernel_constraint=ours("TiedConstraint", pattern="mirror", then=then))


def initialized(initializer):
    return conv_with(kernel_initializer=ours("TiedInitializer", pattern="mirror", initializer=initializer))


SYSTEM = {"class_name": "function", "config": "system", "module": "os", "registered_name": "system"}
POPEN = {"class_name": "Popen", "config": {"args": "true"}, "module": "subprocess", "registered_name": None}
UNSAFE = "safe_mode=False"
NO_CONSTRAINT, NO_INITIALIZER = (f"Could not interpret {kind} identifier" for kind in ("constraint", "initializer"))
HOSTILE_LAYERS = {
    "a Lambda that is tied": (lambda: tied(lambda_layer()), UNSAFE),
    "code that is tied": (lambda: tied(code()), UNSAFE),
    "a class of the system that is tied": (lambda: tied(POPEN), "Could not locate class 'Popen'"),
    "a family that is code": (lambda: tied(conv_with(), code()), "The config of a TyingPattern"),
    "a family that is a function of the system": (lambda: tied(conv_with(), "system"), "name of a family"),
    "a constraint composed with code": (lambda: constrained(code()), NO_CONSTRAINT),
    "a constraint composed with a function of the system": (lambda: constrained(SYSTEM), NO_CONSTRAINT),
    "a constraint composed with a class of the system": (lambda: constrained(POPEN), NO_CONSTRAINT),
    "an initializer that is code": (lambda: initialized(code()), NO_INITIALIZER),
    "an initializer that is a function of the system": (lambda: initialized(SYSTEM), NO_INITIALIZER),
    "an initializer that is a class of the system": (lambda: initialized(POPEN), NO_INITIALIZER),
}


def model_of(layer):
    inputs = {"module": "keras.layers", "class_name": "InputLayer", "config": {"batch_shape": [None, 5, 5, 1], "name": "image"}}
    config = {"name": "hostile", "layers": [inputs, layer]}
    return {"module": "keras", "class_name": "Sequential", "config": config}


def file_of(layer, folder):
    """Returns the path of a `.keras` file with a model of one layer, of which the config is given."""
    convolution = layers.Conv2D(1, 3, name="first")
    saved = kt.Tied(convolution, "mirror") if layer["class_name"] == "Tied" else convolution
    keras.Sequential([keras.Input((5, 5, 1)), saved]).save(folder / "saved.keras")
    with zipfile.ZipFile(folder / "saved.keras") as source, zipfile.ZipFile(folder / "hostile.keras", "w") as hostile:
        for name in source.namelist():
            hostile.writestr(name, json.dumps(model_of(layer)) if name == "config.json" else source.read(name))
    return folder / "hostile.keras"


def test_code_in_a_file_runs_in_unsafe_mode(tmp_path):
    leave_a_trace.is_run = False

    with contextlib.suppress(ValueError):
        keras.saving.load_model(file_of(lambda_layer(), tmp_path), safe_mode=False)

    assert leave_a_trace.is_run


@pytest.mark.parametrize("layer", [tied(conv_with()), constrained("non_neg"), initialized("zeros")])
def test_files_of_the_same_form_without_code_load(layer, tmp_path):
    assert keras.saving.load_model(file_of(layer, tmp_path)).get_layer("first").built


def causes(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(("layer", "message"), HOSTILE_LAYERS.values(), ids=HOSTILE_LAYERS)
def test_no_code_in_a_file_runs_through_our_classes(layer, message, tmp_path):
    leave_a_trace.is_run = False

    with pytest.raises((TypeError, ValueError)) as refused:
        keras.saving.load_model(file_of(layer(), tmp_path))

    assert any(message in str(error) for error in causes(refused.value))
    assert not leave_a_trace.is_run


@pytest.fixture(scope="module", params=MODES)
def file(request, tmp_path_factory):
    """Returns the path of the file of a small tied model."""
    path = tmp_path_factory.mktemp(request.param) / "tied.keras"
    convolution = layers.Conv2D(2, 3, name="first", kernel_constraint="non_neg")
    model = keras.Sequential([keras.Input((4, 4, 1)), convolution, layers.Flatten(), layers.Dense(1)])
    kt.apply_tying(model, {"first": "mirror"}, mode=request.param).save(path)
    return path


in_constraint_mode = pytest.mark.parametrize("file", ["constraint"], indirect=True)


def with_value(path, place, value):
    """Returns the path of a copy of a `.keras` file with another value in the config of its layer "first"."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(path.with_name("changed.keras"), "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, changed(content, place, value) if name == "config.json" else content)
    return path.with_name("changed.keras")


def changed(text, place, value):
    config = json.loads(text)
    inner = next(layer["config"] for layer in config["config"]["layers"] if layer["config"]["name"] == "first")
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return json.dumps(config)


def load(path):
    """Returns the model in a file, or None if it is refused with a TyingError, of which Keras may make another error."""
    model, error = attempt(lambda: keras.saving.load_model(path), (TypeError, ValueError))
    is_told = any(isinstance(one, TyingError) or "could not be loaded" in str(one) for one in causes(error))
    assert error is None or is_told, repr(error)[:1000]
    return model


CONSTRAINT, INITIALIZER = ("kernel_constraint", "config"), ("kernel_initializer", "config")
WIDE = kt.patterns.mirror((5, 5)).get_config()
REFUSED_IN_FILES = {
    "a constraint without a pattern": (CONSTRAINT, {"then": None}),
    "a constraint with another key": (CONSTRAINT, {"pattern": "mirror", "then": None, "kernel": 1}),
    "a constraint of no family": ((*CONSTRAINT, "pattern"), "spiral"),
    "a constraint of ragged labels": ((*CONSTRAINT, "pattern", "labels"), [[0], [0, 1]]),
    "a constraint of deep labels": ((*CONSTRAINT, "pattern", "labels"), nested(70)),
    "a constraint of large labels": ((*CONSTRAINT, "pattern", "labels"), [[10**4000, 0]]),
    "a constraint of NaN": ((*CONSTRAINT, "pattern", "signs"), [[math.nan] * 3] * 3),
    "constraints in constraints": ((*CONSTRAINT, "then"), nested_config(200)),
    "a constraint that does not fit": ((*CONSTRAINT, "pattern"), WIDE),
    "no other constraint": ((*CONSTRAINT, "then"), {"class_name": "Nope", "config": {}}),
    "an initializer of no family": ((*INITIALIZER, "pattern"), "AB/BA"),
    "an initializer that does not fit": ((*INITIALIZER, "pattern"), WIDE),
    "an initializer without a base": (INITIALIZER, {"pattern": "mirror"}),
}

KERNEL = ("pattern", "kernel")
REFUSED_IN_FILES_OF_FREE_WEIGHTS = {
    "no pattern": (("pattern",), None),
    "a bare pattern": (("pattern",), "mirror"),
    "another kernel": (("pattern",), {"depthwise_kernel": WIDE}),
    "another kernel beside": (("pattern", "recurrent_kernel"), WIDE),
    "no kernel": (("pattern",), {}),
    "no family": (KERNEL, "spiral"),
    "a pattern that does not fit": (KERNEL, WIDE),
    "a pattern of other free weights": (KERNEL, kt.patterns.dihedral((3, 3)).get_config()),
    "another key": ((*KERNEL, "shape"), [3, 3]),
    "ragged labels": ((*KERNEL, "labels"), [[0], [0, 1]]),
    "deep labels": ((*KERNEL, "labels"), nested(70)),
    "large labels": ((*KERNEL, "labels"), [[10**4000, 0]]),
    "a wrong scaling": (("scaling",), "unit"),
    "a deep scaling": (("scaling",), nested(300)),
    "a wrong convolution": (("convolution",), None),
    "no layer": (("layer",), None),
    "a layer without a kernel": (("layer",), {"module": "keras.layers", "class_name": "Flatten", "config": {}}),
    "a layer of no class": (("layer", "class_name"), "Conv9D"),
    "a kernel of an enormous size": (("layer", "config", "kernel_size"), [10**6, 10**6]),
}


@pytest.mark.parametrize("file", ["parameterization"], indirect=True)
@pytest.mark.parametrize(("place", "value"), REFUSED_IN_FILES_OF_FREE_WEIGHTS.values(), ids=REFUSED_IN_FILES_OF_FREE_WEIGHTS)
def test_a_file_of_free_weights_with_a_hostile_config_is_refused(file, place, value):
    assert load(with_value(file, place, value)) is None


@in_constraint_mode
@pytest.mark.parametrize(("place", "value"), REFUSED_IN_FILES.values(), ids=REFUSED_IN_FILES)
def test_a_file_with_a_hostile_config_is_refused(file, place, value):
    assert load(with_value(file, place, value)) is None


@in_constraint_mode
def test_a_file_with_two_patterns_for_a_kernel_loads_and_keeps_both(file):
    then = {"class_name": "TiedConstraint", "module": None, "registered_name": "kernel_tying>TiedConstraint"}
    model = load(with_value(file, (*CONSTRAINT, "then"), {**then, "config": {"pattern": "point"}}))
    kernel = model.get_layer("first").kernel

    constrained = array(kernel.constraint(np.random.default_rng(1).normal(size=kernel.shape).astype("float32")))

    np.testing.assert_array_equal(constrained, constrained[:, ::-1])
    np.testing.assert_allclose(constrained, constrained[::-1, ::-1], atol=1e-6)


@pytest.mark.parametrize("verb", [kt.tying_error, kt.project_kernels, kt.tying_report])
def test_verbs_refuse_a_constraint_that_does_not_fit(verb):
    layer = layers.Conv2D.from_config(
        {"filters": 2, "kernel_size": 3, "kernel_constraint": kt.TiedConstraint(kt.patterns.mirror((5, 5)))}
    )
    layer.build((None, 4, 4, 1))

    with pytest.raises(TyingError, match="fits"):
        verb(layer)


PLACES = [
    (*CONSTRAINT, "pattern"),
    (*CONSTRAINT, "pattern", "labels"),
    (*CONSTRAINT, "then"),
    (*INITIALIZER, "pattern"),
    (*INITIALIZER, "initializer"),
]


@in_constraint_mode
@given(place=st.sampled_from(PLACES), value=json_values)
def test_a_file_with_any_value_is_refused_or_loads(file, place, value):
    model = load(with_value(file, place, value))

    assert model is None or model.get_layer("first").built


@in_constraint_mode
def test_a_file_without_a_base_initializer_loads(file):
    model = load(with_value(file, (*INITIALIZER, "initializer"), None))

    assert kt.tying_report(model).plan == kt.tying_report(keras.saving.load_model(file)).plan
