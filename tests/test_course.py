"""The course: masters into hand-outs, and the grader on right, wrong, broken and hostile ones."""

import importlib
import shutil
from pathlib import Path

import colab
import course
import pytest
import yaml
from mistakes import Mistake, spoilt

from dfkd_lite.course.grade import Grade, grade_folder, read_assignment

ROOT = Path(__file__).parents[1]
INSTALL = colab.install_cell(yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8")))
MASTERS = course.masters()
NAMES = [path.stem for path in MASTERS]


def topic(name: str) -> str:
    return name.split("-", 1)[1].replace("-", "_")


def mistakes_of(name: str) -> list[Mistake]:
    return importlib.import_module(f"mistakes.{topic(name)}").MISTAKES


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, course.Made]:
    out = tmp_path_factory.mktemp("course")
    return {path.stem: course.make(path, out, INSTALL) for path in MASTERS}


@pytest.fixture(scope="module")
def graded(made: dict[str, course.Made], tmp_path_factory: pytest.TempPathFactory):
    """Of an assignment: its solution, the empty hand-out, and each mistake, graded once."""
    kept: dict[str, dict[str, Grade]] = {}

    def grades(name: str) -> dict[str, Grade]:
        if name not in kept:
            folder = tmp_path_factory.mktemp(name)
            submissions = folder / "submissions"
            submissions.mkdir()
            shutil.copy(made[name].solution, submissions / "solution.ipynb")
            shutil.copy(made[name].student, submissions / "empty.ipynb")
            for number, mistake in enumerate(mistakes_of(name)):
                path = submissions / f"mistake-{number}.ipynb"
                path.write_text(spoilt(made[name].solution, mistake), encoding="utf-8")
            assignment = read_assignment(made[name].autograder)
            found = grade_folder(submissions, assignment, folder / "out")
            kept[name] = {grade.name: grade for grade in found}
        return kept[name]

    return grades


CASES = [(name, number) for name in NAMES for number in range(len(mistakes_of(name)))]


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_earns_every_point(name: str, graded) -> None:
    solution = graded(name)["solution"]
    assert [mark for mark in solution.marks if mark.why] == []
    assert solution.points == solution.of > 0 and solution.notes == []


@pytest.mark.parametrize("name", NAMES)
def test_the_empty_hand_out_earns_nothing(name: str, graded) -> None:
    grades = graded(name)
    assert grades["empty"].points == 0
    assert grades["empty"].of == grades["solution"].of
    assert all(mark.why for mark in grades["empty"].marks)


@pytest.mark.parametrize(("name", "number"), CASES, ids=lambda value: str(value))
def test_a_common_mistake_loses_its_points_and_no_others(name: str, number: int, graded) -> None:
    mistake, grades = mistakes_of(name)[number], graded(name)
    got, best = grades[f"mistake-{number}"], grades["solution"]
    questions = {mark.question for mark in best.marks}
    lost = {q: best.of_question(q) - got.of_question(q) for q in questions}
    assert {q: points for q, points in lost.items() if points} == mistake.loses, (
        mistake.name, [mark for mark in got.marks if mark.why], got.notes,
    )  # fmt: skip
    said = [mark.why for mark in got.marks if mark.why]
    assert any(mistake.says in why for why in said), said


@pytest.mark.parametrize("name", NAMES)
def test_the_course_page_gives_the_points(name: str, made: dict[str, course.Made], graded) -> None:
    by_hand = sum(read_assignment(made[name].autograder).by_hand.values())
    page = (ROOT / "book" / "course.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| {name[0]}. "))
    assert row.rsplit("|", 2)[1].strip() == f"{graded(name)['solution'].of:g} + {by_hand:g}"
