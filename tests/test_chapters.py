"""The chapters themselves: executed twice alike, complete, and written as the house asks."""

import json
import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import colab
import colab_check
import pytest
import yaml
from depends import data_files, declared
from execute import execute_all, read_record

from dfkd_lab.table import UNMEASURED

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
BUILD = ROOT / "_build"
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if re.match(r"\d\d-", path.name)]
MASTERS = sorted((BOOK / "assignments").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
PAPER_EQUATIONS = {str(number) for number in range(1, 24)}


def cells(path: Path, kind: str | None = None) -> list[dict]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if kind in (None, cell["cell_type"])]


def text(path: Path, kind: str) -> str:
    return "\n\n".join("".join(cell["source"]) for cell in cells(path, kind))


# --- two runs with the same seed ------------------------------------------------------------------

TIMES = "timing"  # tag of cells that print how long something took
VIEW = "application/vnd.jupyter.widget-view+json"  # names a widget by a random number


def results(path: Path) -> dict[str, list]:
    """What each cell of an executed notebook put out, but for progress bars, times, widgets."""
    found = {}
    for cell in cells(path, "code"):
        if TIMES not in cell["metadata"].get("tags", []):
            outputs = cell["outputs"]
            printed = "".join(  # a slow cell's lines may come in several outputs
                "".join(o["text"]) for o in outputs if o.get("name") == "stdout"
            )
            shown = [o["data"] for o in outputs if "data" in o]
            pictures = [{k: v for k, v in data.items() if k != VIEW} for data in shown]
            found["".join(cell["source"])] = [printed, *pictures]
    return found


def commit_number() -> int:
    """The commit's hash as a number; 0 outside a checkout."""
    git = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    return int(done.stdout, 16) if done.returncode == 0 else 0


def by_turns() -> list:
    """All notebooks: a quarter, which the commit chooses, for `make test`, the others slow."""
    turn, found = commit_number() % 4, []
    for number, path in enumerate(NOTEBOOKS):
        marks = [pytest.mark.xdist_group(path.stem), pytest.mark.book]
        marks += [pytest.mark.slow] if number % 4 != turn else []
        found.append(pytest.param(path, marks=marks, id=path.stem))
    return found


@pytest.mark.parametrize("path", by_turns())
def test_two_runs_with_the_same_seed_agree(path):
    """Executed once more, beside the build; what is unchanged is not run again."""
    again = BUILD / "executed-again"
    execute_all([path], ROOT, again)
    first, second = BUILD / "executed" / path.name, again / path.name
    keys = [read_record(folder.with_suffix(".json")).key for folder in (first, second)]
    assert keys[0] == keys[1], "the book was built from something else: make book"
    before, after = results(first), results(second)
    assert list(before) == list(after)
    different = [source for source in before if before[source] != after[source]]
    assert different == []


@pytest.mark.book
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_declared_data_file_was_read(path):
    """What is declared and not read would only make a chapter run again for nothing."""
    opened = read_record(BUILD / "executed" / f"{path.stem}.json").opened
    patterns = declared(json.loads(path.read_text(encoding="utf-8")))
    patterns = [p for p in patterns if data_files(ROOT, [p])]  # else not measured yet
    assert [p for p in patterns if not any(fnmatch(name, p) for name in opened)] == []


def tables(path: Path) -> list[list[list[str]]]:
    """The Markdown tables that an executed notebook shows: rows of cells, the head first."""
    found: list[list[list[str]]] = []
    for cell in cells(path, "code"):
        for output in cell["outputs"]:
            lines = "".join(output.get("data", {}).get("text/markdown", "")).splitlines()
            for before, line in zip(["", *lines], lines, strict=False):
                if line.startswith("|"):
                    found += [] if before.startswith("|") else [[]]
                    found[-1].append([c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]])
    return [[table[0], *table[2:]] for table in found]


def untold(table: list[list[str]]) -> list[str]:
    """Columns by their head, and rows by their first cell, in which nothing is measured."""
    head, *rows = table
    columns = [name for name, *column in zip(head, *rows, strict=True) if nothing(column)]
    return columns + [row[0] for row in rows if nothing(row[1:])]


def nothing(column: list[str]) -> bool:
    return bool(column) and all(UNMEASURED in cell for cell in column)


def test_an_empty_column_and_an_empty_row_are_found():
    table = [["", "paper", "ours"], ["a", "1", f"ours: {UNMEASURED}"], ["b", "2", UNMEASURED]]
    assert untold(table) == ["ours"]
    assert untold([*table, ["c", "3", "4"]]) == []
    assert untold([["", "x", "y"], ["a", "1", "2"], ["b", UNMEASURED, UNMEASURED]]) == ["b"]


@pytest.mark.book
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_table_has_a_column_or_a_row_of_which_nothing_is_measured(path):
    """Leave it out, and say how many cells that were."""
    assert [
        untold(table) for table in tables(BUILD / "executed" / path.name) if untold(table)
    ] == []


# --- how chapters are written ---------------------------------------------------------------------


def test_every_notebook_is_in_the_table_of_contents():
    toc = (BOOK / "_toc.yml").read_text(encoding="utf-8")
    listed = re.findall(r"file: (\S+)", toc)
    assert [p.stem for p in NOTEBOOKS if p.stem not in listed] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_install_cell_follows_the_configuration(path):
    networks = colab.reads_networks(json.loads(path.read_text(encoding="utf-8")))
    wanted = colab.install_cell(CONFIG, networks)
    assert cells(path)[1] == wanted, "call make format"
    assert cells(path)[0]["cell_type"] == "markdown"


def test_install_cell_names_the_repository_and_the_release_of_this_version():
    config = {"repository": {"url": "https://example.org/a/b"}}
    source = "".join(colab.install_cell(config)["source"])
    tag = f"v{PROJECT['version']}"
    assert f'pip install -q "dfkd_lite[export] @ git+https://example.org/a/b@{tag}"' in source


def test_the_tag_follows_the_version(tmp_path):
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nversion = "2.3.4"\n', encoding="utf-8")
    assert colab.release_tag(project) == "v2.3.4"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_address_that_pip_installs_from_has_the_tag(path):
    """Chapter 11 installs two distributions: both are of one release."""
    refs = re.findall(r"@ git\+[^@\s\"]+@([^#\"]+)", text(path, "code"))
    assert refs and {*refs} == {f"v{PROJECT['version']}"}


@pytest.mark.parametrize("path", MASTERS, ids=lambda path: path.stem)
def test_a_hand_out_links_to_pages_and_not_to_sources_without_outputs(path):
    links = re.findall(r"\]\((http[^)]+)\)", text(path, "markdown"))
    pages = CONFIG["html"]["baseurl"]
    ours = {link for link in links if "dfkd-lite" in link}
    assert ours and ours <= {f"{pages}{chapter.stem}.html" for chapter in NOTEBOOKS}


def test_a_replaced_or_lost_package_is_noticed():
    before = {"torch": "2.11.0", "numpy": "2.1.3", "tqdm": "4.67.3"}
    after = {"torch": "2.11.0", "numpy": "2.4.0", "medmnist": "3.0.2"}
    assert colab_check.changed(before, after) == {
        "numpy": ("2.1.3", "2.4.0"),
        "tqdm": ("4.67.3", None),
    }


def test_every_equation_of_the_paper_has_one_home():
    tags = [n for path in NOTEBOOKS for n in re.findall(r"\\tag\{(\d+)\}", text(path, "markdown"))]
    assert sorted(tags, key=int) == sorted(PAPER_EQUATIONS, key=int)


def test_the_bibliography_holds_what_is_cited_and_nothing_else():
    sources = [text(path, "markdown") for path in NOTEBOOKS]
    sources += [path.read_text(encoding="utf-8") for path in BOOK.glob("*.md")]
    cited = re.findall(r"\{cite:\w+\}`([^`]+)`", "\n".join(sources))
    keys = re.findall(r"(?m)^@\w+\{(.+),$", (BOOK / "references.bib").read_text("utf-8"))
    assert len(keys) == len(set(keys)), "an entry is there twice"
    assert set(keys) == {key.strip() for keys in cited for key in keys.split(",")}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_exercises(path):
    exercises = text(path, "markdown").partition("## Exercises")[2].partition("\n## ")[0]
    kinds = re.findall(r"^\*\*\d+\. \((\w+)\)\*\*", exercises, re.M)
    assert len(kinds) >= 3 and {"code", "thought"} <= set(kinds)
    assert exercises.count("<details>") == exercises.count("</details>") == len(kinds)
    for solution in re.findall(r"```python\n(.*?)```", exercises, re.S):
        compile(solution, path.name, "exec")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short(path):
    for cell in cells(path, "code"):
        lines = "".join(cell["source"]).splitlines()
        code = [line for line in lines if line.strip() and not line.strip().startswith("#")]
        imports = sum(bool(re.match(r"(from|import|    \w+,$|\))", line)) for line in lines)
        assert len(code) - imports <= 22, "".join(cell["source"])


PICTURES = {"image/png", "application/vnd.plotly.v1+json"}


@pytest.mark.book
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_has_caption_name_and_words(path):
    executed = BUILD / "executed" / path.name
    names = []
    for cell in cells(executed, "code"):
        if any(PICTURES & set(output.get("data", {})) for output in cell["outputs"]):
            shown = cell["metadata"].get("mystnb", {})
            figure, image = shown.get("figure", {}), shown.get("image", {})
            assert figure.get("caption") and image.get("alt"), "".join(cell["source"])
            names.append(figure["name"])
    assert len(set(names)) == len(names)
