"""Rules of the house that no tool checks: what the modules may import."""

import ast
from pathlib import Path

import pytest

import kernel_tying

PACKAGE = Path(kernel_tying.__file__).parent
MODULES = sorted(str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py"))
BACKENDS = {"jax", "jaxlib", "tensorflow", "torch"}


def imported_packages(source):
    """Returns the packages that a module imports, at its top or inside functions."""
    nodes = list(ast.walk(ast.parse(source)))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    named = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.partition(".")[0] for name in plain + named}


def own_backends(module):
    """Returns the backend that a small file is for, by the end of its name, as in `convolution_jax.py`."""
    return {name for name in BACKENDS if Path(module).stem.endswith(name)}


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_a_backend_that_it_is_not_named_after(module):
    packages = imported_packages((PACKAGE / module).read_text(encoding="utf-8"))

    assert packages & BACKENDS <= own_backends(module)
