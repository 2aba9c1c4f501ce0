"""Rules of the house that no tool checks: what modules import, whose private names they use, and where the map lists them."""

import ast
import functools
import re
import sys
from pathlib import Path

import pytest

import kernel_tying

PACKAGE = Path(kernel_tying.__file__).parent
MODULES = sorted(file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py"))
BACKENDS = {"jax", "jaxlib", "tensorflow", "torch"}
# Modules that are imported under `needing`, and `.plot()` of reports, which imports them first.
OPTIONAL = {
    "plotting": {"matplotlib"},
    "testing": {"hypothesis"},
    "_report": {"matplotlib"},
    "report": {"matplotlib"},
    "symmetry": {"matplotlib"},
}
# A room imports from itself and from the rooms before it.
ROOMS = ("errors", "patterns", "_native", "algebra", "_keras", "_convolution", "_layers", "_models", "_equivariance", "_report")
PUBLIC = ("models", "equivariance", "symmetry", "tuning", "callbacks", "report", "plotting", "testing", "__init__")
ROOT = Path(__file__).parents[1]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
CONTRIBUTING = ROOT / "docs" / "contributing.md"


@functools.cache
def syntax(module):
    return ast.parse((PACKAGE / module).read_text(encoding="utf-8"))


def room(module):
    return module.partition("/")[0].removesuffix(".py")


@functools.cache
def imported(tree):
    """Returns the dotted names that a module imports, at its top or inside functions."""
    nodes = list(ast.walk(tree))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    absolute = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    named = [f"{node.module}.{alias.name}" for node in absolute for alias in node.names]
    return plain + named


def own_imports(module):
    """Returns the modules of the package that a module imports."""
    paths = [name.split(".")[1:] for name in imported(syntax(module)) if name.startswith("kernel_tying.")]
    return {_module(path) for path in paths}


def _module(path):
    """Returns the file that a dotted name stands for: a module, a package, or a name inside."""
    folder, *inner = path
    candidates = (f"{folder}/{inner[0] if inner else ''}.py", f"{folder}.py", f"{folder}/__init__.py")
    return next(name for name in candidates if name in MODULES)


def imports_for_types(module):
    """Returns the modules of the package that a module imports for the type checker alone."""
    guarded = [
        node
        for node in ast.walk(syntax(module))
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    names = [name for node in guarded for name in imported(node)]
    return {"/".join(name.split(".")[1:-1]) + ".py" for name in names if name.startswith("kernel_tying.")}


def own_backends(module):
    """Returns the backend that a small file is for, by its name, as in `_convolution/jax.py`."""
    return {name for name in BACKENDS if Path(module).stem == name}


def private_names_used(tree):
    """Returns the private attributes that a module reads or writes, by a dot or by `getattr`."""
    nodes = list(ast.walk(tree))
    dotted = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    by_name = [node.args[1] for node in calls if node.func.id in ("getattr", "setattr", "hasattr", "delattr")]
    named = {argument.value for argument in by_name if isinstance(argument, ast.Constant)}
    return {name for name in dotted | named if name.startswith("_") and not name.endswith("__")}


def private_names_defined(tree):
    """Returns the private names that a module defines: functions, classes, variables, and attributes of `self` or a copy."""
    nodes = list(ast.walk(tree))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    written = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    keys = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {name for name in defined | stored | written | keys if name.startswith("_")}


@functools.cache
def own_private_names():
    """Returns the private names that the package defines outside `_keras/`."""
    return set().union(*(private_names_defined(syntax(module)) for module in MODULES if room(module) != "_keras"))


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_a_backend_that_it_is_not_named_after(module):
    packages = {name.partition(".")[0] for name in imported(syntax(module))}

    assert packages & BACKENDS <= own_backends(module)


@pytest.mark.parametrize("module", MODULES)
def test_packages_that_keras_does_not_require_are_imported_where_their_extra_is_named(module):
    packages = {name.partition(".")[0] for name in imported(syntax(module))} - set(sys.stdlib_module_names) - BACKENDS

    assert packages - OPTIONAL.get(room(module), set()) <= {"kernel_tying", "keras", "numpy", "h5py", "rich"}


@pytest.mark.parametrize("module", MODULES)
def test_descriptions_of_properties_have_no_colon(module):
    functions = [node for node in ast.walk(syntax(module)) if isinstance(node, ast.FunctionDef)]
    properties = [node for node in functions if any("property" in ast.unparse(mark) for mark in node.decorator_list)]
    first_lines = [(ast.get_docstring(node) or "").partition("\n")[0] for node in properties]

    assert [line for line in first_lines if ":" in line] == []  # Sphinx would read what is before it as the type


def test_every_module_stands_in_a_room():
    assert {room(module) for module in MODULES} == {*ROOMS, *PUBLIC}


def test_every_folder_is_a_package():
    folders = {Path(module).parent for module in MODULES}

    assert [folder for folder in folders if not (PACKAGE / folder / "__init__.py").exists()] == []  # the wheel would lack it


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) in ROOMS])
def test_imports_between_rooms_run_one_way(module):
    allowed = ROOMS[: ROOMS.index(room(module)) + 1]

    assert {room(other) for other in own_imports(module)} <= set(allowed)


def test_imports_between_modules_make_no_circle():
    pending = {module: own_imports(module) - imports_for_types(module) - {module} for module in MODULES}
    while free := [module for module, needed in pending.items() if not needed & set(pending)]:
        for module in free:
            del pending[module]

    assert pending == {}


@pytest.mark.parametrize("module", MODULES)
def test_private_names_of_other_packages_are_used_in_keras_and_backend_files_alone(module):
    if room(module) == "_keras" or own_backends(module):
        return
    assert private_names_used(syntax(module)) <= own_private_names()
    assert not [name for name in imported(syntax(module)) if "keras.src" in name or ".python." in name]
    assert "keras.src" not in (PACKAGE / module).read_text(encoding="utf-8")


def test_the_architecture_page_lists_every_module_and_no_other():
    listed = set(re.findall(r"`([\w/]+\.py)`", ARCHITECTURE.read_text(encoding="utf-8")))
    listed = {name for name in listed if not name.startswith("tests/")}
    modules = {name for name in MODULES if not name.endswith("__init__.py")}

    assert listed - {"patterns/__init__.py"} == modules


def named_paths(page):
    """Returns the paths that a page names: in backticks, or in commands."""
    text = page.read_text(encoding="utf-8")
    quoted = re.findall(r"`([\w./-]+/[\w./-]*|[\w.-]+\.(?:cfg|ini|md|py|toml|txt))`", text)
    inside = re.findall(r"(?<![\w./-])(?:docs|examples|kernel_tying|tests)/[\w./-]*\w", text)
    return {name for name in (*quoted, *inside) if not name.startswith("out/")}  # where commands write


@pytest.mark.parametrize(
    ("page", "folder"), [(ARCHITECTURE, "kernel_tying"), (CONTRIBUTING, "docs")], ids=["architecture", "contributing"]
)
def test_paths_that_pages_for_contributors_name_exist(page, folder):
    named = named_paths(page)

    assert len(named) > 10
    assert [name for name in named if not ((ROOT / name).exists() or (ROOT / folder / name).exists())] == []
