"""Builds the HTML pages from the executed notebooks, with everything that they load."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pdf
from chromium import find_chromium
from depends import PACKAGES, digest, files_below, installed_versions
from execute import ADDED_BY_PAPERMILL, EXTRAS, without_colours
from generated import MAP_PLACE, chapter_map, generated_pages

PLOTLY = "application/vnd.plotly.v1+json"
DEFAULT_HEIGHT = 450  # plotly's own


class PagesError(Exception):
    """Raised where the pages cannot be built; the message says why."""


@dataclass(frozen=True)
class Folders:
    """Holds where things are: `root` has _config.yml and node_modules, `book` the sources."""

    root: Path

    @property
    def book(self) -> Path:
        return self.root / "book"

    @property
    def build(self) -> Path:
        return self.root / "_build"

    @property
    def executed(self) -> Path:
        return self.build / "executed"

    @property
    def source(self) -> Path:
        """Return the folder that Jupyter Book reads: the book with its notebooks executed."""
        return self.build / "source"

    @property
    def html(self) -> Path:
        return self.build / "html"

    def notebooks(self) -> list[Path]:
        return sorted(self.book.glob("*.ipynb"))


# --- a notebook, made ready for the pages -------------------------------------------------------


def prepare_notebook(notebook: dict) -> dict:
    """Return a notebook without papermill's cells and stderr, its figures as HTML for myst-nb."""
    cells = source_cells(notebook)
    for cell in cells:
        if "outputs" in cell:  # an empty output would still take room on the page
            cell["outputs"] = [o for o in cell["outputs"] if o.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            figure = output.get("data", {}).get(PLOTLY)
            if figure is not None:
                output["data"] = {"text/html": plotly_html(figure, alternative_text(cell))}
            if "text/markdown" in output.get("data", {}):
                output["data"] = {"text/markdown": links_to_pages(output["data"]["text/markdown"])}
    return {**notebook, "cells": cells}


def source_cells(notebook: dict) -> list[dict]:
    """Return the cells of an executed notebook that its source has too."""
    return [
        cell
        for cell in notebook["cells"]
        if not ADDED_BY_PAPERMILL & set(cell["metadata"].get("tags", []))
    ]


def links_to_pages(text: str | list[str]) -> str:
    """Turn a cell's Markdown links from notebooks to pages; Jupyter Book does not turn these."""
    return re.sub(r"\]\(([\w-]+)\.ipynb", r"](\1.html", "".join(text))


def alternative_text(cell: dict) -> str:
    """Return the words for a cell's picture, from where myst-nb looks for them too."""
    return cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")


def plotly_html(figure: dict, alt: str) -> str:
    """Write an element with a figure's data in it; figures.js draws the figure there."""
    layout = figure.get("layout", {})
    wanted = {name: figure.get(name, []) for name in ("data", "frames")} | {"layout": layout}
    # "<" is written so that no text in a figure can end the script element
    data = json.dumps(wanted).replace("<", "\\u003c")
    style = f"min-height: {layout.get('height', DEFAULT_HEIGHT)}px"
    if "width" in layout:
        style += f"; max-width: {layout['width']}px"
    return (
        f'<div class="plotly-figure" role="figure" aria-label="{escape(alt)}" style="{style}">'
        f'<script type="application/json">{data}</script></div>'
    )


def stderr_notes(name: str, notebook: dict) -> list[str]:
    """List what cells wrote to stderr, without progress bars: the pages do not show it."""
    notes = []
    for number, cell in enumerate(source_cells(notebook), start=1):
        for output in cell.get("outputs", []):
            text = "".join(output.get("text", ""))
            if output.get("name") == "stderr" and text.strip() and "\r" not in text:
                line = text.strip().splitlines()[0]
                notes.append(f"  {name}, cell {number} wrote to stderr: {line}")
    return notes


# --- building -----------------------------------------------------------------------------------


def write_source(folders: Folders) -> list[str]:
    """Write the folder that Jupyter Book reads; return notes for the person who builds."""
    source = folders.source
    shutil.rmtree(source, ignore_errors=True)
    skip = shutil.ignore_patterns(
        "*.ipynb", "*.py", "times.json", "watch", "__pycache__", "_ext", ".ipynb_checkpoints"
    )
    shutil.copytree(folders.book, source, ignore=skip)
    notes = []
    for path in folders.notebooks():
        executed = json.loads((folders.executed / path.name).read_text(encoding="utf-8"))
        notes += stderr_notes(path.name, executed)
        prepared = prepare_notebook(executed)
        (source / path.name).write_text(json.dumps(prepared), encoding="utf-8")
    for name, text in generated_pages(folders.notebooks(), folders.executed).items():
        (source / name).write_text(text, encoding="utf-8")
    first = source / "index.md"
    table = chapter_map(folders.notebooks(), folders.executed)
    first.write_text(first.read_text("utf-8").replace(MAP_PLACE, table), encoding="utf-8")
    return notes


def vendored(folders: Folders) -> dict[str, Path]:
    """Return the scripts and fonts that pages load: place in the HTML folder -> its origin."""
    import plotly

    widgets = folders.root / "node_modules" / "@jupyter-widgets" / "html-manager" / "dist"
    modules = folders.root / "node_modules"
    files = {
        "_static/vendor/tex-svg.js": modules / "mathjax" / "es5" / "tex-svg.js",
        "_static/vendor/require.js": modules / "requirejs" / "require.js",
        "_static/vendor/embed-amd.js": widgets / "embed-amd.js",
        "_static/vendor/plotly.min.js": Path(plotly.__file__).parent / "package_data/plotly.min.js",
    }
    files |= {f"_static/{js.name}": js for js in sorted((folders.book / "_ext").glob("*.js"))}
    # the widgets' script looks for its icon fonts in this folder beside the page
    fonts = "@jupyter-widgets/html-manager/dist"
    return files | {f"{fonts}/{font.name}": font for font in sorted(widgets.glob("*.woff2"))}


def pages_key(folders: Folders) -> str:
    """Hash what the pages depend on; package-lock.json stands for the scripts that it fixes."""
    paths = [folders.root / "_config.yml", folders.root / "package-lock.json", Path(__file__)]
    packages = [folders.root / name for name in PACKAGES]
    for folder in (folders.source, folders.book / "_ext", *packages):
        paths += files_below(folder)  # the reference is made of the package's docstrings
    return digest(paths, installed_versions(EXTRAS), find_chromium() or "", *map(str, paths))


def build_pages(folders: Folders) -> bool:
    """Build the HTML if something has changed; return whether it was built. Warnings are errors."""
    notes = write_source(folders)
    stamp = folders.build / "html-made-from"
    key = pages_key(folders)
    first_page = folders.html / "index.html"
    if first_page.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == key:
        return False
    for note in notes:
        print(note, flush=True)
    stamp.unlink(missing_ok=True)
    shutil.rmtree(folders.html, ignore_errors=True)
    chromium, begun = find_chromium(), time.monotonic()
    print("Building the pages ...", flush=True)
    run_jupyter_book(folders, with_pdf=chromium is not None)
    for target, origin in vendored(folders).items():
        place = folders.html / target
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin, place)
    for notebook in folders.notebooks():  # for the pages' download button
        shutil.copyfile(notebook, folders.html / "_sources" / notebook.name)
    if chromium:
        print(f"  done in {time.monotonic() - begun:.0f} s; printing the PDF ...", flush=True)
        pdf.write_pdf(folders.html, folders.book / "_toc.yml", chromium)
    else:
        print("  no PDF: that needs a Chromium (install it, or name it in CHROMIUM)", flush=True)
    stamp.write_text(key, encoding="utf-8")
    return True


def run_jupyter_book(folders: Folders, with_pdf: bool) -> None:
    """Call Jupyter Book afresh: an incremental build would not repeat an earlier warning."""
    told = {"PYTHONWARNINGS": "ignore", "BOOK_PDF": pdf.NAME if with_pdf else ""}
    start = "from jupyter_book.cli.main import main; main()"  # it has no __main__; in a moved venv
    command = [sys.executable, "-c", start, "build", str(folders.source)]  # its script fails
    command += ["--config", str(folders.root / "_config.yml")]
    command += ["--toc", str(folders.source / "_toc.yml")]
    command += ["--path-output", str(folders.root)]
    command += ["--all", "--warningiserror", "--keep-going", "--quiet"]
    log = folders.build / "jupyter-book.log"
    with log.open("w", encoding="utf-8") as sink:
        code = subprocess.run(
            command,
            cwd=folders.root,
            env=os.environ | told,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        ).returncode
    if code != 0 or not (folders.html / "index.html").is_file():
        printed = without_colours(log.read_text(encoding="utf-8", errors="replace"))
        telling = [s for s in printed.splitlines() if "WARNING" in s or "ERROR" in s]
        shown = telling or printed.strip().splitlines()[-20:]
        lines = "\n".join(f"  {line}" for line in shown)
        raise PagesError(f"The pages were not built:\n{lines}\nThe whole output: {log}")
