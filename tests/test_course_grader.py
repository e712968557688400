"""The grader on broken and hostile submissions of assignment 2, and what it writes."""

import csv
import io
import json
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType

import colab
import course
import pytest
import yaml
from mistakes import attention, spoilt

from dfkd_course import grade as grading
from dfkd_course.grade import GIB, Grade, Mark, Workers, grade_folder, leaderboard
from dfkd_course.kernel import missing
from dfkd_course.reading import read_assignment
from dfkd_course.worker import jobs_in
from dfkd_lite import InputError
from dfkd_lite.cli.main import main

ROOT = Path(__file__).parents[1]
MASTER = ROOT / "book" / "assignments" / "2-attention.ipynb"
INSTALL = colab.install_cell(yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8")))
UNFENCED = missing() is not None  # on this machine
LIMITS = {"cell_seconds": 8.0, "test_seconds": 20.0, "total_seconds": 60.0, "memory": 2 * GIB}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> course.Made:
    return course.make(MASTER, tmp_path_factory.mktemp("course"), INSTALL)


@pytest.fixture(scope="module")
def solution(made: course.Made) -> dict:
    return json.loads(made.solution.read_text(encoding="utf-8"))


def with_cell(solution: dict, source: str, before: str = "def spatial_softmax") -> str:
    """The solution with one more cell, before the one that holds ``before``."""
    cells = solution["cells"]
    at = next(n for n, c in enumerate(cells) if before in "".join(c["source"]))
    new = {"cell_type": "code", "metadata": {}, "outputs": [], "source": [source]}
    return json.dumps({**solution, "cells": [*cells[:at], new, *cells[at:]]})


def with_answer(solution: dict, holds: str, source: str) -> str:
    """The solution with the cell that holds ``holds`` replaced."""
    cells = [
        {**c, "source": [source]} if holds in "".join(c["source"]) else c for c in solution["cells"]
    ]
    assert cells != solution["cells"]
    return json.dumps({**solution, "cells": cells})


def graded(
    texts: dict[str, str | bytes],
    made: course.Made,
    folder: Path,
    workers: Workers | None = None,
    jobs: int = 2,
) -> dict[str, Grade]:
    submissions = folder / "submissions"
    submissions.mkdir()
    for name, text in texts.items():
        content = text if isinstance(text, bytes) else text.encode()
        (submissions / f"{name}.ipynb").write_bytes(content)
    assignment = read_assignment(made.autograder)
    out = folder / "out"
    found = grade_folder(submissions, assignment, out, jobs, workers, UNFENCED, **LIMITS)
    return {grade.name: grade for grade in found}


# --- the hand-out ---------------------------------------------------------------------------------


def test_hand_out_holds_no_answers_and_no_tests(made: course.Made) -> None:
    text = made.student.read_text(encoding="utf-8")
    for secret in ("flatten(2)", "return_indices", "def test_", "compare_", "Rubric", "SOLUTION"):
        assert secret not in text
    assert "otter" not in text and "grader.check" not in text
    assert "check.q1(spatial_softmax)" in text
    cells = json.loads(text)["cells"]
    assert cells[1]["source"] == INSTALL["source"]
    with zipfile.ZipFile(made.handout) as archive:
        assert archive.namelist() == ["2-attention.ipynb"]
        assert archive.read("2-attention.ipynb").decode() == text


def test_solution_is_clean_python_without_marks(solution: dict) -> None:
    code = ["".join(c["source"]) for c in solution["cells"] if c["cell_type"] == "code"]
    assert not any("SOLUTION" in source or "PROMPT" in source for source in code)
    assert any("flatten(2).softmax(2)" in source for source in code)


def test_the_same_master_makes_the_same_bytes(made: course.Made, tmp_path: Path) -> None:
    again = course.make(MASTER, tmp_path, INSTALL)
    assert again.handout.read_bytes() == made.handout.read_bytes()
    assert again.solution.read_bytes() == made.solution.read_bytes()


def test_autograder_knows_what_a_person_reads(made: course.Made) -> None:
    assignment = read_assignment(made.autograder)
    assert list(assignment.tests) == ["q1", "q2", "q3", "q4", "q5"]
    assert assignment.by_hand == {"q6": 3}
    assert assignment.name == "Assignment 2: spatial attention from the formula"


def test_unreadable_autograders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make course"):
        read_assignment(tmp_path / "missing.zip")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(InputError, match="no autograder"):
        read_assignment(tmp_path / "broken.zip")


@pytest.mark.parametrize("name", ["grade", "fence", "worker"])
def test_the_grader_can_be_imported_on_windows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = find_spec(f"dfkd_course.{name}")
    monkeypatch.setitem(sys.modules, "resource", None)
    spec.loader.exec_module(module_from_spec(spec))  # once more, and kept nowhere


def test_windows_is_told_where_it_can_grade(
    made: course.Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    with pytest.raises(InputError, match="on Windows, grade in"):
        grade_folder(tmp_path, read_assignment(made.autograder), tmp_path / "out")


# --- submissions that try things ------------------------------------------------------------------

HOSTILE = {
    "network": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')",
    "socket": "import socket\nsocket.create_connection(('127.0.0.1', 9))",
    "program": "import subprocess\nsubprocess.run(['touch', '{mark}'])",
    "shell": "!touch {mark}",
    "system": "import os\nos.system('touch {mark}')",
    "machine-code": "import ctypes\nctypes.CDLL(None).system(b'touch {mark}')",
    "fork": "import os\nos.fork()",
    "kill": "import os\nos.kill(os.getppid(), 9)",
    "write": "open('{mark}', 'w').write('x')",
    "delete": "import os\nos.remove('{precious}')",
    "read-master": "text = open('{master}').read()",
    "unlimited": "import resource\nresource.setrlimit(resource.RLIMIT_DATA, (-1, -1))",
    "no-fence": "from dfkd_course import fence\nfence.FORBIDDEN.clear()\n"
    "import os\nos.path.realpath = lambda path: os.getcwd()\nopen('{mark}', 'w')",
}
SAYS = {
    "network": "use the network",
    "socket": "use the network",
    "program": "start another program",
    "shell": "start another pr",
    "system": "start another program",
    "machine-code": "load machine code",
    "fork": "start another process",
    "kill": "signal another process",
    "write": "write mark",
    "delete": "change precious",
    "read-master": "read 2-attention.ipynb",
    "unlimited": "change its limits",
    "no-fence": "write mark",
}


@pytest.fixture(scope="module")
def hostile(
    made: course.Made,
    solution: dict,
    tmp_path_factory: pytest.TempPathFactory,
    workers: Workers,
):
    folder = tmp_path_factory.mktemp("hostile")
    places = {"mark": folder / "mark", "precious": folder / "precious", "master": MASTER}
    places["precious"].write_text("kept")
    texts: dict[str, str | bytes] = {
        name: with_cell(solution, source.format(**places)) for name, source in HOSTILE.items()
    }
    return graded(texts, made, folder, workers), folder


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_forbidden_is_refused_and_reported_and_the_rest_is_graded(
    name: str, hostile
) -> None:
    grade = hostile[0][name]
    assert any(note.startswith("tried to") and SAYS[name] in note for note in grade.notes)
    assert grade.points == grade.of == 14


def test_nothing_was_harmed(hostile) -> None:
    folder = hostile[1]
    assert not (folder / "mark").exists()
    assert (folder / "precious").read_text() == "kept"


WILD = {
    "loop": ("while True:\n    pass", "took longer than 8 s"),
    "loop-that-catches": (
        "import time\nwhile True:\n    try:\n        time.sleep(1)\n    except BaseException:\n"
        "        pass",
        "after 60 s in all",
    ),
    "prints-for-ever": ("while True:\n    print('x' * 10_000)", "took longer than 8 s"),
    "memory": ("hoard = []\nwhile True:\n    hoard.append(bytearray(10**8))", "MemoryError"),
    "tensors": ("hoard = [torch.ones(10**8) for _ in range(100)]", "allocate memory"),
    "leaves": ("import os\nos._exit(0)", "the process ended in cell"),
    "exits": ("import sys\nsys.exit(1)", "SystemExit: 1"),
    "syntax": ("def f(:", "SyntaxError"),
}


WAITED_FOR = "loop-that-catches"  # until the whole submission's time is over
WILD_CASES = [pytest.param(n, marks=[pytest.mark.slow] * (n == WAITED_FOR)) for n in WILD]


@pytest.fixture(scope="module")
def wild(
    made: course.Made,
    solution: dict,
    tmp_path_factory: pytest.TempPathFactory,
    workers: Workers,
    request: pytest.FixtureRequest,
):
    """The wild submissions, but for the one that is waited for where nobody asks for it."""
    asked = {
        item.callspec.params.get("name")
        for item in request.session.items
        if hasattr(item, "callspec")
    }
    texts: dict[str, str | bytes] = {
        name: with_cell(solution, source) for name, (source, _) in WILD.items() if name in asked
    }
    return graded(texts, made, tmp_path_factory.mktemp("wild"), workers)


@pytest.mark.parametrize("name", WILD_CASES)
def test_a_wild_cell_is_stopped_and_costs_only_itself(name: str, wild) -> None:
    grade = wild[name]
    assert any(WILD[name][1] in note for note in grade.notes), grade.notes
    assert grade.points == grade.of == 14


LEAVES = """
import builtins, os
builtins.left = torch.left = 1
torch.manual_seed(7)
os.environ["LEFT"] = os.environ["HOME"] = "here"
open("left.txt", "w").write("x")
"""
LOOKS = """
import builtins, os, tempfile
assert not hasattr(builtins, "left") and not hasattr(torch, "left"), "an object"
assert torch.initial_seed() != 7, "a seed"
assert not os.path.exists("left.txt"), "a file"
assert os.environ["HOME"] == tempfile.gettempdir() == os.getcwd(), "a place"
begun = open("/proc/self/environ").read() if os.path.exists("/proc/self") else ""
assert not any("SECRET" in text or "LEFT" in text for text in (str(os.environ), begun)), "a name"
"""


def test_a_submission_finds_nothing_of_others_or_of_the_instructor(
    made: course.Made, solution: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share a process that has imported everything, and none of them ends it.

    Nor does it run the grader's main module once more, as processes of `multiprocessing` do.
    """
    monkeypatch.setenv("COURSE_SECRET", "SECRET")
    main = ModuleType("__main__")
    main.__file__ = str(tmp_path / "main.py")
    (tmp_path / "main.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setitem(sys.modules, "__main__", main)
    started: list[grading.Worker] = []

    class Counted(grading.Worker):
        def __init__(self) -> None:
            super().__init__()
            started.append(self)

    monkeypatch.setattr(grading, "Worker", Counted)
    texts: dict[str, str | bytes] = {
        "1-leaves": with_cell(solution, LEAVES),
        "2-looks": with_cell(solution, LOOKS),
        "3-dies": with_cell(solution, LEAVES + "os._exit(3)"),
        "4-looks": with_cell(solution, LOOKS),
    }
    grades = graded(texts, made, tmp_path, jobs=1)
    assert [grade.points for grade in grades.values()] == [14] * 4
    assert grades["2-looks"].notes == grades["4-looks"].notes == []
    assert ["(exit 3)" in note for note in grades["3-dies"].notes] == [True]
    assert not (tmp_path / "ran").exists()
    assert len(started) == 1 and started[0].process.poll() is not None


REPLACED = ("os.devnull = outside", "builtins.any = lambda found: True",
            "builtins.isinstance = lambda *about: True", "builtins.next = lambda *about: None",
            "os.path.realpath = lambda path: os.devnull")  # fmt: skip
FENCED = """
import builtins, os, sys
from pathlib import Path
from dfkd_course.fence import raise_fence

own, outside, replace = sys.argv[1:]
raise_fence(Path(own), [])
exec(replace)
for act in (lambda: open(outside), lambda: open(outside, "w"), lambda: os.remove(outside)):
    try:
        act()
    except Exception:  # realpath itself may stumble over a replaced name: refused all the same
        continue
    os._exit(1)
os._exit(0)
"""


@pytest.mark.parametrize("replace", REPLACED)
def test_the_fence_holds_where_a_submission_replaces_the_names_that_it_looks_up(
    replace: str, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "outside.txt").write_text("marks")
    command = [sys.executable, "-c", FENCED, str(tmp_path / "own"), str(tmp_path / "outside.txt")]
    done = subprocess.run([*command, replace], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outside.txt").read_text() == "marks"


BROKEN: dict[str, tuple[Callable[[dict], str | bytes], float, str]] = {
    "text": (lambda s: "an essay", 0, "not a notebook"),
    "binary": (lambda s: b"\xff\xfe\x00", 0, "not a notebook"),
    "list": (lambda s: "[1, 2]", 0, "not a notebook"),
    "other-kernel": (
        lambda s: json.dumps({**s, "metadata": {"kernelspec": {"language": "R", "name": "ir"}}}),
        0,
        "a notebook of R",
    ),
    "no-cells": (lambda s: json.dumps({**s, "cells": []}), 0, ""),
    "missing-answer": (
        lambda s: with_answer(s, "def pool_and_unpool", ""),
        11,
        "name 'pool_and_unpool' is not defined",
    ),
    "broken-answer": (
        lambda s: with_answer(s, "def pool_and_unpool", "def pool_and_unpool(:"),
        11,
        "SyntaxError",
    ),
}


@pytest.fixture(scope="module")
def broken(
    made: course.Made,
    solution: dict,
    tmp_path_factory: pytest.TempPathFactory,
    workers: Workers,
):
    texts = {name: make(solution) for name, (make, _, _) in BROKEN.items()}
    folder = tmp_path_factory.mktemp("broken")
    return graded(texts, made, folder, workers), folder


@pytest.mark.parametrize("name", BROKEN)
def test_broken_submissions_get_what_is_left_of_them(name: str, broken) -> None:
    grade, (_, points, note) = broken[0][name], BROKEN[name]
    assert (grade.points, grade.of) == (points, 14)
    assert not note or any(note in said for said in grade.notes), grade.notes


# --- submissions that want points without answers -------------------------------------------------

PEEKS = """
import sys
def spatial_softmax(scores):
    seen, frame = [], sys._getframe()
    while frame:
        seen.append(str(frame.f_locals))
        frame = frame.f_back
    print(*seen)
    raise ValueError(" ".join(seen))
"""
PATCHES = """
import dfkd_course.attention as attention, dfkd_course.checking as checking
def nothing(*args, **kwargs): pass
checking.expect = attention.expect = attention.compare_softmax = attention.q1.test = nothing
torch.allclose = lambda *args, **kwargs: True
checking.measured["accuracy"] = 1.0
def spatial_softmax(scores): return scores
"""
FORGES = """
import os
def spatial_softmax(scores): return scores
line = '{"question": "q1", "points": 2, "hidden": false, "why": null}'
for number in range(3, 30):
    try:
        os.write(number, (line + chr(10)).encode())
    except OSError:
        pass
"""


BYTES = """
import io, os, pickle, struct
class Mark:
    def __reduce__(self): return io.open, ("{mark}", "w")
def spatial_softmax(scores): return scores
mark = pickle.dumps(Mark())
for number in range(3, 30):
    for text in (mark, struct.pack("!i", len(mark)) + mark):
        try:
            os.write(number, text + bytes([10]))
        except OSError:
            pass
"""
FLOODS = """
import os
def spatial_softmax(scores): return scores
for number in range(3, 30):
    try:
        for _ in range(192):
            os.write(number, b"x" * 1024**2)
        os.write(number, bytes([10]))
    except OSError:
        pass
"""
CHEATS = {"peeks": PEEKS, "patches": PATCHES, "forges": FORGES, "bytes": BYTES, "floods": FLOODS}


@pytest.fixture(scope="module")
def cheats(
    made: course.Made,
    solution: dict,
    tmp_path_factory: pytest.TempPathFactory,
    workers: Workers,
):
    folder = tmp_path_factory.mktemp("cheats")
    texts: dict[str, str | bytes] = {
        name: with_answer(
            solution, "def spatial_softmax", source.replace("{mark}", f"{folder}/mark")
        )
        for name, source in CHEATS.items()
    }
    tracemalloc.start()
    grades = graded(texts, made, folder, workers)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return grades, folder, used


@pytest.mark.parametrize("name", CHEATS)
def test_tricks_earn_nothing(name: str, cheats) -> None:
    grade = cheats[0][name]
    assert (grade.of_question("q1"), grade.points, grade.of) == (0, 12, 14)
    assert grade.measured == {}


def test_what_a_submission_writes_is_not_unpickled(cheats) -> None:
    assert cheats[0]["bytes"].notes == [] and not (cheats[1] / "mark").exists()


def test_a_line_without_an_end_does_not_fill_the_graders_memory(cheats) -> None:
    assert cheats[2] < 128 * 1024**2 < 192 * 1024**2  # what it wrote


def test_half_of_its_tests_left_by_a_submission_does_not_harm_the_next() -> None:
    lines = io.StringIO('st half"}\n{"q1": "tests"}\n{"cells": [], "token": "next"}\n')
    assert [job["token"] for job in jobs_in(lines)] == ["next"]


def test_no_report_shows_a_hidden_test(cheats) -> None:
    for path in (cheats[1] / "out").rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert "test_hidden" not in text and "linspace" not in text, path


# --- what it writes -------------------------------------------------------------------------------


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_mark_is_explained(broken) -> None:
    grades, folder = broken
    rows = table(folder / "out" / "marks.csv")
    assert {row["submission"] for row in rows} == set(BROKEN)
    for row in rows:
        assert (row["points"] == row["of"]) == (row["why"] == ""), row
    for row in table(folder / "out" / "grades.csv"):
        grade = grades[row["submission"]]
        mine = [r for r in rows if r["submission"] == grade.name]
        assert float(row["points"]) == sum(float(r["points"]) for r in mine) == grade.points
        assert row["q6 (by hand, of 3)"] == ""
        text = (folder / "out" / "reports" / f"{grade.name}.md").read_text(encoding="utf-8")
        assert f"{grade.points:g} of 14 points" in text
        assert all(mark.why in text for mark in grade.marks)


def test_a_spreadsheet_runs_no_cell_of_a_submission() -> None:
    text = grading._csv([["=cmd|' /C calc'!A0", "+1", "plain"]])
    assert text.strip() == "'=cmd|' /C calc'!A0,'+1,plain"


def test_only_what_changed_is_graded_again(
    made: course.Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fake(name: str, *rest: object) -> Grade:
        calls.append(name)
        return Grade(name, [Mark("q1", 1, 2, "half")], ["note"], {"accuracy": 0.5})

    monkeypatch.setattr(grading, "grade", fake)
    assignment, folder = read_assignment(made.autograder), tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.ipynb").write_text("{}")
    first = grade_folder(folder, assignment, tmp_path / "out", unfenced=True)
    (folder / "b.ipynb").write_text("{ }")
    second = grade_folder(folder, assignment, tmp_path / "out", unfenced=True)
    assert sorted(calls[:2]) == ["a", "b"] and calls[2:] == ["b"]
    assert first == second
    grade_folder(folder, assignment, tmp_path / "out", unfenced=True, cell_seconds=1.0)
    assert sorted(calls[3:]) == ["a", "b"]


def test_leaderboard_has_the_best_first_and_those_without_a_number_last() -> None:
    grades = [
        Grade("a", measured={"accuracy": 0.5, "images": 100}),
        Grade("b"),
        Grade("c", measured={"accuracy": 0.75, "images": 200}),
    ]
    assert leaderboard(grades) == [
        ["submission", "accuracy", "images"],
        ["c", "0.75", "200"],
        ["a", "0.5", "100"],
        ["b", "", ""],
    ]


@pytest.mark.slow
def test_an_instructors_path(
    made: course.Made,
    solution: dict,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twelve hand-ins of all kinds, in folders as a course collects them, by the command."""
    monkeypatch.chdir(tmp_path)
    wanted: dict[str, float] = {"right": 14, "empty": 0, "text": 0, "no-cells": 0}
    texts = {
        "right": made.solution.read_text(encoding="utf-8"),
        "empty": made.student.read_text(encoding="utf-8"),
        "text": "an essay",
        "no-cells": json.dumps({**solution, "cells": []}),
    }
    for number in (0, 3, 7, 8):
        mistake = attention.MISTAKES[number]
        texts[f"mistake-{number}"] = spoilt(made.solution, mistake)
        wanted[f"mistake-{number}"] = 14 - sum(mistake.loses.values())
    for name in ("network", "write", "program", "read-master"):
        source = HOSTILE[name].format(mark=tmp_path / "mark", master=MASTER)
        texts[name] = with_cell(solution, source)
        wanted[name] = 14
    for name, text in texts.items():
        place = tmp_path / "hand-ins" / name / "2-attention.ipynb"
        place.parent.mkdir(parents=True)
        place.write_text(text, encoding="utf-8")
    unfenced = ["--unfenced"] * UNFENCED
    command = ["course", "grade", *unfenced, "hand-ins", "--assignment"]
    assert main([*command, "2-attention"]) == 2
    assert "make course" in capsys.readouterr().err
    built = tmp_path / "_build" / "course" / "2-attention" / "autograder.zip"
    built.parent.mkdir(parents=True)
    built.write_bytes(made.autograder.read_bytes())
    assert main([*command, "2-atention"]) == 2
    assert "Did you mean '2-attention'?" in capsys.readouterr().err

    assert main([*command, "2-attention"]) == 0
    printed = capsys.readouterr().out
    got = {row["submission"]: row for row in table(tmp_path / "grades" / "grades.csv")}
    marks = table(tmp_path / "grades" / "marks.csv")
    assert len(got) == 12 and not (tmp_path / "mark").exists()
    for name, points in wanted.items():
        row = got[f"{name}/2-attention"]
        assert (row["points"], row["of"]) == (f"{points:g}", "14")
        assert f"{name}/2-attention" in printed
        mine = [mark for mark in marks if mark["submission"] == row["submission"]]
        assert sum(float(mark["of"]) for mark in mine) == 14
        assert all(mark["why"] for mark in mine if mark["points"] != mark["of"])
        assert (tmp_path / "grades" / "reports" / name / "2-attention.md").is_file()
    assert "refused" in got["network/2-attention"]["notes"]

    assert main(["course", "grade", *unfenced, "grades", "--assignment", "2-attention"]) == 2
    assert "no notebooks" in capsys.readouterr().err
