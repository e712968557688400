"""Execute the chapters with papermill: only what changed, and with clear errors."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from threading import Lock

PRESET = "lite"
PARAMETERS = ("PRESET", "DATA", "SEED")  # what every chapter can be run with
THREADS = 2  # of every chapter, so that neither its time nor a last digit hangs on the machine
# Folders whose content a chapter may depend on. Downloads and runs are not part of the project.
INPUTS = ("dfkd_lite", "data")
NOT_INPUTS = {"__pycache__", "downloads"}
# Cells that papermill adds; they do not count when a cell is named to the reader.
ADDED_BY_PAPERMILL = {"injected-parameters", "papermill-error-cell-tag"}


class ChapterError(Exception):
    """A chapter that cannot be executed; the message names notebook, cell and error."""


class Hang(Exception):
    """A notebook, or one of its cells, ran into its time limit."""


@dataclass(frozen=True)
class Limits:
    """Seconds allowed to a cell and to a notebook: a chapter takes 90, on a busy machine more."""

    cell: int = 600
    notebook: int = 1800


@dataclass(frozen=True)
class Record:
    """How a chapter was last executed; kept beside the executed copy, as JSON."""

    notebook: str
    key: str
    preset: str
    seconds: float
    retries: int
    finished: str
    threads: int
    environment: dict  # code version, packages, python, device, machine


_print_lock = Lock()


def say(text: str) -> None:
    with _print_lock:
        print(text, flush=True)


# --- what an execution depends on ---------------------------------------------------------------


def files_below(folder: Path, skipped: set[str]) -> Iterator[Path]:
    """All files below a folder, in a fixed order."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not skipped & set(path.relative_to(folder).parts):
            yield path


def digest(paths: list[Path], *texts: str) -> str:
    """One hash over the names and contents of files, and over some texts."""
    total = hashlib.sha256("\0".join(texts).encode())
    for path in paths:
        total.update(f"\0{path.name}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def installed_versions() -> str:
    """Every installed distribution and its version, and Python's own."""
    found = {f"{d.metadata['Name']}=={d.version}".lower() for d in distributions()}
    return "\n".join([sys.version, *sorted(found)])


def shared_key(root: Path, preset: str) -> str:
    """What all chapters depend on: package, data, installed versions, preset."""
    paths = [p for name in INPUTS for p in files_below(root / name, NOT_INPUTS)]
    names = [str(p.relative_to(root)) for p in paths]
    return digest(paths, preset, installed_versions(), *names)


# --- executing ----------------------------------------------------------------------------------


def execute_all(
    notebooks: list[Path], root: Path, out: Path, limits: Limits | None = None, preset: str = PRESET
) -> list[Record]:
    """Bring the executed copies in `out` up to date; raises ChapterError for the first that fails.

    As many run side by side as the cores allow, each with THREADS threads.
    """
    out.mkdir(parents=True, exist_ok=True)
    common = shared_key(root, preset)
    workers = max(1, (os.cpu_count() or 1) // THREADS)
    one = _Executor(out, common, limits or Limits(), preset)
    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(one.bring_up_to_date, path) for path in notebooks]
        errors = [str(job.exception()) for job in jobs if isinstance(job.exception(), ChapterError)]
    if errors:
        raise ChapterError("\n\n".join(errors))
    return [job.result() for job in jobs]


@dataclass(frozen=True)
class _Executor:
    out: Path
    common: str
    limits: Limits
    preset: str

    def bring_up_to_date(self, notebook: Path) -> Record:
        key = digest([notebook], self.common)
        done, record_file = self.out / notebook.name, self.out / f"{notebook.stem}.json"
        old = read_record(record_file)
        if old is not None and old.key == key and done.is_file():
            say(f"  {notebook.name}: unchanged ({old.seconds:.0f} s when it last ran)")
            return old
        check_parameters(notebook)
        record_file.unlink(missing_ok=True)
        say(f"  {notebook.name}: started")
        begun = time.monotonic()
        retries = self.run_with_one_retry(notebook, done)
        seconds = round(time.monotonic() - begun, 1)
        again = ", after a hang and a second try" if retries else ""
        say(f"  {notebook.name}: done in {seconds:.0f} s{again}")
        record = Record(
            notebook=notebook.name,
            key=key,
            preset=self.preset,
            seconds=seconds,
            retries=retries,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            threads=THREADS,
            environment=environment(),
        )
        record_file.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
        return record

    def run_with_one_retry(self, notebook: Path, done: Path) -> int:
        """Execute; a hang (never an error) is tried once more. Returns the number of retries."""
        try:
            self.run(notebook, done)
            return 0
        except Hang as hang:
            say(f"  {notebook.name}: {hang}; trying once more")
        try:
            self.run(notebook, done)
            return 1
        except Hang as hang:
            raise ChapterError(f"{notebook.name}: {hang}, twice.") from None

    def run(self, notebook: Path, done: Path) -> None:
        """One papermill call in an empty folder; `done` appears only when all cells succeeded."""
        running = self.out / f"{notebook.stem}.running.ipynb"
        failed = self.out / f"{notebook.stem}.failed.ipynb"
        log = self.out / f"{notebook.stem}.log"
        work = self.out / "work" / notebook.stem
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for stale in (running, failed):
            stale.unlink(missing_ok=True)
        command = [sys.executable, "-m", "papermill", str(notebook), str(running)]
        command += ["-p", "PRESET", self.preset, "--cwd", str(work)]
        command += ["--kernel", "python3", "--language", "python"]
        command += ["--execution-timeout", str(self.limits.cell), "--no-progress-bar"]
        env = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
        # Output goes to a file: a pipe would stay open as long as a hung kernel lives.
        with log.open("w", encoding="utf-8") as sink:
            try:
                code = subprocess.run(
                    command,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    timeout=self.limits.notebook,
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        printed = log.read_text(encoding="utf-8", errors="replace")
        if code == 0 and "Passed unknown parameter" not in printed:
            running.replace(done)
            return
        if running.is_file():
            running.replace(failed)
        if code is None:
            raise Hang(f"not finished after {self.limits.notebook} s")
        if "CellTimeoutError" in printed:
            raise Hang(f"a cell was not finished after {self.limits.cell} s")
        say(f"  {notebook.name}: FAILED")
        raise ChapterError(describe_failure(notebook, failed, printed))


def read_record(path: Path) -> Record | None:
    """The record of the last execution, or None where there is none that can be read."""
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def check_parameters(notebook: Path) -> None:
    """Refuse a notebook that would ignore a parameter (papermill itself only logs that)."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    source = "\n".join("".join(cell["source"]) for cell in tagged)
    for name in PARAMETERS:
        if len(tagged) != 1 or not re.search(rf"^{name}\b.*=", source, re.M):
            raise ChapterError(
                f"{notebook.name}: no parameter {name}. Give the notebook one cell tagged "
                f'"parameters" that contains PRESET = "{PRESET}", DATA = "digits" and SEED = 0.'
            )


def environment() -> dict:
    """Where this happens, as the package's own records say it."""
    from dfkd_lite import records  # late: it imports torch, and most builds execute nothing

    return records.environment()


# --- saying what went wrong ---------------------------------------------------------------------


def describe_failure(notebook: Path, failed: Path, printed: str) -> str:
    """Notebook, cell, line and error of a failed execution, in a few lines."""
    found = find_error(failed) if failed.is_file() else None
    if found is None:
        last_lines = "\n".join(printed.strip().splitlines()[-15:])
        return f"{notebook.name}: papermill failed outside the cells:\n{last_lines}"
    number, line, error = found
    text = f"{notebook.name}, cell {number}: {error['ename']}: {error['evalue']}"
    if line:
        text += f"\n    in the line: {line}"
    return f"{text}\n    What ran until then: {failed}"


def find_error(executed: Path) -> tuple[int, str | None, dict[str, object]] | None:
    """Of the first failing cell: its number in the source, the line, the error output."""
    number = 0
    for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"]:
        if ADDED_BY_PAPERMILL & set(cell["metadata"].get("tags", [])):
            continue
        number += 1
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return number, failing_line("".join(cell["source"]), output["traceback"]), output
    return None


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def failing_line(source: str, traceback: list[str]) -> str | None:
    """The line of the cell that the traceback points at."""
    match = re.search(r"Cell In\[\d+\], line (\d+)", without_colours("\n".join(traceback)))
    lines = source.splitlines()
    if match and 0 < int(match[1]) <= len(lines):
        return lines[int(match[1]) - 1].strip()
    return None
