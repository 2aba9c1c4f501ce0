"""Sphinx configuration: `sphinx-build -W -b html docs out`, and `-b doctest` for the snippets."""

import doctest
import os
import re

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from sphinx.util.inspect import signature as inspect_signature
from sphinx.util.inspect import stringify_signature

import kernel_tying

project = "kernel_tying"
author = "the kernel_tying developers"
copyright = author
version = release = kernel_tying.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.doctest", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
default_role = "literal"  # single backticks in docstrings are code
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_inherit_docstrings = False  # methods that Keras defines are documented by Keras
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in ("ArrayLike", "Identifier", "LayerTying", "Patterns", "Tensor", "Family")}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Warns", "raises_style")]

nitpicky = True
# Targets outside this project: intersphinx would need the network. Type aliases have no page of their own.
nitpick_ignore_regex = [
    ("py:.*", r"(keras|numpy|np|npt|hypothesis|st|rich|matplotlib|collections)\b.*"),
    ("py:.*", r"(ArrayLike|_?ScalarT|ndarray|SearchStrategy|Variable|Layer|Axes|Figure|Callable|Iterable|Mapping|Sequence)"),
    ("py:.*", r"(Any|Family|Generator|Identifier|LayerTying|Patterns|Tensor|optional|typing\..*)"),
]

doctest_default_flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
doctest_global_setup = """
import os, shutil, tempfile
_start, _folder = os.getcwd(), tempfile.mkdtemp()
os.chdir(_folder)  # snippets save files where they run
"""
doctest_global_cleanup = """
os.chdir(_start)
shutil.rmtree(_folder)
"""

html_theme = "furo"
html_title = f"kernel_tying {release}"


def tidy_signature(app, what, name, obj, options, signature, returns):
    """Shows the arguments of Keras objects, which Keras hides behind `__new__`, and type aliases by their names."""
    if what == "class" and signature == "(*args, **kwargs)":
        signature = stringify_signature(inspect_signature(obj.__init__, bound_method=True), unqualified_typehints=True)
    return re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", signature or "") or None, returns


def setup(app):
    app.connect("autodoc-process-signature", tidy_signature)
