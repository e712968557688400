"""Tries classification networks of torchvision and timm as teachers, and writes what each can do.

    python benchmarks/zoo.py --json data/zoo.json
    python benchmarks/zoo.py --only timm:resnet18

The networks have random weights, five classes and images of 64 x 64. Of each: are its stages found
and explained, does one episode of three methods run, do saved weights answer the same, does ONNX
Runtime agree. Nothing is said of how well one teaches. The book's page on teachers is the file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from tqdm import tqdm

from dfkd_lab.records import environment
from dfkd_lite import distill
from dfkd_lite.cam import explain
from dfkd_lite.distill import DistillConfig
from dfkd_lite.door import answer, find_layers
from dfkd_lite.errors import InputError
from dfkd_lite.export.onnx import export_onnx
from dfkd_lite.generator import GeneratorConfig
from dfkd_lite.methods import AdiConfig, FsscConfig, ZsktConfig
from dfkd_lite.networks import Layers, NetworkSpec, batch_norms, capture, count_parameters
from dfkd_lite.settings import plain
from dfkd_lite.storage.files import write_json
from dfkd_lite.storage.weights import load_weights, save_weights

SIZE, CLASSES = 64, 5
SPEC = NetworkSpec("wrn-10-1", CLASSES, 3, SIZE, (0.5,) * 3, (0.25,) * 3)
TIMM = (
    "resnet18", "resnet26d", "resnetv2_50", "resnext50_32x4d", "seresnet18", "wide_resnet50_2",
    "densenet121", "dla34", "hrnet_w18_small", "regnetx_002", "regnety_002", "efficientnet_lite0",
    "efficientnet_b0", "mobilenetv2_050", "mobilenetv3_small_050", "mobilenetv4_conv_small",
    "mnasnet_small", "fbnetc_100", "spnasnet_100", "ghostnet_050", "ghostnetv2_100", "lcnet_050",
    "tinynet_e", "hardcorenas_a", "mixnet_s", "rexnet_100", "res2net50_14w_8s", "resnest14d",
    "skresnet18", "selecsls42", "xception41", "inception_v3", "vgg11_bn", "repvgg_a0", "vovnet39a",
    "ese_vovnet19b_dw", "cspresnet50", "cspdarknet53", "darknet53", "dpn48b", "gernet_s",
    "mobileone_s0", "nf_resnet26", "convnext_atto", "convnextv2_atto", "edgenext_xx_small",
    "efficientvit_b0", "fastvit_t8", "starnet_s1", "repghostnet_050", "inception_next_atto",
    "poolformer_s12", "convmixer_768_32", "mobilevit_xxs", "regnetz_005", "semnasnet_050",
    "vit_tiny_patch16_224", "deit_tiny_patch16_224", "mixer_s32_224", "levit_128s",
)  # fmt: skip
LARGE = ("vit_l", "vit_h", "regnet_y_128gf", "regnet_y_32gf", "efficientnet_v2_l")  # of memory
TORCHVISION = torchvision.models.list_models(module=torchvision.models)
NAMES = (
    *(f"torchvision:{name}" for name in TORCHVISION if not name.startswith(LARGE)),
    *(f"timm:{name}" for name in TIMM),
)

_SMALL = {"generator": GeneratorConfig(z_dim=8, width=8), "synthesis_batch": 4}
#: One that reads maps, one that inverts batch-norm statistics, one that plays for disagreement.
METHODS = {
    "fssc": FsscConfig(**_SMALL),
    "adi": AdiConfig(synthesis_batch=4, steps=2),
    "zskt": ZsktConfig(**_SMALL),
}
LOOP = DistillConfig(episodes=1, warm_up=0, student_steps=1, batch_size=4, pool_size=8)


STEPS = ("answers", "stages", "explains", "saves", "onnx", *METHODS)


def make(name: str) -> nn.Module:
    """Build ``torchvision:NAME`` or ``timm:NAME`` with the same random weights each time."""
    where, _, what = name.partition(":")
    torch.manual_seed(0)
    if where == "timm":
        import timm

        sized = {"img_size": SIZE} if what.startswith(("vit_", "deit", "mixer")) else {}
        return timm.create_model(what, num_classes=CLASSES, **sized).eval()
    options = {"image_size": SIZE} if what.startswith("vit_") else {}
    options |= {"init_weights": False} if what in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(what, weights=None, num_classes=CLASSES, **options).eval()


def tried(name: str, export: bool = True) -> dict[str, Any]:
    """Try one network as a teacher: what was found, and of each step "" or the refusal.

    Without ``export`` ONNX is left out, which takes most of the time.
    """
    network = make(name)
    row: dict[str, Any] = {"name": name, "parameters": count_parameters(network)}
    row["answers"] = said(lambda: answer(network, images()))
    if row["answers"]:
        return row
    found: list[Layers] = []
    row["stages"] = said(lambda: found.append(find_layers(network, SPEC.image_shape)))
    if found:
        row["sides"] = sides(network, found[0])
        row["explains"] = said(lambda: explain(network, images(), found[0]))
    with tempfile.TemporaryDirectory() as folder:
        row["saves"] = said(lambda: saved(name, network, Path(folder) / "weights.safetensors"))
        if export:
            row["onnx"] = said(lambda: export_onnx(network, SPEC, Path(folder) / "network.onnx"))
    row["batch_norms"] = len(batch_norms(network))
    for method, settings in METHODS.items():  # last: it lays the weights out channels last
        if method == "fssc" and not row["batch_norms"]:
            settings = replace(settings, bn_weight=0)  # as the refusal advises
        row[method] = said(
            lambda s=settings: distill(network, "wrn-10-1", SPEC, LOOP, s, progress=False)
        )
    return row


def said(step: Callable[[], object]) -> str:
    """Take a step: "" if it went well, else the sentence of the refusal; other errors are ours."""
    try:
        step()
    except InputError as refusal:
        return str(refusal)
    return ""


def images() -> torch.Tensor:
    """Return the same two random images (2, 3, 64, 64) each time."""
    return torch.randn(2, *SPEC.image_shape, generator=torch.Generator().manual_seed(1))


def sides(network: nn.Module, layers: Layers) -> list[int]:
    """Return the widths of the maps at the stages, from early to late."""
    with torch.no_grad(), capture(network, layers.stages) as features:
        network(images())
    return [features[place].shape[-1] for place in layers.stages]


def saved(name: str, network: nn.Module, path: Path) -> None:
    """Save the weights, load them into a new network, and compare the answers exactly."""
    save_weights(path, network, {})
    again = make(name)
    for parameter in again.parameters():
        nn.init.zeros_(parameter)
    load_weights(path, again)
    with torch.no_grad():
        assert torch.equal(again(images()), network(images())), name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES, metavar="NAME")
    parser.add_argument("--json", type=Path, help="write to this file, or go on with it")
    options = parser.parse_args()
    rows = known(options.json)
    for name in (bar := tqdm([name for name in options.only if name not in rows])):
        bar.set_description(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows[name] = tried(name)
        refused = [text for key, text in rows[name].items() if key in STEPS and text]
        tqdm.write(f"{name} {rows[name].get('sides', '')} {' '.join(refused)}")
        if options.json:
            order = sorted(rows.values(), key=lambda row: NAMES.index(row["name"]))
            said_of = {"environment": environment(), "timm": version("timm"), "networks": order}
            write_json(options.json, plain(said_of))


def known(path: Path | None) -> dict[str, dict[str, Any]]:
    """Return what a file has of an earlier run, by name: the run goes on with the others."""
    if path is None or not path.is_file():
        return {}
    return {row["name"]: row for row in json.loads(path.read_text("utf-8"))["networks"]}


if __name__ == "__main__":
    main()
