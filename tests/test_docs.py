"""The API reference names every public name, and every public name has a docstring."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import kernel_tying as kt

ROOT = Path(__file__).parent.parent
API = ROOT / "docs" / "api.md"
MODULES = ("kernel_tying", "kernel_tying.patterns", "kernel_tying.testing", "kernel_tying.plotting")


def public_names(module_name):
    """Returns the public names of a module: those it lists, or the functions that are written in it."""
    module = importlib.import_module(module_name)
    written_here = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
    names = getattr(module, "__all__", None) or [name for name in written_here if not name.startswith("_")]
    return [name for name in names if not inspect.ismodule(getattr(module, name))]


def qualified_public_names():
    return [f"{module}.{name}" for module in MODULES for name in public_names(module)]


def documented_names():
    """Returns the full names for which the API reference has an autodoc directive."""
    return re.findall(r"^\.\. auto\w+:: (\S+)$", API.read_text(encoding="utf-8"), flags=re.MULTILINE)


def resolve(qualified_name):
    module, _, name = qualified_name.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_api_reference_names_every_public_name():
    assert set(qualified_public_names()) - set(documented_names()) == set()


def test_api_reference_names_nothing_twice():
    names = documented_names()

    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("name", documented_names())
def test_documented_name_exists_and_has_a_docstring_of_its_own(name):
    documented = resolve(name) if name not in MODULES else importlib.import_module(name)

    assert vars(documented)["__doc__"] if inspect.isclass(documented) else documented.__doc__


@pytest.mark.parametrize("name", qualified_public_names())
def test_public_name_has_a_docstring_that_opens_with_one_sentence(name):
    first_line = inspect.cleandoc(resolve(name).__doc__).splitlines()[0]

    assert first_line.endswith((".", ":"))


def test_public_properties_have_docstrings():
    classes = [value for value in vars(kt).values() if inspect.isclass(value)]
    properties = [member for cls in classes for member in vars(cls).values() if isinstance(member, property)]

    assert properties
    assert [member for member in properties if not member.__doc__] == []


def test_every_page_is_reachable_from_the_index():
    pages = {page.stem for page in API.parent.glob("*.md")} - {"index"}
    toctree = re.search(r"```\{toctree\}(.*?)```", (API.parent / "index.md").read_text(encoding="utf-8"), flags=re.DOTALL)

    assert set(toctree.group(1).split()) - {":hidden:"} == pages


def test_example_of_the_readme_runs_as_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {}

    exec(example, names)

    assert kt.tying_error(names["tied"]) == 0.0
    assert (tmp_path / "tied.keras").exists()
