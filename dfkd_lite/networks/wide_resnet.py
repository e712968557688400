"""Wide residual networks in the CIFAR form: WRN-d-k of Zagoruyko & Komodakis (2016)."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import InputError


class PreActivationBlock(nn.Module):
    """A residual block (BN-ReLU-conv twice + shortcut): (B, C, H, W) -> (B, C', H/s, W/s).

    If the shape changes, the shortcut is a 1x1 convolution of the *activated* input, as in the
    original code. Otherwise it is the input itself.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.shortcut = None
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(x))
        residual = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """WRN-``depth``-``widen``: images (B, ``channels``, H, W) -> logits (B, ``classes``).

    It has three stages of (depth - 4) / 6 blocks, with 16k, 32k and 64k channels (k = ``widen``),
    at H, H/2 and H/4. ``relu`` gives the features that are pooled and classified: the last stage
    for CAMs.

    Raises:
        InputError: ``depth`` is not 6n + 4.
    """

    def __init__(self, depth: int, widen: int, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise InputError(f"A WRN's depth is 10, 16, 22, 28, 34, 40, ... (6n + 4), not {depth}.")
        blocks = (depth - 4) // 6
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.stage1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.stage2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.stage3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.bn = nn.BatchNorm2d(widths[3])
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(widths[3], classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.conv1(x))))  # (B, 64k, H/4, W/4)
        return self.fc(self.flatten(self.pool(self.relu(self.bn(x)))))


def _stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
    first = PreActivationBlock(channels_in, channels_out, stride)
    rest = [PreActivationBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
