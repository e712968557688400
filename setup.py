"""Packs the records into the wheel; everything else of the build is set in pyproject.toml."""

import json
import lzma
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PICTURED = ("variants", "table6-digits", "methods-digits")  # in chapters 8, 12 and 14


def packed(folder: Path) -> dict[str, dict]:
    """Read a folder's records, by name, with the pictures that pages show: seed 0's of some."""
    records = {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}
    for record in records.values():
        shown = record["seed"] == 0 and folder.name in PICTURED
        if not shown and "images_png" in record:
            record["images_png"] = ""
    return dict(sorted(records.items()))


class PackRecords(build_py):
    """Writes an archive for each experiment, which the installed ``dfkd_lab.records`` reads."""

    def run(self) -> None:
        """Copy the package's files, then add the archives."""
        super().run()
        if self.editable_mode:  # an editable install reads the checkout's own files
            return
        target = Path(self.build_lib) / "dfkd_lite" / "_data" / "records"
        for folder in sorted(Path("data/records").iterdir()):
            if folder.is_dir() and folder.name not in ("cost", "speed", "memory"):  # benchmarks
                content = json.dumps(packed(folder), ensure_ascii=False, separators=(",", ":"))
                target.mkdir(parents=True, exist_ok=True)
                path = target / f"{folder.name}.json.xz"
                path.write_bytes(lzma.compress(content.encode(), preset=9))


setup(cmdclass={"build_py": PackRecords})
