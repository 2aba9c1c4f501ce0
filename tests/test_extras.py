"""What needs an optional package names the extra that installs it."""

import importlib
import sys

import keras
import pytest

import kernel_tying as kt

NEEDING = {  # call, package, extra
    "kernel_tying.plotting": (lambda: importlib.import_module("kernel_tying.plotting"), "Matplotlib", "plot"),
    "kernel_tying.testing": (lambda: importlib.import_module("kernel_tying.testing"), "Hypothesis", "testing"),
    "TyingReport.plot": (lambda: kt.tying_report(kt.apply_tying(conv(), "mirror")).plot(), "Matplotlib", "plot"),
    "SymmetryReport.plot": (lambda: kt.symmetry_report(conv()).plot(), "Matplotlib", "plot"),
}


def conv():
    return keras.Sequential([keras.Input((9, 9, 1)), keras.layers.Conv2D(2, 3)])


@pytest.mark.parametrize("name", NEEDING)
def test_what_lacks_its_package_names_the_extra(name, monkeypatch):
    call, package, extra = NEEDING[name]
    for module in [module for module in sys.modules if module.startswith(("kernel_tying.plotting", "kernel_tying.testing"))]:
        monkeypatch.delitem(sys.modules, module)
    for module in ("plotting", "testing"):
        monkeypatch.delattr(kt, module, raising=False)
    monkeypatch.setitem(sys.modules, package.lower(), None)  # importing it fails from now on

    with pytest.raises(kt.TyingError, match=rf"need {package}\. Received .*\. Install the extra `{extra}`\.$") as caught:
        call()

    assert isinstance(caught.value, ImportError)
