"""Dense matrices of layers and networks, written from their definitions, to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def spectral(matrix: np.ndarray | Tensor) -> float:
    """The reference for every norm here: NumPy's SVD."""
    return float(np.linalg.svd(np.asarray(matrix), compute_uv=False)[0])


def dense(conv: Any, height: int, width: int) -> np.ndarray:
    """The matrix of a zero-padded convolution, written from its definition."""
    kernel = conv.weight.detach().double().numpy()
    outputs, group_inputs, kernel_height, kernel_width = kernel.shape
    (sy, sx), (py, px), (dy, dx) = conv.stride, conv.padding, conv.dilation
    out_height = (height + 2 * py - dy * (kernel_height - 1) - 1) // sy + 1
    out_width = (width + 2 * px - dx * (kernel_width - 1) - 1) // sx + 1
    matrix = np.zeros((outputs, out_height, out_width, conv.in_channels, height, width))
    per_group = outputs // conv.groups
    for y, x, i, j in np.ndindex(out_height, out_width, kernel_height, kernel_width):
        row, column = y * sy - py + i * dy, x * sx - px + j * dx
        if 0 <= row < height and 0 <= column < width:
            for g in range(conv.groups):
                o, c = slice(g * per_group, (g + 1) * per_group), g * group_inputs
                matrix[o, y, x, c : c + group_inputs, row, column] = kernel[o, :, i, j]
    return matrix.reshape(outputs * out_height * out_width, -1)


def jacobian(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """The dense Jacobian at one image (C, H, W) of a function of batches."""
    matrix = torch.func.jacrev(lambda x: function(x[None])[0].flatten())(point)
    return matrix.detach().flatten(1)


def unsettle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch-norm weights and statistics, as after training; double precision, eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            tensor: Any
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2.0, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0.0, 0.5, generator=generator)
    return model.double().eval()
