"""Every classification network of torchvision, and sixty of timm's families, as teachers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn

from dfkd_lite.cam import explain
from dfkd_lite.door import find_layers
from dfkd_lite.errors import InputError
from dfkd_lite.networks import capture, evaluating

SIZE, CLASSES = 64, 5
#: What has no maps at its end: a refusal is right, if it says so.
TOKENS = ("vit_", "swin_", "deit", "mixer", "levit", "cait", "beit", "resmlp", "pit_", "xcit")
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


def make(name: str) -> nn.Module:
    where, _, what = name.partition(":")
    torch.manual_seed(0)
    if where == "timm":
        timm = pytest.importorskip("timm")
        sized = {"img_size": SIZE} if what.startswith(("vit_", "deit", "mixer")) else {}
        return timm.create_model(what, num_classes=CLASSES, **sized)
    options = {"image_size": SIZE} if what.startswith("vit_") else {}
    options |= {"init_weights": False} if what in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(what, weights=None, num_classes=CLASSES, **options)


TORCHVISION = torchvision.models.list_models(module=torchvision.models)
LARGE = ("vit_l", "vit_h", "regnet_y_128gf", "regnet_y_32gf", "efficientnet_v2_l")  # of memory


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [f"torchvision:{n}" for n in TORCHVISION if not n.startswith(LARGE)]
    + [f"timm:{n}" for n in TIMM],
)
def test_a_network_has_stages_and_maps_or_a_refusal_that_says_why(name: str) -> None:
    model = make(name).eval()
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    try:
        layers = find_layers(model, (3, SIZE, SIZE))
    except InputError as refusal:
        tokens = name.split(":")[1].startswith(TOKENS)
        assert "cannot read" in str(refusal) or (tokens and "tokens" in str(refusal)), refusal
        return
    with torch.no_grad(), evaluating(model), capture(model, layers.stages) as features:
        model(x)
    sides = [features[place].shape[-1] for place in layers.stages]
    assert all(features[place].dim() == 4 for place in layers.stages)
    assert all(a > b for a, b in pairwise(sides)), sides
    _, maps = explain(model.requires_grad_(False), x, layers)
    assert [m.shape[-1] for m in maps] == sides and all(m.isfinite().all() for m in maps)
