"""SpaceshipNet: exchanged channels, activation regions (Yu et al., CVPR 2023, arXiv 2212.13389).

In each episode the generator is fitted to one batch (the latents do not change), and the maps
inside it are remembered for the best step. The student sees mixtures: channels of remembered maps
are exchanged, and the *present* generator decodes them into images that nobody has optimised. The
student matches the teacher's answers, its class activation maps of all classes, and its Grad-CAMs
of all stages (without ReLU or scaling, the weights without gradient).

The authors' KL divergence at temperature 30 is a mean over batch *and* classes, times 900. Here, as
everywhere in the book, it is tau^2 times the mean over the batch, K times as large; relative to it
the maps count 1 / K of what they count there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cam import CamConfig, classifier_weight, stage_maps
from ..devices import full
from ..errors import InputError, check_range
from ..generator import GeneratorConfig
from ..inversion import BatchNormLoss, class_loss
from ..kd import kl_divergence
from ..msarc import map_distance
from ..networks import Layers, capture
from .base import About, Logs, Method, Problem
from .exchange import FeatureMemory, all_maps
from .generative import Best, logged, new_generator, plain_generator


@dataclass(frozen=True)
class SpaceshipNetConfig:
    """Published values for CIFAR: the file of ``code/SpaceshipNet/scripts`` in skgyu/SpaceshipNet
    for CIFAR-100, ResNet-34 to ResNet-18 (below: script), or their code."""

    generator: GeneratorConfig = field(default_factory=plain_generator)  # script: CMI's
    synthesis_batch: int = 256  # script
    steps: int = 200  # of the generator, an episode: script
    lr: float = 1e-3  # of Adam, which starts anew in each episode: script
    bn_weight: float = 1.0  # script
    class_weight: float = 0.5  # script
    exchange: float = 0.7  # probability that a batch's channels are exchanged: script
    memory: int = 200  # batches remembered: one for each of the script's 200 epochs
    # of all that teacher and student see (the loop's pool is not used): their code
    shift: int = 4
    flip: bool = True  # their code
    cam_weight: float = 1.0  # of the maps of all classes: script
    grad_cam_weight: float = 1.0  # script
    temperature: float = 30.0  # script

    def __post_init__(self) -> None:
        check_range("synthesis_batch", self.synthesis_batch, 2)
        check_range("steps", self.steps, 1)
        check_range("lr", self.lr, 0, above=True)
        for name in ("bn_weight", "class_weight", "cam_weight", "grad_cam_weight", "shift"):
            check_range(name, getattr(self, name), 0)
        check_range("exchange", self.exchange, 0, 1)
        check_range("memory", self.memory, 1)
        check_range("temperature", self.temperature, 0, 1000, above=True)


class SpaceshipNet(Method):
    """The method SpaceshipNet.

    Raises:
        InputError: a network's classifier does not read plain averages, so it has no such maps.
    """

    Config = SpaceshipNetConfig
    splits = False  # channels are exchanged across the batch
    about = About(
        "SpaceshipNet", 2023, "channels of remembered features exchanged; activation regions",
        "Yu et al., CVPR 2023",
        {"episodes": 200, "warm_up": 0, "student_steps": 2000, "batch_size": 256, "lr": 0.1},
    )  # fmt: skip

    def __init__(self, problem: Problem, config: SpaceshipNetConfig) -> None:
        super().__init__(problem, config)
        for role in ("teacher", "student"):
            if not getattr(problem, f"{role}_layers").averaged:
                raise InputError(
                    f"SpaceshipNet compares maps of all classes, and the {role} has none: its "
                    "classifier does not read averages of the last stage. Use fssc or fastdfkd."
                )
        self.generator = new_generator(problem, config.generator)
        self.bn = BatchNormLoss(problem.teacher)
        self.memory = FeatureMemory(config.memory)

    def synthesise(self, student: nn.Module, warm_up: bool) -> tuple[Tensor, Logs]:
        config, problem = self.config, self.problem
        z = problem.latents(config.synthesis_batch, config.generator.z_dim)
        labels = problem.labels(config.synthesis_batch)
        optimiser = torch.optim.Adam(self.generator.parameters(), config.lr, (0.5, 0.999))
        best = Best()
        self.generator.train()
        with self.bn:
            for _ in range(config.steps):
                maps = all_maps(self.generator, z)
                images = self.generator.decode(maps[-1], len(maps) - 1)
                x = problem.normalise(problem.augmented(images, config.shift, config.flip))
                cls = class_loss(problem.teacher(x), labels)
                bn = self.bn.loss()
                loss = config.bn_weight * bn + config.class_weight * cls
                if best.see(loss, images, logged(bn=bn, cls=cls)):
                    kept = maps
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        self.memory.add(kept)
        return best.images, best.logs

    def transfer_loss(self, student: nn.Module, images: Tensor) -> tuple[Tensor, Logs]:
        """Return the loss on as many mixtures as there are ``images``, which are not used."""
        config, problem = self.config, self.problem
        made = self.memory.images(self.generator, len(images), config.exchange, problem.rng)
        x = problem.normalise(problem.augmented(made, config.shift, config.flip))
        layers = problem.teacher_layers, problem.student_layers
        with torch.enable_grad(), capture(problem.teacher, layers[0].stages) as theirs:
            teacher_logits = problem.teacher(x.requires_grad_())
        with capture(student, layers[1].stages) as ours:
            logits = student(x.detach())
        classes = teacher_logits.argmax(1)
        wanted = regions(problem.teacher, theirs, teacher_logits, classes, layers[0])
        found = regions(student, ours, logits, classes, layers[1])
        kd = kl_divergence(logits, teacher_logits.detach(), config.temperature)
        cams = F.interpolate(full(found[0]), wanted[0].shape[-2:], mode="bilinear")
        cam = (cams - full(wanted[0].detach())).square().mean()
        pairs = zip(reversed(found[1]), reversed(wanted[1]), strict=False)
        grad_cam = torch.stack([map_distance(s, t.detach()) for s, t in pairs]).sum()
        loss = kd + config.cam_weight * cam + config.grad_cam_weight * grad_cam
        return loss, logged(kd=kd, cam=cam, grad_cam=grad_cam)

    def modules(self) -> dict[str, nn.Module]:
        return {"generator": self.generator}

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.entries}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.load(state["memory"], self.problem.device)


def regions(
    model: nn.Module, features: dict[str, Tensor], logits: Tensor, classes: Tensor, layers: Layers
) -> tuple[Tensor, list[Tensor]]:
    """Return CAMs of all classes (B, K, h, w), and Grad-CAMs (B, h, w) of ``classes`` by stage."""
    weight = classifier_weight(model, layers).detach()
    every = torch.einsum("kp,bphw->bkhw", weight, features[layers.stages[-1]])
    graded = replace(layers, averaged=False)  # Grad-CAM at the last stage too
    return every, stage_maps(features, logits, classes, graded, model, CamConfig(relu=False))
