"""The built pages in a real browser: complete, quiet, and without a network."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from chromium import FLAGS, SETTLED
from conftest import missing

pytestmark = [pytest.mark.browser, pytest.mark.book]
ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
PAGES = sorted(path.name for path in HTML.glob("*.html"))
CHAPTERS = {f"{path.stem}.html" for path in (ROOT / "book").glob("*.ipynb")}
QUICKSTART = "01-quickstart.html"
PATIENCE = 90_000  # milliseconds; a busy machine may be slow, a broken page is not waited for
LOCAL = ("file:", "data:", "blob:")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 720}

AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
# What a page weighs is what it brings itself; scripts and styles of all pages are loaded once.
SHARED, HEAVIEST = ("_static", "@jupyter-widgets"), 6_000_000  # bytes


@pytest.fixture(scope="module")
def browser(chromium, tmp_path_factory):
    """Chromium with a fresh profile and a home folder of its own."""
    playwright = pytest.importorskip("playwright.sync_api")
    home = str(tmp_path_factory.mktemp("home"))
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(
            executable_path=chromium, args=FLAGS, env={**os.environ, "HOME": home}
        )
        yield browser
        browser.close()


class Visit:
    """A page, opened from its file and settled, with all that it asked for and complained of."""

    def __init__(self, browser, name: str, viewport: dict, scheme: str = "light"):
        self.name = name
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self.listen)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", lambda r: self.errors.append(f"{r.failure}: {r.url}"))
        self.page.goto((HTML / name).as_uri())
        self.page.evaluate(SETTLED)

    def listen(self, message) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def barriers(self) -> list[str]:
        """What axe-core finds that would keep somebody from reading the page."""
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found = self.page.evaluate("async () => (await axe.run({ preload: false })).violations")
        return [
            f"{rule['id']}: {node['html'][:200]}"
            for rule in found
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]

    def all(self, selector: str, script: str):
        """What a JavaScript function makes of the list of elements that match."""
        return self.page.eval_on_selector_all(selector, script)


@pytest.fixture(scope="module", params=PAGES or ["(no built pages)"])
def name(request):
    if not PAGES:
        missing("the book is not built (make book)")
    return request.param


@pytest.fixture(scope="module")
def visit(browser, name):
    visit = Visit(browser, name, DESKTOP)
    yield visit
    visit.context.close()


# --- every page ---------------------------------------------------------------------------------


def test_no_errors(visit):
    assert visit.errors == []


def test_no_request_leaves_the_machine(visit):
    assert [url for url in visit.requests if not url.startswith(LOCAL)] == []


def test_equations_are_typeset(visit):
    untypeset = (
        "all => all.filter(e => !e.querySelector('mjx-container svg')).map(e => e.innerText)"
    )
    assert visit.all(".math", untypeset) == []
    faulty = "all => all.map(e => e.closest('mjx-container').outerHTML.slice(0, 300))"
    assert visit.all("[data-mjx-error], mjx-merror", faulty) == []


def test_tables_are_tables(visit):
    bare = "all => all.map(e => e.innerText).filter(t => /\\|\\s*[:-]{3}/.test(t))"
    assert visit.all("article p", bare) == []


def test_images_load_and_say_what_they_show(visit):
    broken = "all => all.filter(e => !e.naturalWidth).map(e => e.src)"
    assert visit.all("article img", broken) == []
    silent = (
        "all => all.filter(e => !e.alt || /\\.(png|svg|jpe?g)$/.test(e.alt)).map(e => e.outerHTML)"
    )
    assert visit.all("article img:not(.widget-subarea img)", silent) == [], (
        "images without alternative text"
    )


def test_figures_are_drawn_and_say_what_they_show(visit):
    undrawn = """all => all.filter(f => {
      const plot = f.querySelector(".js-plotly-plot .main-svg");
      return !f.querySelector("[data-drawn]") || !plot || plot.getBoundingClientRect().height < 50;
    }).map(f => f.getAttribute("aria-label"))"""
    assert visit.all(".plotly-figure", undrawn) == []
    silent = "all => all.filter(f => !f.getAttribute('aria-label')).map(f => f.innerText)"
    assert visit.all(".plotly-figure", silent) == [], "figures without meta={'alt': ...}"
    left = "all => all.filter(e => /Plotly|plotly/.test(e.innerText)).map(e => e.innerText)"
    assert visit.all(".output.text_plain", left) == [], "figures shown as text"


# What a figure draws, without its sliders: curves and pictures, or the data where WebGL draws.
DRAWN = """gd => [...gd.querySelectorAll(".cartesianlayer, .polarlayer")].map(e => e.innerHTML)
  .concat(gd.querySelector("canvas") ? JSON.stringify(gd.data.map(t => [t.x, t.y, t.z])) : [])
  .join()"""

STANDS_RIGHT = """(gd, index) => {
  const slider = gd._fullLayout.sliders[index];
  return slider.active * 2 >= slider.steps.length;
}"""


def test_every_slider_changes_what_is_drawn(visit):
    """To one end with the mouse, and to the other with a key."""
    for plot in visit.page.query_selector_all(".js-plotly-plot"):
        for index, slider in enumerate(plot.query_selector_all(".slider-group")):
            rail = slider.query_selector(".slider-rail-touch-rect")
            rail.scroll_into_view_if_needed()
            before = plot.evaluate(DRAWN)
            box = rail.bounding_box()
            x = box["x"] + (2 if plot.evaluate(STANDS_RIGHT, index) else box["width"] - 2)
            visit.page.mouse.click(x, box["y"] + box["height"] / 2)
            after = changed_from(before, visit.page, plot, f"slider {index}, clicked")
            key = "Home" if plot.evaluate(STANDS_RIGHT, index) else "End"
            slider.press(key)
            changed_from(after, visit.page, plot, f"slider {index}, moved with a key")
            assert slider.get_attribute("aria-valuetext")


def changed_from(before: str, page, plot, what: str) -> str:
    """What the figure draws, once it is no longer ``before``."""
    for _ in range(100):  # 10 s at most
        if (now := plot.evaluate(DRAWN)) != before:
            return now
        page.wait_for_timeout(100)
    title = plot.evaluate("gd => gd.closest('.plotly-figure').getAttribute('aria-label')")
    pytest.fail(f"{what}, changes nothing in the figure: {title}")


def test_widgets_are_drawn(visit):
    missing_views = """all => all.filter(s => {
      const drawn = s.parentElement.querySelector(".widget-subarea .jupyter-widgets");
      return !drawn || drawn.getBoundingClientRect().height < 10;
    }).map(s => s.textContent)"""
    assert visit.all("script[type='application/vnd.jupyter.widget-view+json']", missing_views) == []
    assert visit.all(".jupyter-widgets-error-widget", "all => all.map(e => e.innerText)") == []


def test_no_barrier(visit):
    assert visit.barriers() == []


def test_weight(visit):
    files = {Path(unquote(urlsplit(u).path)) for u in visit.requests if u.startswith("file:")}
    own = [f for f in files if f.relative_to(HTML).parts[0] not in SHARED]
    assert HTML / visit.name in own
    assert sum(f.stat().st_size for f in own) <= HEAVIEST


# Elements whose right edge lies beyond the window, unless something around them scrolls; formulas
# that begin left of their place, where no scrolling leads.
OVERFLOWING = """() => {
  const width = document.documentElement.clientWidth;
  const scrolls = (e) =>
    e && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const wide = [...document.querySelectorAll("article *")].filter((e) => {
    const box = e.getBoundingClientRect();
    return box.width > 0 && box.right > width + 1 && !scrolls(e);
  });
  const cut = [...document.querySelectorAll("article mjx-container")].filter((e) =>
    e.getBoundingClientRect().left < e.parentElement.getBoundingClientRect().left - 1);
  wide.push(...cut);
  const page = document.documentElement.scrollWidth > width ? ["the page scrolls sideways"] : [];
  return page.concat(wide.slice(0, 5).map((e) => e.outerHTML.slice(0, 120)));
}"""


# Text that can hardly be told from what lies behind it (contrast below 3 : 1, or none to compute).
FAINT = """all => {
  const luminance = (rgb) => {
    const part = (c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part(rgb[0]) + 0.7152 * part(rgb[1]) + 0.0722 * part(rgb[2]);
  };
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = numbers(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  return all.filter((e) => {
    const [a, b] = [luminance(numbers(getComputedStyle(e).fill)), luminance(behind(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 3;
  }).map((e) => e.textContent);
}"""


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_on_a_phone(browser, name, scheme):
    visit = Visit(browser, name, PHONE, scheme)
    try:
        assert visit.page.evaluate(OVERFLOWING) == []
        labels = ".plotly-figure .gtitle, .plotly-figure .xtick text, .plotly-figure .ytick text"
        assert visit.all(labels, FAINT) == [], "labels of figures in the colour of the page"
        if scheme == "dark":
            assert visit.barriers() == []
        assert visit.errors == []
    finally:
        visit.context.close()


# --- the first chapter --------------------------------------------------------------------------


def test_the_quick_start_shows_everything(browser):
    """The checks above pass on a page that lacks things; this one must hold them all."""
    if not PAGES:
        missing("the book is not built (make book)")
    assert QUICKSTART in PAGES
    visit = Visit(browser, QUICKSTART, DESKTOP)
    try:
        count = "all => all.length"
        assert visit.all(".math mjx-container", count) > 0
        assert visit.all(".js-plotly-plot .slider-group", count) > 0
        assert visit.all(".widget-subarea .jupyter-widgets", count) > 0
    finally:
        visit.context.close()


# --- the book as a whole ------------------------------------------------------------------------


@pytest.mark.slow
def test_the_arrow_keys_turn_the_pages(browser):
    """From the preface to the last page and one back."""
    visit = Visit(browser, "index.html", DESKTOP)
    try:
        page, seen = visit.page, ["index.html"]
        while page.query_selector("a.right-next"):
            with page.expect_navigation():
                page.keyboard.press("ArrowRight")
            seen.append(Path(urlsplit(page.url).path).name)
        assert len(seen) == len(set(seen)) and set(seen) >= CHAPTERS
        with page.expect_navigation():
            page.keyboard.press("ArrowLeft")
        assert page.url.endswith(seen[-2])
    finally:
        visit.context.close()


def test_search_finds_a_chapter(browser):
    """Typed into the dialog that Ctrl+K opens, on pages opened from files."""
    visit = Visit(browser, "index.html", DESKTOP)
    try:
        page = visit.page
        page.keyboard.press("Control+k")
        page.keyboard.type("Lipschitz")
        with page.expect_navigation():
            page.keyboard.press("Enter")
        page.wait_for_selector("#search-results a[href*='09-bound']")
        assert [url for url in visit.requests if not url.startswith(LOCAL)] == []
    finally:
        visit.context.close()
