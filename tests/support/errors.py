"""Expectations about errors: the three parts of a `TyingError`, and refusals that a stock layer shares."""

import re

import pytest

import kernel_tying as kt
from support.backends import MISSING_OPERATIONS


def raises_tying_error(received):
    """Expects a TyingError of three parts: a rule, `received` behind the word Received, a way out."""
    return pytest.raises(kt.TyingError, match=rf"(?s)^.+[.!?] Received.*{re.escape(received)}.*[.!?] .+\.$")


def is_refused_alike(stock, tied, inputs):
    """Returns whether this machine lacks the operation for a stock layer or model; raises unless the tied one lacks it too."""
    try:
        stock(inputs)
    except MISSING_OPERATIONS as error:
        with pytest.raises(type(error)):
            tied(inputs)
        return True
    return False
