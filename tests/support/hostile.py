"""Hostile values for texts, configs and files, and attempts that may end in a `TyingError` alone."""

from hypothesis import strategies as st

from kernel_tying import TyingError

TOO_LARGE_TO_WRITE = 10**5000  # Python refuses to turn it into text

texts = st.text(st.sampled_from("AB1.-/ \n\t\r\x0b\x1c\x85\u00a0\u2028\U00010000\ud800"), max_size=30) | st.text(max_size=20)
numbers = st.integers(-3, 3) | st.integers(-(2**70), 2**70) | st.floats()
scalars = st.none() | st.booleans() | numbers | st.sampled_from(["mirror", "zeros", "non_neg", "AB/BA", ""]) | texts
keys = st.sampled_from(["labels", "signs", "pattern", "kernel", "then", "class_name", "config", "module", "registered_name"])
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys | texts, inner, max_size=4), max_leaves=12
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


def attempt(act, errors=TyingError):
    """Returns what `act` returns, and the error that it raises if it is one of `errors`."""
    try:
        return act(), None
    except errors as error:
        return None, error
