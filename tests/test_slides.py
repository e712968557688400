"""The lecture slides: what is on them, and that a browser shows all of it without a network."""

import json
import os
import re
from pathlib import Path

import pytest
import slides
from chromium import FLAGS
from conftest import missing
from pages import Folders

pytestmark = [pytest.mark.browser, pytest.mark.book]
ROOT = Path(__file__).parents[1]
CHAPTERS = sorted(path.stem for path in (ROOT / "book").glob("[0-9][0-9]-*.ipynb"))
#: How far what one sees on the slide reaches beyond it, to the right and below, in its own pixels.
BEYOND = """() => {
  const scale = Reveal.getScale(), slide = Reveal.getCurrentSlide();
  const seen = [...slide.querySelectorAll('h1, h2, p, li, img, svg, figcaption')]
    .filter(e => !e.closest('mjx-assistive-mml')).map(e => e.getBoundingClientRect());
  const box = document.querySelector('.slides').getBoundingClientRect();
  return [Math.max(...seen.map(r => r.right)) - box.right,
          Math.max(...seen.map(r => r.bottom)) - box.bottom].map(far => far / scale);
}"""


@pytest.fixture(scope="module")
def decks() -> dict[str, Path]:
    if not all((Folders(ROOT).executed / f"{name}.ipynb").is_file() for name in CHAPTERS):
        missing("the book is not built (make book)")
    return {path.stem: path for path in slides.build(ROOT)}


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_deck_has_its_chapters_figures_and_summary(name: str, decks: dict[str, Path]) -> None:
    text = decks[name].read_text(encoding="utf-8")
    cells = json.loads((ROOT / "book" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    wanted = sum("figure" in cell["metadata"].get("mystnb", {}) for cell in cells)
    assert text.count("<figcaption>") == wanted
    assert text.count("<img ") == len(
        re.findall(r'<img src="data:image/\w+;base64,[^"]+" alt="[^"]', text)
    )
    summary = next(
        s for s in map("".join, (c["source"] for c in cells)) if "\n## Summary" in f"\n{s}"
    )
    bullets = re.findall(r"(?m)^- ", summary.split("## Summary")[1])
    assert (
        text.split("<h2>Summary</h2>")[1].split("</section>")[0].count("<li>") == len(bullets) > 0
    )
    assert "<details>" not in text and "Solution" not in text


def test_the_decks_in_a_browser(chromium: str, decks: dict[str, Path], tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    env = {**os.environ, "HOME": str(tmp_path)}
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=chromium, args=FLAGS, env=env)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        errors, requests = [], []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("requestfailed", lambda request: errors.append(request.url))
        page.on("request", lambda request: requests.append(request.url))
        for name in CHAPTERS:
            page.goto(decks[name].as_uri())
            page.wait_for_function(
                "() => Reveal.isReady() && (window.MathJax?.startup?.promise ?? true)"
            )
            for number in range(page.evaluate("Reveal.getTotalSlides()")):
                page.evaluate(f"Reveal.slide({number})")
                page.wait_for_function(
                    "() => ![...Reveal.getCurrentSlide().querySelectorAll('.plotly-figure')]"
                    ".some(place => !place.querySelector('svg'))"
                )
                right, below = page.evaluate(BEYOND)
                assert right <= 1 and below <= 1, (name, number, right, below)
        browser.close()
    assert errors == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
