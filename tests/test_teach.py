"""Training a teacher: one seed, the right schedule, and a network that has learnt."""

from dataclasses import replace

import pytest
import torch

from dfkd_lite.data import load
from dfkd_lite.errors import InputError
from dfkd_lite.measure.evaluate import accuracy, predict
from dfkd_lite.teach import TeachConfig, teach

CONFIG = TeachConfig(epochs=2, batch_size=64, shift=1, flip=False)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_a_teacher_learns_and_one_seed_governs_it(digits):
    one, spec, history = teach("wrn-10-1", digits, CONFIG, "cpu", progress=False)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    two, _, again = teach("wrn-10-1", digits, CONFIG, "cpu", progress=False)
    assert torch.equal(before, torch.random.get_rng_state())
    untimed = [[{k: v for k, v in row.items() if k != "seconds"} for row in h]
               for h in (history, again)]  # fmt: skip
    assert untimed[0] == untimed[1]
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name
    assert not one.training
    assert [row["epoch"] for row in history] == [1, 2]
    assert history[1]["loss"] < history[0]["loss"]
    assert accuracy(*predict(one, digits.test, spec)) > 0.6  # guessing: 0.1
    assert (spec.network, spec.classes, spec.image_shape) == ("wrn-10-1", 10, (1, 16, 16))
    assert (spec.mean, spec.std) == (digits.mean, digits.std)


def test_a_diverging_teacher_is_named(digits):
    with pytest.raises(InputError, match="diverged in epoch 1: lower lr"):
        teach("wrn-10-1", digits, replace(CONFIG, lr=1e15), "cpu", progress=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("batch_size", 1), ("lr", -1), ("momentum", 1), ("shift", -1)],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(InputError, match=field):
        replace(CONFIG, **{field: value})


def test_unknown_network_offers_the_nearest(digits):
    with pytest.raises(InputError, match="Did you mean 'resnet-18'"):
        teach("resnet18", digits, CONFIG)
