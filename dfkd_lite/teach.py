"""Training a teacher on real data: the one place where the data is seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from .data import ImageData, normalise
from .devices import placed, resolve_device, seeded
from .errors import InputError, check_range
from .image_pool import augment
from .networks import NetworkSpec, build


@dataclass(frozen=True)
class TeachConfig:
    """Supervised training, as the field trains its teachers on CIFAR."""

    epochs: int = 35  # passes over the data; enough for CIFAR under one cycle (ours)
    batch_size: int = 128  # Table 1
    lr: float = 0.1  # peak of the cycle; Zagoruyko & Komodakis 2016
    momentum: float = 0.9  # Table 1
    weight_decay: float = 5e-4  # Zagoruyko & Komodakis 2016
    shift: int = 4  # random crops of the image padded by 4, as usual on CIFAR
    flip: bool = True  # random mirroring, as usual on CIFAR; off where left and right matter
    seed: int = 0  # of weights, order and augmentation

    def __post_init__(self) -> None:
        check_range("epochs", self.epochs, 1)
        check_range("batch_size", self.batch_size, 2)
        check_range("lr", self.lr, 0, above=True)
        check_range("momentum", self.momentum, 0, 0.9999)
        check_range("weight_decay", self.weight_decay, 0)
        check_range("shift", self.shift, 0)


def teach(
    network: str,
    data: ImageData,
    config: TeachConfig | None = None,
    device: str = "auto",
    progress: bool = True,
) -> tuple[nn.Module, NetworkSpec, list[dict[str, float]]]:
    """Train ``network`` on ``data.train``: the model in eval mode, its spec, and a history.

    SGD with Nesterov momentum under one cycle of the learning rate (Smith & Topin 2018). The seed
    governs weights, order and augmentation. The history has one row an epoch: loss and accuracy
    on the augmented training images.
    """
    config = config or TeachConfig()
    target = resolve_device(device)
    with seeded(config.seed):
        model = build(network, data.classes, data.channels, data.size)
    model = placed(model, target).train()
    rng = torch.Generator(target).manual_seed(config.seed)
    order = torch.Generator().manual_seed(config.seed)
    steps = -(-len(data.train) // config.batch_size)
    optimiser = torch.optim.SGD(
        model.parameters(),
        config.lr,
        config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.lr, total_steps=config.epochs * steps, cycle_momentum=False
    )
    history = []
    with tqdm(total=config.epochs, desc=f"teach {network}", disable=not progress) as bar:
        for epoch in range(config.epochs):
            seen = correct = 0
            total = torch.zeros((), device=target)
            for images, labels in data.train.batches(config.batch_size, order, target):
                pixels = images.permute(0, 2, 3, 1)
                every = torch.arange(len(images), device=target)
                images = augment(pixels, every, rng, config.shift, config.flip)
                logits = model(normalise(images, data.mean, data.std))
                loss = F.cross_entropy(logits, labels)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                total += loss.detach() * len(labels)
                correct += int((logits.argmax(1) == labels).sum())
                seen += len(labels)
            row = {"epoch": epoch + 1, "loss": float(total) / seen, "accuracy": correct / seen}
            if not row["loss"] < float("inf"):
                raise InputError(f"Training diverged in epoch {epoch + 1}: lower lr={config.lr}.")
            history.append(row)
            bar.set_postfix(loss=f"{row['loss']:.3f}", accuracy=f"{row['accuracy']:.3f}")
            bar.update()
    return model.eval(), data.spec(network), history
