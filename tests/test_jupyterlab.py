"""A live JupyterLab: a chapter whose slider moves, and an assignment that a student works on."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import colab
import course
import pytest
import yaml
from chromium import FLAGS

pytestmark = [pytest.mark.browser, pytest.mark.book]
ROOT = Path(__file__).parents[1]
CHAPTER = ROOT / "book" / "04-generator.ipynb"
PATIENCE = 60_000  # milliseconds; the chapter takes twenty seconds, on a busy machine more
SLIDER = ".jp-OutputArea .widget-slider"
IMAGE = ".jp-OutputArea img.widget-image"
# Cells stay where they are while the page is scrolled, and no question about news is asked.
SETTINGS = {
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false"},
}


@contextmanager
def lab(tmp_path: Path, notebook: Path) -> Iterator[str]:
    """A JupyterLab with nothing in it but the notebook; the address of the notebook."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(notebook, folder)
    token, log = secrets.token_hex(8), tmp_path / "lab.log"
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    command += ["--ServerApp.port=0", f"--IdentityProvider.token={token}"]
    command += [f"--ServerApp.root_dir={folder}"]
    homes = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    env = {**os.environ, **{name: str(tmp_path / name.lower()) for name in homes}}
    overrides = tmp_path / "jupyter_config_dir" / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    overrides.write_text(json.dumps(SETTINGS), encoding="utf-8")
    with log.open("w", encoding="utf-8") as sink:
        server = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=env)
    try:
        yield f"{address(server, log)}/lab/tree/{notebook.name}?token={token}"
    finally:
        server.terminate()
        server.wait(60)


def address(server: subprocess.Popen, log: Path) -> str:
    """Where the server answers, as it says itself."""
    for _ in range(600):  # a minute
        found = re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/lab", log.read_text("utf-8"))
        if found:
            return f"http://127.0.0.1:{found[1]}"
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text('utf-8')[-2000:]}")


@contextmanager
def opened(chromium: str, tmp_path: Path, notebook: Path):
    """The notebook's page in a browser, its kernel ready."""
    playwright = pytest.importorskip("playwright.sync_api")
    home = {**os.environ, "HOME": str(tmp_path / "home")}
    with lab(tmp_path, notebook) as url, playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=chromium, args=FLAGS, env=home)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.get_by_text("| Idle").wait_for()  # what is run before the kernel is there is lost
        yield page
        browser.close()


def run_all(page) -> None:
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    last = "Array.from(document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')).at(-1)"
    page.wait_for_function(f"/\\d/.test({last}?.innerText)")
    assert "Traceback" not in page.inner_text(".jp-Notebook")


@pytest.mark.slow
def test_a_student_writes_an_answer_and_the_check_says_so(chromium, tmp_path):
    install = colab.install_cell(yaml.safe_load((ROOT / "_config.yml").read_text("utf-8")))
    made = course.make(ROOT / "book" / "assignments" / "2-attention.ipynb", tmp_path, install)
    with opened(chromium, tmp_path, made.student) as page:
        run_all(page)
        said = page.inner_text(".jp-Notebook")
        assert "✗ q1:" in said and "nothing came back. Is there a `return`?" in said
        answer = page.locator(".jp-CodeCell", has_text="def spatial_softmax").first
        answer.locator(".cm-content").fill(
            "def spatial_softmax(scores):\n    return scores.softmax(3)"
        )
        page.keyboard.press("Shift+Enter")
        page.keyboard.press("Shift+Enter")
        page.get_by_text("this is what you get with a softmax over each row").wait_for()
        answer.locator(".cm-content").fill(
            "def spatial_softmax(scores):\n    return scores.flatten(2).softmax(2).view_as(scores)"
        )
        page.keyboard.press("Shift+Enter")
        page.keyboard.press("Shift+Enter")
        page.get_by_text("✓ q1: right.").wait_for()


@pytest.mark.slow
def test_the_slider_of_lambda_changes_the_picture(chromium, tmp_path):
    with opened(chromium, tmp_path, CHAPTER) as page:
        run_all(page)
        image, slider = page.locator(IMAGE), page.locator(SLIDER)
        sentence = page.locator(f"{SLIDER} ~ .widget-label")
        before = image.get_attribute("src"), sentence.inner_text()
        rail = slider.locator(".noUi-base")
        end = {"x": rail.bounding_box()["width"] - 1, "y": 2}
        slider.locator(".noUi-handle").drag_to(rail, target_position=end, force=True)
        page.wait_for_function(f"document.querySelector('{IMAGE}').src != '{before[0]}'")
        assert slider.locator(".widget-readout").inner_text() == "100"
        assert sentence.inner_text() != before[1]
        assert image.evaluate("e => e.naturalWidth") > 0
