"""The text of a pattern, parsed and written."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.errors import raises_tying_error

import kernel_tying as kt
from kernel_tying.testing import patterns

SHAPES_OF_MANY_POSITIONS = [
    (60,),
    (1, 60),
    (60, 1),
    (2, 30),
    (30, 2),
    (5, 1, 12),
    (12, 5, 1),
    (1, 6, 10),
    (1, 60, 1),
    (3, 2, 5, 2),
]


@st.composite
def patterns_of_many_groups(draw):
    """Patterns with more groups than there are letters, with signs and pins."""
    shape = draw(st.sampled_from(SHAPES_OF_MANY_POSITIONS))
    labels = np.arange(math.prod(shape)) % draw(st.integers(54, 60))
    signs = np.random.default_rng(draw(st.integers(0, 99))).choice([1, -1], labels.size)
    signs[draw(st.integers(0, labels.size - 1))] = 0
    return kt.TyingPattern(labels.reshape(shape), signs.reshape(shape))


@given(patterns(max_rank=5, max_side=3) | patterns_of_many_groups())
def test_text_of_a_pattern_parses_back_to_an_equal_pattern(pattern):
    assert kt.TyingPattern.parse(str(pattern)) == pattern


@pytest.mark.parametrize("shape", SHAPES_OF_MANY_POSITIONS)
def test_text_of_more_than_52_groups_parses_back_in_every_rank(shape):
    pattern = kt.patterns.free(shape)

    assert kt.TyingPattern.parse(str(pattern)) == pattern


@given(patterns_of_many_groups())
def test_text_of_more_than_52_groups_has_one_token_or_character_for_each_position(pattern):
    text = str(pattern).replace("/", " ").replace("\n", " ")

    assert len(text.split()) == pattern.labels.size


@given(patterns(max_rank=4, max_side=3))
def test_text_reshaped_by_shape_equals_the_pattern_of_that_shape(pattern):
    one_row = str(kt.TyingPattern(pattern.labels.ravel(), pattern.signs.ravel()))

    assert kt.TyingPattern.parse(one_row, shape=pattern.shape) == pattern


@pytest.mark.parametrize(
    ("text", "labels", "signs"),
    [
        pytest.param("ABA", [0, 1, 0], [1, 1, 1], id="one row"),
        pytest.param("ABA/", [[0, 1, 0]], [[1, 1, 1]], id="trailing slash makes it rank 2"),
        pytest.param("AB//", [[[0, 1]]], [[[1, 1]]], id="two trailing slashes make it rank 3"),
        pytest.param("AB/CA", [[0, 1], [2, 0]], [[1, 1], [1, 1]], id="slash between rows"),
        pytest.param("AB/CA/", [[0, 1], [2, 0]], [[1, 1], [1, 1]], id="slash behind the last row"),
        pytest.param("AB\nCA", [[0, 1], [2, 0]], [[1, 1], [1, 1]], id="newline between rows"),
        pytest.param("\n    A B\n    C A\n", [[0, 1], [2, 0]], [[1, 1], [1, 1]], id="indented block"),
        pytest.param("AB / CA", [[0, 1], [2, 0]], [[1, 1], [1, 1]], id="blanks around a slash"),
        pytest.param("AB\n\nBA", [[[0, 1]], [[1, 0]]], [[[1, 1]], [[1, 1]]], id="blank line between planes"),
        pytest.param("AB//BA", [[[0, 1]], [[1, 0]]], [[[1, 1]], [[1, 1]]], id="two slashes between planes"),
        pytest.param("A.-A", [0, -1, 0], [1, 0, -1], id="pin and minus"),
        pytest.param("-A.A", [0, -1, 0], [1, 0, -1], id="canonical sign"),
        pytest.param("left -right . -left", [0, 1, -1, 0], [1, 1, 0, -1], id="tokens"),
        pytest.param("A1\tB1  A1", [0, 1, 0], [1, 1, 1], id="tabs and runs of blanks"),
        pytest.param("aAa", [0, 1, 0], [1, 1, 1], id="case matters"),
        pytest.param("121", [0, 1, 0], [1, 1, 1], id="digits are labels"),
    ],
)
def test_parse_reads(text, labels, signs):
    pattern = kt.TyingPattern.parse(text)

    assert (pattern.labels.tolist(), pattern.signs.tolist()) == (labels, signs)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (kt.TyingPattern([5, 5, 7], [-1, 1, 1]), "A-AB"),
        (kt.TyingPattern([[0, -1], [1, 0]]), "A./BA"),
        (kt.TyingPattern([[[0], [1]], [[2], [0]]]), "A/B\n\nC/A"),
        (kt.TyingPattern([[[0, 1]]]), "AB//"),
        (kt.TyingPattern(np.arange(52)), "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"),
        (kt.TyingPattern(np.arange(53) % 53), " ".join(f"{chr(65 + i % 26)}{i // 26 + 1}" for i in range(53))),
    ],
)
def test_str_writes(pattern, text):
    assert str(pattern) == text


@pytest.mark.parametrize(
    ("text", "received"),
    [
        pytest.param(["AB"], "list", id="no string"),
        pytest.param("", "''", id="empty"),
        pytest.param(" \n ", "''", id="blank"),
        pytest.param("/", "''", id="rows without cells"),
        pytest.param("//AB", "''", id="leading slashes"),
        pytest.param("AB" + 10_000 * "/", "10000 slashes", id="axes without end"),
        pytest.param("ABC/AB", "[(3,), (2,)]", id="ragged rows"),
        pytest.param("A B/AB", "[(2,), (1,)]", id="tokens and characters"),
        pytest.param("AB/AB//AB", "[(2, 2), (1, 2)]", id="ragged planes"),
        pytest.param("AB-", "'AB-'", id="sign without a label at the end"),
        pytest.param("A--B", "'A--B'", id="two signs"),
        pytest.param("A -", "'A -'", id="sign without a label among tokens"),
        pytest.param("A-.", "'A-.'", id="negative pin"),
        pytest.param("A -.", "'A -.'", id="negative pin among tokens"),
        pytest.param("..A B", "'..A B'", id="forgotten blank among tokens"),
        pytest.param("..", "pinned to zero", id="no free weight left"),
        pytest.param("A", "shape=(1,)", id="no tied axis"),
        pytest.param("A,A,B/C,C,D", "','", id="commas between cells"),
        pytest.param("A, A, B", "','", id="commas behind tokens"),
        pytest.param("[[A, B], [B, A]]", "',', '[', ']'", id="nested lists"),
        pytest.param("A+B", "'+'", id="plus for a sign"),
        pytest.param("A\N{MINUS SIGN}B", "'\N{MINUS SIGN}'", id="a minus that is not of ASCII"),
        pytest.param("0A0/AAA/0A0", "'0'", id="zero for a pin"),
        pytest.param("A -0 B", "'0'", id="zero among tokens"),
    ],
)
def test_malformed_text_is_refused_with_rule_received_and_way_out(text, received):
    with raises_tying_error(received):
        kt.TyingPattern.parse(text)


def test_zero_is_refused_with_the_hint_to_write_a_dot():
    with raises_tying_error("'0'") as caught:
        kt.TyingPattern.parse("0A0/AAA/0A0")

    assert "Write '.' for a position that is pinned to zero" in str(caught.value)


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), (), "x", (2.0, 2)])
def test_shape_that_does_not_hold_all_cells_is_refused(shape):
    with raises_tying_error(f"4 cells and shape={shape!r}"):
        kt.TyingPattern.parse("AB/CA", shape=shape)
