"""Finds what a chapter depends on: the notebook, the modules it imports, the data files it reads.

It finds modules in the syntax trees, from import to import. A package's ``__init__.py`` hands on
names; only the module that a name comes from is followed, so that `from dfkd_lab import viz` does
not mean the whole package. Data files are declared in the notebook's metadata under "reads", as
patterns below ``data/``; `watch/sitecustomize.py` writes down what a run really opens there.
"""

import ast
import hashlib
import json
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from importlib.metadata import PackageNotFoundError, distribution
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = "dfkd_lite"
PACKAGES = (PACKAGE, "dfkd_lab", "dfkd_course")
# Extras of the package from which a chapter may import.
EXTRAS = ("book", "export")
NOT_INPUTS = {"__pycache__", "downloads"}


class UndeclaredError(Exception):
    """Raised where a notebook reads an undeclared data file, or declares one that is not there."""


# --- files ------------------------------------------------------------------------------------


def files_below(folder: Path, skipped: set[str] = NOT_INPUTS) -> Iterator[Path]:
    """Yield all files below a folder, in a fixed order."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not skipped & set(path.relative_to(folder).parts):
            yield path


def digest(paths: list[Path], *texts: str) -> str:
    """Return one hash over the names and contents of files, and over some texts."""
    total = hashlib.sha256("\0".join(texts).encode())
    for path in paths:
        total.update(f"\0{path.name}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


# --- modules ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Imported:
    """Holds one import: a module's dotted name, and the name taken from it (None: all of it)."""

    module: str
    name: str | None
    bound: str  # what the importing file calls it


@dataclass
class Modules:
    """Finds the modules of our packages, and what each of them imports.

    ``tools`` are folders of single files that can be imported by their names.
    """

    root: Path
    tools: tuple[str, ...] = ()
    _imports: dict[str, list[Imported]] = field(default_factory=dict)

    @cached_property
    def files(self) -> dict[str, Path]:
        """Return dotted name -> file."""
        found = {path.stem: path for name in self.tools for path in (self.root / name).glob("*.py")}
        ours = [sorted((self.root / name).rglob("*.py")) for name in PACKAGES]
        for path in chain(*ours):
            parts = path.relative_to(self.root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        return found

    def imports(self, module: str) -> list[Imported]:
        if module not in self._imports:
            path = self.files[module]
            package = module if path.name == "__init__.py" else module.rpartition(".")[0]
            self._imports[module] = imports_of(path.read_text(encoding="utf-8"), package)
        return self._imports[module]

    def needed_by(self, source: str) -> dict[Path, int]:
        """Return the files that some code depends on, and how many imports away each is."""
        found: dict[Path, int] = {}
        seen: set[tuple[str, str | None]] = set()
        wanted = deque((1, one) for one in imports_of(source, ""))
        while wanted:
            away, one = wanted.popleft()
            module, name = self._place(one)
            if module not in self.files or (module, name) in seen:
                continue
            seen.add((module, name))
            parts = module.split(".")
            for above in (".".join(parts[:n]) for n in range(1, len(parts) + 1)):
                if above in self.files:  # a folder without __init__.py is a package too
                    found.setdefault(self.files[above], away)
            handed_on = self._handed_on(module, name)
            wanted += [(away, other) for other in handed_on]
            if not handed_on:
                wanted += [(away + 1, other) for other in self.imports(module)]
        return found

    def _place(self, one: Imported) -> tuple[str, str | None]:
        """Resolve `from package import module`: it names a module, not a name in the package."""
        inside = f"{one.module}.{one.name}"
        return (inside, None) if inside in self.files else (one.module, one.name)

    def _handed_on(self, module: str, name: str | None) -> list[Imported]:
        """Return where a package's ``__init__.py`` has a name from, if it only hands it on."""
        if name is None or self.files[module].name != "__init__.py":
            return []
        return [one for one in self.imports(module) if one.bound == name]


def imports_of(source: str, package: str) -> list[Imported]:
    """List all imports of a file, those inside of functions too; ``package`` is what "." means."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Imported(one.name, None, one.asname or one.name) for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join(above) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            for one in node.names:
                name = None if one.name == "*" else one.name
                found.append(Imported(module, name, one.asname or one.name))
    return found


# --- notebooks --------------------------------------------------------------------------------


def code_of(notebook: dict) -> str:
    """Return the notebook's code without the lines that only IPython understands."""
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    lines = "\n\n".join("".join(c["source"]) for c in cells).splitlines()
    return "\n".join(
        line[: len(line) - len(line.lstrip())] + "pass" if line.lstrip()[:1] in "%!" else line
        for line in lines
        if line.strip()
    )


def declared(notebook: dict) -> list[str]:
    """Return the data files that a notebook says it reads, as patterns below ``data/``."""
    return notebook["metadata"].get("reads", [])


def data_files(root: Path, patterns: list[str]) -> list[Path]:
    """Return the files that some patterns name, in a fixed order.

    A pattern may name the records of an experiment that has not been run yet.

    Raises:
        UndeclaredError: a pattern names no file.
    """
    planned = {f"records/{path.stem}/*.json" for path in (root / "data").glob("experiments/*.yaml")}
    names = [path.relative_to(root / "data").as_posix() for path in files_below(root / "data")]
    for pattern in patterns:
        if pattern not in planned and not any(fnmatch(name, pattern) for name in names):
            raise UndeclaredError(f'declares that it reads "{pattern}", and no file of data/ is so')
    return [root / "data" / n for n in names if any(fnmatch(n, p) for p in patterns)]


def check_opened(opened: list[str], patterns: list[str]) -> None:
    """Refuse a run that opened a file of ``data/`` which its notebook does not declare.

    Raises:
        UndeclaredError: names the files and the line to add.
    """
    more = [name for name in opened if not any(fnmatch(name, p) for p in patterns)]
    if more:
        raise UndeclaredError(
            f"read files of data/ that it does not declare: {', '.join(more[:5])}"
            f'{" ..." if len(more) > 5 else ""}. Add them to the list "reads" in the notebook\'s '
            'metadata (patterns like "records/digits/*.json"), so that the chapter is executed '
            "again when they change."
        )


def notebook_key(notebook: Path, root: Path, modules: Modules, *texts: str) -> str:
    """Return one hash over all that an execution of a notebook depends on."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    paths = sorted(modules.needed_by(code_of(content)))
    paths += data_files(root, declared(content))
    names = [path.relative_to(root).as_posix() for path in paths]
    return digest([notebook, *paths], *texts, *names)


# --- installed versions -----------------------------------------------------------------------


def installed_versions(extras: tuple[str, ...], package: str = PACKAGE) -> str:
    """List Python's version, and those of what the package needs with some extras.

    What is installed beside them (for the tests, say) changes no chapter.
    """
    versions: dict[str, str] = {}
    wanted = [(package, extras)]
    while wanted:
        name, chosen = wanted.pop()
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        versions[canonicalize_name(name)] = found.version
        for requirement in map(Requirement, found.requires or []):
            known = canonicalize_name(requirement.name) in versions
            if not known and _applies(requirement, chosen):
                wanted.append((requirement.name, tuple(requirement.extras)))
    return "\n".join([sys.version, *(f"{n}=={v}" for n, v in sorted(versions.items()))])


def _applies(requirement: Requirement, extras: tuple[str, ...]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or ("",))


if __name__ == "__main__":
    print(installed_versions(EXTRAS))
