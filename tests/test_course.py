"""The course: masters into hand-outs, and the grader on right, wrong, broken and hostile ones."""

import importlib
from pathlib import Path

import colab
import course
import pytest
import yaml
from mistakes import Mistake, spoilt

from dfkd_course.folder import grade_folder
from dfkd_course.grade import Grade, Workers
from dfkd_course.reading import read_assignment

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


def kind(name: str, number: int) -> tuple[str, ...]:
    """What a mistake is a case of: the questions whose points it loses."""
    return tuple(sorted(mistakes_of(name)[number].loses))


def first_of_its_kind(name: str, number: int) -> bool:
    return all(kind(name, before) != kind(name, number) for before in range(number))


def in_short(name: str, number: int) -> bool:
    """Whether `make test` grades this one too: one for each kind; the project takes minutes."""
    return first_of_its_kind(name, number) and not name.endswith("project")


def cases() -> list:
    """Each assignment and the number of each of its mistakes; the slow ones marked."""
    pairs = [(name, number) for name in NAMES for number in range(len(mistakes_of(name)))]
    slow = [pytest.mark.slow]
    return [
        pytest.param(*pair, id=f"{pair[0]}-{pair[1]}", marks=[] if in_short(*pair) else slow)
        for pair in pairs
    ]


SOME = [pytest.param(n, marks=[pytest.mark.slow] * n.endswith("project")) for n in NAMES]


@pytest.fixture(scope="module")
def graded(
    made: dict[str, course.Made], tmp_path_factory: pytest.TempPathFactory, workers: Workers
):
    """Grades of an assignment's solution, its empty hand-out and its mistakes, each graded once."""
    kept: dict[tuple[str, bool], dict[str, Grade]] = {}

    def texts(name: str, short: bool) -> dict[str, str]:
        found = {
            f"mistake-{number}": spoilt(made[name].solution, mistake)
            for number, mistake in enumerate(mistakes_of(name))
            if in_short(name, number) == short
        }
        if short:
            found["solution"] = made[name].solution.read_text(encoding="utf-8")
            found["empty"] = made[name].student.read_text(encoding="utf-8")
        return found

    def grades(name: str, short: bool = True) -> dict[str, Grade]:
        if (name, short) not in kept:
            folder = tmp_path_factory.mktemp(name)
            submissions = folder / "submissions"
            submissions.mkdir()
            for title, text in texts(name, short).items():
                (submissions / f"{title}.ipynb").write_text(text, encoding="utf-8")
            assignment = read_assignment(made[name].autograder)
            found = grade_folder(submissions, assignment, folder / "out", workers=workers)
            kept[name, short] = {grade.name: grade for grade in found}
        return kept[name, short]

    return grades


@pytest.mark.parametrize("name", SOME)
def test_the_solution_earns_every_point(name: str, graded) -> None:
    solution = graded(name)["solution"]
    assert [mark for mark in solution.marks if mark.why] == []
    assert solution.points == solution.of > 0 and solution.notes == []


@pytest.mark.parametrize("name", SOME)
def test_the_empty_hand_out_earns_nothing(name: str, graded) -> None:
    grades = graded(name)
    assert grades["empty"].points == 0
    assert grades["empty"].of == grades["solution"].of
    assert all(mark.why for mark in grades["empty"].marks)


@pytest.mark.parametrize(("name", "number"), cases())
def test_a_common_mistake_loses_its_points_and_no_others(name: str, number: int, graded) -> None:
    mistake, best = mistakes_of(name)[number], graded(name)["solution"]
    got = graded(name, in_short(name, number))[f"mistake-{number}"]
    questions = {mark.question for mark in best.marks}
    lost = {q: best.of_question(q) - got.of_question(q) for q in questions}
    assert {q: points for q, points in lost.items() if points} == mistake.loses, (
        mistake.name, [mark for mark in got.marks if mark.why], got.notes,
    )  # fmt: skip
    said = [mark.why for mark in got.marks if mark.why]
    assert any(mistake.says in why for why in said), said


@pytest.mark.parametrize("name", SOME)
def test_the_course_page_gives_the_points(name: str, made: dict[str, course.Made], graded) -> None:
    by_hand = sum(read_assignment(made[name].autograder).by_hand.values())
    page = (ROOT / "book" / "course.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| {name[0]}. "))
    assert row.rsplit("|", 2)[1].strip() == f"{graded(name)['solution'].of:g} + {by_hand:g}"
