"""VGG-11 with batch-norm in the CIFAR form: one linear layer after global average pooling."""

from __future__ import annotations

from itertools import chain, pairwise

from torch import Tensor, nn

from ..errors import InputError


class VGG(nn.Module):
    """VGG-11: images (B, ``channels``, H, W) -> logits (B, ``classes``); H and W are at least 16.

    It has five stages, at H, H/2, H/4, H/8 and H/16, with max-pooling between them. The last stage
    is averaged over positions, so that images of any size from 16 px fit.
    """

    def __init__(self, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(*_convolution(channels, 64))
        self.stage2 = _stage(64, 128)
        self.stage3 = _stage(128, 256, 256)
        self.stage4 = _stage(256, 512, 512)
        self.stage5 = _stage(512, 512, 512)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        if (side := min(x.shape[-2:])) < 16:
            raise InputError(f"VGG-11 halves its input 4 times: give 16 px or more, not {side}.")
        x = self.stage5(self.stage4(self.stage3(self.stage2(self.stage1(x)))))
        return self.fc(self.flatten(self.pool(x)))


def _stage(*widths: int) -> nn.Sequential:
    convolutions = [_convolution(i, o) for i, o in pairwise(widths)]
    return nn.Sequential(nn.MaxPool2d(2), *chain.from_iterable(convolutions))


def _convolution(channels_in: int, channels_out: int) -> list[nn.Module]:
    # Batch-norm cancels the bias, but published parameter counts include it, so it stays.
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    return [conv, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]
