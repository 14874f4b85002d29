"""Sphinx configuration of the site: the lessons, the guide and the API reference, built by `make site`.

Notebooks are shown with their committed outputs; nothing is executed. The pages load nothing from other hosts: formulas
are converted to MathML, their font is served beside the pages, and a widget is replaced by its static picture or text.
The API reference imports the real modules (Paddle included, so that base classes and types are true).
"""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).parent))
from docstrings import plain_types, process

project = "opensora_lite"
language = "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.viewcode"]
root_doc = "index"
include_patterns = ["index.md", "[0-9][0-9]_*.ipynb", "guide/*.md", "api/index.md", "api/opensora_lite.*.rst"]
exclude_patterns = ["assets", "site"]

# ------------------------------------------------------------------------------------------------- reference

# A page for each module without a leading underscore; `list_modules` lists them on api/index.md.
SITE = Path(__file__).parent
PACKAGES = {"opensora_lite": SITE.parents[1] / "opensora_lite", "opensora_lite.widgets": SITE.parents[1] / "widgets"}
PAGE = """{title}
{line}

.. automodule:: {module}
   :members:
   :special-members: __call__
   :member-order: bysource
"""


def modules() -> list[str]:
    return sorted(
        ".".join([package, *path.relative_to(folder).with_suffix("").parts])
        for package, folder in PACKAGES.items()
        for path in folder.rglob("[!_]*.py")
    )


for old in (SITE.parent / "api").glob("*.rst"):
    old.unlink()
for module in modules():
    title = module.removeprefix("opensora_lite.")
    text = PAGE.format(title=title.replace("_", r"\_"), line="=" * (len(title) + title.count("_")), module=module)
    (SITE.parent / "api" / f"{module}.rst").write_text(text, encoding="utf-8")

autosummary_generate = False
autodoc_inherit_docstrings = False  # not those of Paddle
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 100

# ------------------------------------------------------------------------------------------------- notebooks

nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = nb_code_prompt_hide = "The solution, computed"  # refresh.py sets the line of other cells
nb_ipywidgets_js = {}  # the default is two scripts from other hosts
nb_mime_priority_overrides = [
    ("html", "application/vnd.jupyter.widget-view+json", None),  # would need those scripts
    ("html", "application/javascript", None),
]
# What a notebook records is such a type, and has a text beside it. An output without one that a page can show still
# is a warning.
suppress_warnings = ["mystnb.unknown_mime_type", "ref.python"]  # two modules may have a class of one name
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4  # GitHub's anchors, which tests/unit/test_links.py checks

# ----------------------------------------------------------------------------------------------------- pages

highlight_language = "none"  # of blocks that name none, commands mostly; cells are coloured as Python
html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "opensora_lite"
# The font is STIX Two Math, under the Open Font License. Without a font for mathematics browsers draw formulas badly
# (accents fall on their letters), and not every computer has one.
font = Path(find_spec("ziamath").origin).with_name("fonts") / "STIXTwoMath-Regular.ttf"
html_static_path = ["static", str(font)]
html_css_files = ["style.css"]
html_show_copyright = False
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}
html_math_renderer = "mathml"

# -------------------------------------------------------------------------------------------------- formulas

logger = logging.getLogger(__name__)
converter = LatexToMathML(fancy_error=False)


def mathml(node: nodes.Element, display: bool) -> str:
    """The formula as MathML. One that cannot be converted is a warning, and a warning ends the build."""
    latex = node.astext().strip()
    if display and r"\tag" in latex and r"\begin" not in latex:
        latex = rf"\begin{{equation}}{latex}\end{{equation}}"
    try:
        return converter.convert_with_local_state(latex, displaystyle=display)
    except LatexError as error:
        logger.warning("%s in the formula %s", error, latex, location=node)
        return "<code>…</code>"


def visit_inline(translator, node) -> None:
    translator.body.append(mathml(node, display=False))
    raise nodes.SkipNode


def visit_display(translator, node) -> None:
    translator.body.append(f'<div class="formula">{mathml(node, display=True)}</div>\n')
    raise nodes.SkipNode


def link_files_outside(app, docname: str, source: list[str]) -> None:
    """Links that lead out of notebooks/: a file becomes a download, since it has no page; a folder is only named."""
    folder = Path(app.srcdir, docname).parent

    def replaced(match: re.Match) -> str:
        text, target = match[1], match[2].partition("#")[0]
        path = (folder / target).resolve()
        if path.is_relative_to(app.srcdir):
            return match[0]
        return text if path.is_dir() else f"[{text}](path:{target})"

    source[0] = re.sub(r"(?<!!)\[([^\[\]]*)\]\((\.\./[^)]*)\)", replaced, source[0])


def describe_pictures(app, doctree: nodes.document) -> None:
    """The picture of an output gets the output's text, a figure's caption, as its alternative text."""
    for bundle in doctree.findall(nodes.container):
        if bundle.get("nb_element") == "mime_bundle":
            texts = [form.astext() for form in bundle if form.get("mime_type") == "text/plain"]
            for image in bundle.findall(nodes.image):
                image["alt"] = "".join(texts)


def list_modules(app, docname: str, source: list[str]) -> None:
    """`<!-- modules: io errors -->` becomes a table of these modules and packages; `*` stands for all others."""
    groups = re.findall(r"<!-- modules: (.+) -->", source[0])
    left = modules()
    tables = {}
    for group in sorted(groups, key=lambda group: "*" in group):  # the others come last
        found = [
            module
            for name in group.split()
            for module in left
            if name == "*" or f"{module}.".startswith(f"opensora_lite.{name}.")
        ]
        found = list(dict.fromkeys(found))
        left = [module for module in left if module not in found]
        names = "\n   ".join(found)
        tables[group] = (
            f"```{{eval-rst}}\n.. autosummary::\n\n   {names}\n\n.. toctree::\n   :hidden:\n\n   {names}\n```"
        )
    source[0] = re.sub(r"<!-- modules: (.+) -->", lambda match: tables[match[1]], source[0])


def setup(app) -> dict:
    app.connect("source-read", link_files_outside)
    app.connect("source-read", list_modules)
    app.connect("doctree-read", describe_pictures)
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", plain_types)
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
