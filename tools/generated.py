"""Writes the pages that no person writes: how the book was made, and the package's reference."""

import json
import re
import tomllib
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from execute import Record, read_record
from zoo_page import zoo_page

ROOT = Path(__file__).resolve().parents[1]

#: Pages of the package's reference: file name, title, modules.
REFERENCE = (
    (
        "api-pieces",
        "Package reference: the pieces",
        (
            "networks",
            "data",
            "generator",
            "meta",
            "inversion",
            "cam",
            "kd",
            "spectral",
            "lipschitz",
            "bound_terms",
        ),
    ),
    (
        "api-method",
        "Package reference: the method",
        (
            "msarc",
            "image_pool",
            "distill",
            "door",
            "methods",
            "presets",
            "settings",
            "teach",
            "dfkd_lab.trained",
        ),
    ),
    (
        "api-experiments",
        "Package reference: experiments",
        (
            "dfkd_lab.file",
            "dfkd_lab.schema",
            "dfkd_lab.runner",
            "dfkd_lab.records.records",
            "dfkd_lab.records.statistics",
            "dfkd_lab.records.provenance",
            "dfkd_lab.records.paper",
            "dfkd_lab.table",
            "dfkd_lab.cost",
            "parallel",
            "dfkd_lab.tensorboard",
        ),
    ),
    (
        "api-tools",
        "Package reference: tools",
        (
            "measure.evaluate",
            "measure.signs",
            "measure.fidelity",
            "measure.privacy",
            "storage.shipped",
            "dfkd_course",
            "storage.files",
            "storage.weights",
            "storage.checkpoint",
            "export.onnx",
            "export.card",
            "dfkd_lab.viz.pictures",
            "dfkd_lab.viz.figures",
            "dfkd_lab.viz.widgets",
            "devices",
            "errors",
        ),
    ),
)


#: Folders that the reference shows by the names they hand on, and not file by file.
WHOLE = {"networks", "methods", "data"}
MAP_PLACE = "<!-- chapter map -->"  # in index.md


def opening(notebook: Path) -> tuple[str, str]:
    """Return title and promise of a notebook: the heading and first paragraph of its first cell."""
    cell = json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]
    title, promise, *_ = [*"".join(cell["source"]).strip().split("\n\n"), "", ""]
    return title.removeprefix("# ").strip(), " ".join(promise.split())


def chapter_map(notebooks: list[Path], executed: Path) -> str:
    """Return what each chapter promises and costs, as a Markdown table."""
    lines = ["| chapter | what it does | minutes |", "| --- | --- | --: |"]
    for path in notebooks:
        title, promise = opening(path)
        record = read_record(executed / f"{path.stem}.json")
        minutes = f"{record.seconds / 60:.1f}{_mark(record)}" if record else ""
        lines.append(f"| [{title}]({path.name}) | {promise} | {minutes} |")
    return "\n".join(lines)


def status_page(notebooks: list[Path], executed: Path) -> str:
    """Return when, where, with what and how long each chapter was executed, as Markdown."""
    records = {path: read_record(executed / f"{path.stem}.json") for path in notebooks}
    known = [record for record in records.values() if record is not None]
    lines = ["# Status of this build", "", *_summary(known), "", "## Chapters", ""]
    lines += [
        "| chapter | seconds | finished (UTC) | preset | tries | load |",
        "| --- | --: | --- | --- | --: | --: |",
    ]
    for path, record in records.items():
        if record is not None:
            when = datetime.fromisoformat(record.finished).astimezone(UTC)
            lines.append(
                f"| [{opening(path)[0]}]({path.name}) | {record.seconds:.0f} "
                f"| {when:%Y-%m-%d %H:%M} | {record.preset} | {record.retries + 1} "
                f"| {record.load:.1f}{_mark(record)} |"
            )
    return "\n".join([*lines, "", "## Packages", "", *_packages(), ""])


def was_busy(record: Record) -> bool:
    """Return whether other work than the build's wanted the cores while a chapter was executed."""
    return record.load > 1.25 * max(record.environment["cores"], record.beside * record.threads)


def _mark(record: Record) -> str:
    """Return what stands behind the time of a chapter that had to wait for other work."""
    return " (busy)" if was_busy(record) else ""


def _summary(records: list[Record]) -> list[str]:
    if not records:
        return ["Nothing has been executed."]
    newest = max(records, key=lambda record: record.finished)
    where, total = newest.environment, sum(record.seconds for record in records)
    commit = (where["code"]["commit"] or "unknown")[:12]
    load = max(record.load for record in records)
    busy = [record for record in records if was_busy(record)]
    return [
        "Written by the build. Each chapter was executed from its source by papermill, with the "
        "parameters that it holds; pages are built from what came out, and from nothing else.",
        "",
        "- **Time**: seconds by the clock, which depend on the machine and on what else it does. "
        f"They add up to {total / 60:.1f} minutes; "
        f"{newest.beside} ran side by side, each on "
        f"{newest.threads} thread{'s' * (newest.threads != 1)}.",
        f"- **The machine was {'busy with other work' if busy else 'quiet'}**: up to {load:.1f} "
        f"processes wanted one of its {where['cores']} cores"
        + (
            f", and the times of {len(busy)} chapter{'s' * (len(busy) != 1)} (marked *busy*) "
            "are longer than they need be."
            if busy
            else "; the times are those of this build and little else."
        ),
        f"- **Device**: {where['device']}, {where['cores']} cores, {where['machine']}.",
        f"- **Python**: {where['python']}.",
        f"- **Code**: commit `{commit}`{' with changes' if where['code']['dirty'] else ''}.",
    ]


def _packages() -> list[str]:
    """Return a table of the installed versions of what pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["book"]
    names = sorted(re.match(r"[\w-]+", requirement)[0] for requirement in wanted)
    return ["| package | version |", "| --- | --- |", *(f"| {n} | {version(n)} |" for n in names)]


def reference_page(title: str, modules: tuple[str, ...]) -> str:
    """Return a page with the docstrings of some modules, as MyST around Sphinx's autodoc."""
    lines = [f"# {title}", "", "Generated from the docstrings.", ""]
    for module in modules:
        name = module if module.startswith("dfkd_") else f"dfkd_lite.{module}"
        lines += [f"## {name}", "", "```{eval-rst}", f".. automodule:: {name}", "   :members:"]
        lines += ["   :imported-members:"] if module in WHOLE else []
        lines += ["```", ""]
    return "\n".join(lines)


def generated_pages(notebooks: list[Path], executed: Path) -> dict[str, str]:
    """Return file name -> text of every page that is not written by hand."""
    pages = {f"{name}.md": reference_page(title, modules) for name, title, modules in REFERENCE}
    return pages | {"teachers.md": zoo_page(), "status.md": status_page(notebooks, executed)}
