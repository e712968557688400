"""A chapter in a live JupyterLab: run it all, drag the slider of λ, and see the picture change."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chromium import FLAGS

CHAPTER = Path(__file__).parents[1] / "book" / "04-generator.ipynb"
PATIENCE = 60_000  # milliseconds; the chapter takes twenty seconds, on a busy machine more
SLIDER = ".jp-OutputArea .widget-slider"
IMAGE = ".jp-OutputArea img.widget-image"
# Cells stay where they are while the page is scrolled, and no question about news is asked.
SETTINGS = {
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false"},
}


@pytest.fixture
def lab(tmp_path):
    """A JupyterLab with nothing in it but the chapter; the address of the chapter."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(CHAPTER, folder)
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
        yield f"{address(server, log)}/lab/tree/{CHAPTER.name}?token={token}"
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


def test_the_slider_of_lambda_changes_the_picture(chromium, lab, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    home = {**os.environ, "HOME": str(tmp_path / "home")}
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=chromium, args=FLAGS, env=home)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.goto(lab)
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.get_by_text("| Idle").wait_for()  # what is run before the kernel is there is lost
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        last = "Array.from(document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')).at(-1)"
        page.wait_for_function(f"/\\d/.test({last}?.innerText)")
        assert "Traceback" not in page.inner_text(".jp-Notebook")

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
        browser.close()
