"""Renders formulas as MathML when the pages are built. Browsers draw it without a script, so pages need no network."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def render(translator: Any, node: nodes.math | nodes.math_block) -> None:
    """Writes the MathML of a formula in the text, or of a displayed one."""
    if isinstance(node, nodes.math_block):
        translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    else:
        translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", inline_renderers=(render, None), block_renderers=(render, None))
