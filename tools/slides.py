"""Makes a deck of reveal.js slides of each executed chapter, in one HTML file each (`make slides`).

A deck has a slide for the title and its promise, one for the formulas of a section, one for each
figure with its caption, and one for the summary. Text for reading stays in the book, code in the
notebook. Everything that a deck loads lies beside it, so it works without a network.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt
from pages import PLOTLY, Folders, alternative_text, plotly_html, source_cells, vendored

REVEAL = ("dist/reveal.js", "dist/reveal.css", "dist/reset.css", "dist/theme/white.css")
PICTURES = ("image/png", "image/jpeg")
SKIPPED = "Exercises"  # readers do these at a desk
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="vendor/reset.css">
<link rel="stylesheet" href="vendor/reveal.css">
<link rel="stylesheet" href="vendor/white.css">
<style>
.reveal {{ font-size: 30px; }}
.reveal h1 {{ font-size: 1.8em; }}
.reveal h2 {{ font-size: 1.3em; }}
.reveal h1, .reveal h2 {{ text-transform: none; }}
.reveal ul, .reveal p {{ text-align: left; }}
.reveal figure img {{ max-height: 440px; margin: 0 auto; }}
.reveal figcaption {{ font-size: 0.6em; text-align: left; }}
.reveal mjx-container[display="true"] {{ font-size: 85% !important; }}
.plotly-figure {{ width: 900px; margin: 0 auto; }}
</style>
</head>
<body>
<div class="reveal"><div class="slides">
{slides}
</div></div>
<script>
window.MathJax = {{tex: {{macros: {macros}}}, svg: {{fontCache: "global"}}}};
</script>
<script src="vendor/tex-svg.js" defer></script>
{plotly}<script src="vendor/reveal.js"></script>
<script>
function draw(slide) {{
  for (const place of slide.querySelectorAll(".plotly-figure:not(.drawn)")) {{
    const figure = JSON.parse(place.querySelector("script").textContent);
    place.classList.add("drawn");
    Plotly.newPlot(place, figure.data, {{...figure.layout, width: 900}}, {{displaylogo: false}})
      .then(() => figure.frames.length && Plotly.addFrames(place, figure.frames));
  }}
}}
Reveal.initialize({{hash: true, slideNumber: "c/t", width: 1100, height: 760, transition: "none"}});
Reveal.on("ready", (event) => draw(event.currentSlide));
Reveal.on("slidechanged", (event) => draw(event.currentSlide));
</script>
</body>
</html>
"""


def slides_of(notebook: dict) -> Iterator[str]:
    """Yield the slides of an executed chapter as HTML, in order."""
    section, skipped = "", False
    for number, cell in enumerate(source_cells(notebook)):
        if cell["cell_type"] == "code":
            if not skipped:
                yield from (slide(section, figure) for figure in figures(cell))
            continue
        for heading, text in sections("".join(cell["source"])):
            if heading:
                section, skipped = heading, heading.startswith(SKIPPED)
            if number == 0 and heading:
                yield f"<section><h1>{inline(heading)}</h1>{promise(text)}</section>"
            elif not skipped and heading == "Summary":
                yield slide(section, markdown(bullets(text)))
            elif not skipped:
                found = formulas(text)
                if found:
                    yield slide(section, "".join(f"<p>{escape(f)}</p>" for f in found))


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Split a cell's text at its headings: (heading or "", what follows); drop folded solutions."""
    text = re.sub(r"(?s)<details>.*?</details>", "", text)
    parts = re.split(r"(?m)^#{1,3} (.+)$", text)
    if parts[0].strip():
        yield "", parts[0]
    yield from zip(parts[1::2], parts[2::2], strict=True)


def slide(heading: str, content: str) -> str:
    return f"<section><h2>{inline(heading)}</h2>{content}</section>"


def promise(text: str) -> str:
    """Return the opening paragraph, and what a reader will be able to do, as HTML."""
    text = re.split(r"\*\*You need\*\*", text)[0]
    return markdown(text)


def formulas(text: str) -> list[str]:
    """Return the displayed formulas without their labels, numbers of equations as printed."""
    found = re.findall(r"(?s)\$\$.*?\$\$", text)
    return [re.sub(r"\\label\{[^}]*\}", "", formula) for formula in found]


def bullets(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith(("- ", "  ")))


def figures(cell: dict) -> Iterator[str]:
    """Yield the cell's figure with its caption; without one it is a table or a trial, left out."""
    about = cell["metadata"].get("mystnb", {})
    caption = about.get("figure", {}).get("caption")
    if caption is None:
        return
    alt = alternative_text(cell)
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        picture = next((kind for kind in PICTURES if kind in data), None)
        if PLOTLY in data:
            shown = plotly_html(data[PLOTLY], alt)
        elif picture:
            content = "".join(data[picture]).strip()
            shown = f'<img src="data:{picture};base64,{content}" alt="{escape(alt)}">'
        else:
            continue
        yield f"<figure>{shown}<figcaption>{inline(caption)}</figcaption></figure>"


def markdown(text: str) -> str:
    return MarkdownIt().render(protected(text))


def inline(text: str) -> str:
    return MarkdownIt().renderInline(protected(text))


def protected(text: str) -> str:
    """Remove the roles and links of the book; keep the backslashes of formulas for MathJax."""
    text = re.sub(r"\{\w+(:\w+)?\}`[^`]*`", "", text)
    text = re.sub(r"\[([^\]]+)\]\([\w#.-]+\)", r"\1", text)
    return re.sub(r"\$([^$]+)\$", lambda m: "\\\\(" + m[1].replace("\\", "\\\\") + "\\\\)", text)


def deck(notebook: dict, macros: str) -> str:
    slides = list(slides_of(notebook))
    title = re.sub(r"<.*?>", "", re.search(r"<h1>(.*?)</h1>", slides[0])[1])
    plots = any("plotly-figure" in one for one in slides)
    script = '<script src="vendor/plotly.min.js"></script>\n' if plots else ""
    return PAGE.format(title=title, slides="\n".join(slides), plotly=script, macros=macros)


def build(root: Path) -> list[Path]:
    """Write a deck for each chapter, from what `make book` has executed."""
    import yaml

    folders = Folders(root)
    out = folders.build / "slides"
    vendor = out / "vendor"
    vendor.mkdir(parents=True, exist_ok=True)
    for name in REVEAL:
        text = (root / "node_modules" / "reveal.js" / name).read_text(encoding="utf-8")
        text = re.sub(r"@import[^;]+;", "", text)  # of fonts: the reader has some
        (vendor / Path(name).name).write_text(text, encoding="utf-8")
    for target, origin in vendored(folders).items():
        if target.endswith(("tex-svg.js", "plotly.min.js")):
            shutil.copyfile(origin, vendor / Path(target).name)
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    tex = config["sphinx"]["config"]["mathjax3_config"]["tex"]
    decks = []
    for path in folders.notebooks():
        if re.match(r"\d\d-", path.name):
            notebook = json.loads((folders.executed / path.name).read_text(encoding="utf-8"))
            place = out / f"{path.stem}.html"
            place.write_text(deck(notebook, json.dumps(tex["macros"])), encoding="utf-8")
            decks.append(place)
    return decks


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    decks = build(root)
    print(
        f"{len(decks)} decks in {decks[0].parent}: open one in a browser, the arrow keys turn it."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
