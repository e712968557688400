"""pyproject.toml, requirements.txt and environment.yml say the same, and Colab's set fits.

What travels in the wheels is what chapters read.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import colab
import pytest
import yaml
from depends import data_files, declared
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COLAB_PYTHON = "3.13"
COLAB_LACKS = {"medmnist"}  # toolchain: it adds one small package there and replaces none


def requirement_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def parsed(lines: list[str]) -> dict[str, SpecifierSet]:
    requirements = [Requirement(line) for line in lines]
    assert len({r.name for r in requirements}) == len(requirements), "a package is listed twice"
    return {r.name: r.specifier for r in requirements}


CORE = parsed(PROJECT["dependencies"])
BOOK = parsed(PROJECT["optional-dependencies"]["book"])
COLAB = {
    r.name: next(iter(r.specifier)).version
    for r in map(Requirement, requirement_lines(ROOT / "tests" / "colab-pins.txt"))
}


def conda() -> tuple[list[str], dict[str, SpecifierSet]]:
    """The plain and the pip dependencies of environment.yml."""
    listed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    plain = [entry for entry in listed if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in listed if isinstance(entry, dict)]
    return plain, parsed(pip)


def test_requirements_txt_is_the_core():
    assert parsed(requirement_lines(ROOT / "requirements.txt")) == CORE


def test_environment_yml_is_the_core_and_the_book():
    plain, pip = conda()
    assert pip == {**CORE, **BOOK}
    assert f"python{PROJECT['requires-python']}" in plain


def test_core_has_no_upper_caps():
    caps = [f"{n}{s}" for n, s in CORE.items() for one in s if one.operator != ">="]
    assert not caps


@pytest.mark.parametrize("name", sorted(set(CORE) - COLAB_LACKS))
def test_colab_version_is_admitted(name):
    assert name in COLAB, f"{name} is not among Colab's packages: installing would add it there"
    assert CORE[name].contains(COLAB[name])


def test_python_versions():
    supported = SpecifierSet(PROJECT["requires-python"])
    assert [v for v in range(9, 17) if supported.contains(f"3.{v}")] == [11, 12, 13]
    assert supported.contains(COLAB_PYTHON)
    named = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert named == ["3.11", "3.12", "3.13"]


def test_every_folder_of_ours_travels_in_the_wheel():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    found = {
        p.parent
        for name in ("dfkd_lite", "dfkd_lab", "dfkd_course")
        for p in (ROOT / name).rglob("*.py")
    }
    names = {".".join(folder.relative_to(ROOT).parts) for folder in found}
    assert {*setuptools["packages"]} == names | {"dfkd_lite._data"}


def test_version_is_said_once():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    networks = tomllib.loads((ROOT / "data" / "pyproject.toml").read_text(encoding="utf-8"))
    assert citation["version"] == networks["project"]["version"] == PROJECT["version"]


def test_the_newest_dated_change_the_citation_and_the_tag_are_one_release():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    dated = re.findall(r"(?m)^## (\S+) \((\d{4}-\d\d-\d\d), tag `(\S+)`\)$", changes)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    version, date, tag = dated[0]
    assert version == PROJECT["version"] and tag == colab.release_tag()
    assert date == str(citation["date-released"])


def test_what_pages_tell_people_to_install_is_the_release():
    page = (ROOT / "book" / "course-instructors.md").read_text(encoding="utf-8")
    assert re.findall(r"/archive/(\S+)\.zip", page) == [f"refs/tags/{colab.release_tag()}"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"@ git\+[^@\s]+@([^\s\"]+)", readme) == [colab.release_tag()]


def test_the_citation_has_the_form_of_the_citation_file_format():
    check = [sys.executable, "-m", "check_jsonschema", "CITATION.cff"]
    check += ["--builtin-schema", "vendor.citation-file-format"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("start", "late"),
    [
        ("import dfkd_lite", {"sklearn", "medmnist", "torchvision", "matplotlib", "plotly"}),
        ("from dfkd_lite.cli.main import _parser; _parser()", {"medmnist", "torchvision"}),
    ],
    ids=["package", "command"],
)
def test_a_start_waits_for_no_large_library(start, late):
    """Seconds, at each start of the command and of each job of a workflow."""
    code = f"import sys; {start}; print({late} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


# --- the wheels: the package, and the larger networks ---------------------------------------------

NOTEBOOKS = [
    path
    for folder in ("book", "book/assignments")
    for path in sorted((ROOT / folder).glob("*.ipynb"))
]
WHEELS = pytest.mark.xdist_group("wheels")  # built once, by one process
BENCHMARKS = ("cost", "speed")  # folders of records/ that hold other files than records
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
READ = """
import json, sys
from dfkd_lab import trained
from dfkd_lite import load, preset
from dfkd_lab.records import read_records
trained.teach = trained.distill = None  # nothing has to be trained
trained.trained_teacher(load("digits"), preset("lite"))
trained.trained_student(load("digits"), preset("lite"))
print(json.dumps({name: read_records(name) for name in sys.argv[1:]}))
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> list[Path]:
    """The two wheels, built from a copy: building leaves files behind."""
    copy, target = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheels")
    ignore = shutil.ignore_patterns("__pycache__", "build", "*.egg-info", "downloads")
    for name in ("dfkd_lite", "dfkd_lab", "dfkd_course", "data"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "LICENSE-text"):
        shutil.copy(ROOT / name, copy)
    for folder in (copy, copy / "data"):
        command = [sys.executable, "-c", BUILD, str(target)]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return sorted(target.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory) -> Path:
    """The package as it is installed, without the larger networks."""
    folder = tmp_path_factory.mktemp("installed")
    ZipFile(wheels[0]).extractall(folder)
    return folder


def files_of(wheel: Path) -> dict[str, bytes]:
    """What a wheel has of data/, by name."""
    top = "dfkd_lite/_data/"
    with ZipFile(wheel) as opened:
        names = [name for name in opened.namelist() if name.startswith(top)]
        return {name.removeprefix(top): opened.read(name) for name in names}


def read_by(notebook: Path) -> list[str]:
    """The files of data/ that a notebook declares, but for packed records."""
    found = data_files(ROOT, declared(json.loads(notebook.read_text(encoding="utf-8"))))
    names = [path.relative_to(ROOT / "data").as_posix() for path in found]
    return [name for name in names if not is_packed(name)]


def is_packed(name: str) -> bool:
    return name.startswith("records/") and name.split("/")[1] not in BENCHMARKS


@WHEELS
def test_the_wheel_is_small(wheels):
    assert [wheel.name.split("-")[0] for wheel in wheels] == ["dfkd_lite", "dfkd_lite_networks"]
    assert wheels[0].stat().st_size <= 8_000_000


@WHEELS
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_reads_is_in_what_its_first_cell_installs(wheels, path):
    both = colab.reads_networks(json.loads(path.read_text(encoding="utf-8")))
    held = files_of(wheels[0]) | (files_of(wheels[1]) if both else {})
    for name in read_by(path):
        assert held.get(name) == (ROOT / "data" / name).read_bytes(), name


@WHEELS
def test_every_network_is_in_one_wheel(wheels):
    travels = [name for wheel in wheels for name in files_of(wheel)]
    networks = sorted(name for name in travels if name.startswith(("teachers/", "students/")))
    here = [path for kind in ("teachers", "students") for path in (ROOT / "data" / kind).iterdir()]
    assert networks == sorted(path.relative_to(ROOT / "data").as_posix() for path in here)


# experiments of which chapters 8, 12 and 14 show pictures
PICTURED = ("variants", "table6-digits", "methods-digits")


@WHEELS
def test_records_are_read_from_an_installed_package_as_from_the_checkout(installed, tmp_path):
    """And a teacher and a student of the digits are there: nothing is trained."""
    records = {}
    for path in sorted((ROOT / "data" / "records").glob("*/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if "experiment" in record:
            shown = record["seed"] == 0 and record["experiment"] in PICTURED
            if not shown and "images_png" in record:
                record["images_png"] = ""
            records.setdefault(record["experiment"], []).append(record)
    command = [sys.executable, "-c", READ, *records]
    paths = {"PYTHONPATH": str(installed), "DFKD_DATA": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | paths, check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == records


@WHEELS
def test_an_installed_package_says_how_to_get_the_larger_networks(installed, tmp_path):
    code = "from dfkd_lite.storage.shipped import shipped_network as f; f('teachers/other.json')"
    command = [sys.executable, "-c", code]
    env = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "InputError" in done.stderr and "install dfkd_lite_networks" in done.stderr
