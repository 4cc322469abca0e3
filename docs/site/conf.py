"""How Sphinx makes the site. It is built by `make site` (docs/site/build.py), from stored outputs and without a network."""

import re

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

project = "Weakly-supervised segmentation, notebook by notebook"
author = "the authors of this repository"
copyright = "Apache-2.0"
language = "en"
extensions = ["myst_nb", "sphinx_copybutton", "sphinx_togglebutton"]
root_doc = "index"
html_theme = "sphinx_book_theme"
html_static_path = ["site.css", "sliders.js", "../figures/sliders"]
html_css_files = ["site.css"]
html_js_files = ["sliders.js"]
html_title = project
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "pygments_light_style": "a11y-high-contrast-light",  # contrasts of 4.5 and more
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_show_sourcelink = False
html_copy_source = False
togglebutton_hint = "show the answer"
togglebutton_hint_hide = "hide the answer"
nb_execution_mode = "off"  # the pages show what `make refresh` has stored
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure"]


def formula(tex: str, block: bool) -> str:
    """Return a formula as MathML, which browsers draw and screen readers read without any script."""
    tex = re.sub(r"\\([bB]ig|[bB]igg)[lr]?(?![a-z])", "", tex.replace(r"\dots", r"\ldots"))
    return tex2mathml(tex, as_block=block)


def visit_inline(writer, node):
    """Write an inline formula."""
    writer.body.append(formula(node.astext(), False))
    raise SkipNode


def visit_block(writer, node):
    """Write a formula in a line of its own."""
    writer.body.append(f'<div class="math">{formula(node.astext(), True)}</div>')
    raise SkipNode


def setup(app):
    """Let Sphinx write formulas by the two functions above."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.config.html_math_renderer = "mathml"
