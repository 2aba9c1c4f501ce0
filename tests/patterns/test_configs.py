"""What configs, files and pickles hold of patterns: a family's call, labels as a list, or labels packed."""

import base64
import copy
import json
import pickle
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.errors import raises_tying_error

import kernel_tying as kt
from kernel_tying import patterns as families
from kernel_tying.patterns import calls
from kernel_tying.testing import patterns

CALLS = {
    "mirror": (lambda: families.mirror((3, 3)), {"size": [3, 3], "axis": -1, "antisymmetric": False}),
    "mirror along both": (lambda: families.mirror([3, 3], (0, 1)), {"size": [3, 3], "axis": [0, 1], "antisymmetric": False}),
    "point": (lambda: families.point((3,), antisymmetric=True), {"size": [3], "antisymmetric": True}),
    "rotation": (lambda: families.rotation((3, 3), 2), {"size": [3, 3], "order": 2, "antisymmetric": False}),
    "dihedral": (lambda: families.dihedral(np.array([5, 5])), {"size": [5, 5], "antisymmetric": False}),
    "transpose": (lambda: families.transpose((30, 30)), {"size": [30, 30], "antisymmetric": False}),
    "radial": (lambda: families.radial(5), {"size": 5}),
    "rings": (lambda: families.named("rings", (20, 20)), {"size": [20, 20]}),
    "cross": (lambda: families.cross((3, 3)), {"size": [3, 3]}),
    "toeplitz": (lambda: families.toeplitz((np.int32(2), 3)), {"size": [2, 3]}),
    "circulant": (lambda: families.circulant(size=(64, 64)), {"size": [64, 64]}),
    "constant": (lambda: families.constant((2, 2)), {"size": [2, 2]}),
    "free": (lambda: families.free((2, 2)), {"size": [2, 2]}),
    "blocks": (lambda: families.blocks((2, 1, 2), (1, 2)), {"lengths": [[2, 1, 2], [1, 2]]}),
    "tile": (lambda: families.tile((1, 5), (5, 1)), {"size": [1, 5], "repeats": [5, 1]}),
    "channel_blocks": (
        lambda: families.channel_blocks((3, 3), 16, 32, blocks=4),
        {"size": [3, 3], "in_channels": 16, "filters": 32, "blocks": 4},
    ),
    "equivariant": (
        lambda: families.equivariant((3, 3), kt.groups.p4m),
        {"size": [3, 3], "group": "p4m", "in_type": "trivial", "out_type": "regular"},
    ),
}
of_all_families = pytest.mark.parametrize(("make", "arguments"), CALLS.values(), ids=CALLS)


@st.composite
def large_patterns(draw):
    """Signed and pinned patterns of more positions than configs list, of few groups or of many, in order or not."""
    shape = draw(st.sampled_from([(201,), (15, 14), (3, 3, 5, 7)]))
    random = np.random.default_rng(draw(st.integers(0, 999)))
    labels = random.integers(0, draw(st.sampled_from([1, 7, 1000])), shape)
    if draw(st.booleans()):
        labels = np.sort(labels, axis=-1)
    signs = random.choice([1, *draw(st.sampled_from([[], [-1], [0], [0, 0, 0, -1]]))], shape)
    return kt.TyingPattern(labels, np.where(np.arange(signs.size).reshape(shape), signs, 1))


def through_json(pattern):
    return kt.TyingPattern.from_config(json.loads(json.dumps(pattern.get_config())))


def through_pickle(pattern):
    return pickle.loads(pickle.dumps(pattern))


def assert_round_trips(pattern):
    for duplicate in (through_json, through_pickle, copy.copy, copy.deepcopy):
        twin = duplicate(pattern)
        assert (twin, hash(twin), twin.get_config()) == (pattern, hash(pattern), pattern.get_config())
        assert twin.labels.dtype == twin.signs.dtype == np.int64
        assert not twin.labels.flags.writeable


@given(patterns() | large_patterns())
def test_a_pattern_round_trips_through_json_pickle_and_copies(pattern):
    assert_round_trips(pattern)


@of_all_families
def test_a_family_round_trips_through_json_pickle_and_copies(make, arguments):
    assert_round_trips(make())


@pytest.mark.parametrize(
    "rows",
    [
        [np.array([0, 1]), np.array([1, 0])],
        [(0, 1), [np.int8(1), np.uint64(0)]],
        (range(2), [1, 0]),
        [[0, 1], np.array([1, 0])],
        np.asfortranarray([[0, 1], [1, 0]], dtype="uint8"),
    ],
    ids=range(5),
)
def test_labels_may_be_arrays_and_sequences_in_sequences(rows):
    assert kt.TyingPattern(rows) == kt.TyingPattern.parse("AB/BA")


@of_all_families
def test_config_of_a_family_is_its_call(make, arguments):
    config = make().get_config()

    assert json.dumps(config["arguments"]) == json.dumps(arguments)
    assert set(config) == {"family", "arguments", "checksum"}


@of_all_families
def test_a_family_equals_the_pattern_of_its_labels(make, arguments):
    pattern = make()
    twin = kt.TyingPattern(pattern.labels, pattern.signs)

    assert (twin, hash(twin)) == (pattern, hash(pattern))
    assert "family" not in twin.get_config()


def test_all_families_of_numbers_and_names_are_written_as_calls():
    others = {"mask", "per_filter", "from_symmetry"}  # of arrays, patterns and functions

    written = {make().get_config()["family"] for make, _ in CALLS.values()}

    assert written == set(families.__all__) - others - {"named", "names", "register"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: families.mask(np.arange(300) % 3 > 0),
        lambda: families.per_filter([families.mirror((5, 5)), families.free((5, 5))] * 6),
        lambda: families.from_symmetry((15, 15), [np.rot90]),
        lambda: families.dihedral((15, 15)) & families.cross((15, 15)),
        lambda: kt.TyingPattern.parse(str(families.circulant((15, 15)))),
    ],
)
def test_config_of_a_large_pattern_of_no_call_is_packed(make):
    assert set(make().get_config()) == {"packed", "shape"}
    assert_round_trips(make())


def test_config_of_a_call_with_other_texts_holds_labels():
    assert set(families.mirror((3, 3), antisymmetric="yes").get_config()) == {"labels", "signs"}


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("AB-A", {"labels": [0, 1, 0], "signs": [1, 1, -1]}),
        ("A./BA", {"labels": [[0, -1], [1, 0]]}),
        (".A/-AB", {"labels": [[-1, 0], [0, 1]], "signs": [[0, 1], [-1, 1]]}),
    ],
)
def test_config_of_a_small_pattern_lists_its_labels(text, config):
    assert kt.TyingPattern.parse(text).get_config() == config
    assert kt.TyingPattern.from_config(config) == kt.TyingPattern.parse(text)


def test_a_config_is_the_callers_own():
    pattern = families.blocks((2, 1), (2, 1))

    pattern.get_config()["arguments"]["lengths"][0][0] = 9

    assert_round_trips(pattern)


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_packed_mask_takes_the_compressed_bits(density):
    keep = np.random.default_rng(0).random((64, 512)) < density
    bits = zlib.compress(np.packbits(keep).tobytes())

    packed = families.mask(keep).get_config()["packed"]

    assert len(packed) < 4 / 3 * (len(bits) + 200)


def test_packed_labels_take_two_bytes_each_at_most():
    labels = np.random.default_rng(0).integers(0, 1000, (64, 512))

    packed = kt.TyingPattern(labels).get_config()["packed"]

    assert len(packed) < 4 / 3 * (2 * labels.size + labels.size // 4)


@pytest.mark.parametrize("count", [2**15, 2**15 + 1, 2**16 + 1])
def test_packed_labels_reach_the_last_group(count):
    labels = np.concatenate([np.arange(count), [0, count - 1, 0]])

    assert_round_trips(kt.TyingPattern(labels))


def test_packed_labels_beyond_the_bound_of_short_texts_round_trip(monkeypatch):
    monkeypatch.setattr("kernel_tying.patterns.packing.MAX_POSITIONS", 1000)

    assert_round_trips(kt.TyingPattern(np.zeros(5000, int)))


def mirror_config():
    return families.mirror((3, 3)).get_config()


def packed_config():
    return families.mask(np.arange(300) % 3 > 0).get_config()


def compressed(content):
    return base64.b64encode(zlib.compress(content)).decode()


@pytest.mark.parametrize(
    "changes",
    [
        {"family": "spiral"},
        {"family": ["mirror"]},
        {"family": "per_filter"},
        {"family": "eval"},
        {"arguments": None},
        {"arguments": [[3, 3], -1, False]},
        {"arguments": {"size": [3, 3]}},
        {"arguments": {"size": [3, 3], "axis": "-1", "antisymmetric": False}},
        {"arguments": {"size": [3, 3], "axis": 10**5000, "antisymmetric": False}},
        {"arguments": {"size": [3, 3.0], "axis": -1, "antisymmetric": False}},
        {"arguments": {"size": [[[3, 3]]], "axis": -1, "antisymmetric": False}},
        {"arguments": {"size": [3, 3], "axis": -1, "antisymmetric": False, "dtype": 0}},
        {"arguments": {"size": [2**30, 2**30], "axis": -1, "antisymmetric": False}},
        {"arguments": {"size": [1] * 1000, "axis": -1, "antisymmetric": False}},
        {"arguments": {"size": [3, 3], "axis": -1, "antisymmetric": 10**5000}},
        {"family": "blocks", "arguments": {"lengths": 3}},
        {"family": "rotation", "arguments": {"size": [3, 3], "order": 10**5000, "antisymmetric": False}},
        {"checksum": None},
        {"checksum": 1},
        {"labels": [0, 1]},
    ],
    ids=range(20),
)
def test_a_malformed_call_is_refused_with_rule_received_and_way_out(changes):
    with raises_tying_error(""):
        kt.TyingPattern.from_config({**mirror_config(), **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"packed": None},
        {"packed": ["A"]},
        {"packed": ""},
        {"packed": "not base64!"},
        {"packed": "\u00e9"},
        {"packed": "AAAA"},
        {"packed": packed_config()["packed"][:-8]},
        {"packed": packed_config()["packed"] + "AAAA"},
        {"packed": compressed(b"\xff" * 1000)},
        {"packed": compressed(b"\xff" * 75 + b"\x00")},
        {"packed": compressed(b"\xff" * 38 + b"\x80" + b"\x00" * 36 + b"\xff\x7f" * 299)},
        {"packed": compressed(bytes(38))},
        {"shape": None},
        {"shape": []},
        {"shape": [2**20]},
        {"shape": [2**60]},
        {"shape": [-1]},
        {"shape": [-3, -100]},
        {"shape": [300.0]},
        {"shape": [1] * 40 + [300]},
        {"shape": [10**5000, 10**5000]},
        {"labels": [0, 1]},
    ],
    ids=range(22),
)
def test_malformed_packed_labels_are_refused_with_rule_received_and_way_out(changes):
    with raises_tying_error(""):
        kt.TyingPattern.from_config({**packed_config(), **changes})


def test_a_family_that_makes_another_pattern_now_is_refused(monkeypatch):
    config = families.circulant((3, 3)).get_config()
    monkeypatch.setitem(calls._families, "circulant", lambda size: kt.TyingPattern.parse("ABC/BCA/CAB"))  # as many of each

    with raises_tying_error("checksum"):
        kt.TyingPattern.from_config(config)


def test_a_config_calls_no_family_of_users(monkeypatch):
    monkeypatch.setattr("kernel_tying.patterns.registry._families", {"mine": pytest.fail})

    with raises_tying_error("'mine'"):
        kt.TyingPattern.from_config({"family": "mine", "arguments": {"size": [3, 3]}, "checksum": 0})
