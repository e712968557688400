"""Executes the chapters with papermill: only what changed, side by side, and with clear errors."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from depends import (
    EXTRAS,
    Modules,
    UndeclaredError,
    check_opened,
    declared,
    installed_versions,
    notebook_key,
)

PRESET = "lite"
PARAMETERS = ("PRESET", "DATA", "SEED")  # every chapter takes these
# Fixed for every chapter: neither its time nor its last digits follow the machine's cores. Two
# chapters side by side with one thread each end sooner than one after the other with two.
THREADS = 1
WATCH = Path(__file__).parent / "watch"
TIMES = Path(__file__).parent / "times.json"  # seconds of each chapter on a quiet machine
UNKNOWN = 30.0  # seconds that a chapter is expected to take if it never ran
# Tags of cells that papermill adds; they do not count in the numbers of cells in messages.
ADDED_BY_PAPERMILL = {"injected-parameters", "papermill-error-cell-tag"}


class ChapterError(Exception):
    """Raised where a chapter cannot be executed; the message names notebook, cell and error."""


class Hang(Exception):
    """Raised where a notebook, or one of its cells, ran into its time limit."""


@dataclass(frozen=True)
class Limits:
    """Holds the seconds allowed to a cell and a notebook: a chapter takes 45, more when busy."""

    cell: int = 600
    notebook: int = 1800


@dataclass(frozen=True)
class Record:
    """Holds how a chapter was last executed; it is kept beside the executed copy, as JSON."""

    notebook: str
    key: str
    preset: str
    seconds: float
    retries: int
    finished: str
    threads: int
    beside: int  # the most chapters that were executed at the same time, this one among them
    load: float  # processes that wanted a core in the last minute, the build's own among them
    opened: list[str]  # files of data/ that it opened
    environment: dict  # code version, packages, python, device, machine


_print_lock = Lock()


def say(text: str) -> None:
    with _print_lock:
        print(text, flush=True)


# --- how long it takes ----------------------------------------------------------------------------


def expected_seconds(notebook: Path, out: Path) -> float:
    """Return the seconds of a chapter's last run here, else those in TIMES, else UNKNOWN."""
    old = read_record(out / f"{notebook.stem}.json")
    if old is not None:
        return old.seconds
    known = json.loads(TIMES.read_text(encoding="utf-8")) if TIMES.is_file() else {}
    return known.get("seconds", {}).get(notebook.stem, UNKNOWN)


@dataclass
class Progress:
    """Holds which chapters are done, and says how long the rest will take."""

    expected: dict[str, float]
    workers: int
    running: dict[str, float] = field(default_factory=dict)  # when each began, by time.monotonic
    done: dict[str, float] = field(default_factory=dict)  # seconds of each

    def left(self) -> float:
        """Return the seconds until all are done, if the rest keeps the pace of what is done."""
        now = time.monotonic()
        planned = sum(self.expected[name] for name in self.done)
        pace = sum(self.done.values()) / planned if planned else 1.0
        rest = [pace * s for name, s in self.expected.items() if name not in self.done]
        gone = sum(now - begun for begun in self.running.values())
        return max((sum(rest) - gone) / self.workers, 0.0)

    def line(self) -> str:
        """Return a line like "5 of 17; about 3 minutes left"."""
        count = f"{len(self.done)} of {len(self.expected)}"
        left = self.left()
        if len(self.done) == len(self.expected):
            return count
        return f"{count}; {about(left)} left"


def about(seconds: float) -> str:
    """Return a time in words, as exact as a forecast can be."""
    if seconds < 50:
        return f"about {max(10, round(seconds, -1)):.0f} seconds"
    minutes = max(1, round(seconds / 60))
    return f"about {minutes} minute{'s' * (minutes != 1)}"


# --- executing ----------------------------------------------------------------------------------


def execute_all(
    notebooks: list[Path], root: Path, out: Path, limits: Limits | None = None, preset: str = PRESET
) -> list[Record]:
    """Bring the executed copies in `out` up to date; raise ChapterError if a chapter fails.

    As many run side by side as the cores allow, each with THREADS threads, the longest first.
    """
    out.mkdir(parents=True, exist_ok=True)
    keys, errors = keys_of(notebooks, root, preset)
    kept = {path: unchanged(path, out, key) for path, key in keys.items()}
    for path, record in kept.items():
        if record is not None:
            say(f"  {path.name}: unchanged ({record.seconds:.0f} s when it last ran)")
    expected = {path: expected_seconds(path, out) for path in keys if kept[path] is None}
    stale = sorted(expected, key=lambda path: -expected[path])
    workers = max(1, min((os.cpu_count() or 1) // THREADS, len(stale)))
    progress = Progress({path.name: seconds for path, seconds in expected.items()}, workers)
    if stale:
        say(f"  {len(stale)} to execute, {workers} at a time: {about(progress.left())}")
    one = _Executor(root, out, limits or Limits(), preset, progress)
    pool = ThreadPoolExecutor(workers)
    try:
        jobs = {path: pool.submit(one.bring_up_to_date, path, keys[path]) for path in stale}
        errors += [str(e) for e in (job.exception() for job in jobs.values()) if e is not None]
    finally:  # after Ctrl-C no further chapter is begun
        pool.shutdown(cancel_futures=True)
    if errors:
        raise ChapterError("\n\n".join(errors))
    return [kept[path] or jobs[path].result() for path in notebooks]


def keys_of(notebooks: list[Path], root: Path, preset: str) -> tuple[dict[Path, str], list[str]]:
    """Hash what the execution of each notebook depends on; return the hashes, and what is wrong."""
    modules, versions, keys, errors = Modules(root), installed_versions(EXTRAS), {}, []
    for path in notebooks:
        try:
            keys[path] = notebook_key(path, root, modules, preset, versions)
        except (UndeclaredError, SyntaxError) as error:
            errors.append(f"{path.name} {error}")
    return keys, errors


def unchanged(notebook: Path, out: Path, key: str) -> Record | None:
    """Return the record of an execution that still holds, else None."""
    record = read_record(out / f"{notebook.stem}.json")
    if record is not None and record.key == key and (out / notebook.name).is_file():
        return record
    return None


@dataclass(frozen=True)
class _Executor:
    root: Path
    out: Path
    limits: Limits
    preset: str
    progress: Progress

    def bring_up_to_date(self, notebook: Path, key: str) -> Record:
        done, record_file = self.out / notebook.name, self.out / f"{notebook.stem}.json"
        record_file.unlink(missing_ok=True)
        begun = time.monotonic()
        self.progress.running[notebook.name] = begun
        try:
            check_parameters(notebook)
            retries = self.run_with_one_retry(notebook, done)
            opened = self.opened(notebook)
        except ChapterError:
            self.progress.expected.pop(notebook.name)
            say(f"  {notebook.name}: FAILED ({self.progress.line()})")
            raise
        finally:
            self.progress.running.pop(notebook.name)
        seconds = round(time.monotonic() - begun, 1)
        self.progress.done[notebook.name] = seconds
        again = ", after a hang and a second try" if retries else ""
        say(f"  {notebook.name}: done in {seconds:.0f} s{again} ({self.progress.line()})")
        record = Record(
            notebook=notebook.name,
            key=key,
            preset=self.preset,
            seconds=seconds,
            retries=retries,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            threads=THREADS,
            beside=self.progress.workers,
            load=round(os.getloadavg()[0], 2),
            opened=opened,
            environment=environment(),
        )
        record_file.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
        return record

    def opened(self, notebook: Path) -> list[str]:
        """Return the files of ``data/`` that the run opened; refuse one that is not declared."""
        log = self.log_of_opened(notebook)
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        names = sorted(
            {
                name
                for name in lines
                if not name.startswith("downloads/") and (self.root / "data" / name).is_file()
            }
        )
        try:
            check_opened(names, declared(json.loads(notebook.read_text(encoding="utf-8"))))
        except UndeclaredError as error:
            (self.out / notebook.name).unlink(missing_ok=True)
            raise ChapterError(f"{notebook.name} {error}") from None
        return names

    def log_of_opened(self, notebook: Path) -> Path:
        return self.out / f"{notebook.stem}.opened"

    def run_with_one_retry(self, notebook: Path, done: Path) -> int:
        """Execute, once more after a hang (never after an error); return the number of retries."""
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
        """Call papermill once in an empty folder; `done` appears only when all cells succeeded."""
        running = self.out / f"{notebook.stem}.running.ipynb"
        failed = self.out / f"{notebook.stem}.failed.ipynb"
        log = self.out / f"{notebook.stem}.log"
        work = self.out / "work" / notebook.stem
        opened = self.log_of_opened(notebook)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for stale in (running, failed, opened):
            stale.unlink(missing_ok=True)
        command = [sys.executable, "-m", "papermill", str(notebook), str(running)]
        command += ["-p", "PRESET", self.preset, "--cwd", str(work)]
        command += ["--kernel", "python3", "--language", "python"]
        command += ["--execution-timeout", str(self.limits.cell), "--no-progress-bar"]
        env = os.environ | {
            "OMP_NUM_THREADS": str(THREADS),
            "PYTHONPATH": os.pathsep.join([str(WATCH), os.environ.get("PYTHONPATH", "")]),
            "DFKD_WATCHED": str(self.root / "data"),
            "DFKD_OPENED": str(opened),
        }
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
        raise ChapterError(describe_failure(notebook, failed, printed))


def read_record(path: Path) -> Record | None:
    """Read the record of the last execution; return None where there is none to be read."""
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
    """Describe where this happens, as the package's own records do."""
    from dfkd_lab import records  # late: it imports torch, and most builds execute nothing

    return records.environment()


# --- saying what went wrong ---------------------------------------------------------------------


def describe_failure(notebook: Path, failed: Path, printed: str) -> str:
    """Describe a failed execution in a few lines: notebook, cell, line and error."""
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
    """Find the first failing cell: its number in the source, the line, the error output."""
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
    """Return the line of the cell that the traceback points at, or None."""
    match = re.search(r"Cell In\[\d+\], line (\d+)", without_colours("\n".join(traceback)))
    lines = source.splitlines()
    if match and 0 < int(match[1]) <= len(lines):
        return lines[int(match[1]) - 1].strip()
    return None
