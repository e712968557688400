"""Adds to the pages what they need from Sphinx beyond Jupyter Book's own settings."""

import os

from docutils import nodes
from sphinx.application import Sphinx

FIGURE = 'class="plotly-figure"'  # tools/pages.py writes it around a plotly figure
WIDGET = "application/vnd.jupyter.widget-view+json"


def drop_thebe(app: Sphinx, page: str, template: str, context: dict, tree: nodes.document) -> None:
    """Leave out thebe's scripts: no page uses them, and loaded twice they throw on every page."""
    scripts = context.get("script_files", [])
    context["script_files"] = [s for s in scripts if "thebe" not in str(script_text(s)).lower()]
    styles = context.get("css_files", [])
    context["css_files"] = [s for s in styles if "thebe" not in str(s).lower()]


def script_text(script: object) -> str:
    """Return the address and the inline body of a script, whichever it has."""
    body = getattr(script, "attributes", {}).get("body", "")
    return f"{getattr(script, 'filename', script)} {body}"


def load_scripts(
    app: Sphinx, page: str, template: str, context: dict, tree: nodes.document
) -> None:
    """Load names for screen readers; where needed plotly.js (before require.js), widgets' math."""
    body = context.get("body", "")
    app.add_js_file("accessible.js", priority=120)
    if FIGURE in body:
        app.add_js_file("vendor/plotly.min.js", priority=100)
        app.add_js_file("figures.js", priority=110)
    if WIDGET in body:
        app.add_js_file("widgets-math.js", priority=800, defer="defer")


def offer_pdf(app: Sphinx, page: str, template: str, context: dict, tree: nodes.document) -> None:
    """Add the whole book as a PDF to the download menu, if tools/pages.py makes one."""
    pdf = os.environ.get("BOOK_PDF")
    for group in context.get("header_buttons", []):
        if pdf and group.get("label") == "download-buttons":
            group["buttons"].append(
                {
                    "type": "link",
                    "url": context["pathto"](pdf, 1),
                    "text": "whole book, .pdf",
                    "tooltip": "The whole book as one PDF",
                    "icon": "fas fa-book",
                    "label": "download-book-button",
                }
            )


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", load_scripts)
    app.connect("html-page-context", offer_pdf, priority=800)  # after the theme's own buttons
    app.connect("html-page-context", drop_thebe, priority=900)  # after thebe has added its own
    return {"parallel_read_safe": True, "parallel_write_safe": True}
