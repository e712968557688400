"""Writes the cell that installs the package on Colab into every notebook; `make format` calls it.

It names the repository of _config.yml and the release's tag, which follows the version in
pyproject.toml. In a notebook that reads a network which does not come with the package, it installs
the others as well (data/).
"""

import json
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import yaml
from depends import data_files, declared

ROOT = Path(__file__).resolve().parents[1]
TAG = "colab"
CELL = """\
import importlib.util

if importlib.util.find_spec("dfkd_lite") is None:  # on Colab; elsewhere it is there already
    %pip install -q "dfkd_lite[export] @ git+{url}@{tag}"
"""
NETWORKS = """\
    %pip install -q "dfkd_lite_networks @ git+{url}@{tag}#subdirectory=data"
"""


def reads_networks(notebook: dict) -> bool:
    """Return whether a notebook declares a file of the distribution of data/pyproject.toml."""
    project = tomllib.loads((ROOT / "data" / "pyproject.toml").read_text(encoding="utf-8"))
    (patterns,) = project["tool"]["setuptools"]["package-data"].values()
    read = [p.relative_to(ROOT / "data") for p in data_files(ROOT, declared(notebook))]
    return any(fnmatch(path.as_posix(), pattern) for path in read for pattern in patterns)


def release_tag(project: Path = ROOT / "pyproject.toml") -> str:
    """Return the name of the git tag that belongs to the version in a project's file."""
    return "v" + tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]


def install_cell(config: dict, networks: bool = False) -> dict:
    """Return the code cell for a configuration's repository; ``networks`` adds the larger ones."""
    text = CELL + (NETWORKS if networks else "")
    source = text.format(url=config["repository"]["url"], tag=release_tag()).strip()
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": "install-on-colab",
        "metadata": {"tags": [TAG, "remove-cell"]},
        "outputs": [],
        "source": source.splitlines(keepends=True),
    }


def stamped(notebook: dict, cell: dict) -> dict:
    """Return the notebook with `cell` as its first code cell, right after the title."""
    others = [c for c in notebook["cells"] if TAG not in c["metadata"].get("tags", [])]
    return {**notebook, "cells": [others[0], cell, *others[1:]]}


def main() -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    for path in sorted((ROOT / "book").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        wanted = stamped(notebook, install_cell(config, reads_networks(notebook)))
        if wanted != notebook:
            text = json.dumps(wanted, indent=1, ensure_ascii=False)
            path.write_text(text + "\n", encoding="utf-8")
            print(f"{path.name}: install cell written")


if __name__ == "__main__":
    main()
