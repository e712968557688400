"""What a chapter depends on, and which tests a change concerns: on a small package, and on ours."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import quick
import yaml
from depends import EXTRAS, Modules, code_of, imports_of, installed_versions

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))

ALL_BELOW = {"__init__", "a", "b", "c", "tools/__init__", "tools/hammer"}  # __init__ itself
FILES = {
    "__init__": "from .a import one, other\nfrom .tools import two\nHERE = 1\n",
    "a": "from .b import deep\none = other = 1\n",
    "b": "def late():\n    from . import c\n",
    "c": "three = 3\n",
    "d": "import dfkd_lite.c\nfrom dfkd_lite.tools.hammer import hit\n",
    "e": "from .tools import *\n",
    "tools/__init__": "from .hammer import hit, two\n",
    "tools/hammer": "from ..c import three\ntwo = hit = 2\n",
    "tools/saw": "",
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "dfkd_lite" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def needed(root: Path, source: str) -> set[str]:
    folder = root / "dfkd_lite"
    return {
        path.relative_to(folder).with_suffix("").as_posix()
        for path in Modules(root).needed_by(source)
    }


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("import torch", set()),
        # a name is followed to its module, and from import to import, also inside a function
        ("from dfkd_lite import one", {"__init__", "a", "b", "c"}),
        ("from dfkd_lite import two", {"__init__", "tools/__init__", "tools/hammer", "c"}),
        ("from dfkd_lite import c", {"__init__", "c"}),
        ("from dfkd_lite.tools import saw", {"__init__", "tools/__init__", "tools/saw"}),
        # what is defined in a package itself may use all that it imports, and so may "import it"
        ("from dfkd_lite import HERE", ALL_BELOW),
        ("import dfkd_lite", ALL_BELOW),
        ("import dfkd_lite.d", {"__init__", "d", "c", "tools/__init__", "tools/hammer"}),
        ("from dfkd_lite.e import x", {"__init__", "e", "tools/__init__", "tools/hammer", "c"}),
    ],
)  # fmt: skip
def test_modules_that_some_code_needs(small: Path, source: str, wanted: set[str]) -> None:
    assert needed(small, source) == wanted


def test_how_far_away_a_module_is(small: Path) -> None:
    away = Modules(small).needed_by("from dfkd_lite import one\nfrom dfkd_lite.e import x")
    steps = {path.relative_to(small / "dfkd_lite").as_posix(): n for path, n in away.items()}
    assert steps == {
        "__init__.py": 1, "a.py": 1, "e.py": 1, "b.py": 2, "tools/__init__.py": 2,
        "tools/hammer.py": 3, "c.py": 3,
    }  # fmt: skip


def test_relative_imports_are_counted_from_the_package() -> None:
    (one,) = imports_of("from ..x import y as z", "p.q")
    assert (one.module, one.name, one.bound) == ("p.x", "y", "z")
    (one,) = imports_of("from . import y", "p")
    assert (one.module, one.name) == ("p", "y")


def test_lines_that_only_ipython_understands_are_passed_over() -> None:
    cell = {"cell_type": "code", "source": "if a:\n    %pip install x\n!ls\nimport b\n"}
    assert [one.module for one in imports_of(code_of({"cells": [cell]}), "")] == ["b"]


@pytest.mark.parametrize(
    "module", ["lipschitz", "data.shortcut", "measure.privacy", "measure.signs"]
)
def test_touching_a_module_concerns_the_chapters_that_import_it_and_no_others(module: str) -> None:
    """These modules are imported by no other that chapters use, but for the command line's."""
    modules, concerned, importing = Modules(ROOT), set(), set()
    for path in NOTEBOOKS:
        text = code_of(json.loads(path.read_text(encoding="utf-8")))
        if modules.files[f"dfkd_lite.{module}"] in modules.needed_by(text):
            concerned.add(path.stem)
        if f"dfkd_lite.{module} import" in text:
            importing.add(path.stem)
        if module == "measure.signs" and "dfkd_lite.cli" in text:
            importing.add(path.stem)
    assert concerned == importing and len(importing) in (1, 4)


def test_every_module_that_a_chapter_runs_is_among_those_it_needs() -> None:
    """Against Python itself: what an import really loads, with all of what hands names on."""
    code = "import sys, dfkd_lab.table; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    modules = Modules(ROOT)
    packages = "import dfkd_lite\nimport dfkd_lite.data\nimport dfkd_lab.records\n"
    found = modules.needed_by(f"{packages}import dfkd_lab.table")
    loaded = {modules.files[name] for name in done.stdout.split() if name in modules.files}
    assert loaded and loaded <= set(found)


def test_versions_are_those_of_what_the_package_needs() -> None:
    lines = installed_versions(("book",)).splitlines()
    assert f"torch=={version('torch')}" in lines and f"papermill=={version('papermill')}" in lines
    names = {line.partition("==")[0] for line in lines}
    assert names.isdisjoint({"pytest", "captum", "snakemake", "ruff", "timm"})
    assert "jinja2" in names  # of what these need in turn


# --- make quick -----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["kd", "lipschitz", "image_pool"])
def test_a_change_is_tested_by_its_own_tests_first(module: str) -> None:
    names = [path.stem for path in quick.chosen(ROOT, [f"dfkd_lite/{module}.py"])]
    assert names[0] == f"test_{module}"
    assert ("test_distill" in names) == (module != "lipschitz")


@pytest.mark.parametrize(
    ("name", "tests"),
    [
        ("tests/test_kd.py", ["test_kd"]),
        ("book/04-generator.ipynb", ["test_chapters"]),
        ("README.md", []),
    ],
)
def test_a_changed_test_is_run_a_chapter_is_checked_and_a_text_concerns_none(
    name: str, tests: list[str]
) -> None:
    assert [path.stem for path in quick.chosen(ROOT, [name])] == tests


def test_a_changed_record_concerns_the_tests_that_read_records() -> None:
    name = next((ROOT / "data" / "records").rglob("*.json")).relative_to(ROOT)
    names = {path.stem for path in quick.chosen(ROOT, [str(name)])}
    assert "test_report" in names and "test_kd" not in names


def test_adding_the_tests_packages_replaced_nothing_of_the_book() -> None:
    """Else `make test` after `make book` would execute every chapter again."""
    stamp = ROOT / ".venv" / "ready-book"
    if not stamp.is_file():
        pytest.skip("the packages were not installed by make")
    assert stamp.read_text(encoding="utf-8").strip() == installed_versions(EXTRAS)


# --- the workflows --------------------------------------------------------------------------------

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_workflows_follow_githubs_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    command += ["vendor.github-workflows", *map(str, WORKFLOWS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and len(WORKFLOWS) == 2, done.stdout + done.stderr


def test_workflows_call_make_and_nothing_else() -> None:
    targets = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    for path in WORKFLOWS:
        jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
        for step in (step for job in jobs for step in job["steps"] if "run" in step):
            make, target = step["run"].split()
            assert make == "make" and target in targets, step


def test_only_the_configuration_says_where_the_pages_are_published() -> None:
    address = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["html"]["baseurl"]
    assert address.startswith("https://") and address.endswith("/")
    for path in [*WORKFLOWS, *(ROOT / "tools").glob("*.py"), *(ROOT / "book" / "_ext").glob("*.*")]:
        assert address not in path.read_text(encoding="utf-8"), path
