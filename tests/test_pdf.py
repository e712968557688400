"""The PDF of the whole book: every chapter in it, no figure missing, no path of the machine."""

import io
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pdf
import pytest
from conftest import missing
from pypdf import PdfReader, PdfWriter
from pypdf.annotations import Link
from pypdf.generic import DictionaryObject

pytestmark = [pytest.mark.browser, pytest.mark.book]
ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
PAGES = [
    name
    for name in pdf.pages_in_order(ROOT / "book" / "_toc.yml")
    if (HTML / f"{name}.html").is_file()
]


class Figures(HTMLParser):
    """What a built page shows: pictures, plotly figures, numbered captions, its title."""

    def __init__(self):
        super().__init__()
        self.pictures, self.plots, self.captions, self.title = 0, 0, [], ""
        self.inside: list[str] = []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        classes = (found.get("class") or "").split()
        self.inside.append("caption" if "caption-number" in classes else tag)
        if tag in ("img", "meta", "br", "input", "link", "hr"):
            self.inside.pop()
        self.pictures += tag == "img" and (found.get("src") or "").startswith("_images/")
        self.plots += "plotly-figure" in classes

    def handle_endtag(self, tag):
        if self.inside:
            self.inside.pop()

    def handle_data(self, data):
        if self.inside and self.inside[-1] == "caption":
            self.captions.append(data.strip())


@pytest.fixture(scope="module")
def document(chromium) -> PdfReader:
    path = HTML / pdf.NAME
    if not path.is_file():
        missing("the book is not built, or was built without Chromium (make book)")
    return PdfReader(path)


@pytest.fixture(scope="module")
def chapters(document) -> dict[str, list]:
    """The pages of the PDF by page of the book, from the bookmarks."""
    starts = [document.get_destination_page_number(mark) for mark in document.outline]
    assert len(starts) == len(PAGES), "bookmarks and pages of the book differ in number"
    ends = [*starts[1:], len(document.pages)]
    spans = zip(PAGES, starts, ends, strict=True)
    return {name: document.pages[start:end] for name, start, end in spans}


def squeezed(text: str) -> str:
    """Without white space, and with the letters of a ligature apart."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text))


def drawn_pictures(page) -> int:
    """Images that a page of the PDF refers to, those inside of forms too."""
    resources, count = [page.get("/Resources", DictionaryObject())], 0
    while resources:
        objects = resources.pop().get_object().get("/XObject", DictionaryObject()).get_object()
        for entry in objects.values():
            entry = entry.get_object()
            count += entry["/Subtype"] == "/Image"
            if entry["/Subtype"] == "/Form" and "/Resources" in entry:
                resources.append(entry["/Resources"])
    return count


@pytest.mark.parametrize("name", PAGES)
def test_chapter_is_there_with_all_its_figures(name, chapters):
    assert chapters[name], "no page"
    source = (HTML / f"{name}.html").read_text(encoding="utf-8")
    figures = Figures()
    figures.feed(source)
    text = squeezed("".join(page.extract_text() for page in chapters[name]))
    # the theme repeats the title above it, for printing
    heading = re.search(r"<h1>((?:(?!<h1>).)*?)<a class=\"headerlink\"", source, re.S)[1]
    words = squeezed(re.sub(r"<[^>]+>|\\\(.*?\\\)", " ", heading))
    assert words[:25] in text
    assert [c for c in figures.captions if squeezed(c) not in text] == []
    assert sum(map(drawn_pictures, chapters[name])) >= figures.pictures


@pytest.mark.parametrize("name", PAGES)
def test_every_plotly_figure_is_printed(name, chapters):
    """Each axis title and slider of the page's figures stands in the PDF as text."""
    source = (HTML / f"{name}.html").read_text(encoding="utf-8")
    text = squeezed("".join(page.extract_text() for page in chapters[name]))
    wanted = re.findall(r'"currentvalue": ?\{"prefix": ?"(.*?) = "', source)
    wanted += re.findall(r'"[xy]axis": ?\{[^{}]*"title": ?\{"text": ?"(.*?)"', source)
    labels = [re.sub(r"<[^>]+>", "", w.encode().decode("unicode_escape")) for w in wanted]
    assert [label for label in labels if squeezed(label) not in text] == []


def test_no_path_of_this_machine_in_the_pages():
    """Defaults of the API's signatures are the likely place."""
    pages = sorted(HTML.glob("*.html"))
    assert pages
    assert [p.name for p in pages if str(ROOT) in p.read_text(encoding="utf-8")] == []


@pytest.mark.slow
def test_no_path_of_this_machine(document):
    for page in document.pages:
        for entry in page.get("/Annots") or []:
            uri = str(entry.get_object().get("/A", {}).get("/URI", ""))
            assert not uri.startswith("file:")
    assert str(ROOT) not in "".join(page.extract_text() for page in document.pages)


def printed(*addresses: str) -> bytes:
    """A page of a PDF with links."""
    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    for address in addresses:
        writer.add_annotation(0, Link(rect=(0, 0, 9, 9), url=address))
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def test_links_between_pages_stay_inside(tmp_path):
    here = tmp_path.as_uri()
    content = {
        "one": printed(f"{here}/two.html#x", f"{here}/other.zip", "https://example.org/"),
        "two": printed(),
    }
    document = pdf.joined(content, {"one": "One", "two": "Two"}, tmp_path)
    inside, outside = (entry.get_object()["/A"] for entry in document.pages[0]["/Annots"])
    assert inside["/S"] == "/GoTo" and inside["/D"][0] == document.pages[1].indirect_reference
    assert outside["/URI"] == "https://example.org/"
    assert [mark["/Title"] for mark in document.outline] == ["One", "Two"]
