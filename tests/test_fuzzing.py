"""Hostile text, configs and files: a `TyingError` soon and in little memory, whatever the value."""

import json
import math
import tracemalloc
import zipfile

import keras
import numpy as np
import pytest
from helpers import array
from hypothesis import example, given
from hypothesis import strategies as st
from keras import layers
from models import MODES

import kernel_tying as kt
from kernel_tying import TyingError

MEGABYTE = 10**6
BYTES_IN_MEMORY_A_CHARACTER = 200
TOO_LARGE_TO_WRITE = 10**5000  # Python refuses to turn it into text

texts = st.text(st.sampled_from("AB1.-/ \n\t\r\x0b\x1c\x85\u00a0\u2028\U00010000\ud800"), max_size=30) | st.text(max_size=20)
numbers = st.integers(-3, 3) | st.integers(-(2**70), 2**70) | st.floats()
scalars = st.none() | st.booleans() | numbers | st.sampled_from(["mirror", "zeros", "non_neg", "AB/BA", ""]) | texts
keys = st.sampled_from(["labels", "signs", "pattern", "kernel", "then", "class_name", "config", "module", "registered_name"])
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys | texts, inner, max_size=4), max_leaves=12
)
label_values = st.recursive(
    st.integers(-2, 4) | st.sampled_from([2**63 - 1, 2**63, -(2**63), math.nan, True, None]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=12,
)


def nested(depth, value=0):
    for _ in range(depth):
        value = [value]
    return value


def nested_config(depth):
    config = None
    for _ in range(depth):
        config = {"class_name": "kernel_tying>TiedConstraint", "config": {"pattern": "mirror", "then": config}}
    return config


HOSTILE = {
    "None": None,
    "a boolean": True,
    "NaN": math.nan,
    "a string": "-",
    "bytes": b"AB",
    "an empty list": [],
    "empty rows": [[], []],
    "ragged rows": [[0], [0, 1]],
    "rows of different depths": [0, [1]],
    "integers in words": ["0", "1"],
    "NaN among labels": [0, math.nan],
    "a label below -1": [0, -2],
    "a label beyond int64": [0, 2**63],
    "a label beyond uint64": [0, 2**70],
    "an integer too large to write": TOO_LARGE_TO_WRITE,
    "integers too large to write in ragged rows": [[TOO_LARGE_TO_WRITE], [0, 1]],
    "33 axes": nested(32, [0, 0]),
    "64 axes": nested(64),
    "10,000 axes": nested(10_000),
    "an empty dict": {},
    "a config of something else": {"class_name": "MaxNorm", "config": {"axes": 3}, "module": "keras.constraints"},
    "a config of nothing": {"class_name": 3, "config": 3},
    "a config of a builtin": {"class_name": "function", "config": "eval", "module": "builtins", "registered_name": "eval"},
    "a config of a lambda": {"class_name": "__lambda__", "config": {"value": "4wAAAAA="}},
    "configs in configs": nested_config(300),
}
hostile_values = pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)


def mirror_config():
    return kt.patterns.mirror((3, 3)).get_config()


CONFIGS = {
    kt.TyingPattern: {"labels": [0, 1, 0], "signs": [1, 1, -1]},
    kt.TiedConstraint: {"pattern": mirror_config(), "then": "non_neg"},
    kt.TiedInitializer: {"pattern": mirror_config(), "initializer": "zeros"},
    kt.TyingPenalty: {"pattern": mirror_config(), "strength": 0.5},
    kt.Tied: kt.Tied(layers.Conv2D(2, 3, name="first"), "mirror").get_config(),
}
OPTIONAL = [(kt.TyingPattern, "signs"), (kt.TiedConstraint, "then"), (kt.Tied, "scaling"), (kt.Tied, "convolution")]
STOCK_KEYS = {"name", "trainable", "dtype"}  # refused by Keras itself
FIELDS = [(cls, key) for cls, config in CONFIGS.items() for key in config if key not in STOCK_KEYS]
in_all_fields = pytest.mark.parametrize(("cls", "key"), FIELDS, ids=[f"{cls.__name__}-{key}" for cls, key in FIELDS])
of_all_classes = pytest.mark.parametrize("cls", CONFIGS)


LONGEST_MESSAGE = 1500


def attempt(act, errors=TyingError):
    """Returns what `act` returns, and the error that it raises if it is one of `errors`."""
    try:
        return act(), None
    except errors as error:
        return None, error


def accepted(act):
    """Returns what `act` returns, or None if it is refused with a TyingError of some length."""
    made, error = attempt(act)
    assert len(str(error)) < LONGEST_MESSAGE
    return made


def assert_refused_or_described_alike(cls, config):
    made = accepted(lambda: cls.from_config(config))
    if made is not None:
        again = cls.from_config(json.loads(json.dumps(made.get_config())))
        assert repr(again.get_config()) == repr(made.get_config())


def assert_refused_or_read_again(text, shape=None):
    pattern = accepted(lambda: kt.TyingPattern.parse(text, shape))
    assert pattern is None or kt.TyingPattern.parse(str(pattern)) == pattern


@given(texts | scalars, st.none() | numbers | st.lists(st.integers(-2, 4), max_size=3))
@example("AB/BA", (-1, 2))
@example("AB/BA", (2**62, 2**62))
@example("AB/BA", (2**70,))
@example("A\u2028B", None)
def test_parse_refuses_a_text_or_reads_what_it_writes_again(text, shape):
    assert_refused_or_read_again(text, shape)


@hostile_values
def test_parse_refuses_a_hostile_text(value):
    assert accepted(lambda: kt.TyingPattern.parse(value)) is None


@hostile_values
def test_parse_refuses_a_hostile_shape_or_reads_what_it_writes_again(value):
    assert_refused_or_read_again("AB/BA", value)


@hostile_values
@in_all_fields
def test_a_config_with_a_hostile_value_is_refused_or_described_alike(cls, key, value):
    assert_refused_or_described_alike(cls, {**CONFIGS[cls], key: value})


@hostile_values
@of_all_classes
def test_a_hostile_config_is_refused(cls, value):
    assert accepted(lambda: cls.from_config(value)) is None


@pytest.mark.parametrize("cls", [cls for cls in CONFIGS if cls is not kt.Tied])
def test_a_config_with_another_key_is_refused(cls):
    assert accepted(lambda: cls.from_config({**CONFIGS[cls], "shape": TOO_LARGE_TO_WRITE})) is None


@pytest.mark.parametrize(("cls", "key"), [field for field in FIELDS if field not in OPTIONAL])
def test_a_config_without_a_key_is_refused(cls, key):
    assert accepted(lambda: cls.from_config({name: value for name, value in CONFIGS[cls].items() if name != key})) is None


@given(label_values, label_values | st.none())
@example([[0, 1], [1, 0]], [[1, 1], [1, -1]])
def test_a_pattern_of_any_labels_and_signs_is_refused_or_described_alike(labels, signs):
    assert_refused_or_described_alike(kt.TyingPattern, {"labels": labels, "signs": signs})


@given(st.sampled_from(FIELDS), json_values)
def test_a_config_with_any_value_is_refused_or_described_alike(field, value):
    cls, key = field
    assert_refused_or_described_alike(cls, {**CONFIGS[cls], key: value})


@given(st.sampled_from(list(CONFIGS)), json_values)
def test_any_config_is_refused_or_described_alike(cls, config):
    assert_refused_or_described_alike(cls, config)


@pytest.mark.parametrize("name", kt.patterns.names())
@given(size=st.lists(st.integers(-1, 4) | st.sampled_from([2**25, 2**40, 2**70, None, 2.0]), max_size=5))
@example(size=[10**5, 10**5])
@example(size=[2**40])
@example(size=[])
@example(size=3)
@example(size="33")
@example(size=None)
def test_a_family_is_refused_or_has_the_size_it_is_asked_for(name, size):
    pattern = accepted(lambda: kt.patterns.named(name, size))

    assert pattern is None or pattern.shape == tuple(np.atleast_1d(size))


LARGE_TEXTS = {
    "one row": "AB" * (MEGABYTE // 2),
    "one column": "A/B/" * (MEGABYTE // 16),
    "many labels": " ".join(map(str, range(MEGABYTE // 6))),
    "blanks": "A" + " " * MEGABYTE + "B",
    "blanks between rows": ("A" + " " * 1000 + "\n") * (MEGABYTE // 1000),
    "slashes": "/" * MEGABYTE,
    "slashes after a cell": "A" + "/" * MEGABYTE,
    "signs": "-" * MEGABYTE,
    "pins": "." * MEGABYTE,
    "ragged rows": "/".join("A" * (1 + index % 2) for index in range(MEGABYTE // 8)),
    "one long label": "A" * MEGABYTE + " B",
}


def peak_memory(act):
    """Returns the largest number of bytes that `act`, which may be refused, held at a time."""
    tracemalloc.start()
    try:
        accepted(act)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# Where time or memory grows with the square of the length, this takes hours, or all memory.
@pytest.mark.parametrize("text", LARGE_TEXTS.values(), ids=LARGE_TEXTS)
def test_large_texts_take_memory_in_proportion(text):
    assert peak_memory(lambda: kt.TyingPattern.parse(text)) < BYTES_IN_MEMORY_A_CHARACTER * len(text)


LARGE_LABELS = {
    "zeros": [0] * (MEGABYTE // 2),
    "a column": [[index] for index in range(MEGABYTE // 8)],
    "large labels": list(range(2**62, 2**62 + MEGABYTE // 20)),
    "ragged rows": [[0] * (1 + index % 2) for index in range(MEGABYTE // 4)],
    "a long string among short ones": ["A" * (MEGABYTE // 2), *(["B"] * (MEGABYTE // 8))],
    "a string": "A" * MEGABYTE,
    "rows of strings": [["A" * (MEGABYTE // 2)], *([["B"]] * (MEGABYTE // 8))],
    "an integer of many digits": [2**MEGABYTE, 0],
}


@pytest.mark.parametrize("labels", LARGE_LABELS.values(), ids=LARGE_LABELS)
@pytest.mark.parametrize("field", ["labels", "signs"])
def test_large_configs_take_memory_in_proportion(labels, field):
    config = {"labels": [0, 1], field: labels}

    assert peak_memory(lambda: kt.TyingPattern.from_config(config)) < BYTES_IN_MEMORY_A_CHARACTER * MEGABYTE


@pytest.mark.parametrize(
    "make",
    [
        lambda: kt.patterns.tile((1000, 1000), (1000, 1000)),
        lambda: kt.patterns.blocks((10**9, 1), (10**9, 1)),
        lambda: kt.patterns.channel_blocks((3, 3), 10**6, 10**6, 10),
        lambda: kt.TyingPattern([0] * 10**5) & kt.TyingPattern([[0] * 10**5]),
        lambda: kt.TyingPattern([0] * 10**5).refines(kt.TyingPattern([[0] * 10**5])),
    ],
)
def test_patterns_made_from_a_few_large_numbers_are_refused(make):
    with pytest.raises(TyingError, match=r"positions\. Received .*\. Leave"):
        make()


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


def causes(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


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
