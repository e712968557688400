"""pyproject.toml, requirements.txt and environment.yml say the same, and Colab's set fits."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
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
    found = {p.parent for name in ("dfkd_lite", "dfkd_course") for p in (ROOT / name).rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in found}
    assert {*setuptools["packages"]} == names | {"dfkd_lite._data"}


def test_version_is_said_once():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


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
