"""Sets records beside the plan and the paper: tables for terminal, book and files."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfkd_lite.errors import InputError
from dfkd_lite.storage.files import write_bytes

from .file import Run
from .records import RECORDS, Summary, read_records, record_names, summarise

if TYPE_CHECKING:
    import plotly.graph_objects as go

UNMEASURED = "not measured"
HEADINGS = (
    "experiment", "what", "data", "teacher > student", "seeds", "teacher acc.", "student acc.",
    "worst", "to teacher", "paper", "to paper", "not as in the paper",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Sums up all seeds of one variant: accuracies in [0, 1] at the last step, None: unmeasured."""

    experiment: str
    variant: str
    title: str
    data: str
    pair: str
    planned: int
    diverged: int
    teacher: Summary | None
    student: Summary | None
    paper: float | None
    differs: str

    @property
    def cells(self) -> tuple[str, ...]:
        """Write the row as text, one cell for each of :data:`HEADINGS`."""
        done = self.student.n if self.student else 0
        failed = f", {self.diverged} diverged" if self.diverged else ""
        return (
            self.experiment,
            " ".join(self.title.split()),
            self.data,
            self.pair,
            f"{done} of {self.planned}{failed}",
            self.teacher.spread() if self.teacher else UNMEASURED,
            self.student.spread() if self.student else UNMEASURED,
            f"{self.student.low:.2%}" if self.student else "",
            _points(self.student, self.teacher.mean if self.teacher else None),
            f"{self.paper:.2%}" if self.paper is not None else "",
            _points(self.student, self.paper),
            " ".join(self.differs.split()) if self.paper is not None else "",
        )


def rows(runs: Sequence[Run], folder: str | Path = RECORDS) -> list[Row]:
    """Make a row of each variant of each experiment, in the order of ``runs``, measured or not."""
    groups: dict[tuple[str, str], dict[str, Run]] = {}  # a run that is named twice counts once
    for run in runs:
        groups.setdefault((run.experiment, run.variant), {})[run.name] = run
    records = {
        (record["experiment"], record["name"]): record
        for experiment in dict.fromkeys(run.experiment for run in runs)
        for record in _records(experiment, folder)
    }
    return [_row(list(group.values()), records) for group in groups.values()]


def _row(group: list[Run], records: dict[tuple[str, str], dict[str, Any]]) -> Row:
    first = group[0]
    found = [records[key] for run in group if (key := (run.experiment, run.name)) in records]
    ended = [record for record in found if not record.get("diverged")]
    done = [record for record in ended if "student" in record["last"]]
    # the teachers of the students that are counted; of all runs, where none is
    taught = [record for record in done or found if "teacher" in record["last"]]
    return Row(
        experiment=first.experiment,
        variant=first.variant,
        title=first.title,
        data=f"{first.data}" + (f" {first.size} px" if first.size else ""),
        pair=f"{first.teacher} > {first.student}",
        planned=len(group),
        diverged=len(found) - len(ended),
        teacher=summarise(taught, "accuracy", "teacher") if taught else None,
        student=summarise(done, "accuracy", "student") if done else None,
        paper=first.paper["accuracy"] if first.paper else None,
        differs=first.paper["differs"] if first.paper else "",
    )


def text_table(table: Sequence[Row]) -> str:
    """Format a table for the terminal: columns in line, empty ones left out."""
    lines = [HEADINGS, *(row.cells for row in table)]
    used = [column for column in zip(*lines, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in used]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*used, strict=True)
    )


def markdown_table(table: Sequence[Row], columns: Sequence[str] = HEADINGS) -> str:
    """Format the named columns of a table as Markdown, for the book.

    Raises:
        InputError: a column that is not among :data:`HEADINGS`.
    """
    for name in columns:
        if name not in HEADINGS:
            raise InputError(f"There is no column '{name}'. Known: {', '.join(HEADINGS)}.")
    places = [HEADINGS.index(name) for name in columns]
    return markdown(columns, [[row.cells[place] for place in places] for row in table])


def markdown(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Write a table as Markdown: the names of its columns, and of each line as many cells."""
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in (head, *lines)]
    cells.insert(1, ["---"] * len(head))
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def write_csv(table: Sequence[Row], path: str | Path) -> None:
    """Write a table as CSV: numbers in full, accuracies in [0, 1], empty where there is none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([
        "experiment", "variant", "data", "pair", "seeds", "planned", "diverged",
        "teacher", "student", "student_std", "student_worst", "paper", "differs",
    ])  # fmt: skip
    for row in table:
        student = row.student
        writer.writerow([
            row.experiment, row.variant, row.data, row.pair,
            student.n if student else 0, row.planned, row.diverged,
            row.teacher.mean if row.teacher else "", student.mean if student else "",
            student.std if student else "", student.low if student else "",
            "" if row.paper is None else row.paper, row.differs,
        ])  # fmt: skip
    write_bytes(path, buffer.getvalue().encode())


def write_html(table: Sequence[Row], path: str | Path) -> None:
    """Write a page that needs no network: the table, and a figure of the measured students."""
    import plotly.io  # slow, and most tables are text

    head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADINGS)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.cells) + "</tr>"
        for row in table
    )
    picture = plotly.io.to_html(figure(table), full_html=False, include_plotlyjs="inline")
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Measured and published'
        '</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        "<style>body{font-family:sans-serif;margin:1rem}table{border-collapse:collapse}"
        "td,th{border:1px solid #bbb;padding:.2rem .5rem;text-align:left;white-space:nowrap}"
        "div.wide{overflow-x:auto}</style>"
        "<h1>Measured and published</h1><p>Accuracy of the last step on test images, mean and "
        "standard deviation over seeds; differences in percentage points.</p>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"</div>{picture}</html>\n"
    )
    write_bytes(path, page.encode())


def figure(table: Sequence[Row]) -> go.Figure:
    """Draw the student's accuracy with its standard deviation, and the paper's, one line a row."""
    import plotly.graph_objects as go

    measured = [row for row in table if row.student]
    labels = [
        html.escape(f"{row.title} · {row.data} ({row.experiment})", quote=False) for row in measured
    ]
    ours = [row.student for row in measured if row.student]
    chart = go.Figure()
    chart.add_scatter(
        x=[100 * s.mean for s in ours],
        y=labels,
        error_x={"array": [100 * s.std for s in ours]},
        mode="markers",
        name="measured: mean ± std over seeds",
        marker={"size": 10},
    )
    published = [(row.paper, label) for row, label in zip(measured, labels, strict=True)]
    chart.add_scatter(
        x=[100 * number for number, _ in published if number is not None],
        y=[label for number, label in published if number is not None],
        mode="markers",
        name="paper",
        marker={"symbol": "diamond-open", "size": 11},
    )
    chart.update_layout(
        xaxis={"title": "accuracy of the student at the last step [%]", "range": [None, 101]},
        yaxis={"autorange": "reversed", "automargin": True},
        height=160 + 28 * len(measured),
        template="plotly_white",
    )
    return chart


def _records(experiment: str, folder: str | Path) -> list[dict[str, Any]]:
    return read_records(experiment, folder) if record_names(experiment, folder) else []


def _points(summary: Summary | None, other: float | None) -> str:
    return f"{100 * (summary.mean - other):+.2f}" if summary and other is not None else ""
