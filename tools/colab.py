"""Stamp the cell that installs the package on Colab into every notebook: called by `make format`.

Its text follows `repository` in _config.yml, as the "Open in Colab" links do.
"""

import json
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
TAG = "colab"
CELL = """\
import importlib.util

if importlib.util.find_spec("dfkd_lite") is None:  # on Colab; elsewhere it is there already
    %pip install -q "dfkd_lite[export] @ git+{url}@{branch}"
"""


def install_cell(config: dict) -> dict:
    """The code cell, for the repository and branch of a configuration."""
    repository = config["repository"]
    source = CELL.format(url=repository["url"], branch=repository["branch"]).strip()
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": "install-on-colab",
        "metadata": {"tags": [TAG, "remove-cell"]},
        "outputs": [],
        "source": source.splitlines(keepends=True),
    }


def stamped(notebook: dict, cell: dict) -> dict:
    """The notebook with `cell` as its first code cell, right after the title."""
    others = [c for c in notebook["cells"] if TAG not in c["metadata"].get("tags", [])]
    return {**notebook, "cells": [others[0], cell, *others[1:]]}


def main() -> None:
    cell = install_cell(yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8")))
    for path in sorted((ROOT / "book").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        wanted = stamped(notebook, cell)
        if wanted != notebook:
            text = json.dumps(wanted, indent=1, ensure_ascii=False)
            path.write_text(text + "\n", encoding="utf-8")
            print(f"{path.name}: install cell written")


if __name__ == "__main__":
    main()
