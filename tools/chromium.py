"""Finds the Chromium that prints the book and tests its pages."""

import os
import shutil

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Resolves when MathJax, the figures and the widgets of a page have had their turn.
SETTLED = """async () => {
  if (window.MathJax?.startup) await MathJax.startup.promise;
  const figures = [...document.querySelectorAll(".plotly-figure")];
  const widgets = [...document.querySelectorAll(
    "script[type='application/vnd.jupyter.widget-view+json']")];
  const pending = () =>
    figures.some((f) => !f.querySelector("[data-drawn]")) ||
    widgets.some((s) => !s.parentElement.querySelector(".widget-subarea > *"));
  const end = Date.now() + 60000;
  while (pending() && Date.now() < end) await new Promise((r) => setTimeout(r, 50));
  await new Promise((r) => setTimeout(r, 200));
}"""


def find_chromium() -> str | None:
    """Find the Chromium to use: the one named in CHROMIUM, else the first that is installed."""
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, BROWSERS)), None)
