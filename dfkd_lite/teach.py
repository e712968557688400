"""Train a teacher on real data. No other part of training sees the data."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .data import ImageData
from .devices import PRECISIONS, derived_seed, full, mixed, placed, resolve_device, seeded, settled
from .errors import DivergedError, check_range, choose
from .image_pool import augment
from .networks import NetworkSpec, build, normalise
from .storage.checkpoint import open_run, save_checkpoint
from .storage.weights import restore


@dataclass(frozen=True)
class TeachConfig:
    """Settings of supervised training, as the field trains its teachers on CIFAR."""

    epochs: int = 35  # passes over the data; enough for CIFAR with one cycle (ours)
    batch_size: int = 128  # Table 1
    lr: float = 0.1  # peak of the cycle; Zagoruyko & Komodakis 2016
    momentum: float = 0.9  # Table 1
    weight_decay: float = 5e-4  # Zagoruyko & Komodakis 2016
    shift: int = 4  # random crops of the image padded by 4, as usual on CIFAR
    flip: bool = True  # random mirroring, as usual on CIFAR; off where left and right matter
    precision: str = "float32"  # or "bfloat16", "auto": the network's format while it learns
    compile: bool = False  # torch.compile: pays on long runs, needs a C++ compiler on the CPU
    seed: int = 0  # of weights, order and augmentation

    def __post_init__(self) -> None:
        check_range("epochs", self.epochs, 1)
        check_range("batch_size", self.batch_size, 2)
        check_range("lr", self.lr, 0, above=True)
        check_range("momentum", self.momentum, 0, 0.9999)
        check_range("weight_decay", self.weight_decay, 0)
        check_range("shift", self.shift, 0)
        choose("precision", self.precision, PRECISIONS)


def teach(
    network: str,
    data: ImageData,
    config: TeachConfig | None = None,
    device: str = "auto",
    progress: bool = True,
    folder: str | Path | None = None,
    resume: bool = False,
) -> tuple[nn.Module, NetworkSpec, list[dict[str, float]]]:
    """Train ``network`` on ``data.train``: return the model in eval mode, its spec, and a history.

    It uses SGD with Nesterov momentum and one cycle of the learning rate (Smith & Topin 2018). The
    seed sets weights, order and augmentation. The history has one row per epoch: loss and accuracy
    on the augmented training images, and seconds. With ``folder``, each epoch writes a checkpoint
    there; ``resume=True`` continues from it, as if nothing had happened.

    Raises:
        InputError: the network is unknown, the folder holds another run, or a loss is not finite.
    """
    run = Teaching(network, data, config or TeachConfig(), resolve_device(device))
    if folder is not None:
        run.open(Path(folder), resume)
    epochs = run.config.epochs
    done = len(run.history)
    with tqdm(total=epochs, initial=done, desc=f"teach {network}", disable=not progress) as bar:
        for _ in range(done, epochs):
            row = run.epoch()
            bar.set_postfix(loss=f"{row['loss']:.3f}", accuracy=f"{row['accuracy']:.3f}")
            bar.update()
            if folder is not None:
                run.save(Path(folder))
    return run.model.eval(), data.spec(network), run.history


class Teaching:
    """A run of :func:`teach`: all that its next epoch depends on; ``config`` has no "auto" left."""

    def __init__(
        self, network: str, data: ImageData, config: TeachConfig, device: torch.device
    ) -> None:
        self.data, self.asked, self.device = data, config, device
        self.config = settled(config, device)
        with seeded(config.seed):
            model = build(network, data.classes, data.channels, data.size)
        self.model = placed(model, device).train()
        self.forward = torch.compile(self.model) if config.compile else self.model
        self.rng = torch.Generator(device).manual_seed(config.seed)
        self.order = torch.Generator().manual_seed(config.seed)
        self.optimiser = torch.optim.SGD(
            self.model.parameters(),
            config.lr,
            config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )
        steps = config.epochs * -(-max(len(data.train) - 1, 1) // config.batch_size)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, config.lr, total_steps=steps, cycle_momentum=False
        )
        self.history: list[dict[str, float]] = []
        self.identity = f"{data.name} | {data.spec(network)} | {config}"

    def epoch(self) -> dict[str, float]:
        """Go once through the training images, and return the new row of the history."""
        start = time.perf_counter()
        seen = correct = 0
        total = torch.zeros((), device=self.device)
        batches = self.data.train.batches(self.config.batch_size, self.order, self.device)
        number = len(self.history) + 1
        with seeded(derived_seed(self.config.seed, number)):  # what the network itself draws
            for images, labels in batches:
                loss, logits = self._step(images, labels)
                total += loss * len(labels)
                correct += int((logits.argmax(1) == labels).sum())
                seen += len(labels)
        row = {"epoch": number, "loss": float(total) / seen, "accuracy": correct / seen}
        if not row["loss"] < float("inf"):
            raise DivergedError(f"Training diverged in epoch {number}: lower lr={self.config.lr}.")
        row["seconds"] = time.perf_counter() - start
        self.history.append(row)
        return row

    def time_step(self) -> float:
        """Measure the seconds of one step: the faster of two, after one that does not count."""
        batches = self.data.train.batches(self.config.batch_size, self.order, self.device)
        images, labels = next(batches)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            self._step(images, labels)[0].item()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    def _step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        every = torch.arange(len(images), device=self.device)
        pixels = images.permute(0, 2, 3, 1)
        images = augment(pixels, every, self.rng, self.config.shift, self.config.flip)
        with mixed(self.device, self.config.precision):
            logits = full(self.forward(normalise(images, self.data)))
        loss = F.cross_entropy(logits, labels)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        return loss.detach(), logits.detach()

    def save(self, folder: Path) -> None:
        state = {
            "run": self.identity,
            "precision": self.config.precision,
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "rng": self.rng.get_state(),
            "order": self.order.get_state(),
            "history": self.history,
        }
        weights = {"teacher": self.model.state_dict()}
        save_checkpoint(folder, len(self.history), weights, state)

    def open(self, folder: Path, resume: bool) -> None:
        found = open_run(folder, resume, self.identity)
        if found is None:
            return
        kept = found.state
        self.config = settled(self.asked, self.device, kept.get("precision"))
        restore(self.model, found.weights["teacher"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.schedule.load_state_dict(kept["schedule"])
        self.rng.set_state(kept["rng"])
        self.order.set_state(kept["order"])
        self.history = kept["history"]
