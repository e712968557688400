"""Submissions that are not what the grader expects: each costs its own points and nobody else's."""

import codecs
import json
import os
import sys
from pathlib import Path

import course
import pytest
from test_course_grader import LIMITS, made, solution, table, with_cell

from dfkd_course import folder as grading
from dfkd_course.folder import grade_folder
from dfkd_course.grade import MOST_NOTES, Grade, Mark, Workers
from dfkd_course.reading import (
    Unreadable,
    find_submissions,
    list_ignored,
    printable,
    read_assignment,
    read_cells,
)

__all__ = ["made", "solution"]  # fixtures

CELL = {"cell_type": "code", "source": ["x = 1\n", "y = 2"]}


def notebook(metadata: object = None, cells: object = (CELL,), **more: object) -> bytes:
    return json.dumps({"metadata": metadata, "cells": cells, **more}).encode()


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata",
    [
        None, [], "text", {"kernelspec": None}, {"kernelspec": []},
        {"kernelspec": {"language": None}},
        {"kernelspec": {"language": 3}}, {"kernelspec": {"language": ""}}, {"language_info": None},
        {"kernelspec": {"language": "Python"}}, {"language_info": {"name": "ipython"}},
        {"kernelspec": {"name": "python3"}},
    ],
)  # fmt: skip
def test_a_notebook_that_says_nothing_of_its_language_is_python(metadata: object) -> None:
    found = read_cells(notebook(metadata))
    assert (found.cells, found.notes) == ([(1, "x = 1\ny = 2")], [])


@pytest.mark.parametrize(
    ("metadata", "language"),
    [
        ({"kernelspec": {"language": "R"}}, "R"),
        ({"kernelspec": {"name": "ir", "language": None}}, "R"),
        ({"language_info": {"name": "julia"}}, "julia"),
    ],
)
def test_other_languages_are_refused_by_name(metadata: object, language: str) -> None:
    with pytest.raises(Unreadable, match=f"a notebook of {language}, not of Python"):
        read_cells(notebook(metadata))


def test_an_unknown_kernel_is_taken_for_python_and_named() -> None:
    found = read_cells(notebook({"kernelspec": {"name": "conda-\x1b[31menv"}}))
    assert found.cells and found.notes == [
        "the kernel conda-\N{REPLACEMENT CHARACTER}[31menv is not known: taken for Python"
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_notebook_with_a_byte_order_mark_is_read(encoding: str) -> None:
    content = json.dumps(json.loads(notebook()), ensure_ascii=False).encode(encoding)
    assert content.startswith(codecs.BOM_UTF8) == (encoding == "utf-8-sig")
    assert read_cells(content).cells == [(1, "x = 1\ny = 2")]


def test_an_old_notebook_is_read_and_said_to_be_old() -> None:
    cell = {"cell_type": "code", "input": "x = 1", "language": "python"}
    content = {"nbformat": 3, "metadata": {"name": ""}, "worksheets": [{"cells": [cell]}] * 2}
    found = read_cells(json.dumps(content).encode())
    assert found.cells == [(1, "x = 1"), (2, "x = 1")]
    assert found.notes == ["written in an old format (nbformat 3 or earlier)"]


BAD_CELLS = [None, 3, [], {}, {"cell_type": None}, {"cell_type": "code"},
             {"cell_type": "code", "source": None}, {"cell_type": "code", "source": [1]},
             {"cell_type": ["code"], "source": ""}]  # fmt: skip


def test_a_cell_that_is_none_costs_itself() -> None:
    found = read_cells(notebook(cells=[*BAD_CELLS, CELL]))
    assert found.cells == [(len(BAD_CELLS) + 1, "x = 1\ny = 2")]
    assert len(found.notes) == len(BAD_CELLS) and all("left out" in note for note in found.notes)


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"3", b'"cells"', b"[]", b"{}", b'{"cells": 3}', b'{"cells": null}',
     b"[" * 99999, b'{"worksheets": null}', b'{"worksheets": [3]}', b"\xff\xfe\x00", b"PK\x03\x04"],
)  # fmt: skip
def test_what_is_no_notebook_is_called_so(content: bytes) -> None:
    with pytest.raises(Unreadable, match="not a notebook"):
        read_cells(content)


def test_what_reports_show_is_printable() -> None:
    assert printable("a\x1b[2J\ud800\nb\u202e") == "a\ufffd[2J\ufffd b\ufffd"


# --- a folder -------------------------------------------------------------------------------------


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder of hand-ins of every kind of file, two of them good."""
    folder = tmp_path / "in"
    (folder / "ben.ipynb").mkdir(parents=True)
    (folder / "eve.ipynb").mkdir()
    (folder / "eve.ipynb" / "work.ipynb").write_bytes(notebook())
    (folder / "zoe.IPYNB").write_bytes(notebook())
    (folder / "zoe.ipynb").write_bytes(notebook({"kernelspec": {"language": None}}))
    (folder / "nothing.ipynb").symlink_to(folder / "missing")
    (folder / "circle.ipynb").symlink_to(folder / "circle.ipynb")
    (tmp_path / "answer.ipynb").write_bytes(notebook())
    (folder / "away.ipynb").symlink_to(tmp_path / "answer.ipynb")
    (folder / "endless.ipynb").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.ipynb")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "zoe.ipynb").write_bytes(b"\x00\x05\x16\x07")
    (folder / "._zoe.ipynb").write_bytes(b"\x00\x05\x16\x07")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "zoe-checkpoint.ipynb").write_bytes(notebook())
    Path(os.fsdecode(bytes(folder) + b"/" + b"\xff\x1b" * 120 + b".ipynb")).write_bytes(b"{}")
    with (folder / "large.ipynb").open("wb") as file:
        file.truncate(10**10)
    return folder


SAID = {
    "away": "a link to a file outside the folder of submissions",
    "ben": "a folder, not a notebook",
    "circle": "a link to nothing",
    "endless": "a link to a file outside the folder of submissions",
    "eve.ipynb/work": "",
    "large": "larger than 64 MiB",
    "nothing": "a link to nothing",
    "pipe": "not a file",
    "zoe": "",
    "zoe (2)": "",
    "\ufffd" * 240: "not a notebook: the file cannot be read as one",
}


def fake(name: str, content: bytes, *rest: object) -> Grade:
    read_cells(content)
    return Grade(name, [Mark("q1", 2, 2)])


@pytest.mark.skipif(sys.platform != "linux", reason="file names that only Linux allows")
def test_every_kind_of_file_has_its_row_or_is_passed_over_with_a_reason(
    odd: Path, made: course.Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grading, "grade", fake)
    grades = grade_folder(odd, read_assignment(made.autograder), tmp_path / "out", unfenced=True)
    assert {grade.name: "; ".join(grade.notes) for grade in grades} == SAID
    rows = table(tmp_path / "out" / "grades.csv")
    assert {row["submission"]: row["notes"] for row in rows} == SAID
    assert [row["points"] for row in rows if not row["notes"]] == ["2"] * 3
    assert {row["points"] for row in rows if row["notes"]} == {"0"}
    assert len(list((tmp_path / "out" / "reports").rglob("*.md"))) == len(SAID)
    assert list_ignored(odd) == [
        "._zoe.ipynb: added by macOS",
        ".ipynb_checkpoints/zoe-checkpoint.ipynb: a copy of Jupyter's",
        "__MACOSX/zoe.ipynb: added by macOS",
        "eve.ipynb: a folder, whose notebooks are read",
    ]


def test_whatever_goes_wrong_with_one_is_its_own_row(
    made: course.Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumbles(name: str, content: bytes, *rest: object) -> Grade:
        if name == "b":
            raise RuntimeError("half a character \ud800\x1b")
        return fake(name, content)

    monkeypatch.setattr(grading, "grade", stumbles)
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / "in" / f"{name}.ipynb").write_bytes(notebook())
    grades = grade_folder(
        tmp_path / "in", read_assignment(made.autograder), tmp_path / "out", unfenced=True
    )
    assert [grade.points for grade in grades] == [2, 0, 2]
    why = "the grader failed with RuntimeError: half a character \ufffd\ufffd; look at it by hand"
    assert grades[1].notes == [why] and {mark.why for mark in grades[1].marks} == {why}


def test_the_tables_are_whole_after_each_submission(
    made: course.Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / "in" / f"{name}.ipynb").write_bytes(notebook())
    seen, write = [], grading._write_text

    def watched(path: Path, text: str) -> None:
        write(path, text)
        if path.name == "grades.csv":
            seen.append([(row["submission"], row["points"], row["notes"]) for row in table(path)])

    monkeypatch.setattr(grading, "grade", fake)
    monkeypatch.setattr(grading, "_write_text", watched)
    grade_folder(
        tmp_path / "in", read_assignment(made.autograder), tmp_path / "out", jobs=1, unfenced=True
    )
    assert [len(rows) for rows in seen] == [3, 3, 3]
    assert [sum(row[1:] == ("", "not graded yet") for row in rows) for rows in seen] == [2, 1, 0]


def test_a_grade_without_the_fence_is_not_kept_for_one_with_it(
    made: course.Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "ann.ipynb").write_bytes(notebook())
    done: list[bool] = []

    def noted(name: str, content: bytes, a: object, limits: object, workers: Workers) -> Grade:
        done.append(workers.fenced)
        return fake(name, content)

    monkeypatch.setattr(grading, "grade", noted)
    for fenced in (False, False, True, True):
        ready = Workers(fenced)
        grade_folder(tmp_path / "in", read_assignment(made.autograder), tmp_path / "out", 1, ready)
    assert done == [False, True]


def test_a_folder_of_nothing_but_copies_has_no_submissions(tmp_path: Path) -> None:
    (tmp_path / "._a.ipynb").write_bytes(b"")
    with pytest.raises(grading.InputError, match="no notebooks"):
        find_submissions(tmp_path)


# --- what a submission's process says -------------------------------------------------------------

LIES = """
import os, sys
frame = sys._getframe()
while "job" not in frame.f_locals: frame = frame.f_back
token = frame.f_locals["job"]["token"]
answers = frame.f_locals["answers"]
import json
for lie in ({"cell": None}, {"cell": 1, "failed": "half \\ud800\\x1b"}, {"question": "q1"},
            {"question": ["q1"], "points": 9, "why": ""}, {"question": "q99", "points": 9},
            {"question": "q1", "points": "many", "why": ""}, {"done": True, "measured": 3},
            {"done": True, "measured": {"a": "text"}, "refused": []}, {"failed": 1}):
    print(json.dumps({"token": token, **lie}), file=answers, flush=True)
"""


def test_lies_in_the_workers_name_harm_no_other_row(
    made: course.Made, solution: dict, tmp_path: Path, workers: Workers
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "liar.ipynb").write_text(with_cell(solution, LIES))
    (tmp_path / "in" / "right.ipynb").write_text(json.dumps(solution))
    out = tmp_path / "out"
    grade_folder(tmp_path / "in", read_assignment(made.autograder), out, 1, workers, **LIMITS)
    rows = {row["submission"]: row for row in table(out / "grades.csv")}
    assert rows["right"]["points"] == rows["liar"]["points"] == "14"
    assert "cell 1: half \ufffd\ufffd" in rows["liar"]["notes"]


# --- lines for the kernel, and global switches ----------------------------------------------------

IMPORTS = "import torch"  # what the solution's first cell of code holds
MAGICS = {
    "matplotlib": ("%matplotlib inline", "left out %matplotlib inline"),
    "shell": ("!pip install torch", "left out !pip install torch"),
    "pip": ("  \n%pip install -q torch", "left out %pip install -q torch"),
    "several": ("%load_ext autoreload\n%autoreload 2\nimport os", "left out %autoreload 2"),
    "time": ("%%time", "left out %%time"),
    "capture": ("%%capture out\n!ls", "left out !ls"),
    "help": ("?print\nlen?", "left out %pinfo len"),
    "values": ("x = !ls\ny = %pwd\n%time z = 3\nassert (x, y, z) == ([], None, 3)", "%time z = 3"),
    "inside": ("if True:\n    !nvidia-smi\ntext = '''\n%not a magic\n'''", "left out !nvidia-smi"),
    "by-name": ("get_ipython().run_line_magic('matplotlib', 'inline')", "%matplotlib inline"),
    "imported": ("from IPython import get_ipython as g\ng().enable_gui('tk')", "left out %gui tk"),
    "reset": ("%reset -f\ndisplay(3)", "left out %reset -f"),
    "endless": ("for n in range(500):\n    get_ipython().system(f'ls {n}')", "left out !ls 3"),
}
SWITCHES = {
    "deterministic": "torch.use_deterministic_algorithms(True)",
    "no-gradients": "torch.set_grad_enabled(False)\ntorch.inference_mode().__enter__()",
    "double": "torch.set_default_dtype(torch.float64)",
    "device": "torch.set_default_device('meta')",
    "mode": "from torch._subclasses.fake_tensor import FakeTensorMode\n"
    "mode = FakeTensorMode()\nmode.__enter__()",
    "warnings": "import warnings\nwarnings.simplefilter('error')\nwarnings.filters = []",
    "numpy": "import numpy as np\nnp.seterr(all='raise')\nnp.random.seed(3)",
    "testing": "from torch.testing import _comparison\n_comparison._DTYPE_PRECISIONS.clear()\n"
    "torch.testing.assert_close = None",
    "hooks": "from torch.nn.modules import module\n"
    "module.register_module_forward_hook(lambda *about: torch.zeros(1))",
    "places": "import os, sys\nos.mkdir('sub')\nos.chdir('sub')\nsys.path.clear()\n"
    "os.environ.clear()",
    "modules": "import sys\nsys.modules['torch.testing'] = sys.modules['numpy'] = None\n"
    "del sys.modules['dfkd_course.checking']",
    "signals": "import signal, builtins\nsignal.pthread_sigmask(signal.SIG_BLOCK, {14})\n"
    "signal.setitimer = builtins.isinstance = None",
    "recursion": "import sys, gc\nsys.setrecursionlimit(60)\ngc.disable()",
    "autocast": "torch.set_autocast_enabled('cpu', True)\ntorch.set_flush_denormal(True)\n"
    "torch.autograd.set_detect_anomaly(True)",
}


@pytest.fixture(scope="module")
def thrown(
    made: course.Made, solution: dict, tmp_path_factory: pytest.TempPathFactory, workers: Workers
) -> dict[str, Grade]:
    folder = tmp_path_factory.mktemp("thrown")
    (folder / "in").mkdir()
    cells = solution["cells"]
    first = next(n for n, c in enumerate(cells) if IMPORTS in "".join(c["source"]))
    for name, (source, _) in MAGICS.items():
        joined = [source + "\n", *cells[first]["source"]]
        spoilt = [*cells[:first], {**cells[first], "source": joined}, *cells[first + 1 :]]
        text = json.dumps({**solution, "cells": spoilt})
        (folder / "in" / f"{name}.ipynb").write_text(text)
    for name, source in SWITCHES.items():
        last = {"cell_type": "code", "metadata": {}, "outputs": [], "source": source}
        text = json.dumps({**solution, "cells": [*cells, last]})
        (folder / "in" / f"{name}.ipynb").write_text(text)
    assignment = read_assignment(made.autograder)
    found = grade_folder(folder / "in", assignment, folder / "out", 1, workers, **LIMITS)
    return {grade.name: grade for grade in found}


@pytest.mark.parametrize("name", MAGICS)
def test_a_line_for_the_kernel_costs_nothing_and_is_named(
    name: str, thrown: dict[str, Grade]
) -> None:
    grade = thrown[name]
    assert any(MAGICS[name][1] in note for note in grade.notes), grade.notes
    assert (grade.points, grade.of) == (14, 14), (grade.notes, grade.marks)
    assert len(grade.notes) <= MOST_NOTES


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_that_is_left_thrown_costs_nothing(name: str, thrown: dict[str, Grade]) -> None:
    grade = thrown[name]
    assert (grade.points, grade.of) == (14, 14), (grade.notes, [m for m in grade.marks if m.why])
