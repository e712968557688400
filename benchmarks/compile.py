"""Measures what torch.compile saves in a step of teaching, and how long compiling takes first.

    python benchmarks/compile.py --json data/records/speed/compile.json
    python benchmarks/compile.py --network wrn-40-2 --threads 1

Plain and compiled steps take turns. The fastest of each counts, since other work only slows steps.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from dfkd_lab.records import environment
from dfkd_lite.data import ImageData, Split
from dfkd_lite.devices import FORMATS, resolve_device
from dfkd_lite.settings import plain
from dfkd_lite.storage.files import write_json
from dfkd_lite.teach import TeachConfig, Teaching

ROUNDS = 4  # of two timed steps each, after one that does not count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="wrn-16-2")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = {precision: measure(options, precision) for precision in FORMATS}
    for precision, row in rows.items():
        print(
            f"{precision:9} plain {row['plain']:.3f} s, compiled {row['compiled']:.3f} s: "
            f"{row['plain'] / row['compiled']:.2f} times as fast after {row['first']:.0f} s"
        )
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items()}
        where = environment(resolve_device(options.device))
        write_json(options.json, plain({"settings": settings, "environment": where, "rows": rows}))


def measure(options: argparse.Namespace, precision: str) -> dict[str, float]:
    """Return seconds of a step, plain and compiled; ``first`` is for the first three compiled."""
    runs = {
        name: Teaching(
            options.network,
            blank(options.batch, options.size),
            TeachConfig(epochs=1000, batch_size=options.batch, precision=precision, compile=how),
            resolve_device(options.device),
        )
        for name, how in (("plain", False), ("compiled", True))
    }
    start = time.perf_counter()
    runs["compiled"].time_step()
    first = time.perf_counter() - start
    times = [{name: run.time_step() for name, run in runs.items()} for _ in range(ROUNDS)]
    return {name: min(row[name] for row in times) for name in runs} | {"first": first}


def blank(count: int, size: int) -> ImageData:
    """Make one batch of black images in ten classes: times do not depend on what images show."""
    train = Split(torch.zeros(count, 3, size, size, dtype=torch.uint8), torch.arange(count) % 10)
    names = tuple(map(str, range(10)))
    return ImageData("blank", names, 3, size, (0.5,) * 3, (0.25,) * 3, train, None, train)


if __name__ == "__main__":
    main()
