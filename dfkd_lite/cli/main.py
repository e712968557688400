"""Provides the command ``dfkd``: it teaches a teacher, distils it, and evaluates networks."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..data import READERS, ImageData, load
from ..devices import resolve_device, settled
from ..distill import Distillation
from ..errors import InputError, choose
from ..export.card import model_card, write_card
from ..export.onnx import export_onnx
from ..measure.evaluate import accuracy, evaluate, predict
from ..measure.signs import data_free_signs
from ..methods import METHODS
from ..networks import NETWORKS, NetworkSpec
from ..presets import PRESETS, preset
from ..settings import override
from ..storage.files import write_json
from ..storage.weights import load_network, save_network
from ..teach import teach
from . import course as cli_course

EXAMPLES = """\
from no files at all to a student, on two cores in about two minutes:
  dfkd teach --data digits --out runs/teacher.safetensors
  dfkd distill --teacher runs/teacher.safetensors --out runs/student --watch digits
  dfkd evaluate --network runs/student/student.safetensors --data digits \\
      --teacher runs/teacher.safetensors

distil sees the teacher's file and nothing else: --watch measures the student on held-out images as
it learns, for your eyes; no step and no choice of checkpoint depends on it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code (1: output closed, 2: bad input, disk, 130: Ctrl-C)."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `| head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except InputError as error:
        print(f"dfkd: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; free some space" if full else str(error)
        print(f"dfkd: {reason}. What was saved before is untouched.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = " Continue with --resume." if "resume" in options else ""
        print(f"\ndfkd: stopped.{hint}", file=sys.stderr)
        return 130
    return 0


def _teach(options: argparse.Namespace) -> None:
    chosen = preset(options.preset)
    config = override(chosen.teach, [f"seed={options.seed}", *options.set])
    config = settled(config, resolve_device(options.device))
    data = _data(options, options.data, options.size)
    network = options.network or chosen.teacher
    model, spec, history = teach(network, data, config, options.device)
    right = accuracy(*predict(model, data.test, spec))
    notes = {"data": data.name, "config": repr(config), "test_accuracy": f"{right:.4f}"}
    save_network(options.out, model, spec, notes)
    print(f"{network} on {data.name}: test accuracy {right:.2%} after {len(history)} epochs")
    print(f"saved to {options.out}")


def _distill(options: argparse.Namespace) -> None:
    teacher, spec = load_network(options.teacher)
    name = choose("method", options.method, [m for m in METHODS if m != "given"])
    chosen = preset(options.preset).of_method(name)
    of_method = [text for text in options.set if text.startswith("method.")]
    of_loop = [text for text in options.set if text not in of_method]
    config = override(chosen.distill, [f"seed={options.seed}", *of_loop])
    method = override(chosen.method, [text.removeprefix("method.") for text in of_method])
    student = options.student or chosen.student
    watched = None
    if options.watch is not None:
        watched = _data(options, options.watch, spec.size, spec)
    run = Distillation(
        teacher,
        student,
        spec,
        config,
        method,
        options.device,
        measure=partial(_accuracy, watched, spec) if watched else None,
    )
    folder = Path(options.out)
    result = run.run(folder / "checkpoints", resume=options.resume)
    student_spec = replace(spec, network=student)
    notes = {"teacher": str(options.teacher), "config": repr(run.config), "method": repr(method)}
    save_network(folder / "student.safetensors", result.student, student_spec, notes)
    write_json(folder / "history.json", result.history)
    last = result.history[-1]
    newest = result.pool.newest(256)
    signs = data_free_signs(run.teacher, result.student, newest, run.normalise(newest))
    text = model_card(
        f"{student}, distilled from {spec.network}",
        result.student,
        student_spec,
        folder / "student.safetensors",
        {"loop": run.config, "method": method},
        signs,
        {"test accuracy": last["accuracy"]} if watched else None,
        options.watch or "",
    )
    write_card(folder / "CARD.md", text)
    print(", ".join(f"{name} {value:.4g}" for name, value in last.items()))
    print(f"saved to {folder / 'student.safetensors'} (the last step's weights); see CARD.md there")


def _export(options: argparse.Namespace) -> None:
    model, spec = load_network(options.network)
    worst = export_onnx(model.to(resolve_device(options.device)), spec, options.onnx)
    print(f"{options.onnx}: same answers as {options.network} (largest difference {worst:.1g})")


def _evaluate(options: argparse.Namespace) -> None:
    device = resolve_device(options.device)
    model, spec = load_network(options.network)
    teacher = load_network(options.teacher)[0].to(device) if options.teacher else None
    data = _data(options, options.data, options.size or spec.size, spec)
    split = getattr(data, options.split)
    if split is None:
        raise InputError(f"{data.name} has no split '{options.split}': use test or train.")
    report = evaluate(model.to(device), split, spec, teacher)
    print(f"{spec.network} on {len(split)} images of {data.name} ({options.split})")
    for name, value in report.items():
        if isinstance(value, float):
            print(f"  {name:16} {value:.4f}")
    print("  confusion (rows: true class)")
    for row in report["confusion"]:
        print("    " + " ".join(f"{count:5d}" for count in row))
    if options.json:
        write_json(options.json, report)


def _methods(options: argparse.Namespace) -> None:
    """Print the methods that ``--method`` knows, with the cost of making images as published."""
    print(f"{'name':13} {'year':5} {'cost':>7}  {'idea':66} source")
    for name, method in METHODS.items():
        if method.about is not None:
            about, published = method.about, preset("paper").of_method(name)
            loop = published.distill
            read = loop.all_student_steps * loop.batch_size
            cost = method.evaluations(published.method, loop) / read
            print(f"{name:13} {about.year:<5} {cost:7.2f}  {about.idea:66} {about.source}")
    print("cost: images sent through the teacher to make images, for each that the student reads")


def _data(
    options: argparse.Namespace, name: str, size: int | None, spec: NetworkSpec | None = None
) -> ImageData:
    """Load data and say what was read; refuse other classes or channels than those of ``spec``."""
    data = load(name, options.data_root, size, options.download)
    print(data)
    if spec and (data.classes, data.channels) != (spec.classes, spec.channels):
        raise InputError(
            f"{data.name} has {data.classes} classes and {data.channels} channels, the network "
            f"{spec.classes} and {spec.channels}: give the kind of data it was trained on."
        )
    if spec is None:
        return data
    fitting = data.aligned(spec.class_names)
    if fitting is not data:
        print("the network has the classes in another order: labels are exchanged by name")
    return fitting


def _accuracy(data: ImageData, spec: NetworkSpec, model: nn.Module) -> dict[str, float]:
    return {"accuracy": accuracy(*predict(model, data.test, spec))}


def _parser() -> argparse.ArgumentParser:
    from dfkd_lab import command as lab_command  # imported late: dfkd_lab stands on dfkd_lite

    parser = argparse.ArgumentParser(
        prog="dfkd",
        description="Data-free knowledge distillation: a student from a teacher alone.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add = _common(commands, "teach", _teach, "train a teacher on real data and save it")
    _data_options(add, required=False)
    add.add_argument("--network", help=f"{', '.join(NETWORKS)} or any wrn-d-k (the preset's)")
    add.add_argument("--out", default="runs/teacher.safetensors", help="file (%(default)s)")
    _run_options(add, "epochs=20")

    add = _common(commands, "distill", _distill, "distil a saved teacher into a student")
    add.add_argument("--teacher", required=True, help="file written by dfkd teach")
    add.add_argument("--student", help=f"{', '.join(NETWORKS)} or any wrn-d-k (the preset's)")
    add.add_argument("--method", default="fssc", help="see dfkd methods (%(default)s)")
    add.add_argument("--out", default="runs/student", help="folder to write (%(default)s)")
    add.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    add.add_argument("--watch", metavar="DATA", help="measure on this data's test images")
    add.add_argument("--data-root", help="folder of data sets ($DFKD_DATA, or data/downloads)")
    add.add_argument("--download", action="store_true", help="fetch what is missing of --watch")
    _run_options(add, "episodes=50 or method.beta=0 or method.generator.attention.lam=0.3")

    _common(commands, "methods", _methods, "list the methods")

    add = _common(commands, "evaluate", _evaluate, "measure a saved network on real images")
    add.add_argument("--network", required=True, help="file written by dfkd teach or distill")
    add.add_argument("--teacher", help="file of its teacher: adds agreement with it")
    _data_options(add, required=True)
    add.add_argument("--split", default="test", choices=("test", "val", "train"))
    add.add_argument("--json", help="also write the report to this file")

    add = _common(commands, "export", _export, "write a saved network as ONNX, proved equal")
    add.add_argument("--network", required=True, help="file written by dfkd teach or distill")
    add.add_argument("--onnx", default="runs/student.onnx", help="file to write (%(default)s)")

    lab_command.add_commands(commands, _common)
    cli_course.add_commands(commands, _common)
    return parser


def _common(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps, ... (auto: a GPU if any)")
    parser.set_defaults(run=run)
    return parser


def _data_options(parser: argparse.ArgumentParser, required: bool) -> None:
    known = f"{', '.join(READERS)}, or a set of MedMNIST (pathmnist, ...)"
    parser.add_argument(
        "--data",
        required=required,
        default=None if required else "digits",
        help=f"a folder of class folders, an .npz file, one of {known}",
    )
    parser.add_argument("--data-root", help="folder of data sets ($DFKD_DATA, or data/downloads)")
    parser.add_argument("--size", type=int, help="side of the images in pixels")
    parser.add_argument("--download", action="store_true", help="fetch what is missing")


def _run_options(parser: argparse.ArgumentParser, example: str) -> None:
    parser.add_argument("--preset", default="lite", help=f"{', '.join(PRESETS)} (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="governs the whole run (%(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE",
        help=f"change a setting of the preset, e.g. {example}; may be repeated",
    )  # fmt: skip
