"""The house: what may reach what, by the imports. Above all, the loop cannot reach the data."""

import ast
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from pkgutil import resolve_name

import pytest
from depends import Modules, code_of, imports_of

from dfkd_course.worker import CHECKS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dfkd_lite"
MODULES = Modules(ROOT)
LAB, COURSE = ROOT / "dfkd_lab", ROOT / "dfkd_course"
PATHS = sorted(path for path in PACKAGE.rglob("*.py") if path.stem not in ("__init__", "__main__"))
LAB_PATHS = sorted(path for path in LAB.rglob("*.py") if path.stem != "__init__")
LOOP = [PACKAGE / "distill.py", *sorted(PACKAGE.glob("methods/[!_]*.py"))]
#: What knows real images, or measures on them.
DATA = {"data", "teach", "measure", "dfkd_lab"}
#: Flat files that no chapter builds: what every room uses, settings by name, ordinary training.
UNBUILT = {"errors", "devices", "presets", "settings", "teach"}
#: What may import a library that draws, or makes widgets.
DRAWING = {"dfkd_lab.viz.figures", "dfkd_lab.viz.widgets", "dfkd_lab.table"}


def name_of(path: Path) -> str:
    below = PACKAGE if path in PATHS else ROOT
    return ".".join(path.relative_to(below).with_suffix("").parts)


def room(path: Path) -> str:
    """The flat file or the folder of the package that a file is, or lies in."""
    return name_of(path).split(".")[0]


def reached_from(path: Path) -> dict[Path, int]:
    """What a file imports, directly (1) or through how many others."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    found = MODULES.needed_by(f"import {module}")
    known = {*PATHS, *LAB_PATHS}
    return {other: away - 1 for other, away in found.items() if away > 1 and other in known}


@pytest.mark.parametrize("path", LOOP, ids=name_of)
def test_the_loop_cannot_reach_the_data(path: Path) -> None:
    assert {room(other) for other in reached_from(path)} & DATA == set()


def test_what_stands_on_the_package_is_imported_only_where_it_is_asked_for() -> None:
    above = {path: ("dfkd_lab", "dfkd_course") for path in PATHS}
    above |= {path: ("dfkd_course",) for path in LAB_PATHS}
    for path, names in above.items():
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not any(name in ast.unparse(node) for name in names), path


def test_imports_run_in_no_circle() -> None:
    paths = (*PATHS, *LAB_PATHS)
    direct = {path: [o for o, away in reached_from(path).items() if away == 1] for path in paths}
    assert set(TopologicalSorter(direct).static_order()) == set(paths)


def test_nothing_below_imports_the_command_nor_what_stands_on_the_package() -> None:
    for path in (*PATHS, *LAB_PATHS):
        if room(path) != "cli":
            found = reached_from(path)
            above = [o for o in found if room(o) == "cli" or (path in PATHS and o in LAB_PATHS)]
            assert not above, path


def test_only_what_draws_imports_a_drawing_library() -> None:
    for path in (*PATHS, *LAB_PATHS):
        found = {one.module.split(".")[0] for one in imports_of(path.read_text("utf-8"), "")}
        drawing = found & {"matplotlib", "plotly", "ipywidgets"}
        assert not drawing or name_of(path) in DRAWING, path


@pytest.mark.parametrize("module", ["dfkd_lab.runner", "dfkd_lab.table", "dfkd_lite.cli.main"])
def test_a_run_and_the_command_wait_for_no_drawing_library(module: str) -> None:
    code = f"import sys, {module}; print({{'matplotlib', 'plotly'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_checks_are_loaded_anew_after_those_that_they_import_from() -> None:
    for number, module in enumerate(CHECKS):
        source = (COURSE / f"{module.partition('.')[2]}.py").read_text("utf-8")
        found = {one.module for one in imports_of(source, "dfkd_course")}
        assert {name for name in found if name.startswith("dfkd_course.")} <= {*CHECKS[:number]}


def chapter_of(path: Path) -> Path:
    """The notebook that a file's first docstring names."""
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    number = re.search(r"Built in chapter (\d+)\.$", docstring)
    assert number, path
    return next((ROOT / "book").glob(f"{int(number[1]):02}-*.ipynb"))


@pytest.mark.parametrize(
    "path", [p for p in PATHS if p.parent == PACKAGE and p.stem not in UNBUILT], ids=name_of
)
def test_a_flat_file_names_the_chapter_that_builds_it(path: Path) -> None:
    """And that chapter imports it itself, or names it."""
    text = chapter_of(path).read_text("utf-8")
    imported = MODULES.needed_by(code_of(json.loads(text))).get(path) == 1
    assert imported or f"dfkd_lite.{name_of(path)}." in text


def test_the_readme_names_what_to_read_first_and_its_length() -> None:
    text = (ROOT / "README.md").read_text("utf-8").split("\n## ")[0]  # the first screen
    named = re.findall(r"`(dfkd_lite/[\w/]+\.py)` \((\d+) lines", text)
    assert [Path(name).stem for name, _ in named] == ["distill", "fssc"]
    for name, lines in named:
        assert abs(len((ROOT / name).read_text("utf-8").splitlines()) - int(lines)) <= 5, name


# --- what the texts say of it ---------------------------------------------------------------------

TEXTS = [
    path
    for pattern in ("*.md", "book/*.md", "book/**/*.ipynb", "data/**/*.md", "workflow/Snakefile")
    for path in sorted(ROOT.glob(pattern))
    if path.name != "CHANGELOG.md"
]
DOTTED = re.compile(r"\bdfkd_(?:lite|lab|course)(?:\.[A-Za-z_]\w*)+")
FROM = re.compile(r"from (dfkd_(?:lite|lab|course)[\w.]*) import (\w[\w ,]*\w)")
PLACEHOLDER = re.compile("[A-Z]{2}")  # NN-title.ipynb
FILES = re.compile(
    r"\b(?:book|data|dfkd_course|dfkd_lab|dfkd_lite|tests|benchmarks|tools|workflow)/[\w/.-]+\.\w+"
)


def is_there(name: str) -> bool:
    """Whether a dotted name is a module of ours, or something in one."""
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def mentioned(path: Path) -> set[str]:
    """Names of modules and of what is in them, in text and in code."""
    text = path.read_text("utf-8").replace('",\n    "', "")
    imported = {
        f"{m[1]}.{name.split()[0]}" for m in FROM.finditer(text) for name in m[2].split(",")
    }
    return {*DOTTED.findall(text), *imported}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_names_and_files_that_a_text_mentions_are_there(path: Path) -> None:
    assert [name for name in mentioned(path) if not is_there(name)] == []
    files = [n for n in FILES.findall(path.read_text("utf-8")) if not PLACEHOLDER.search(n)]
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_no_file_is_too_long_to_be_read() -> None:
    lines = {path: lines_of(path) for path in (*PATHS, *LAB_PATHS)}
    assert {name_of(path): count for path, count in lines.items() if count > 420} == {}
    lines = {path.name: lines_of(path) for path in COURSE.glob("*.py")}
    assert lines and {name: count for name, count in lines.items() if count > 500} == {}


def lines_of(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def test_the_package_stays_small_enough_to_read() -> None:
    """All of it, and the way through it: the method's pieces, the networks, the loop."""
    assert sum(map(lines_of, PACKAGE.rglob("*.py"))) < 9_500
    pieces = ("generator", "meta", "inversion", "kd", "cam", "msarc", "spectral", "lipschitz")
    names = {*pieces, "bound_terms", "image_pool", "distill"}
    names |= {f"methods.{name}" for name in ("base", "generative", "fssc")}
    path = [p for p in PATHS if name_of(p) in names or room(p) == "networks"]
    assert sum(map(lines_of, path)) <= 2_900


@pytest.mark.book
def test_the_reference_shows_no_docstrings_of_pytorch() -> None:
    """They would stand below each forward() that we left without a text."""
    pages = sorted((ROOT / "_build" / "html").glob("api-*.html"))
    theirs = "Should be overridden by all subclasses"
    assert pages and not [page.name for page in pages if theirs in page.read_text("utf-8")]
