"""One setting changed at a time, on the digits: one record a variant and seed.

    python benchmarks/variants.py --seeds 0 1 2              # all of them
    python benchmarks/variants.py kappa lambda --seeds 0     # those whose name starts so

Everything else is the preset ``lite``. A seed governs teacher and student; all variants of a seed
share its teacher, so that differences can be paired. What exists already is passed over.
"""

from __future__ import annotations

import argparse
import base64
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from dfkd_lite.data import ImageData, load
from dfkd_lite.distill import Distillation
from dfkd_lite.errors import InputError, choose
from dfkd_lite.evaluate import accuracy, evaluate, predict
from dfkd_lite.presets import Preset, override, preset
from dfkd_lite.records import RECORDS, environment, plain, write_record
from dfkd_lite.signs import data_free_signs
from dfkd_lite.trained import trained_teacher
from dfkd_lite.viz import png, tile

#: Settings of method and loop, by the name of the variant; what is not named is as in ``lite``.
VARIANTS: dict[str, list[str]] = {
    "lite": [],
    # Eq. 16's kappa and Eq. 17's beta
    **{f"kappa-{k}": [f"method.kappa={k}"] for k in ("0", "0.01", "0.1", "0.3", "3", "10")},
    **{f"beta-{b}": [f"method.beta={b}"] for b in ("0", "0.01", "0.3", "1", "3")},
    # Eq. 6: the readings of the softmax (point 1)
    "attention-none": ["method.generator.attention=None"],
    "attention-channel": ["method.generator.attention.softmax=channel"],
    "attention-rescaled": ["method.generator.attention.rescale=True"],
    "attention-rescaled-1": [
        "method.generator.attention.rescale=True",
        "method.generator.attention.lam=1.0",
    ],
    # Eqs. 7 and 8: the outer gradient (point 5)
    "meta-none": ["method.meta.kind=none"],
    "meta-first-order": ["method.meta.kind=first-order"],
    "meta-reptile": ["method.meta.kind=reptile"],
    # Eqs. 12 to 14 and 9: the weights of the maps (points 6 and 8)
    "cam-equation-13": ["method.msarc.cam.weights=gradient-x-activation"],
    "msarc-second-order": ["method.msarc.second_order=True"],
    "msarc-normalised": ["method.msarc.normalise=True"],
    # with maps of one scale the early stages count, and so does the form of their weights
    "msarc-normalised-equation-13": [
        "method.msarc.normalise=True",
        "method.msarc.cam.weights=gradient-x-activation",
    ],
    # Eq. 16's L_KD in the generator (point 11)
    "adversarial-plain": ["method.agree_only=False"],
    "adversarial-none": ["method.adversarial_weight=0"],
    # the student's temperature (point 12)
    **{f"temperature-{t}": [f"method.temperature={t}"] for t in ("1", "4", "100")},
    # things that go wrong (chapter 8)
    "fail-no-class-loss": ["method.class_weight=0"],
    "fail-no-batch-norm-loss": ["method.bn_weight=0"],
    "fail-adversarial-30": ["method.adversarial_weight=30"],
    "fail-newest-batch-only": ["pool_size=64"],
    "fail-lr-1": ["lr=1.0"],
    "fail-plain-adversarial-30": ["method.agree_only=False", "method.adversarial_weight=30"],
    "fail-disagreement-alone": ["method.kappa=0", "method.agree_only=False"],
    "fail-collapse": ["method.meta.lr=0.3"],  # sixty times the generator's rate
    "fail-oscillation": ["pool_size=64", "lr=0.4", "lr_final=0.4"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[""], help="beginnings of variants' names")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RECORDS)
    options = parser.parse_args()
    chosen = [v for v in VARIANTS if any(v.startswith(name) for name in options.names)]
    if not chosen:
        choose("variant", options.names[0], VARIANTS)
    data = load("digits")
    for seed in options.seeds:
        for variant in chosen:
            if (options.out / "variants" / f"{variant}_seed{seed}.json").exists():
                continue
            record = run(variant, data, seed)
            write_record(record, options.out)
            print(f"{variant}, seed {seed}: {outcome(record)}", flush=True)


def run(variant: str, data: ImageData, seed: int) -> dict[str, Any]:
    """One record: the student's accuracy and the data-free signs over episodes, and images."""
    chosen = varied(variant)
    where = environment()  # asked now: the code may have changed by the time that the run ends
    started = datetime.now(UTC).isoformat(timespec="seconds")
    teacher, spec = trained_teacher(data, preset("lite"), seed)
    config = replace(chosen.distill, seed=seed, measure_every=4)
    batch = chosen.method.synthesis_batch

    def measure(student: nn.Module) -> dict[str, float]:
        newest = distillation.pool.newest(batch)
        signs = data_free_signs(teacher, student, newest, distillation.normalise(newest))
        right = accuracy(*predict(student, data.test, spec.mean, spec.std))
        return {"accuracy": right, **signs}

    distillation = Distillation(
        teacher, chosen.student, spec, config, chosen.method, measure=measure
    )
    begun, diverged = time.perf_counter(), None
    try:
        distillation.run(progress=False)
    except InputError as error:  # a loss that is not finite: for some variants that is the result
        diverged = str(error)
    seconds = time.perf_counter() - begun
    last: dict[str, Any] = {"teacher": evaluate(teacher, data.test, spec)}
    if diverged is None:
        student = distillation.evaluated_student
        last["student"] = evaluate(student, data.test, spec, teacher)
    sheet = tile(distillation.pool.newest(batch)[:16], columns=8)
    return {
        "experiment": "variants",
        "name": f"{variant}_seed{seed}",
        "variant": variant,
        "changes": VARIANTS[variant],
        "seed": seed,
        "data": {"name": data.name, "size": data.size, "test_images": len(data.test)},
        "settings": {
            "teach": plain(replace(chosen.teach, seed=seed)),
            "distill": plain(config),
            "method": plain(chosen.method),
        },
        "environment": where,
        "started": started,
        "seconds": {"distil": seconds},
        "diverged": diverged,
        "last": last,
        "history": distillation.history,
        "images_png": base64.b64encode(png(sheet, zoom=1)).decode(),
    }


def varied(variant: str) -> Preset:
    """The preset ``lite`` with the variant's changes."""
    lite, changes = preset("lite"), VARIANTS[variant]
    method = [c.removeprefix("method.") for c in changes if c.startswith("method.")]
    loop = [c for c in changes if not c.startswith("method.")]
    return replace(lite, method=override(lite.method, method), distill=override(lite.distill, loop))


def outcome(record: dict[str, Any]) -> str:
    if record["diverged"]:
        return "diverged"
    return f"{record['last']['student']['accuracy']:.2%} in {record['seconds']['distil']:.0f} s"


if __name__ == "__main__":
    main()
