"""Describes where numbers come from: machine, code, packages and data."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfkd_lite import parallel
from dfkd_lite.data import ImageData, Split

_PACKAGES = ("dfkd_lite", "torch", "torchvision", "numpy", "scikit-learn")


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Describe what a run was made with: code, packages, machine, device, threads, processes."""
    device = torch.device(device)
    return {
        "code": _code_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "device": getattr(torch.get_device_module(device), "get_device_name", str)(device),
        "machine": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": parallel.count(),
    }


def described(data: ImageData) -> dict[str, Any]:
    """Describe data: name, size, numbers of classes and images, SHA-256 of pixels and labels.

    For images that stay on disk (`FolderSplit`), the names and sizes of their files stand in the
    checksum for the pixels.
    """
    digest = hashlib.sha256()
    for split in (data.train, data.val, data.test):
        if isinstance(split, Split):
            digest.update(_bytes(split.images))
        elif split is not None:
            told = (f"{path.name} {path.stat().st_size}" for path in split.paths)
            digest.update("\n".join(told).encode())
        if split is not None:
            digest.update(_bytes(split.labels))
    return {
        "name": data.name,
        "size": data.size,
        "classes": data.classes,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "sha256": digest.hexdigest(),
    }


def _bytes(tensor: Tensor) -> memoryview:
    array: Any = tensor.contiguous().numpy()
    return memoryview(array).cast("B")


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux getrusage also counts what the parent held when it forked
        lines = status.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    import resource  # imported late: Windows does not have it

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _code_version() -> dict[str, Any]:
    """Return the commit; whether dfkd_lite, dfkd_lab or benchmarks differ (None: no checkout)."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "dfkd_lite", "dfkd_lab", "benchmarks")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
