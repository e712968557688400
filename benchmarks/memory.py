"""Measures whether memory grows with a run's length: peak of a short run and one 10 times as long.

    python benchmarks/memory.py
    python benchmarks/memory.py --json memory.json

Both runs fill a pool of the same size. Each is its own process, because a peak never goes down.
"""

from __future__ import annotations

import argparse
import multiprocessing
from dataclasses import replace
from pathlib import Path

import torch

from dfkd_lab.records import environment, peak_memory
from dfkd_lite.distill import distill
from dfkd_lite.networks import NetworkSpec, build
from dfkd_lite.presets import preset
from dfkd_lite.settings import plain
from dfkd_lite.storage.files import write_json

SPEC = NetworkSpec("wrn-16-1", 10, 3, 32, (0.5,) * 3, (0.25,) * 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=20, help="of the short run")
    parser.add_argument("--pool", type=int, default=1000, help="images kept at most")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    # spawned, not forked: a forked child would start with its parent's peak
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as workers:
        lengths = (options.episodes, 10 * options.episodes)
        peaks = [workers.apply(peak_of, (length, options.pool)) for length in lengths]
    for length, peak in zip(lengths, peaks, strict=True):
        print(f"{length:5d} episodes: peak {peak / 2**20:.0f} MiB")
    print(f"growth {(peaks[1] - peaks[0]) / 2**20:.1f} MiB")
    if options.json:
        settings = {"episodes": lengths, "pool_size": options.pool}
        report = {"settings": settings, "environment": environment(), "peak_bytes": peaks}
        write_json(options.json, plain(report))


def peak_of(episodes: int, pool_size: int) -> int:
    """Run so many episodes in this process, and return its peak memory in bytes."""
    torch.manual_seed(0)
    lite = preset("lite")
    config = replace(lite.distill, episodes=episodes, student_steps=2, pool_size=pool_size)
    teacher = build(SPEC.network, SPEC.classes, SPEC.channels, SPEC.size)
    distill(teacher, "wrn-10-1", SPEC, config, lite.method, device="cpu")
    return peak_memory()


if __name__ == "__main__":
    main()
