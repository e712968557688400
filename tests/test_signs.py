"""Data-free signs against values worked out by hand."""

import pytest
import torch
from torch import nn

from dfkd_lite.measure.signs import data_free_signs, diversity, effective_classes


def test_effective_classes_from_one_to_all():
    assert effective_classes(torch.zeros(4, 5)) == pytest.approx(5)
    one = torch.full((6, 3), -100.0)
    one[:, 1] = 100.0
    assert effective_classes(one) == pytest.approx(1)
    half = torch.full((4, 4), -100.0)
    half[:2, 0] = half[2:, 3] = 100.0
    assert effective_classes(half) == pytest.approx(2)


def test_diversity_is_the_root_mean_square_of_all_pairs():
    torch.manual_seed(0)
    images = torch.rand(7, 2, 3, 3)
    pairs = [(images[i] - images[j]).square().mean() for i in range(7) for j in range(7) if i != j]
    assert diversity(images) == pytest.approx(torch.stack(pairs).mean().sqrt().item())
    assert diversity(images[:1].expand(5, -1, -1, -1)) == pytest.approx(0, abs=1e-7)


def test_signs_are_what_their_names_say():
    teacher, student = nn.Flatten(), nn.Flatten()
    pixels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).view(2, 2, 1, 1)
    signs = data_free_signs(teacher, student, pixels / 4, pixels)
    assert signs["agreement"] == 1 and signs["kl"] == pytest.approx(0, abs=1e-7)
    expected = (torch.tensor([2.0, 1.0]).sigmoid()).mean().item()
    assert signs["confidence"] == pytest.approx(expected)
    flipped = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    flipped[1].weight.data = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    other = data_free_signs(teacher, flipped.train(), pixels / 4, pixels)
    p = pixels.flatten(1).softmax(1)
    by_hand = (p * (p / p.flip(1)).log()).sum(1).mean().item()
    assert other["agreement"] == 0 and other["kl"] == pytest.approx(by_hand, rel=1e-5)
    assert flipped.training
