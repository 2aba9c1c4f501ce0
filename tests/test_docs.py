"""The API reference names every public name, and every public name has a docstring."""

import importlib
import importlib.util
import inspect
import json
import re
from pathlib import Path

import numpy as np
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


@pytest.fixture(scope="module")
def gallery():
    """Returns the module of the docs that lists what the gallery shows."""
    spec = importlib.util.spec_from_file_location("families", API.parent / "families.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gallery_shows_every_family(gallery):
    functions = {name for name in public_names("kernel_tying.patterns") if name not in ("named", "names", "register")}

    assert set(gallery.FAMILIES) == functions
    assert {name for name in kt.patterns.names() if hasattr(kt.patterns, name)} <= set(gallery.FAMILIES)


def test_calls_of_the_gallery_make_patterns_of_the_family(gallery):
    for name, family in gallery.FAMILIES.items():
        for call in family.calls:
            assert call.startswith(f"{name}(")
            assert isinstance(gallery.make(call), kt.TyingPattern)


def test_sections_of_the_gallery_say_what_a_family_ties_and_when_to_use_it(gallery):
    texts = [text for family in gallery.FAMILIES.values() for text in (family.ties, family.use)]

    assert [text for text in texts if not text.endswith(".")] == []


@pytest.mark.parametrize("page", sorted(API.parent.glob("*.md")), ids=lambda page: page.stem)
def test_snippets_of_one_backend_are_marked(page):
    blocks = re.findall(r"^```\{doctest\}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    of_one_backend = [block for block in blocks if re.search(r">>> import (tensorflow|torch|jax)|TensorShape", block)]

    assert [block for block in of_one_backend if not block.startswith(":skipif: backend ")] == []


@pytest.mark.parametrize("notebook", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda file: file.stem)
def test_notebook_is_kept_without_outputs(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]

    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


def test_every_page_is_reachable_from_the_index():
    pages = {page.stem for page in API.parent.glob("*.md")} - {"index"}
    toctrees = re.findall(r"```\{toctree\}(.*?)```", (API.parent / "index.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    listed = [line for toctree in toctrees for line in toctree.split("\n") if line and not line.startswith(":")]

    assert sorted(listed) == sorted(pages)


def test_example_of_the_readme_runs_as_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tying, equivariance = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {"images": np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype("float32")}

    for example in (tying, equivariance):
        exec(example, names)

        assert kt.tying_error(names["tied"]) == 0.0
    assert kt.equivariance_error(names["tied"], "p4m", names["images"]) < 1e-5
    assert (tmp_path / "tied.keras").exists()
