"""Links the paper's equation numbers: "Eq. 6" in text leads to the formula with `\\tag{6}`.
It also links "open point 6" to the list of what the paper leaves open.

The sources stay plain Markdown, readable in any notebook. Each number has one home; a second home,
or a mention of a number that has none, is a warning, and warnings stop the build.
"""

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

log = logging.getLogger(__name__)
TAG = re.compile(r"\\tag\{(\d+)\}")
# "Eq. 6", "Eqs. 4 to 6", "Eqs. 10, 11 and 14"
MENTION = re.compile(r"Eqs?\.\s\d+(?:(?:,\s(?:and\s)?|\sto\s|\sand\s|\sor\s)\d+)*")
OPEN_POINT = re.compile(r"[Oo]pen points? \d+(?:(?:,\s(?:and\s)?|\sto\s|\sand\s)\d+)*")
POINTS = ("A-reading-notes", "the-open-points")  # page and heading of the list
NUMBER = re.compile(r"(?:Eqs?\.\s)?\d+")
# no links inside headings, other links, code, or the targets of the table of contents
CLOSED = (nodes.title, nodes.reference, nodes.literal, nodes.literal_block, nodes.raw)
CLOSED = (*CLOSED, nodes.math, nodes.math_block)


def homes(env: BuildEnvironment) -> dict[str, str]:
    """Return number -> the page on which the equation stands."""
    if not hasattr(env, "book_equations"):
        env.book_equations = {}
    return env.book_equations


def find_homes(app: Sphinx, doctree: nodes.document) -> None:
    page = app.env.docname
    known = homes(app.env)
    for formula in doctree.findall(nodes.math_block):
        for number in TAG.findall(formula.astext()):
            if number in known:
                log.warning(f"Eq. {number} stands on {known[number]} already", location=formula)
            known[number] = page
            formula["ids"].append(f"eq-{number}")


def link_mentions(app: Sphinx, doctree: nodes.document, page: str) -> None:
    for text in list(doctree.findall(nodes.Text)):
        if MENTION.search(text) and not inside(text, CLOSED):
            text.parent.replace(text, linked(app, text, page))
    for text in list(doctree.findall(nodes.Text)):
        if OPEN_POINT.search(text) and not inside(text, CLOSED):
            text.parent.replace(text, pointed(app, text, page))


def inside(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    while node is not None:
        if isinstance(node, kinds):
            return True
        node = node.parent
    return False


def linked(app: Sphinx, text: nodes.Text, page: str) -> list[nodes.Node]:
    """Return the text in pieces, with a link for each number of each mention."""
    pieces, done = [], 0
    for mention in MENTION.finditer(text):
        plural = mention[0].startswith("Eqs")
        start = mention.start() + (mention[0].index(" ") + 1 if plural else 0)
        for number in NUMBER.finditer(text, start, mention.end()):
            pieces.append(nodes.Text(text[done : number.start()]))
            pieces.append(link(app, number[0], page, text))
            done = number.end()
    return [*pieces, nodes.Text(text[done:])]


def link(app: Sphinx, label: str, page: str, place: nodes.Node) -> nodes.Node:
    number = re.search(r"\d+", label)[0]
    home = homes(app.env).get(number)
    if home is None:
        log.warning(f"Eq. {number} stands nowhere in the book", location=place.parent)
        return nodes.Text(label)
    address = "" if home == page else app.builder.get_relative_uri(page, home)
    reference = nodes.reference("", "", internal=True, refuri=f"{address}#eq-{number}")
    reference["classes"].append("equation-link")
    reference += nodes.Text(label)
    return reference


def pointed(app: Sphinx, text: nodes.Text, page: str) -> list[nodes.Node]:
    """Return the text in pieces, with a link to the list for each mention of an open point."""
    home, heading = POINTS
    address = "" if home == page else app.builder.get_relative_uri(page, home)
    pieces, done = [], 0
    for mention in OPEN_POINT.finditer(text):
        reference = nodes.reference("", "", internal=True, refuri=f"{address}#{heading}")
        reference += nodes.Text(mention[0])
        pieces += [nodes.Text(text[done : mention.start()]), reference]
        done = mention.end()
    return [*pieces, nodes.Text(text[done:])]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", find_homes)
    app.connect("doctree-resolved", link_mentions)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
