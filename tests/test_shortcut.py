"""The planted square stands where its mark says, and lies where it should."""

import pytest
import torch

from dfkd_lite.data.shortcut import lying_marks, plant_shortcut
from dfkd_lite.errors import InputError


def test_square_stands_at_the_place_of_its_mark():
    images = torch.zeros(3, 1, 8, 9, dtype=torch.uint8)
    planted = plant_shortcut(images, torch.tensor([0, 2, 4]), side=3)
    white = [(image[0] == 255).nonzero().tolist() for image in planted]
    assert white[0] == [[r, c] for r in range(3) for c in range(3)]
    assert white[1] == [[r, c] for r in range(3) for c in range(6, 9)]
    assert white[2] == [[r, c] for r in range(5, 8) for c in range(3, 6)]
    assert images.sum() == 0  # copies
    with pytest.raises(InputError, match="places for 6 squares"):
        plant_shortcut(images, torch.tensor([0, 1, 6]))


def test_lying_marks_are_wrong_and_even():
    labels = torch.arange(4).repeat(500)
    marks = lying_marks(labels, 4, torch.Generator().manual_seed(0))
    assert not (marks == labels).any() and marks.min() == 0 and marks.max() == 3
    shifts = ((marks - labels) % 4).bincount(minlength=4)
    assert shifts[0] == 0 and (shifts[1:] > 600).all()
