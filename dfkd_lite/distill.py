"""The loop that all methods share: synthesise -> pool -> transfer -> evaluate. It knows no method.

Built in chapter 8.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from . import parallel
from .devices import PRECISIONS, derived_seed, mixed, placed, resolve_device, seeded, settled
from .door import check_gradients, check_pair, find_layers, frozen
from .errors import DivergedError, check_range, choose
from .image_pool import ImagePool
from .methods import FsscConfig, Problem, create
from .networks import Layers, NetworkSpec, build, evaluating
from .networks.layers import unwrapped
from .storage.checkpoint import open_run, save_checkpoint
from .storage.weights import check_finite, fingerprint, restore

Measure = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class DistillConfig:
    """Settings of the loop, the same for all methods. Defaults: FastDFKD's budget for CIFAR."""

    episodes: int = 220  # FastDFKD
    warm_up: int = 20  # episodes that only fill the pool: FastDFKD
    student_steps: int = 400  # per episode: FastDFKD
    batch_size: int = 128  # Table 1
    lr: float = 0.2  # SGD: FastDFKD
    lr_final: float = 2e-4  # end of the cosine: FastDFKD
    lr_warm_up: float = 0.0  # share of the student's steps in which lr rises linearly
    momentum: float = 0.9  # Table 1
    weight_decay: float = 1e-4  # Table 1
    average: float = 0.0  # decay of a moving average of the student's weights; 0: none
    pool_size: int = 50_000  # images kept; the size of CIFAR's training set
    shift: int = 4  # augmentation of the pool's images, as on CIFAR
    flip: bool = True  # random mirroring of the student's batches: FastDFKD
    measure_every: int = 10  # episodes between two measurements of the student
    checkpoint_every: int = 10  # episodes between two checkpoints, where a folder is given
    precision: str = "float32"  # or "bfloat16", "auto": the networks' format while they learn
    seed: int = 0  # of the whole run

    def __post_init__(self) -> None:
        for name in ("episodes", "student_steps", "measure_every", "checkpoint_every"):
            check_range(name, getattr(self, name), 1)
        check_range("warm_up", self.warm_up, 0, self.episodes - 1)
        check_range("batch_size", self.batch_size, 2)
        check_range("lr", self.lr, 0, above=True)
        check_range("lr_final", self.lr_final, 0, self.lr)
        check_range("lr_warm_up", self.lr_warm_up, 0, 0.9)
        check_range("momentum", self.momentum, 0, 0.9999)
        check_range("weight_decay", self.weight_decay, 0)
        check_range("average", self.average, 0, 0.99999)
        check_range("pool_size", self.pool_size, 1)
        check_range("shift", self.shift, 0)
        choose("precision", self.precision, PRECISIONS)

    @property
    def all_student_steps(self) -> int:
        """The number of student steps in the whole run; the warm-up has none."""
        return (self.episodes - self.warm_up) * self.student_steps


@dataclass(frozen=True)
class Result:
    """The result of a run: the student (averaged, if asked for) in eval mode, the method's
    networks, the image pool, and ``history``, with one row per episode."""

    student: nn.Module
    modules: dict[str, nn.Module]
    pool: ImagePool
    history: list[dict[str, float]]


@dataclass
class Distillation:
    """One run of the loop. ``student`` is a network's name, or a module, which is trained in place.

    ``spec`` describes what the teacher reads. Give ``method`` as the settings of one of
    ``methods``; afterwards it is the running method, and ``method.config`` its settings.
    ``measure`` gets the student in eval mode every ``measure_every`` episodes and after the last.
    Its results only go into the history: no real image and no test result reaches the run. Layers
    that are not given are found. Afterwards ``config`` names the format that "auto" stands for.

    Raises:
        InputError: teacher, student and spec do not fit each other, or the teacher is broken.
    """

    teacher: nn.Module
    student: nn.Module | str
    spec: NetworkSpec
    config: DistillConfig = field(default_factory=DistillConfig)
    method: Any = field(default_factory=FsscConfig)
    device: str = "auto"
    measure: Measure | None = None
    teacher_layers: Layers | None = None
    student_layers: Layers | None = None

    def __post_init__(self) -> None:
        config, spec = self.config, self.spec
        parallel.check_split(config.batch_size)
        self._device = resolve_device(self.device)
        self._asked, self.config = config, settled(config, self._device)
        check_gradients()
        self.teacher = unwrapped(self.teacher)
        check_finite("The teacher", self.teacher)
        self.teacher_checksum = fingerprint(self.teacher)
        self.teacher = placed(self.teacher, self._device).eval().requires_grad_(False)
        with seeded(config.seed):
            if isinstance(self.student, str):
                self.student = build(self.student, spec.classes, spec.channels, spec.size)
            self.network = parallel.synchronise(placed(unwrapped(self.student), self._device))
            shape = spec.image_shape, spec.classes
            contiguous = not check_pair(self.teacher, self.network, *shape)
            problem = Problem(
                self.teacher,
                self.teacher_layers or find_layers(self.teacher, spec.image_shape),
                self.student_layers or find_layers(self.network, spec.image_shape),
                spec,
                self._device,
                torch.Generator(self._device).manual_seed(config.seed),
                config.episodes,
                contiguous,
            )
            self.rng, self.normalise = problem.rng, problem.normalise
            self.method = create(self.method, problem)
        self.pool = ImagePool(config.pool_size, spec.image_shape, self._device)
        self.optimiser = torch.optim.SGD(
            self.network.parameters(),
            config.lr,
            config.momentum,
            weight_decay=config.weight_decay,
        )
        self.average: AveragedModel | None = None
        if config.average:
            moving = get_ema_multi_avg_fn(config.average)
            self.average = AveragedModel(self.network, multi_avg_fn=moving, use_buffers=True)
        self.episode = 0
        self.history: list[dict[str, float]] = []
        self.resumed_after: list[int] = []  # episodes after which the run was interrupted

    def run(
        self,
        folder: str | Path | None = None,
        resume: bool = False,
        progress: bool = True,
        watch: Callable[[Distillation, dict[str, float]], None] | None = None,
    ) -> Result:
        """Run the remaining episodes.

        With ``folder``, checkpoints are written there, each whole or not at all. After Ctrl-C or a
        crash, ``resume=True`` continues from the newest, as if nothing had happened; without it, a
        folder with a checkpoint is refused. ``watch`` is called after each episode with this object
        and its new row of the history. A loss that is not finite raises ``DivergedError``.
        """
        if folder is not None:
            self._open(Path(folder), resume)
        total = self.config.episodes
        quiet = not progress or parallel.rank() > 0
        with tqdm(total=total, initial=self.episode, desc="distil", disable=quiet) as bar:
            while self.episode < total:
                row = self.step()
                shown = {k: row[k] for k in ("kd", "adv", "accuracy") if k in row}
                bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()})
                bar.update()
                if watch is not None:
                    watch(self, row)
                if folder is not None and self._due(self.config.checkpoint_every):
                    if parallel.rank() == 0:
                        self._save(Path(folder))
                    parallel.wait()
        modules = {name: module.eval() for name, module in self.method.modules().items()}
        return Result(self.evaluated_student.eval(), modules, self.pool, self.history)

    def step(self) -> dict[str, float]:
        """Run one episode: synthesise, store and, after the warm-up, teach the student.

        What networks draw themselves (dropout) comes from the run's seed and the episode, so it
        neither depends on torch's global state nor changes it.
        """
        start = time.perf_counter()
        with self._own_chance(0):
            logs, made = self._learn()
        self.episode += 1
        row = {
            name: float(parallel.mean(torch.stack(values).mean())) for name, values in logs.items()
        }
        self._check_losses(row)
        end = time.perf_counter()
        row |= {"seconds": end - start, "seconds_synthesise": made - start}
        row = {"episode": self.episode, **row}
        if self.measure and parallel.rank() == 0 and self._due(self.config.measure_every):
            with self._own_chance(1), evaluating(self.evaluated_student) as student:
                row |= self.measure(student)
            row["seconds_measure"] = time.perf_counter() - end
        self.history.append(row)
        return row

    def _own_chance(self, purpose: int) -> AbstractContextManager[None]:
        numbers = self.config.seed, self.episode, parallel.rank(), purpose
        return seeded(derived_seed(*numbers))

    def _learn(self) -> tuple[dict[str, list[Tensor]], float]:
        """Do the episode's work; return its losses, and when the images were made."""
        warm_up = self.episode < self.config.warm_up
        logs: dict[str, list[Tensor]] = defaultdict(list)
        with frozen(self.network), mixed(self._device, self.config.precision):
            images, parts = self.method.synthesise(self.network, warm_up)
        self.pool.add(parallel.gathered(images))
        _collect(logs, parts)
        made = time.perf_counter()
        if not warm_up:
            self.network.train()
            for number in range(self.config.student_steps):
                _collect(logs, self._transfer(number))
        return logs, made

    @property
    def evaluated_student(self) -> nn.Module:
        """The averaged student if averaging is on, else the student itself."""
        return self.network if self.average is None else self.average.module

    def _transfer(self, number: int) -> dict[str, Tensor]:
        """Take one step of the student on a batch from the pool."""
        config = self.config
        done = (self.episode - config.warm_up) * config.student_steps + number
        share = done / config.all_student_steps
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(config, share)
        images = self.pool.sample(config.batch_size, self.rng, config.shift, config.flip)
        with mixed(self._device, config.precision):
            loss, logs = self.method.transfer_loss(
                self.network, self.normalise(parallel.mine(images))
            )
        self.optimiser.zero_grad()
        loss.backward()
        parallel.average_gradients(self.network.parameters())
        self.optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return logs

    def _due(self, every: int) -> bool:
        return self.episode % every == 0 or self.episode == self.config.episodes

    def _check_losses(self, row: dict[str, float]) -> None:
        for name, value in row.items():
            if not abs(value) < float("inf"):
                raise DivergedError(
                    f"The loss '{name}' became {value} in episode {self.episode}: lower the "
                    "learning rates, or the weight of the adversarial term."
                )

    def _save(self, folder: Path) -> None:
        weights = {"student": self.network.state_dict()}
        if self.average is not None:
            weights["average"] = self.average.module.state_dict()
        for name, module in self.method.modules().items():
            weights[name] = module.state_dict()
        state = {
            "run": self._identity(),
            "precision": self.config.precision,
            "optimiser": self.optimiser.state_dict(),
            "averaged": 0 if self.average is None else int(self.average.n_averaged),
            "method": self.method.state_dict(),
            "pool": self.pool.state_dict(),
            "rng": self.rng.get_state(),
            "history": self.history,
            "resumed_after": self.resumed_after,
        }
        save_checkpoint(folder, self.episode, weights, state)

    def _open(self, folder: Path, resume: bool) -> None:
        found = open_run(folder, resume or self.episode > 0, self._identity())
        if found is None or self.episode:
            return
        self.config = settled(self._asked, self._device, found.state.get("precision"))
        restore(self.network, found.weights["student"])
        if self.average is not None:
            restore(self.average.module, found.weights["average"])
            self.average.n_averaged.fill_(found.state["averaged"])
        for name, module in self.method.modules().items():
            restore(module, found.weights[name])
        self.optimiser.load_state_dict(found.state["optimiser"])
        self.method.load_state_dict(found.state["method"])
        self.pool.load_state_dict(found.state["pool"])
        self.rng.set_state(found.state["rng"])
        self.history = found.state["history"]
        self.episode = found.step
        self.resumed_after = [*found.state["resumed_after"], found.step]

    def _identity(self) -> str:
        """Describe all that the end of this run depends on; a checkpoint must have the same."""
        student = {name: tuple(p.shape) for name, p in self.network.state_dict().items()}
        parts = self.spec, self._asked, self.method.config, self.teacher_checksum, student
        return " | ".join(map(str, parts))


def distill(
    teacher: nn.Module,
    student: nn.Module | str,
    spec: NetworkSpec,
    config: DistillConfig | None = None,
    method: Any = None,
    **options: Any,
) -> Result:
    """Distil ``teacher`` into ``student`` without data. ``options`` are fields of
    :class:`Distillation`, and ``folder``, ``resume`` and ``progress`` of its ``run``. Seed:
    ``config.seed``."""
    running = {k: options.pop(k) for k in ("folder", "resume", "progress") if k in options}
    config, method = config or DistillConfig(), method or FsscConfig()
    return Distillation(teacher, student, spec, config, method, **options).run(**running)


def learning_rate(config: DistillConfig, share: float) -> float:
    """Return the student's learning rate after a ``share`` in [0, 1] of its steps: a linear rise
    from 1 % over ``lr_warm_up``, then a cosine from ``lr`` to ``lr_final``."""
    if share < config.lr_warm_up:
        return config.lr * max(share / config.lr_warm_up, 0.01)
    share = (share - config.lr_warm_up) / (1 - config.lr_warm_up)
    cosine = 0.5 * (1 + torch.cos(torch.tensor(share * torch.pi)).item())
    return config.lr_final + (config.lr - config.lr_final) * cosine


def _collect(logs: dict[str, list[Tensor]], parts: dict[str, Tensor]) -> None:
    for name, value in parts.items():
        logs[name].append(value)
