"""Sphinx configuration: `sphinx-build -W -b html docs out`, and `-b doctest` for the snippets."""

import doctest
import os
import re
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from sphinx.errors import ExtensionError
from sphinx.util.inspect import signature as inspect_signature
from sphinx.util.inspect import stringify_signature

import kernel_tying

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples")]  # extensions and pictures of these pages, and what examples draw

project = "kernel_tying"
author = "the kernel_tying developers"
copyright = author
version = release = kernel_tying.__version__

extensions = ["formulas", "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "_pictures"]
html_math_renderer = "mathml"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
default_role = "literal"  # single backticks in docstrings are code
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_inherit_docstrings = False  # methods that Keras defines are documented by Keras
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {
    name: name for name in ("ArrayLike", "Identifier", "LayerTying", "PatternLike", "Patterns", "Tensor", "Family", "FieldType")
}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Warns", "raises_style")]

nitpicky = True
# Targets outside this project: intersphinx would need the network. Type aliases have no page of their own.
nitpick_ignore_regex = [
    ("py:.*", r"(keras|numpy|np|npt|hypothesis|st|rich|matplotlib|collections)\b.*"),
    ("py:.*", r"(ArrayLike|_?ScalarT|ndarray|SearchStrategy|Variable|Layer|Axes|Figure|Callable|Iterable|Mapping|Sequence)"),
    ("py:.*", r"(kernel_tying\.models\.)?Model"),  # a type variable
    ("py:.*", r"(Any|Family|FieldType|Generator|Identifier|LayerTying|PatternLike|Patterns|Tensor|optional|typing\..*)"),
]

doctest_default_flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
doctest_global_setup = """
from hypothesis import settings
settings.load_profile("ci")  # no deadlines: the machine may be busy
import os, shutil, tempfile
import keras
backend = keras.backend.backend()  # for `:skipif: backend != "tensorflow"`
_start, _folder = os.getcwd(), tempfile.mkdtemp()
os.chdir(_folder)  # snippets save files where they run
"""
doctest_global_cleanup = """
os.chdir(_start)
shutil.rmtree(_folder)
"""

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_title = f"kernel_tying {release}"


def tidy_signature(app, what, name, obj, options, signature, returns):
    """Shows the arguments of Keras objects, which Keras hides behind `__new__`, and type aliases by their names."""
    if what == "class" and signature == "(*args, **kwargs)":
        signature = stringify_signature(inspect_signature(obj.__init__, bound_method=True), unqualified_typehints=True)
    return tuple(re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text or "") or None for text in (signature, returns))


def check_offline(app, page, template, context, doctree):
    """Fails if a page loads a script or a style sheet from the network."""
    loaded = [str(file) for file in (*context["script_files"], *context["css_files"])]
    if remote := [file for file in loaded if "://" in file]:
        raise ExtensionError(f"Pages need no network. {page} loads {remote}. Serve the file from `_static`.")


def setup(app):
    import pictures

    pictures.draw_all(HERE / "_pictures")
    app.connect("autodoc-process-signature", tidy_signature)
    app.connect("html-page-context", check_offline)
