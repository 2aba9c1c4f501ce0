"""Hostile text, configs and files: a `TyingError` soon and in little memory, whatever the value.

`HOSTILE_CONFIGS=100000 pytest tests/layers/test_fuzzing.py -k hostile_configs_in_one_process` tries that many, in some minutes.
"""

import base64
import copy
import json
import math
import os
import random
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from keras import layers
from support.hostile import (
    TOO_LARGE_TO_WRITE,
    attempt,
    json_values,
    nested,
    nested_config,
    numbers,
    scalars,
    texts,
)

import kernel_tying as kt
from kernel_tying import TyingError

MEGABYTE = 10**6
LENGTH = MEGABYTE // 4  # of texts and lists for which a square of bytes or operations is too much
BYTES_IN_MEMORY_A_CHARACTER = 200
BYTES_IN_MEMORY_A_POSITION = 200
label_values = st.recursive(
    st.integers(-2, 4) | st.sampled_from([2**63 - 1, 2**63, -(2**63), math.nan, True, None]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=12,
)


class ListOfFalseLength(list):
    def __len__(self):
        return 2


def self_containing(times):
    rows = []
    rows.extend([rows] * times)
    return rows


def repeated_rows(depth):
    """Returns a few lists that stand for 2000 to the power of `depth` numbers."""
    rows = [0]
    for _ in range(depth):
        rows = [rows] * 2000
    return rows


HOSTILE = {
    "a list in itself": self_containing(1),
    "a list in itself twice": self_containing(2),
    "a list of a false length": ListOfFalseLength([0, 1, 2]),
    "rows of a false length": [ListOfFalseLength([0, 1, 2]), [0, 1]],
    "a number among rows": [[0, 1], 0],
    "a string among rows": [[0, 1], "AB"],
    "a dict of dicts": {"labels": {"labels": {"labels": [0, 1]}}},
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


FORMS = [
    *((cls, {key: value for key, value in config.items() if key not in STOCK_KEYS}) for cls, config in CONFIGS.items()),
    (kt.TyingPattern, mirror_config()),
    (kt.TyingPattern, kt.patterns.blocks((2, 1), (1, 2)).get_config()),
    (kt.TyingPattern, kt.patterns.channel_blocks((3,), 4, 4, 2).get_config()),
    (kt.TyingPattern, kt.patterns.equivariant((3, 3), "p4").get_config()),
    (kt.TyingPattern, kt.patterns.mask(np.arange(300) % 3 > 0).get_config()),
]
HOSTILE_CONFIGS = int(os.environ.get("HOSTILE_CONFIGS", 500))
SCALARS = [0, 1, -1, 2, 3, -2, 2**31, 2**63, -(2**63), 2**70, TOO_LARGE_TO_WRITE, 0.5, math.nan, math.inf, True, None, "", "A"]


def hostile_value(chance, depth=4):
    """Returns a number or text, ragged rows, a dict of such, or one of `HOSTILE`."""
    kind = chance.random()
    if depth == 0 or kind < 0.3:
        return chance.choice([*SCALARS, "mirror", "eval", "AB/BA"])
    if kind < 0.4:
        return copy.copy(chance.choice(list(HOSTILE.values())))
    inner = [hostile_value(chance, depth - 1) for _ in range(chance.randrange(4))]
    if kind < 0.9:
        return inner
    return {chance.choice(["labels", "packed", "family", "size", "class_name", "config", "x"]): value for value in inner}


def with_hostile_part(chance, value):
    """Returns a copy of a config with a hostile value in the place of some part that is not Keras' own."""
    if chance.random() < 0.8 and isinstance(value, dict) and value:
        changed = chance.choice([key for key in value if key != "layer"])
        return {key: with_hostile_part(chance, part) if key == changed else part for key, part in value.items()}
    if chance.random() < 0.8 and isinstance(value, list) and value:
        changed = chance.randrange(len(value))
        return [with_hostile_part(chance, part) if index == changed else part for index, part in enumerate(value)]
    return hostile_value(chance)


def try_hostile_configs():
    chance = random.Random(0)
    for _ in range(HOSTILE_CONFIGS):
        cls, config = chance.choice(FORMS)
        assert_refused_or_described_alike(cls, with_hostile_part(chance, config))


def test_hostile_configs_in_one_process_take_bounded_memory():
    assert peak_memory(try_hostile_configs) < 100 * MEGABYTE


@pytest.mark.parametrize("name", kt.patterns.names())
def test_a_family_takes_memory_in_proportion_to_its_positions(name):
    side = 512

    assert peak_memory(lambda: kt.patterns.named(name, (side, side))) < BYTES_IN_MEMORY_A_POSITION * side**2


of_lists = pytest.mark.parametrize(
    "make",
    [kt.TyingPattern, kt.patterns.mask, lambda rows: kt.TyingPattern([0, 1], signs=rows)],
    ids=["labels", "mask", "signs"],
)


@of_lists
def test_few_lists_that_stand_for_billions_of_numbers_are_refused_in_little_memory(make):
    assert peak_memory(lambda: make(repeated_rows(4))) < 100 * MEGABYTE


@of_lists
@pytest.mark.parametrize(
    "rows",
    [
        [np.zeros(2, int), np.zeros(3, int)],
        np.array([[0], [0, 1]], object),
        [[0.0], [1]],
        [[0, 0], [0] * 8, [1] * 14],  # as many as in three rows of 8
    ],
    ids=range(4),
)
def test_arrays_of_different_lengths_are_refused(make, rows):
    assert accepted(lambda: make(rows)) is None


BOMBS = {
    "zeros": (b"\0" * 200 * MEGABYTE, [2, 150]),
    "first members": (b"\xff" * 200 * MEGABYTE, [2**24]),
    "for more positions than are allowed": (b"\xff" * MEGABYTE, [2**40]),
}


@pytest.mark.parametrize(("content", "shape"), BOMBS.values(), ids=BOMBS)
def test_compressed_labels_are_bounded_before_they_are_read(content, shape):
    packed = base64.b64encode(zlib.compress(content, 9)).decode()

    assert peak_memory(lambda: kt.TyingPattern.from_config({"packed": packed, "shape": shape})) < 400 * MEGABYTE


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
    "one row": "AB" * (LENGTH // 2),
    "one column": "A/B/" * (LENGTH // 16),
    "many labels": " ".join(map(str, range(LENGTH // 6))),
    "blanks": "A" + " " * LENGTH + "B",
    "blanks between rows": ("A" + " " * 1000 + "\n") * (LENGTH // 1000),
    "slashes": "/" * LENGTH,
    "slashes after a cell": "A" + "/" * LENGTH,
    "signs": "-" * LENGTH,
    "pins": "." * LENGTH,
    "ragged rows": "/".join("A" * (1 + index % 2) for index in range(LENGTH // 8)),
    "one long label": "A" * LENGTH + " B",
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
    "zeros": [0] * (LENGTH // 2),
    "a column": [[index] for index in range(LENGTH // 8)],
    "large labels": list(range(2**62, 2**62 + LENGTH // 20)),
    "ragged rows": [[0] * (1 + index % 2) for index in range(LENGTH // 4)],
    "a long string among short ones": ["A" * (LENGTH // 2), *(["B"] * (LENGTH // 8))],
    "a string": "A" * LENGTH,
    "rows of strings": [["A" * (LENGTH // 2)], *([["B"]] * (LENGTH // 8))],
    "an integer of many digits": [2**LENGTH, 0],
}


@pytest.mark.parametrize("labels", LARGE_LABELS.values(), ids=LARGE_LABELS)
@pytest.mark.parametrize("field", ["labels", "signs"])
def test_large_configs_take_memory_in_proportion(labels, field):
    config = {"labels": [0, 1], field: labels}

    assert peak_memory(lambda: kt.TyingPattern.from_config(config)) < BYTES_IN_MEMORY_A_CHARACTER * LENGTH


@pytest.mark.parametrize(
    "make",
    [
        lambda: kt.patterns.tile((1000, 1000), (1000, 1000)),
        lambda: kt.patterns.blocks((10**9, 1), (10**9, 1)),
        lambda: kt.patterns.channel_blocks((3, 3), 10**6, 10**6, 10),
        lambda: kt.patterns.equivariant((999, 999), "p4m", "regular"),
        lambda: kt.TyingPattern([0] * 10**5) & kt.TyingPattern([[0] * 10**5]),
        lambda: kt.TyingPattern([0] * 10**5).refines(kt.TyingPattern([[0] * 10**5])),
    ],
)
def test_patterns_made_from_a_few_large_numbers_are_refused(make):
    with pytest.raises(TyingError, match=r"positions\. Received .*\. Leave"):
        make()
