"""Exports a network as an ONNX file, which is kept only if it answers as the network does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..door import check_single, one_tensor
from ..errors import InputError
from ..networks import FromPixels, NetworkSpec, evaluating
from ..networks.layers import unwrapped
from ..storage.files import write_bytes
from ..storage.weights import check_finite

TOLERANCE = 1e-4  # largest difference allowed, relative to the largest logit
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def export_onnx(
    model: nn.Module, spec: NetworkSpec, path: str | Path, check: Tensor | None = None
) -> float:
    """Write ``model`` as an ONNX file; its input ``pixels`` is (B, C, H, W) in [0, 1], B free.

    The file is run with ONNX Runtime on random images, and on ``check`` if given; it is written
    only when all logits agree with the model's.

    Args:
        check: further images (B, C, H, W) in [0, 1], such as synthetic ones.

    Returns:
        The largest difference found, relative to the largest logit.

    Raises:
        InputError: onnx, onnxscript or onnxruntime is missing; weights that are not finite; logits
            that differ.
    """
    _require_packages()
    model = unwrapped(model)
    check_finite("The network", model)
    check_single("The network", model)
    device = next(model.parameters()).device
    network = FromPixels(model, spec).to(device)
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(5, *spec.image_shape, generator=rng)
    batches = [images, images[:1]] + ([] if check is None else [check.detach().cpu().float()])
    with evaluating(network), torch.no_grad():
        wanted = [one_tensor(network(batch.to(device))).cpu() for batch in batches]
        content = _exported(network, images.to(device))
    found = [torch.from_numpy(_run(content, batch)) for batch in batches]
    worst = max(_difference(a, b) for a, b in zip(found, wanted, strict=True))
    if not worst <= TOLERANCE:
        raise InputError(
            f"The exported file answers differently from the network (by {worst:.2g} of the "
            f"largest logit; {TOLERANCE:g} is allowed): it was not kept."
        )
    write_bytes(path, content)
    return worst


def run_onnx(path: str | Path, pixels: Tensor) -> Tensor:
    """Run an exported file with ONNX Runtime: images (B, C, H, W) in [0, 1] -> logits (B, K)."""
    _require_packages()
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file {path}: export a network first.")
    return torch.from_numpy(_run(path.read_bytes(), pixels))


def can_export() -> bool:
    """Check whether the packages of the extra ``export`` are installed."""
    return all(importlib.util.find_spec(name) is not None for name in _NEEDED)


def _require_packages() -> None:
    if not can_export():
        raise InputError(
            "ONNX needs the packages onnx, onnxscript and onnxruntime: pip install "
            '"dfkd_lite[export]".'
        )


def _exported(network: nn.Module, images: Tensor) -> bytes:
    program: Any = torch.onnx.export(
        network,
        (images,),
        dynamo=True,
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        verbose=False,
    )
    return program.model_proto.SerializeToString()


def _run(content: bytes, pixels: Tensor) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixels": pixels.detach().cpu().float().numpy()})[0]


def _difference(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
