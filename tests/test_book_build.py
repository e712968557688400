"""The tool behind `make book`: what it refuses, what it reports, what it does not do again."""

import json
import re
import subprocess
from dataclasses import asdict, replace
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import execute
import generated
import pages
import pytest
from conftest import missing
from execute import ChapterError, Limits, Progress, Record, execute_all, keys_of
from pages import Folders, PagesError, build_pages, prepare_notebook

ROOT = Path(__file__).parents[1]
PARAMETERS = ('PRESET = "lite"\nDATA = "digits"\nSEED = 0', ["parameters"])


def notebook(*cells) -> dict:
    """A notebook of code cells, each a source or a pair of source and tags."""
    pairs = [cell if isinstance(cell, tuple) else (cell, []) for cell in cells]
    return {
        "cells": [
            {
                "cell_type": "code",
                "id": f"cell-{number}",
                "metadata": {"tags": tags},
                "source": source,
                "outputs": [],
                "execution_count": None,
            }
            for number, (source, tags) in enumerate(pairs)
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


@pytest.fixture
def project(tmp_path):
    """An empty project: folders for the package, the data and the book."""
    for folder in ("dfkd_lite", "data/paper", "data/downloads", "book"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "dfkd_lite" / "kd.py").write_text("ONE = 1\n")
    return tmp_path


def chapter(project, *cells, name="01-one.ipynb") -> Path:
    path = project / "book" / name
    path.write_text(json.dumps(notebook(*cells)))
    return path


def run(project, *paths, **limits):
    return execute_all(list(paths), project, project / "out", Limits(**limits))


# --- executing ----------------------------------------------------------------------------------


def test_preset_reaches_the_chapter_and_nothing_is_executed_twice(project, capsys):
    path = chapter(project, PARAMETERS, "import os; print(PRESET, os.listdir())")
    (first,) = execute_all([path], project, project / "out", preset="colab")
    executed = project / "out" / path.name
    assert '"colab []\\n"' in executed.read_text()  # the parameter, and an empty working folder
    assert first.seconds > 0 and first.retries == 0 and first.preset == "colab"
    stamp = executed.stat().st_mtime_ns

    (again,) = execute_all([path], project, project / "out", preset="colab")
    assert again == first and executed.stat().st_mtime_ns == stamp
    assert "01-one.ipynb: unchanged" in capsys.readouterr().out

    chapter(project, PARAMETERS, "print('changed')")
    (changed,) = execute_all([path], project, project / "out", preset="colab")
    assert changed.key != first.key and "changed" in executed.read_text()


def test_only_what_a_chapter_needs_makes_it_run_again(project):
    (project / "dfkd_lite" / "other.py").write_text("TWO = 2\n")
    (project / "data" / "paper" / "table.csv").write_text("1")
    (project / "data" / "paper" / "other.csv").write_text("1")
    path = chapter(project, PARAMETERS, "from dfkd_lite.kd import ONE")
    content = json.loads(path.read_text()) | {"metadata": {"reads": ["paper/t*.csv"]}}
    path.write_text(json.dumps(content))

    def key(preset="lite"):
        keys, errors = keys_of([path], project, preset)
        assert errors == []
        return keys[path]

    keys = [key()]
    (project / "data" / "downloads" / "big.npz").write_text("x")
    (project / "data" / "paper" / "other.csv").write_text("2")
    (project / "dfkd_lite" / "other.py").write_text("TWO = 3\n")
    assert key() == keys[0]
    keys.append(key("colab"))
    (project / "dfkd_lite" / "kd.py").write_text("ONE = 2\n")
    keys.append(key())
    (project / "data" / "paper" / "table.csv").write_text("2")
    keys.append(key())
    (project / "data" / "paper" / "two.csv").write_text("2")
    (project / "data" / "paper" / "two.csv").rename(project / "data" / "paper" / "tw.csv")
    keys.append(key())
    path.write_text(json.dumps(content | {"nbformat_minor": 4}))
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_key_follows_the_installed_versions(project, monkeypatch):
    path = chapter(project, PARAMETERS)
    before, _ = keys_of([path], project, "lite")
    monkeypatch.setattr(execute, "installed_versions", lambda extras: "torch==99")
    assert keys_of([path], project, "lite")[0] != before


READS = "import pathlib\nprint(pathlib.Path({!r}).read_text())"


def test_data_that_a_chapter_does_not_declare_fails_the_build(project):
    table = project / "data" / "paper" / "table.csv"
    table.write_text("1")
    path = chapter(project, PARAMETERS, READS.format(str(table)))
    with pytest.raises(ChapterError, match=r"01-one\.ipynb read files .*paper/table\.csv"):
        run(project, path)
    assert not (project / "out" / path.name).exists()
    content = json.loads(path.read_text())
    content["metadata"]["reads"] = ["paper/*.csv"]
    path.write_text(json.dumps(content))
    assert run(project, path)[0].opened == ["paper/table.csv"]
    # data that somebody downloaded are not the project's
    other = project / "data" / "downloads" / "x.csv"
    other.write_text("1")
    assert run(project, chapter(project, PARAMETERS, READS.format(str(other))))[0].opened == []


def test_a_program_that_a_chapter_starts_is_watched_too(project):
    table = project / "data" / "paper" / "table.csv"
    table.write_text("1")
    code = READS.format(str(table))
    source = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}], check=True)"
    with pytest.raises(ChapterError, match=r"paper/table\.csv"):
        run(project, chapter(project, PARAMETERS, source))


def test_a_declaration_that_names_no_file_is_refused(project):
    path = chapter(project, PARAMETERS)
    content = json.loads(path.read_text()) | {"metadata": {"reads": ["paper/gone.csv"]}}
    path.write_text(json.dumps(content))
    with pytest.raises(ChapterError, match=r'01-one\.ipynb declares that it reads "paper/gone'):
        run(project, path)


def test_records_of_a_planned_experiment_may_be_declared_and_count_when_they_come(project):
    path = chapter(project, PARAMETERS)
    content = json.loads(path.read_text()) | {"metadata": {"reads": ["records/later/*.json"]}}
    path.write_text(json.dumps(content))
    assert "records/later" in keys_of([path], project, "lite")[1][0]
    (project / "data" / "experiments").mkdir()
    (project / "data" / "experiments" / "later.yaml").write_text("about: x\n")
    before, errors = keys_of([path], project, "lite")
    assert errors == []
    (project / "data" / "records" / "later").mkdir(parents=True)
    (project / "data" / "records" / "later" / "one.json").write_text("{}")
    assert keys_of([path], project, "lite")[0] != before


def test_progress_says_what_is_left():
    progress = Progress({"a": 60.0, "b": 60.0, "c": 120.0}, workers=2)
    assert progress.left() == pytest.approx(120)
    progress.done["a"] = 120.0  # twice as long as expected, and so will the others be
    assert progress.left() == pytest.approx(180)
    assert progress.line() == "1 of 3; about 3 minutes left"
    progress.done |= {"b": 60.0, "c": 60.0}
    assert progress.line() == "3 of 3"
    assert [execute.about(s) for s in (3, 44, 50, 100)] == [
        "about 10 seconds", "about 40 seconds", "about 1 minute", "about 2 minutes",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["PRESET", "DATA", "SEED"])
def test_notebook_without_a_parameter_is_refused(project, name):
    source, tags = PARAMETERS
    path = chapter(project, (source.replace(name, "OTHER"), tags), "print('ran')")
    with pytest.raises(ChapterError, match=rf"^01-one\.ipynb: no parameter {name}"):
        run(project, path)
    assert not (project / "out" / path.name).exists()


def test_failing_cell_is_named(project):
    failing = "def inverse(x):\n    return 1 / x\n\nprint('before')\ninverse(0)"
    path = chapter(project, "x = 1", PARAMETERS, failing, "print('never')")
    good = chapter(project, PARAMETERS, name="02-two.ipynb")
    with pytest.raises(ChapterError) as caught:
        run(project, path, good)
    out = project / "out"
    message = str(caught.value)
    assert "01-one.ipynb, cell 3: ZeroDivisionError: division by zero" in message
    assert "in the line: inverse(0)" in message
    assert "02-two" not in message and (out / "02-two.ipynb").is_file()
    # what ran is kept under another name, so that nobody takes it for a finished chapter
    assert "before" in (out / "01-one.failed.ipynb").read_text()
    assert not (out / "01-one.ipynb").exists() and not (out / "01-one.json").exists()


def test_chapter_that_failed_is_executed_again(project):
    path = chapter(project, PARAMETERS, "1 / 0")
    for _ in range(2):
        with pytest.raises(ChapterError, match="ZeroDivisionError"):
            run(project, path)
    chapter(project, PARAMETERS)
    assert run(project, path)[0].retries == 0
    assert not (project / "out" / "01-one.failed.ipynb").exists()


def test_hang_is_tried_once_more_and_reported(project, capsys):
    flag = project / "flag"
    hang_once = (
        f"import pathlib, time\nflag = pathlib.Path({str(flag)!r})\n"
        "if not flag.exists():\n    flag.touch()\n    time.sleep(60)"
    )
    (record,) = run(project, chapter(project, PARAMETERS, hang_once), cell=2)
    assert record.retries == 1
    printed = capsys.readouterr().out
    assert "a cell was not finished after 2 s; trying once more" in printed
    assert "after a hang and a second try" in printed


def test_hang_twice_is_an_error(project):
    path = chapter(project, PARAMETERS, "import time; time.sleep(60)")
    with pytest.raises(ChapterError, match=r"01-one\.ipynb: not finished after 4 s, twice"):
        run(project, path, notebook=4)


# --- preparing and building ---------------------------------------------------------------------

FIGURE = {
    "data": [{"type": "scatter", "y": [1, 2]}],
    "layout": {"title": {"text": "</script><b>"}, "height": 300},
    "frames": [{"name": "0"}],
}


def with_output(output: dict) -> dict:
    result = notebook("show()")
    result["cells"][0]["outputs"] = [output]
    return result


def test_figure_becomes_html_that_holds_its_data():
    shown = {"output_type": "display_data", "metadata": {}, "data": {pages.PLOTLY: FIGURE}}
    source = with_output(shown)
    source["cells"][0]["metadata"]["mystnb"] = {"image": {"alt": 'A "line"'}}
    (cell,) = prepare_notebook(source)["cells"]
    (html,) = cell["outputs"][0]["data"].values()
    assert 'aria-label="A &quot;line&quot;"' in html and "min-height: 300px" in html
    inside = re.search(r'<script type="application/json">(.*?)</script>', html)[1]
    assert json.loads(inside) == FIGURE


def test_links_that_a_cell_printed_lead_to_pages():
    data = {"text/markdown": ["[one](04-generator.ipynb), ", "[two](https://x.org/a.ipynb)"]}
    shown = {"output_type": "display_data", "metadata": {}, "data": data}
    (cell,) = prepare_notebook(with_output(shown))["cells"]
    text = "[one](04-generator.html), [two](https://x.org/a.ipynb)"
    assert cell["outputs"][0]["data"] == {"text/markdown": text}


def test_cells_that_papermill_added_are_left_out():
    source = notebook("a = 1", ("PRESET = 'lite'", ["injected-parameters"]), "b = 2")
    assert [c["source"] for c in prepare_notebook(source)["cells"]] == ["a = 1", "b = 2"]


def test_warnings_of_a_chapter_are_noted_and_progress_bars_are_not():
    warning = {"output_type": "stream", "name": "stderr", "text": "UserWarning: look\n  x()\n"}
    (note,) = pages.stderr_notes("01.ipynb", with_output(warning))
    assert "01.ipynb, cell 1 wrote to stderr: UserWarning: look" in note
    for bar in ("\r10%\r20%", "\r30%"):  # one update may be an output of its own
        progress = {"output_type": "stream", "name": "stderr", "text": bar}
        assert pages.stderr_notes("01.ipynb", with_output(progress)) == []


@pytest.fixture
def small_book(project, monkeypatch):
    """A book of one page, with this project's settings and scripts, and without a PDF."""
    monkeypatch.setattr(pages, "find_chromium", lambda: None)
    for name in ("_config.yml", "package-lock.json"):
        (project / name).write_bytes((ROOT / name).read_bytes())
    for name in ("_ext", "_static", "references.bib"):
        (project / "book" / name).symlink_to(ROOT / "book" / name)
    (project / "node_modules").symlink_to(ROOT / "node_modules")
    (project / "book" / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    (project / "book" / "index.md").write_text("# A page\n\nAn equation: $x$.\n")
    (project / "_build").mkdir()
    return Folders(project)


def test_pages_are_built_once_until_something_changes(small_book, monkeypatch):
    calls = []

    def fake(folders, with_pdf):
        calls.append(1)
        folders.html.mkdir(parents=True)
        (folders.html / "index.html").write_text("built")

    monkeypatch.setattr(pages, "run_jupyter_book", fake)
    assert build_pages(small_book) is True
    assert build_pages(small_book) is False
    (small_book.book / "index.md").write_text("# Another\n")
    assert build_pages(small_book) is True
    assert len(calls) == 2


def test_warnings_stop_the_build(small_book):
    (small_book.book / "index.md").write_text("# A page\n\n[nowhere](./missing.md)\n")
    with pytest.raises(PagesError, match=r"index\.md:3: WARNING.*missing\.md"):
        build_pages(small_book)


def test_a_small_book_builds_with_all_scripts_beside_it(small_book):
    assert build_pages(small_book) is True
    page = (small_book.html / "index.html").read_text()
    assert "thebe" not in "".join(re.findall(r"<(?:script|link)[^>]*(?:src|href)=[^>]*>", page))
    assert 'src="_static/vendor/tex-svg.js"' in page
    assert "plotly.min.js" not in page  # a page without a figure does not load it
    for target in pages.vendored(small_book):
        assert (small_book.html / target).stat().st_size > 200


HOME = "# A page\n\n$$x = 1 \\tag{6}$$\n\n$$y = 2 \\tag{7}$$\n\n"


def equation_links(page: str) -> list[tuple[str, str]]:
    return re.findall(r'<a class="equation-link[^"]*" href="([^"]*)">([^<]*)</a>', page)


def test_mentions_of_equations_become_links(small_book):
    (small_book.book / "_toc.yml").write_text(
        "format: jb-book\nroot: index\nchapters:\n  - file: two\n"
    )
    (small_book.book / "index.md").write_text(HOME + "See Eq. 6, and `Eq. 7` in code.\n")
    (small_book.book / "two.md").write_text("# On Eq. 6\n\nSee *Eqs. 6 and 7*, (Eq. 7).\n")
    assert build_pages(small_book) is True
    first, second = ((small_book.html / n).read_text() for n in ("index.html", "two.html"))
    assert equation_links(first) == [("#eq-6", "Eq. 6")]
    assert '<div class="math notranslate nohighlight" id="eq-6">' in first
    assert equation_links(second) == [
        ("index.html#eq-6", "6"),
        ("index.html#eq-7", "7"),
        ("index.html#eq-7", "Eq. 7"),
    ]


def test_open_points_link_to_the_list_of_them(small_book):
    (small_book.book / "_toc.yml").write_text(
        "format: jb-book\nroot: index\nchapters:\n  - file: A-reading-notes\n"
    )
    notes = "# Notes\n\n## The open points\n\nText.\n"
    (small_book.book / "A-reading-notes.md").write_text(notes)
    (small_book.book / "index.md").write_text(
        "# A page\n\nSee open points 6, 8 and 9: by Eq. 6.\n\n$$x\\tag{6}$$\n"
    )
    assert build_pages(small_book) is True
    page, notes = (
        (small_book.html / f"{n}.html").read_text() for n in ("index", "A-reading-notes")
    )
    link = r'<a[^>]* href="A-reading-notes.html#the-open-points"><?[^<]*open points 6, 8 and 9'
    assert re.search(link, page) and 'id="the-open-points"' in notes
    assert equation_links(page) == [("#eq-6", "Eq. 6")]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("See Eq. 8.\n", r"Eq\. 8 stands nowhere"),
        ("$$z \\tag{6}$$\n", r"Eq\. 6 stands on index already"),
    ],
)
def test_equation_without_a_home_or_with_two_stops_the_build(small_book, text, complaint):
    (small_book.book / "index.md").write_text(HOME + text)
    with pytest.raises(PagesError, match=complaint):
        build_pages(small_book)


def test_map_and_status_say_what_was_measured(project):
    source = {"cell_type": "markdown", "id": "t", "metadata": {}, "source": "# Title\n\nIt\nacts."}
    content = notebook(PARAMETERS, "1 + 1")
    content["cells"].insert(0, source)
    path = project / "book" / "01-one.ipynb"
    path.write_text(json.dumps(content))
    (record,) = run(project, path)
    table = generated.chapter_map([path], project / "out")
    assert f"| [Title](01-one.ipynb) | It acts. | {record.seconds / 60:.1f}" in table
    status = generated.status_page([path], project / "out")
    assert f"| [Title](01-one.ipynb) | {record.seconds:.0f} | {record.finished[:10]}" in status
    assert f"| torch | {version('torch')} |" in status
    assert record.environment["machine"] in status and "| lite | 1 |" in status


def test_map_and_status_say_whether_the_machine_was_busy(tmp_path):
    quiet = Record(
        "a", "", "lite", 1.0, 0, "2026-01-01T00:00:00+00:00", 1, 2, 2.2, [], {"cores": 2}
    )
    busy = replace(quiet, load=4.0)
    assert not generated.was_busy(quiet) and generated.was_busy(busy)
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": [{"source": "# A\n\nActs."}]}))
    for record, minutes in ((quiet, "0.0"), (busy, "0.0 (busy)")):
        (tmp_path / "a.json").write_text(json.dumps(asdict(record)))
        assert f"| Acts. | {minutes} |" in generated.chapter_map([path], tmp_path)
    where = {"cores": 2, "device": "cpu", "machine": "m", "python": "3", "code": {"commit": "abc"}}
    where["code"]["dirty"] = False
    said = ["\n".join(generated._summary([replace(r, environment=where)])) for r in (quiet, busy)]
    assert "The machine was quiet" in said[0] and "busy with other work" in said[1]
    assert "up to 4.0 processes" in said[1] and "2 ran side by side" in said[0]


def test_every_module_has_a_place_in_the_reference():
    package = ROOT / "dfkd_lite"
    files = [p.relative_to(package).with_suffix("").parts for p in package.rglob("[!_]*.py")]
    by_name = {".".join(parts) for parts in files if not parts[0].startswith("cli")}
    whole = {name for name in by_name if name.split(".")[0] in generated.WHOLE}
    placed = [m for _, _, modules in generated.REFERENCE for m in modules]
    lab = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts)
        for p in (ROOT / "dfkd_lab").rglob("[!_]*.py")
    } - {"dfkd_lab.command"}
    rooms = {"networks", "methods", "data", "dfkd_course"}
    assert sorted(placed) == sorted((by_name - whole) | lab | rooms)


# --- setting up ---------------------------------------------------------------------------------


def test_make_names_the_interpreters_it_tried(tmp_path):
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    command = ["make", ".venv/place", "PYTHON=/no/such/python"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert (
        "No working Python 3.11, 3.12 or 3.13" in done.stderr and "/no/such/python" in done.stderr
    )


# --- this book ----------------------------------------------------------------------------------


def test_sources_hold_no_outputs():
    full = []
    for path in sorted((ROOT / "book").glob("**/*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell.get("outputs") or cell.get("execution_count"):
                full.append(f"{path.name}: {''.join(cell['source'])[:60]}")
    assert full == []


def test_lock_file_names_no_download_addresses():
    assert "resolved" not in (ROOT / "package-lock.json").read_text(encoding="utf-8")


class Links(HTMLParser):
    """The addresses that a page refers to, and the names in it that can be referred to."""

    def __init__(self):
        super().__init__()
        self.targets: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag, attrs):
        for key, value in attrs:
            if key in ("href", "src") and value:
                self.targets.append(value)
            elif key in ("id", "name") and value:
                self.names.add(value)


def read_links(page: Path) -> Links:
    links = Links()
    links.feed(page.read_text(encoding="utf-8"))
    return links


@pytest.mark.book
def test_internal_links_resolve():
    html = ROOT / "_build" / "html"
    found = {page: read_links(page) for page in html.glob("*.html")}
    if not found:
        missing("the book is not built (make book)")
    broken = []
    for page, links in found.items():
        for target in links.targets:
            if urlsplit(target).scheme or target.startswith("//"):
                continue
            path, fragment = urldefrag(target)
            path = path.split("?")[0]
            file = (page.parent / unquote(path)).resolve() if path else page.resolve()
            if not file.is_file() or (
                fragment and file in found and fragment not in found[file].names
            ):
                broken.append(f"{page.name}: {target}")
    assert broken == []
