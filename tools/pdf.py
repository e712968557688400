"""Makes one PDF of the whole book: Chromium prints each page, pypdf joins them."""

import io
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from chromium import FLAGS, SETTLED
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, DictionaryObject, NameObject

NAME = "data-free-knowledge-distillation.pdf"
BROWSERS = 2  # browsers that print side by side
PATIENCE = 120_000  # milliseconds for one page on a busy machine

# Solutions open, figures drawn for paper: Chromium does not resize them when it prints.
FOR_PAPER = """async () => {
  document.documentElement.dataset.theme = "light";
  document.documentElement.dataset.mode = "light";
  document.querySelectorAll("details").forEach((e) => (e.open = true));
  window.dispatchEvent(new Event("resize"));
  await new Promise((r) => setTimeout(r, 500));
}"""
# The article alone, and code lines broken instead of cut.
STYLE = """
.bd-header, .bd-header-article, .bd-sidebar-primary, .bd-sidebar-secondary, .prev-next-area,
.bd-footer, footer, #jb-print-docs-body, #jb-print-toc, .headerlink, #pst-back-to-top,
.skip-link, .copybtn, .modebar, details.hide > summary
  { display: none !important; }
.bd-article-container, .bd-content, .bd-container__inner, .bd-main, article
  { max-width: none !important; padding: 0 !important; overflow: visible !important; }
pre { white-space: pre-wrap !important; overflow-wrap: anywhere; font-size: 8.5pt; }
figure, .plotly-figure, .cell_output img { break-inside: avoid; }
.bd-main .bd-content .bd-article h1:first-of-type { display: block !important; } /* numbered */
h1, h2, h3 { break-after: avoid; }
h1 { font-size: 22pt; } h2 { font-size: 16pt; } h3 { font-size: 13pt; }
img, svg { max-width: 100%; }
"""
VIEWPORT = {"width": 690, "height": 1000}  # under the paper's text width: 186 mm at 96 px an inch


def pages_in_order(toc: Path) -> list[str]:
    """Read the pages of _toc.yml, without suffix, in the order of reading."""
    content = yaml.safe_load(toc.read_text(encoding="utf-8"))
    parts = content.get("parts") or [content]
    chapters = [chapter["file"] for part in parts for chapter in part.get("chapters", [])]
    return [content["root"], *chapters]


def write_pdf(html: Path, toc: Path, chromium: str) -> Path:
    """Print the built pages to a PDF beside them, which appears when all of it is there."""
    names = [name for name in pages_in_order(toc) if (html / f"{name}.html").is_file()]
    shares = [names[start::BROWSERS] for start in range(BROWSERS)]
    found: dict[str, tuple[str, bytes]] = {}
    with ThreadPoolExecutor(BROWSERS) as pool:
        for share in pool.map(lambda share: print_pages(html, share, chromium), shares):
            found |= share
    titles = {name: found[name][0] for name in names}
    printed = {name: found[name][1] for name in names}
    path = html / NAME
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        joined(printed, titles, html).write(file)
    part.replace(path)
    return path


def print_pages(html: Path, names: list[str], chromium: str) -> dict[str, tuple[str, bytes]]:
    """Print pages one after the other in a browser of their own; return title and PDF of each."""
    from playwright.sync_api import sync_playwright

    printed = {}
    with tempfile.TemporaryDirectory() as home, sync_playwright() as api:
        env = {**os.environ, "HOME": home}
        browser = api.chromium.launch(executable_path=chromium, args=FLAGS, env=env)
        for name in names:
            page = browser.new_page(viewport=VIEWPORT, color_scheme="light")
            page.set_default_timeout(PATIENCE)
            page.goto((html / f"{name}.html").as_uri())
            page.add_style_tag(content=STYLE)
            page.evaluate(SETTLED)
            page.evaluate(FOR_PAPER)
            title = page.inner_text(".bd-article h1").removesuffix("#").strip()
            content = page.pdf(
                format="A4",
                print_background=True,
                margin={side: "12mm" for side in ("top", "right", "bottom", "left")},
            )
            printed[name] = title, content
            page.close()
        browser.close()
    return printed


def joined(printed: dict[str, bytes], titles: dict[str, str], html: Path) -> PdfWriter:
    """Join the pages into one document with bookmarks; links between pages stay inside."""
    writer = PdfWriter()
    starts = {}
    for name, content in printed.items():
        starts[name] = len(writer.pages)
        writer.append(PdfReader(io.BytesIO(content)), outline_item=titles[name])
    for page in writer.pages:
        kept = ArrayObject()
        for entry in page.get("/Annots") or []:
            link = entry.get_object()
            uri = str(link.get("/A", {}).get("/URI", ""))
            if not uri.startswith("file:"):
                kept.append(entry)
            elif (target := Path(unquote(urlsplit(uri).path)).stem) in starts:
                point_inside(link, writer.pages[starts[target]])
                kept.append(entry)
            # a link to any other file would name a folder of this machine: it is left out
        if "/Annots" in page:
            page[NameObject("/Annots")] = kept
    writer.add_metadata({"/Title": titles[next(iter(titles))]})
    return writer


def point_inside(link: DictionaryObject, page: DictionaryObject) -> None:
    """Let a link lead to a page of the same document."""
    destination = ArrayObject([page.indirect_reference, NameObject("/Fit")])
    link[NameObject("/A")] = DictionaryObject(
        {NameObject("/S"): NameObject("/GoTo"), NameObject("/D"): destination}
    )
