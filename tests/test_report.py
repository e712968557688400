"""Reports: every number of every table by hand, whole files, and refusals in one line."""

import csv
import json
import os
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from math import sqrt

import pytest

from dfkd_lab.file import EXPERIMENTS, read_experiment
from dfkd_lab.records import RECORDS, write_record
from dfkd_lab.table import (
    HEADINGS,
    figure,
    markdown_table,
    rows,
    text_table,
    write_csv,
    write_html,
)
from dfkd_lite.cli.main import main
from dfkd_lite.errors import InputError

MARKED = "no <b>maps</b> & more"
FILE = f"""\
about: a small comparison
data: digits
seeds: [0, 1, 2]
cells:
  - name: full method
    data: pneumoniamnist@28
    paper: {{table: table4_medical, row: {{dataset: PneumoniaMNIST}}, differs: "28 px, not 224"}}
  - name: {MARKED}
    settings: {{method: {{beta: 0}}}}
  - name: once
    teacher: wrn-16-2
  - name: never
    paper: {{table: table5_ablation, row: {{variant: full method}}, column: CIFAR-10}}
"""

# (variant, seed): teacher, student; None: diverged
MEASURED = {
    ("full-method", 0): (0.90, 0.80),
    ("full-method", 1): (0.91, 0.82),
    ("full-method", 2): (0.92, 0.87),
    ("no-b-maps-b-more", 0): (0.9, 0.5),
    ("no-b-maps-b-more", 1): (0.8, 0.7),
    ("no-b-maps-b-more", 2): (0.85, None),
    ("once", 1): (0.96, 0.95),
}


def write(folder, run, teacher=0.9, student=None, **changes):
    """The record of a run; without the student's accuracy, of one that diverged."""
    last = {"teacher": {"accuracy": teacher}}
    if student is not None:
        last["student"] = {"accuracy": student}
    record = {
        "experiment": run.experiment,
        "name": run.name,
        "variant": run.variant,
        "seed": run.seed,
        "settings": {},
        "environment": {},
        "last": last,
        "diverged": "NaN in episode 3" if student is None else None,
    }
    write_record(record | changes, folder)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "trial.yaml"
    path.write_text(FILE, encoding="utf-8")
    return path


@pytest.fixture
def records(tmp_path, file):
    folder = tmp_path / "records"
    for run in read_experiment(file):
        if (run.variant, run.seed) in MEASURED:
            write(folder, run, *MEASURED[run.variant, run.seed])
    return folder


@pytest.fixture
def table(file, records):
    return rows(read_experiment(file), records)


def simple(tmp_path, text="", name="simple"):
    """The runs of a file with two seeds."""
    path = tmp_path / f"{name}.yaml"
    path.write_text(f"about: x\ndata: digits\nseeds: [0, 1]\n{text}", encoding="utf-8")
    return read_experiment(path)


# --- Rows ----------------------------------------------------------------------------------------


def test_rows_by_hand(table):
    full, marked, once, never = table  # in the file's order
    assert [row.variant for row in table] == ["full-method", "no-b-maps-b-more", "once", "never"]
    assert {row.experiment for row in table} == {"trial"}
    # 0.80, 0.82, 0.87: mean 0.83, squared deviations 9 + 1 + 16 in 1e-4, over n - 1 = 2
    assert (full.student.mean, full.student.std, full.student.low, full.student.n) == pytest.approx(
        (0.83, sqrt(26e-4 / 2), 0.80, 3)
    )
    assert (full.teacher.mean, full.teacher.std) == pytest.approx((0.91, 0.01), rel=1e-5)
    assert (full.planned, full.diverged) == (3, 0)
    assert full.paper == pytest.approx(0.7853) and full.differs == "28 px, not 224"
    # 0.5, 0.7: mean 0.6, squared deviations 0.01 + 0.01, over 1; the run that diverged is left out
    assert (marked.student.mean, marked.student.std, marked.student.low) == pytest.approx(
        (0.6, sqrt(0.02), 0.5)
    )
    assert (marked.student.n, marked.planned, marked.diverged) == (2, 3, 1)
    assert (once.student.mean, once.student.std, once.student.n) == pytest.approx((0.95, 0, 1))
    assert (once.planned, once.diverged, once.paper, once.differs) == (3, 0, None, "")
    assert (never.student, never.teacher, never.planned, never.diverged) == (None, None, 3, 0)
    assert never.paper == pytest.approx(0.9491)


def test_cells_by_hand(table):
    full, marked, once, never = (dict(zip(HEADINGS, row.cells, strict=True)) for row in table)
    assert full == {
        "experiment": "trial",
        "what": "full method",
        "data": "pneumoniamnist 28 px",
        "teacher > student": "wrn-16-1 > wrn-10-1",
        "seeds": "3 of 3",
        "teacher acc.": "91.00% ± 1.00%",
        "student acc.": "83.00% ± 3.61%",
        "worst": "80.00%",
        "to teacher": "-8.00",
        "paper": "78.53%",
        "to paper": "+4.47",
        "not as in the paper": "28 px, not 224",
    }
    assert marked["what"] == MARKED and marked["data"] == "digits"
    assert marked["seeds"] == "2 of 3, 1 diverged"
    assert (marked["student acc."], marked["worst"]) == ("60.00% ± 14.14%", "50.00%")
    assert marked["teacher acc."].startswith("85.00% ± ") and marked["to teacher"] == "-25.00"
    assert (marked["paper"], marked["to paper"], marked["not as in the paper"]) == ("", "", "")
    assert once["teacher > student"] == "wrn-16-2 > wrn-10-1"
    assert (once["seeds"], once["teacher acc."]) == ("1 of 3", "96.00%")  # one run has no spread
    assert (once["student acc."], once["worst"], once["to teacher"]) == (
        "95.00%",
        "95.00%",
        "-1.00",
    )
    assert never == {
        "experiment": "trial",
        "what": "never",
        "data": "digits",
        "teacher > student": "wrn-16-1 > wrn-10-1",
        "seeds": "0 of 3",
        "teacher acc.": "not measured",
        "student acc.": "not measured",
        "worst": "",
        "to teacher": "",
        "paper": "94.91%",
        "to paper": "",
        "not as in the paper": "",
    }


def test_a_run_that_diverged_takes_its_teacher_with_it(tmp_path):
    runs = simple(tmp_path)
    write(tmp_path, runs[0], teacher=0.9, student=0.8)
    write(tmp_path, runs[1], teacher=0.4)
    (row,) = rows(runs, tmp_path)
    # the one student that came to its end is 10 points behind its own teacher
    assert dict(zip(HEADINGS, row.cells, strict=True))["to teacher"] == "-10.00"
    assert row.cells[4:7] == ("1 of 2, 1 diverged", "90.00%", "80.00%")


def test_nothing_but_diverged_runs(tmp_path):
    runs = simple(tmp_path)
    write(tmp_path, runs[0])
    write(tmp_path, runs[1], last={})  # a record needs no last step
    (row,) = rows(runs, tmp_path)
    assert (row.student, row.planned, row.diverged) == (None, 2, 2)
    assert row.cells[4] == "0 of 2, 2 diverged" and row.cells[6:9] == ("not measured", "", "")
    assert figure([row]).data[0].x == figure([row]).data[0].y == ()


def test_a_record_without_the_student_s_last_step_is_not_counted(tmp_path):
    runs = simple(tmp_path)
    write(tmp_path, runs[0], student=0.8)
    write(tmp_path, runs[1], diverged=None)
    (row,) = rows(runs, tmp_path)
    assert (row.student.n, row.planned, row.diverged) == (1, 2, 0)
    assert row.cells[4:9] == ("1 of 2", "90.00%", "80.00%", "80.00%", "-10.00")


def test_records_with_only_what_the_schema_needs(tmp_path):
    runs = simple(tmp_path)
    for run, accuracy in zip(runs, (0.6, 0.8), strict=True):
        last = {"student": {"accuracy": accuracy}}
        record = {"experiment": run.experiment, "name": run.name, "seed": run.seed, "last": last}
        write_record(record | {"settings": {}, "environment": {}}, tmp_path)
    (row,) = rows(runs, tmp_path)
    assert row.cells[4:9] == (
        "2 of 2", "not measured", "70.00% ± 14.14%", "60.00%", "",
    )  # fmt: skip


def test_nothing_measured_and_nothing_planned(tmp_path):
    runs = simple(tmp_path)
    (row,) = rows(runs, tmp_path / "nowhere")
    assert row.cells[4:9] == ("0 of 2", "not measured", "not measured", "", "")
    assert rows([], tmp_path) == []
    assert figure([row]).data[0].x == ()


def test_records_of_other_runs_are_not_counted(tmp_path):
    runs = simple(tmp_path)
    write(tmp_path, runs[0], student=0.8)
    write(tmp_path, runs[1], student=0.1, name="other_seed1")
    write(tmp_path, runs[1], student=0.2, experiment="elsewhere")
    record = tmp_path / "elsewhere" / f"{runs[1].name}.json"
    record.rename(tmp_path / "simple" / record.name)  # put into a folder that is not its own
    (row,) = rows(runs, tmp_path)
    assert (row.student.mean, row.student.n) == (pytest.approx(0.8), 1)


def test_a_run_counts_once_however_often_it_is_named(tmp_path):
    runs = simple(tmp_path)
    for run in runs:
        write(tmp_path, run, student=0.8)
    (row,) = rows([*runs, *runs], tmp_path)
    assert (row.planned, row.student.n, row.cells[4]) == (2, 2, "2 of 2")


def test_variants_of_one_name_in_two_experiments_stay_apart(tmp_path):
    one, two = (simple(tmp_path, "cells: [{name: same}]\n", name) for name in ("one", "two"))
    write(tmp_path, one[0], student=0.8)
    write(tmp_path, two[0], student=0.6)
    table = rows([*one, *two], tmp_path)
    assert [(row.experiment, row.student.mean) for row in table] == [
        ("one", pytest.approx(0.8)),
        ("two", pytest.approx(0.6)),
    ]
    labels = figure(table).data[0].y
    assert len(set(labels)) == 2  # one line a row, also where the titles are the same


# --- Tables as text ------------------------------------------------------------------------------


def test_text_table_by_hand(tmp_path):
    runs = simple(tmp_path, "cells: [{name: a}, {name: longer name}]\n")
    write(tmp_path, runs[0], teacher=0.9, student=0.8)
    lines = text_table(rows(runs, tmp_path)).splitlines()
    assert lines == [
        "experiment  what         data    teacher > student    seeds   teacher acc.  student acc."
        "  worst   to teacher",
        "simple      a            digits  wrn-16-1 > wrn-10-1  1 of 2  90.00%        80.00%      "
        "  80.00%  -10.00",
        "simple      longer name  digits  wrn-16-1 > wrn-10-1  0 of 2  not measured  not measured",
    ]
    assert text_table([]) == ""


def test_text_table_shows_the_paper_where_there_is_one(table):
    head, full, *_ = text_table(table).splitlines()
    assert head.endswith("to teacher  paper   to paper  not as in the paper")
    assert full.endswith("-8.00       78.53%  +4.47     28 px, not 224")


def test_markdown_table_by_hand(table):
    assert markdown_table(table[:1]).splitlines() == [
        "| experiment | what | data | teacher > student | seeds | teacher acc. | student acc. "
        "| worst | to teacher | paper | to paper | not as in the paper |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| trial | full method | pneumoniamnist 28 px | wrn-16-1 > wrn-10-1 | 3 of 3 "
        "| 91.00% ± 1.00% | 83.00% ± 3.61% | 80.00% | -8.00 | 78.53% | +4.47 | 28 px, not 224 |",
    ]
    assert markdown_table(table[2:], ("student acc.", "what")).splitlines() == [
        "| student acc. | what |",
        "| --- | --- |",
        "| 95.00% | once |",
        "| not measured | never |",
    ]


def test_markdown_refuses_unknown_columns(table):
    with pytest.raises(InputError, match=r"no column 'studnet acc\.'.* Known: experiment, what"):
        markdown_table(table, ("what", "studnet acc."))


def test_markdown_escapes_what_would_end_a_cell(tmp_path):
    (row,) = rows(simple(tmp_path, "cells: [{name: 'KL | MSE'}]\n"), tmp_path)
    assert markdown_table([row], ("what", "seeds")).splitlines()[2] == "| KL \\| MSE | 0 of 2 |"


def test_a_row_is_one_line_whatever_the_file_says(tmp_path):
    # the folded text of YAML ends with a line break
    text = (
        "cells:\n  - name: >\n      a long\n      name\n"
        "    paper:\n      table: table4_medical\n      row: {dataset: PneumoniaMNIST}\n"
        "      differs: |\n        28 px,\n        not 224\n"
    )
    table = rows(simple(tmp_path, text), tmp_path)
    assert len(text_table(table).splitlines()) == 2
    assert len(markdown_table(table).splitlines()) == 3
    assert table[0].cells[1] == "a long name" and table[0].cells[-1] == "28 px, not 224"


# --- CSV -----------------------------------------------------------------------------------------


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_parsed_back(table, tmp_path):
    write_csv(table, tmp_path / "made" / "numbers.csv")
    full, marked, once, never = read_csv(tmp_path / "made" / "numbers.csv")
    assert list(full) == [
        "experiment", "variant", "data", "pair", "seeds", "planned", "diverged", "teacher",
        "student", "student_std", "student_worst", "paper", "differs",
    ]  # fmt: skip
    assert (full["experiment"], full["variant"]) == ("trial", "full-method")
    assert (full["data"], full["pair"]) == ("pneumoniamnist 28 px", "wrn-16-1 > wrn-10-1")
    assert full["differs"] == "28 px, not 224"  # with its comma
    numbers = {"seeds": 3, "planned": 3, "diverged": 0, "teacher": 0.91, "student": 0.83}
    numbers |= {"student_std": sqrt(26e-4 / 2), "student_worst": 0.8, "paper": 0.7853}
    assert {name: float(full[name]) for name in numbers} == pytest.approx(numbers)
    assert (marked["seeds"], marked["planned"], marked["diverged"]) == ("2", "3", "1")
    assert float(marked["student_std"]) == pytest.approx(sqrt(0.02))
    assert (marked["paper"], marked["differs"]) == ("", "")
    assert float(once["student"]) == pytest.approx(0.95) and float(once["student_std"]) == 0
    assert [never[name] for name in ("seeds", "planned", "teacher", "student", "student_std")] == [
        "0", "3", "", "", "",
    ]  # fmt: skip
    assert never["student_worst"] == "" and float(never["paper"]) == pytest.approx(0.9491)


def test_csv_has_numbers_in_full(tmp_path):
    runs = simple(tmp_path)
    write(tmp_path, runs[0], teacher=0.9, student=0.1234567891)
    write(tmp_path, runs[1], teacher=0.9, student=0.1234567893)
    write_csv(rows(runs, tmp_path), tmp_path / "numbers.csv")
    (row,) = read_csv(tmp_path / "numbers.csv")
    assert float(row["student"]) == pytest.approx(0.1234567892, rel=1e-12)
    assert float(row["student_worst"]) == 0.1234567891
    assert float(row["student_std"]) == pytest.approx(sqrt(2) * 1e-10, rel=1e-3)


def test_csv_keeps_commas_quotes_lines_and_other_letters(tmp_path):
    paper = "{table: table4_medical, row: {dataset: PneumoniaMNIST}, differs: '\"λ\", größer; 数'}"
    runs = simple(tmp_path, f"cells: [{{name: a, data: 'a, b', paper: {paper}}}]\n")
    write_csv(rows(runs, tmp_path), tmp_path / "numbers.csv")
    (row,) = read_csv(tmp_path / "numbers.csv")
    assert (row["data"], row["differs"], row["paper"]) == ("a, b", '"λ", größer; 数', "0.7853")


# --- The page ------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser finds in a page: the table's cells, all tags, all attributes, scripts."""

    def __init__(self, text):
        super().__init__()
        self.lines, self.tags, self.attributes, self.scripts, self.styles = [], set(), [], [], []
        self.inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        self.inside = tag
        if tag == "tr":
            self.lines.append([])
        elif tag in ("td", "th"):
            self.lines[-1].append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, text):
        if self.inside in ("td", "th"):
            self.lines[-1][-1] += text
        elif self.inside == "script":
            self.scripts[-1] += text
        elif self.inside == "style":
            self.styles.append(text)


HOSTILE = "</td></script><script src=https://x.org/a.js></script><img src=//x.org/i.png>"


def test_page_holds_the_table_and_loads_nothing(table, tmp_path):
    path = tmp_path / "made" / "page.html"
    write_html(table, path)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.lines == [list(HEADINGS), *(list(row.cells) for row in table)]
    assert page.lines[2][1] == MARKED and "<b>maps" not in text
    assert "<script src=" not in text and "<link" not in text
    loading = {"src", "href", "srcset", "data", "poster", "action", "xlink:href"}
    assert not [found for found in page.attributes if found[1] in loading]
    assert not page.tags & {"link", "img", "iframe", "object", "embed", "base", "b"}
    assert not [style for style in page.styles if "url(" in style or "@import" in style]
    assert any(len(script) > 1e6 for script in page.scripts)  # plotly itself
    drawn = page.scripts[-1]
    assert "Plotly.newPlot" in drawn and "full method" in drawn and "78.53" in drawn
    assert ("meta", "charset", "utf-8") in page.attributes and text.startswith("<!doctype html>")


def test_page_survives_hostile_names(table, tmp_path, records):
    text = FILE.replace(MARKED, json.dumps(HOSTILE))
    (tmp_path / "trial.yaml").write_text(text, encoding="utf-8")
    runs = read_experiment(tmp_path / "trial.yaml")
    write(records, runs[3], student=0.8)
    write_html(table, tmp_path / "harmless.html")
    write_html(rows(runs, records), tmp_path / "hostile.html")
    harmless, hostile = (
        Page((tmp_path / name).read_text(encoding="utf-8"))
        for name in ("harmless.html", "hostile.html")
    )
    assert hostile.lines[2][1] == HOSTILE
    assert hostile.tags == harmless.tags and len(hostile.scripts) == len(harmless.scripts)
    assert [name for _, name, _ in hostile.attributes] == [n for _, n, _ in harmless.attributes]


def test_figure_by_hand(table):
    ours, published = figure(table).data
    assert list(ours.x) == pytest.approx([83, 60, 95])
    assert list(ours.error_x.array) == pytest.approx([100 * sqrt(13e-4), 100 * sqrt(0.02), 0])
    assert len(ours.y) == 3 and "full method" in ours.y[0] and "pneumoniamnist 28 px" in ours.y[0]
    assert list(published.x) == pytest.approx([78.53])  # what is not measured is not drawn
    assert list(published.y) == [ours.y[0]]


def test_figure_shows_names_as_they_are(table):
    # plotly reads a little HTML: "<b>" would make letters bold
    (label,) = (label for label in figure(table).data[0].y if "maps" in label)
    assert label.startswith("no &lt;b&gt;maps&lt;/b&gt; &amp; more")


def test_figure_keeps_quotation_marks(tmp_path):
    # plotly knows &lt; &gt; &amp;, and would show &quot; as it stands
    runs = simple(tmp_path, "cells: [{name: 'say \"yes\"'}]\n")
    write(tmp_path, runs[0], student=0.8)
    assert 'say "yes"' in figure(rows(runs, tmp_path)).data[0].y[0]


# --- The command ---------------------------------------------------------------------------------


def refused(capsys, *arguments):
    """What a command says that ends with exit code 2: one line, and nothing else."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("dfkd: ") and err.count("\n") == 1 and err.endswith("\n")
    return err


def test_command_prints_the_table(file, records, table, capsys):
    assert main(["report", str(file), "--records", str(records)]) == 0
    out, err = capsys.readouterr()
    assert out == text_table(table) + "\n" and err == ""
    assert "83.00% ± 3.61%" in out and "2 of 3, 1 diverged" in out and "not measured" in out


def test_command_writes_files_for_some_runs(file, records, tmp_path, capsys):
    where = ["--csv", str(tmp_path / "t.csv"), "--html", str(tmp_path / "t.html")]
    only = ["--only", "VARIANT=Full-Method", "--only", "SEED=2"]
    assert main(["report", str(file), "--records", str(records), *where, *only]) == 0
    (row,) = read_csv(tmp_path / "t.csv")
    assert (row["seeds"], row["planned"], float(row["student"])) == ("1", "1", pytest.approx(0.87))
    page = Page((tmp_path / "t.html").read_text(encoding="utf-8"))
    assert page.lines[1][:7] == [
        "trial", "full method", "pneumoniamnist 28 px", "wrn-16-1 > wrn-10-1", "1 of 1",
        "92.00%", "87.00%",
    ]  # fmt: skip
    assert "87.00%" in capsys.readouterr().out


def test_command_ends_quietly_when_nobody_reads_on(file, records, tmp_path):
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "dfkd_lite", "report", str(file), "--records", str(records)]
    with subprocess.Popen(
        [*command, "--html", str(page)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1 and page.stat().st_size > 1000


def test_command_takes_several_files(file, records, tmp_path, capsys):
    simple(tmp_path)
    other = str(tmp_path / "simple.yaml")
    assert main(["report", other, str(file), "--records", str(records)]) == 0
    first = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert first == ["experiment", "simple", *["trial"] * 4]


@pytest.mark.parametrize("command", ["report", "run"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"about: x\ndata: digits\nsedes: [0]\n", ":3: 'sedes' is not known. Did you mean"),
        (b"about: x\ndata: [\n", "YAML"),
        (b"", "about"),
        (b"\xff\xfe\0", "UTF-8"),
        (b"about: x\ndata: digits\nseeds: [0]\nstudent: a\x07\n", ":4:"),
        (b"about: x\ndata: digits\nseeds: " + b"[" * 2000 + b"]" * 2000, ":3:"),
        (b"about: !!python/name:os.system\ndata: digits\nseeds: [0]\n", ":1:"),
    ],
    ids=["key", "YAML", "empty", "bytes", "bell", "deep", "tag"],
)  # fmt: skip
def test_command_refuses_a_bad_file_in_one_line(tmp_path, capsys, command, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    err = refused(capsys, command, path)
    assert str(path) in err and message in err


def test_command_refuses_wrong_names(file, records, tmp_path, capsys):
    assert "Did you mean" in refused(capsys, "report", "table5-digit")
    assert "There is no file" in refused(capsys, "report", tmp_path / "none.yaml")
    place = ("--records", records)
    assert "mean 'seed'" in refused(capsys, "report", file, *place, "--only", "sed=0")
    assert "mean 'never'" in refused(capsys, "report", file, *place, "--only", "variant=nver")
    assert "seed=0" in refused(capsys, "report", file, *place, "--only", "seed")


def test_command_refuses_a_broken_record(file, records, capsys):
    path = records / "trial" / "full-method_seed0.json"
    for content in ('{"experiment": "trial", "na', "[]", "", '{"name": "full-method_seed0"}'):
        path.write_text(content)
        assert str(path) in refused(capsys, "report", file, "--records", records)
    path.write_bytes(b"\xff\xfe{}")
    assert str(path) in refused(capsys, "report", file, "--records", records)


def test_command_refuses_a_place_that_cannot_be_written(file, records, tmp_path, capsys):
    for option in ("--csv", "--html"):
        capsys.readouterr()
        assert main(["report", str(file), "--records", str(records), option, str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("dfkd: ") and err.count("\n") == 1 and str(tmp_path) in err
    assert not [name for name in os.listdir(tmp_path.parent) if name.endswith(".tmp")]


def test_command_reports_all_that_ships(tmp_path, capsys):
    assert main(["report", "--csv", str(tmp_path / "all.csv")]) == 0
    out = capsys.readouterr().out
    table = read_csv(tmp_path / "all.csv")
    assert {row["experiment"] for row in table} == {p.stem for p in EXPERIMENTS.glob("*.yaml")}
    assert len(out.splitlines()) == len(table) + 1
    for row in table:
        if row["experiment"] != "digits":
            continue
        paths = sorted((RECORDS / "digits").glob("*.json"))
        last = [json.loads(path.read_text(encoding="utf-8"))["last"] for path in paths]
        students = [one["student"]["accuracy"] for one in last]
        assert (row["seeds"], row["planned"], len(paths)) == ("5", "5", 5)
        assert float(row["student"]) == pytest.approx(statistics.mean(students))
        assert float(row["student_std"]) == pytest.approx(statistics.stdev(students))
        assert float(row["student_worst"]) == pytest.approx(min(students))
