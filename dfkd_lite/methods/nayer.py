"""NAYER: a noisy layer over embeddings of labels (Tran et al., CVPR 2024, arXiv 2310.00258).

It is as recent as the book's method, whose paper does not compare with it. The generator reads no
noise. It reads an embedding of the wanted label after a noisy layer, whose weights are drawn anew
for every batch. One layer makes one image of each class, so a batch has as many layers as it needs.
The generator is also drawn anew, every few calls, so that it does not settle. (The authors' layer
also has a bias, and the batch-norm before it a scale and an offset that learn.)

The authors' embeddings are a language model's (512 numbers for a class name). None is shipped here.
"one-hot" needs nothing, but each class then has its own row of the noisy layer, which is the latent
of its image: the method is close to a generator with trained latents. "names" makes vectors from
the letters of class names (hashed runs of one to three), so that similar names share noise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import check_range, choose
from ..generator import GeneratorConfig
from ..inversion import BatchNormLoss, adversarial_loss, class_loss
from ..parallel import average_gradients, gathered, mine
from .base import About, Logs, Method, Problem
from .generative import Best, logged, new_generator, plain_generator, redraw

EMBEDDINGS = ("one-hot", "names")


@dataclass(frozen=True)
class NayerConfig:
    """Published values for CIFAR-100, from WRN-40-2 to WRN-16-2: ``scripts/nayer_100.sh`` in
    tmtuan1307/NAYER (below: script), or the defaults of its ``datafree_kd.py``."""

    # width of the noisy layer's output: datafree_kd.py
    generator: GeneratorConfig = field(default_factory=lambda: plain_generator(z_dim=1000))
    embedding: str = "names"  # ours (nayer.py)
    synthesis_batch: int = 400  # script
    steps: int = 40  # of the generator, per batch: script; CIFAR-10: 30
    loops: int = 2  # batches per call, each with its own layers: script
    warm_up_loops: int = 10  # the same in the warm-up: script
    lr: float = 4e-3  # of generator and noisy layer, Adam: script
    life: int = 10  # calls after which the generator is drawn anew: script
    bn_weight: float = 10.0  # script
    bn_momentum: float = 0.9  # moving average of the batch statistics: datafree_kd.py
    class_weight: float = 0.5  # script
    adversarial_weight: float = 1.33  # script; counted where both networks agree
    temperature: float = 20.0  # datafree_kd.py
    shift: int = 4  # of what the networks see while images are made: their code
    flip: bool = True  # their code

    def __post_init__(self) -> None:
        choose("embedding", self.embedding, EMBEDDINGS)
        check_range("synthesis_batch", self.synthesis_batch, 2)
        for name in ("steps", "life", "loops", "warm_up_loops"):
            check_range(name, getattr(self, name), 1)
        check_range("bn_momentum", self.bn_momentum, 0, 0.9999)
        check_range("lr", self.lr, 0, above=True)
        for name in ("bn_weight", "class_weight", "adversarial_weight", "shift"):
            check_range(name, getattr(self, name), 0)
        check_range("temperature", self.temperature, 0, 1000, above=True)


class Nayer(Method):
    """The method NAYER: see above for its noisy layer."""

    Config = NayerConfig
    about = About(
        "NAYER", 2024, "noise in a layer over embeddings of the labels",
        "Tran et al., CVPR 2024", {"episodes": 120, "batch_size": 512},
    )  # fmt: skip

    def __init__(self, problem: Problem, config: NayerConfig) -> None:
        super().__init__(problem, config)
        self.generator = new_generator(problem, config.generator)
        self.bn = BatchNormLoss(problem.teacher, config.bn_momentum)
        self.calls = 0
        spec = problem.spec
        names = spec.class_names or tuple(map(str, range(spec.classes)))
        vectors = torch.eye(spec.classes) if config.embedding == "one-hot" else embedded(names)
        # the batch-norm before the noisy layer, over all classes: all are drawn equally often
        self.embedding = standardised(vectors).to(problem.device)

    @classmethod
    def evaluations(cls, config: Any, loop: Any) -> int:
        loops = loop.warm_up * config.warm_up_loops + (loop.episodes - loop.warm_up) * config.loops
        return loops * config.steps * config.synthesis_batch

    def synthesise(self, student: nn.Module, warm_up: bool) -> tuple[Tensor, Logs]:
        config = self.config
        if self.calls and self.calls % config.life == 0:
            redraw(self.generator, self.problem, config.generator)
        self.calls += 1
        self.generator.train()
        batches = []
        for _ in range(config.warm_up_loops if warm_up else config.loops):
            best = self._batch(student, warm_up)
            batches.append(gathered(best.images))
        return mine(torch.cat(batches)), best.logs

    def _batch(self, student: nn.Module, warm_up: bool) -> Best:
        config, problem = self.config, self.problem
        labels = torch.arange(config.synthesis_batch, device=problem.device) % problem.spec.classes
        rows, labels, layer = self._noisy(labels)
        optimiser = torch.optim.Adam([*self.generator.parameters(), layer], config.lr, (0.5, 0.999))
        best = Best()
        with self.bn:
            for _ in range(config.steps):
                z = torch.einsum("be,bez->bz", self.embedding[labels], layer[rows])
                images = self.generator(z)
                loss, logs = self.image_loss(images, labels, student, warm_up)
                best.see(loss, images, logs)
                optimiser.zero_grad()
                loss.backward()
                average_gradients([*self.generator.parameters(), layer])
                optimiser.step()
            self.bn.remember()
        return best

    def _noisy(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return for each image the number of its layer and its label, and the layers (L, E,
        z_dim), drawn from N(0, 1). Each layer makes one image of each class."""
        problem, classes = self.problem, self.problem.spec.classes
        count = math.ceil(len(labels) / classes)
        shape = (count, self.embedding.shape[1], self.config.generator.z_dim)
        layer = torch.randn(shape, generator=problem.rng, device=problem.device)
        rows = torch.arange(len(labels), device=problem.device) // classes
        return mine(rows), mine(labels), layer.requires_grad_()

    def image_loss(
        self, images: Tensor, labels: Tensor, student: nn.Module, warm_up: bool
    ) -> tuple[Tensor, Logs]:
        """Return the loss of images (B, C, H, W) in [0, 1], and its parts; inside ``self.bn``."""
        config = self.config
        x = self.problem.normalise(self.problem.augmented(images, config.shift, config.flip))
        logits = self.problem.teacher(x)
        parts = {"cls": class_loss(logits, labels), "bn": self.bn.loss()}
        loss = config.class_weight * parts["cls"] + config.bn_weight * parts["bn"]
        if config.adversarial_weight and not warm_up:
            parts["adv"] = adversarial_loss(student(x), logits)
            loss = loss + config.adversarial_weight * parts["adv"]
        return loss, logged(**parts)

    def modules(self) -> dict[str, nn.Module]:
        return {"generator": self.generator}

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls, "bn_average": self.bn.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]
        self.bn.load_state_dict(state["bn_average"])


def embedded(names: Sequence[str], length: int = 512) -> Tensor:
    """Return vectors (K, ``length``) of class names, without a language model: each run of one to
    three letters is hashed by SHA-256 to a vector of signs, and a name is their mean."""
    vectors = []
    for name in names:
        text = f" {name.lower()} "
        runs = [text[i : i + n] for n in (1, 2, 3) for i in range(len(text) - n + 1)]
        runs = [run for run in runs if run.strip()] or [text]
        vectors.append(torch.stack([_signs(run, length) for run in runs]).mean(0))
    return torch.stack(vectors)


def _signs(text: str, length: int) -> Tensor:
    rng = torch.Generator().manual_seed(int(hashlib.sha256(text.encode()).hexdigest()[:12], 16))
    return torch.randint(2, (length,), generator=rng) * 2.0 - 1


def standardised(vectors: Tensor) -> Tensor:
    """Give each column (over the classes) mean 0 and standard deviation 1, as batch-norm does."""
    return F.batch_norm(vectors, None, None, training=True)
