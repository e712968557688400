"""Measures what our code adds to the bare networks: ratios of times measured in one run.

    python benchmarks/speed.py                      # WRN-16-2 -> WRN-16-1, 32 px, batch 128
    python benchmarks/speed.py --json speed.json

"Bare" is the time of the same networks' forward and backward passes on a batch of the same size,
without anything else. Bare and ours take turns, so that other work on the machine slows both, and
their medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfkd_lab.records import environment, peak_memory
from dfkd_lite.devices import mixed
from dfkd_lite.distill import Distillation, DistillConfig, frozen
from dfkd_lite.methods import FsscConfig
from dfkd_lite.networks import NetworkSpec, build
from dfkd_lite.settings import plain
from dfkd_lite.storage.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="wrn-16-2")
    parser.add_argument("--student", default="wrn-16-1")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="float32", help="or bfloat16, of both sides")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    rows = measure(options)
    for name, row in rows.items():
        print(f"{name:28} bare {row['bare']:.3f} s  ours {row['ours']:.3f} s  {row['ratio']:.2f}")
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items()}
        report = {"settings": settings, "environment": environment(), "rows": rows}
        write_json(options.json, plain(report | {"peak_memory_bytes": peak_memory()}))


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    spec = NetworkSpec(options.teacher, 10, 3, options.size, (0.5,) * 3, (0.25,) * 3)
    loop = DistillConfig(
        episodes=10, warm_up=1, batch_size=options.batch, precision=options.precision
    )
    method = FsscConfig(synthesis_batch=options.batch)

    def prepare(**changes: Any) -> Distillation:
        torch.manual_seed(0)
        teacher = build(options.teacher, spec.classes, spec.channels, spec.size)
        changed = replace(method, **changes)
        run = Distillation(teacher, options.student, spec, loop, changed, options.device)
        with frozen(run.network):
            run.pool.add(run.method.synthesise(run.network, warm_up=False)[0])
        run.episode = loop.warm_up
        run.network.train()
        return run

    plain_run, msarc_run = prepare(beta=0.0), prepare(beta=1.0)
    images = next_batch(plain_run)
    return {
        "synthesis episode": compare(
            lambda: bare_synthesis(plain_run), lambda: synthesis(plain_run), options.rounds
        ),
        "student step": compare(
            lambda: bare_step(plain_run, images), lambda: plain_run._transfer(0), options.rounds
        ),
        "student step with MSARC": compare(
            lambda: bare_step(msarc_run, images), lambda: msarc_run._transfer(0), options.rounds
        ),
    }


def compare(bare: Callable[[], None], ours: Callable[[], object], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    for number in range(rounds + 1):
        for name, function in (("bare", bare), ("ours", ours)):
            seconds = timed(function)
            if number:  # the first round only warms the caches
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return medians | {"ratio": medians["ours"] / medians["bare"]}


def timed(function: Callable[[], object]) -> float:
    synchronise()
    start = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - start


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def next_batch(run: Distillation) -> Tensor:
    return run.normalise(run.pool.sample(run.config.batch_size, run.rng))


def synthesis(run: Distillation) -> None:
    with frozen(run.network), precision(run):
        run.method.synthesise(run.network, warm_up=False)


def bare_synthesis(run: Distillation) -> None:
    """Run generator, teacher and student forward, and backward to the generator's weights and z."""
    method = run.method
    for _ in range(method.config.meta.steps):
        z = torch.randn(method.config.synthesis_batch, method.config.generator.z_dim)
        z = z.to(run._device).requires_grad_()
        method.generator.zero_grad()
        with frozen(run.network), precision(run):
            images = method.generator(z)
            (run.teacher(images).sum() + run.network(images).sum()).backward()


def bare_step(run: Distillation, images: Tensor) -> None:
    """Run the teacher forward, and the student forward and backward."""
    with torch.no_grad(), precision(run):
        run.teacher(images)
    run.network.zero_grad()
    with precision(run):
        loss = run.network(images).sum()
    loss.backward()


def precision(run: Distillation) -> torch.autocast:
    return mixed(run._device, run.config.precision)


if __name__ == "__main__":
    main()
