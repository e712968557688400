"""Chance inside networks: it comes from the run's seed, and the global state stays as it was."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

from dfkd_lite import Distillation, DistillConfig, build, load, preset, teach
from dfkd_lite.devices import derived_seed, seeded
from dfkd_lite.teach import TeachConfig

DATA = load("digits", size=16)
SPEC = DATA.spec("wrn-10-1")
TINY = DistillConfig(
    episodes=4, warm_up=1, student_steps=2, batch_size=8, checkpoint_every=1, measure_every=1
)


class Noise(nn.Module):
    """Adds or drops something by chance, from the source that ``kind`` names."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.drop = kind, nn.Dropout2d(0.5)

    def forward(self, x):
        if self.kind == "dropout":
            return self.drop(x)
        if self.kind == "rand":  # in evaluation mode, too
            return x + 0.1 * torch.rand(len(x), 1, 1, 1)
        if self.kind == "depth" and self.training:
            return x * torch.empty(len(x), 1, 1, 1).bernoulli_(0.5)
        if self.kind == "numpy" and self.training:
            return x * float(np.random.rand())  # noqa: NPY002
        if self.kind == "python" and self.training:
            return x.flip(-1) if random.random() < 0.5 else x
        return x


KINDS = ("dropout", "rand", "depth", "numpy", "python")


def noisy(kind: str) -> nn.Module:
    with seeded(1):
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Noise(kind),
            nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
        )  # fmt: skip


def run_of(kind: str, measure=None) -> Distillation:
    with seeded(0):
        teacher = build("wrn-10-1", 10, 1, 16)
    method = preset("lite").of_method("dafl").method
    return Distillation(teacher, noisy(kind), SPEC, TINY, method, "cpu", measure)


def stir(number: int) -> None:
    """Leave all global sources of chance in a state of their own."""
    torch.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002
    random.seed(number)


def next_draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()  # noqa: NPY002


def weights(run: Distillation) -> list[torch.Tensor]:
    return list(run.network.state_dict().values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_the_whole_one(tmp_path, kind):
    def measure(student):
        return {"sign": student(torch.zeros(2, 1, 16, 16)).sum().item()}

    def stop(run, row):
        if row["episode"] == 2:
            raise KeyboardInterrupt

    stir(1)
    whole = run_of(kind, measure)
    whole.run(tmp_path / "whole", progress=False)
    stir(2)
    with pytest.raises(KeyboardInterrupt):
        run_of(kind, measure).run(tmp_path / "cut", progress=False, watch=stop)
    stir(3)
    resumed = run_of(kind, measure)
    resumed.run(tmp_path / "cut", resume=True, progress=False)
    assert resumed.resumed_after == [1]
    assert all(a.equal(b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    signs = [[row["sign"] for row in run.history] for run in (whole, resumed)]
    assert signs[0] == signs[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_the_global_state_as_it_was(kind):
    stir(5)
    expected = next_draws()
    stir(5)
    run_of(kind).run(progress=False)
    assert next_draws() == expected


def test_episodes_and_seeds_draw_differently_and_measuring_changes_nothing():
    drawn = []
    run = run_of("dropout", lambda student: {"draw": torch.rand(()).item()})
    quiet = run_of("dropout")
    for _ in range(3):
        drawn.append(run.step()["draw"])
        quiet.step()
    assert len(set(drawn)) == 3
    assert all(a.equal(b) for a, b in zip(weights(run), weights(quiet), strict=True))
    assert len({derived_seed(a, b) for a in range(30) for b in range(30)}) == 900
    assert derived_seed(1, 11) != derived_seed(11, 1) and 0 <= derived_seed(7) < 2**63


def test_the_global_state_is_put_back_after_an_error():
    stir(5)
    expected = next_draws()
    stir(5)
    with pytest.raises(ZeroDivisionError), seeded(0):
        next_draws()
        raise ZeroDivisionError
    assert next_draws() == expected


def test_generators_of_accelerators_are_seeded_and_put_back(monkeypatch):
    """A CPU generator stands in for CUDA's own: here there is mostly none."""
    stand_in = torch.Generator().manual_seed(9)
    expected = torch.Generator().manual_seed(9).get_state()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "default_generators", (stand_in,))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", None)  # would seed them for good
    with seeded(3):
        assert stand_in.initial_seed() == 3
        torch.rand(4, generator=stand_in)
    assert stand_in.get_state().equal(expected)


def test_teaching_depends_on_its_seed_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["dfkd_lite.teach"], "build", lambda *_: noisy("dropout"))
    config = TeachConfig(epochs=2, batch_size=256)
    stir(1)
    one, _, _ = teach("wrn-10-1", DATA, config, "cpu", progress=False)
    stir(2)
    expected = next_draws()
    stir(2)
    two, _, _ = teach("wrn-10-1", DATA, config, "cpu", progress=False)
    assert next_draws() == expected
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    assert all(a.equal(b) for a, b in pairs)
