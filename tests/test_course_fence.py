"""Submissions that set out to get through the fence: Linux refuses them, whatever Python says."""

import hashlib
import json
import os
import re
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import course
import pytest
from test_course_grader import LIMITS, made, solution, with_cell

from dfkd_course import grade as grading
from dfkd_course.grade import Grade, Workers, grade_folder
from dfkd_course.kernel import missing
from dfkd_course.reading import read_assignment
from dfkd_lite import InputError
from dfkd_lite.cli.main import main

__all__ = ["made", "solution"]  # fixtures
LACKING = missing()
fenced = pytest.mark.skipif(LACKING is not None, reason=f"no fence here: {LACKING}")

FORK_EXEC = """
import _posixsubprocess, os
pipe = os.pipe()
_posixsubprocess.fork_exec([b"/bin/sh", b"-c", {command}], [b"/bin/sh"], True, (pipe[1],), None,
    None, -1, -1, -1, -1, -1, -1, *pipe, True, False, -1, None, None, None, -1, None, False)
os.read(pipe[0], 9)
"""
#: Makes the audit hook answer nothing for ever: only the kernel is left.
UNHOOK = """
import gc, types
for f in [o for o in gc.get_objects() if isinstance(o, types.FunctionType)]:
    if f.__qualname__ == "raise_fence.<locals>.objection":
        names = f.__code__.co_freevars
        made = {}
        exec("def outer():\\n " + "=".join(names) + "=None\\n def inner(event, args):\\n  "
             + "(" + ",".join(names) + ",)\\n  return None\\n return inner", made)
        f.__code__ = made["outer"]().__code__
"""
ACTS = {
    "fork-exec": FORK_EXEC.replace("{command}", "b'touch {mark}'"),
    "fork-exec-signal": FORK_EXEC.replace("{command}", "b'kill -9 {grader}'"),
    "open-write": "open('{mark}', 'w')",
    "open-read": "found = open('{secret}').read()\nassert False, found",
    "append": "open('{precious}', 'a').write('x')",
    "emptied": "import os\nos.open('{precious}', os.O_RDONLY | os.O_TRUNC)",
    "truncate": "import os\nos.truncate('{precious}', 0)",
    "remove": "import os\nos.remove('{precious}')",
    "rename": "import os\nopen('x', 'w')\nos.rename('x', '{precious}')",
    "hard-link": "import os\nos.link('{precious}', 'mine')\nopen('mine', 'w')",
    "link": "import os\nos.symlink('{precious}', 'mine')\nopen('mine', 'w')",
    "chmod": "import os\nos.chmod('{precious}', 0)",
    "utime": "import os\nos.utime('{precious}', (1, 1))",
    "mkdir": "import os\nos.mkdir('{mark}')",
    "fork": "import os\nwhile True: os.fork()",
    "subprocess": "import subprocess\nsubprocess.run(['touch', '{mark}'])",
    "spawn": "import os\nos.posix_spawn('/bin/touch', ['touch', '{mark}'], dict())",
    "exec": "import os\nos.execv('/bin/touch', ['touch', '{mark}'])",
    "libc": "import ctypes\nctypes.CDLL(None).system(b'touch {mark}')",
    "syscall": "import ctypes\nctypes.CDLL(None).syscall(257, -100, b'{mark}', 65, 511)",
    "packet": "import socket\nsocket.socket(2, 2).sendto(b'x', ('127.0.0.1', {port}))",
    "connection": "import socket\nsocket.create_connection(('127.0.0.1', {port}))",
    "datagram-pair": "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "signal-parent": "import os\nos.kill(os.getppid(), 9)",
    "signal-grader": "import os\nos.kill({grader}, 9)",
    "signal-all": "import os\nos.kill(-1, 9)",
    "memory-of-parent": "import os\nopen(f'/proc/{os.getppid()}/mem', 'r+b')",
    "limits": "import resource\nresource.prlimit(0, resource.RLIMIT_FSIZE, (2**40, 2**40))",
    "shared-memory": "import mmap\nhoard = [mmap.mmap(-1, 2**30) for _ in range(9)]",
    "own-memory": "mem = open('/proc/self/mem', 'r+b', 0)\nopen('{mark}', 'w')",
    "atexit": "import atexit\natexit.register(lambda: open('{mark}', 'w'))",
    "thread": "import threading, time\ndef late():\n    while True:\n        time.sleep(.1)\n"
    "        open('{mark}', 'w')\nthreading.Thread(target=late, daemon=True).start()",
    "process-lie": "import json, sys\nf = sys._getframe()\n"
    "while 'job' not in f.f_locals: f = f.f_back\n"
    "print(json.dumps(dict(token=f.f_locals['job']['token'], process={bystander})),"
    " file=f.f_locals['answers'], flush=True)\nwhile True:\n    try:\n        while True: pass\n"
    "    except BaseException: pass",
    "many-files": "for n in range(10**6): open(f'{n}', 'w')",
    "full-disk": "for n in range(10**4): open(f'{n}', 'wb').write(bytes(2**25))",
    "deep": "import os\nfor n in range(5000):\n    os.mkdir('d' * 9, 0o700); os.chdir('d' * 9)",
    "closed": "import os\nos.makedirs('a/b/c')\nos.mkdir('shut', 0)",
}


def told(source: str, **places: object) -> str:
    return re.sub(r"\{(\w+)\}", lambda m: str(places.get(m[1], m[0])), source)


def state_of(folder: Path) -> dict[str, object]:
    """What lies in a folder: contents, modes and times."""
    return {
        str(path): (path.stat().st_mode, path.stat().st_mtime_ns, path.is_file() and
                    hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
    }  # fmt: skip


@pytest.fixture(scope="module")
def tried(
    made: course.Made, solution: dict, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Grade], list[str]]:
    """Grades of all that is tried, and what has changed outside meanwhile."""
    folder = tmp_path_factory.mktemp("tried")
    outside, submissions = folder / "outside", folder / "in"
    outside.mkdir()
    submissions.mkdir()
    for name in ("precious", "secret"):
        (outside / name).write_text("kept")
    harm = []
    bystander = subprocess.Popen(["sleep", "900"])
    with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        stream.bind(("127.0.0.1", 0))
        port = stream.getsockname()[1]
        datagrams.bind(("127.0.0.1", port))
        stream.listen()
        places = {name: outside / name for name in ("mark", "precious", "secret")}
        numbers = {"port": port, "grader": os.getpid(), "bystander": bystander.pid}
        for name, source in ACTS.items():
            text = with_cell(solution, UNHOOK + told(source, **places, **numbers))
            (submissions / f"{name}.ipynb").write_text(text)
        (submissions / "zz-right.ipynb").write_text(json.dumps(solution))
        before = state_of(folder)
        limits = LIMITS | {"total_seconds": 15.0, "cell_seconds": 3.0}
        with Workers(fenced=True) as workers:
            assignment = read_assignment(made.autograder)
            out = tmp_path_factory.mktemp("grades")
            grades = grade_folder(submissions, assignment, out, 1, workers, **limits)
        for what in (stream, datagrams):
            what.setblocking(False)
            with suppress(BlockingIOError):
                harm.append(f"a packet: {what.accept() if what is stream else what.recv(9)}")
    if bystander.poll() is not None:
        harm.append("another process was ended")
    bystander.kill()
    bystander.wait()
    if state_of(folder) != before:
        harm.append("files have changed")
    return {grade.name: grade for grade in grades}, harm


@pytest.mark.slow
@fenced
@pytest.mark.parametrize("name", [*ACTS, "zz-right"])
def test_each_has_its_row_and_loses_no_points_by_another(name: str, tried) -> None:
    grade = tried[0][name]
    assert grade.of == 14
    assert grade.points == 14, (grade.notes, [mark.why for mark in grade.marks])
    assert not any("kept" in note for note in grade.notes)  # what the secret says


@pytest.mark.slow
@fenced
def test_nothing_outside_changed_and_no_packet_left(tried) -> None:
    assert tried[1] == []


@pytest.mark.slow
@fenced
def test_acts_that_the_kernel_refuses_are_refused_there(tried) -> None:
    for name in ("fork-exec", "open-write", "packet", "fork", "signal-parent", "memory-of-parent"):
        notes = " ".join(tried[0][name].notes)
        assert "Operation not permitted" in notes or "Permission denied" in notes, (name, notes)
        assert "refused" not in notes  # the audit hook was blind


def test_a_machine_without_a_fence_is_told_so_first(
    made: course.Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(grading, "missing", lambda: "Linux runs without Landlock")
    (tmp_path / "a.ipynb").write_text("an essay")
    command = ["course", "grade", str(tmp_path), "--assignment", str(made.autograder)]
    command += ["--out", str(tmp_path / "out")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "no fence for submissions: Linux runs without Landlock" in said
    assert "--unfenced" in said and not (tmp_path / "out").exists()
    assert main([*command, "--unfenced"]) == 0
    assert capsys.readouterr().out.startswith("Without the kernel's fence")
    with pytest.raises(InputError, match="--unfenced"):
        grade_folder(tmp_path, read_assignment(made.autograder), tmp_path / "out")
