"""What `kernel_tying.testing` refuses; its strategies and assertions that hold are used throughout the other files."""

import keras
import numpy as np
import pytest
from keras import layers
from support.errors import raises_tying_error

import kernel_tying as kt
from kernel_tying import testing


@pytest.mark.parametrize(
    ("bounds", "received"),
    [
        ({"shape": (1, 1)}, "shape=(1, 1)"),
        ({"min_rank": 3, "max_rank": 2}, "min_rank=3, max_rank=2"),
        ({"min_rank": 0}, "min_rank=0"),
        ({"max_side": 1}, "max_side=1"),
    ],
)
def test_patterns_refuses_bounds_that_leave_no_pattern(bounds, received):
    with raises_tying_error(received):
        testing.patterns(**bounds)


def test_assert_tied_names_the_kernels_that_are_not_tied():
    model = keras.Sequential([keras.Input((5, 5, 1)), layers.Conv2D(1, 3, name="untied"), layers.Conv2D(1, 3, name="tied")])
    kt.apply_tying(model, "mirror", mode="constraint")
    model.get_layer("untied").kernel.assign(np.arange(9.0).reshape(3, 3, 1, 1))

    with pytest.raises(AssertionError, match=r"untied\.kernel") as raised:
        testing.assert_tied(model)

    assert "'tied.kernel'" not in str(raised.value)
