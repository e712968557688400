"""Presets by name, and single settings changed by name."""

import dataclasses

import pytest

from dfkd_lite.errors import InputError
from dfkd_lite.generator import ATTENTION_SOURCE
from dfkd_lite.presets import PRESETS, preset
from dfkd_lite.settings import override


def test_the_paper_s_preset_holds_table_1():
    import csv
    from pathlib import Path

    path = Path(__file__).parents[1] / "data" / "paper" / "table1_hyperparameters.csv"
    with open(path, encoding="utf-8", newline="") as file:
        table = {row["hyperparameter"]: row["value"] for row in csv.DictReader(file)}
    paper = preset("paper")
    ours = {
        "generator_learning_rate": paper.method.meta.lr,
        "noise_learning_rate": paper.method.meta.lr_z,
        "distillation_temperature": paper.method.temperature,
        "batch_size": paper.distill.batch_size,
        "attention_weight_lambda": paper.method.generator.attention.lam,
        "generator_steps": paper.method.meta.steps,
        "momentum": paper.distill.momentum,
        "weight_decay": paper.distill.weight_decay,
    }
    assert table.pop("meta_learning") == "enabled" and paper.method.meta.kind != "none"
    assert ours == {name: float(value) for name, value in table.items()}


def test_the_paper_s_preset_and_one_for_the_digits_have_the_generator_of_its_source():
    assert preset("paper").method.generator == ATTENTION_SOURCE
    source, lite = preset("attention-source"), preset("lite")
    assert dataclasses.replace(source.method.generator, width=64) == ATTENTION_SOURCE
    same = dataclasses.replace(source.method, generator=lite.method.generator)
    assert dataclasses.replace(source, method=same) == lite


def test_unknown_preset_offers_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'colab'"):
        preset("collab")


def test_a_changed_copy_has_the_same_settings_for_other_methods():
    lite = preset("lite")
    for name in ("dafl", "nayer"):
        copy, same = (
            dataclasses.replace(lite, student="wrn-16-1").of_method(name),
            lite.of_method(name),
        )
        assert (copy.distill, copy.method) == (same.distill, same.method)
    assert lite.of_method("dafl").distill.episodes == 160  # LITE_METHODS
    paper = dataclasses.replace(preset("paper"), student="wrn-40-1")
    assert paper.of_method("dafl").distill == preset("paper").of_method("dafl").distill
    assert paper.of_method("dafl").distill != paper.distill  # its authors' loop


def test_override_reaches_nested_settings_and_leaves_the_rest():
    method = PRESETS["lite"].method
    changed = override(method, ["beta=0", "generator.attention.lam=0.3", "meta.kind=reptile"])
    assert (changed.beta, changed.generator.attention.lam) == (0.0, 0.3)
    assert isinstance(changed.beta, float)
    assert changed.meta.kind == "reptile" and changed.meta.steps == method.meta.steps
    assert method.beta != 0  # the preset itself is untouched
    assert override(method, ["generator.attention=None"]).generator.attention is None
    assert override(method, ["msarc.alphas=(1.0, 2.0)"]).msarc.alphas == (1.0, 2.0)
    loop = override(PRESETS["lite"].distill, ["episodes=4", "warm_up=1"])
    assert (loop.episodes, loop.warm_up) == (4, 1)  # valid together, whatever the order
    assert override(method, ["msarc.second_order=True"]).msarc.second_order is True


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("batch=3", "Did you mean 'synthesis_batch'"),
        ("generator.widht=3", "Did you mean 'width'"),
        ("beta", "write name=value"),
        ("beta=much", "'beta' is 'much'; expected: valid number"),
        ("beta=True", "'beta' is True; expected: valid number"),
        ("agree_only=1", "'agree_only' is 1; expected: valid boolean"),
        ("synthesis_batch=2.5", "'synthesis_batch' is 2.5; expected: valid integer"),
        ("beta.x=1", "'beta' is {'x': 1}; expected: valid number"),
        ("generator=3", "'generator' is 3; expected: names with values .*width"),
        ("generator=None", "'generator' is None; expected: names with values"),
        ("meta.steps=0", "steps"),
        ("beta='1e-3'", r"this is text: write 1.0e-03"),
        ("beta={1}", "'beta' is {.}; expected: a number"),
        ("msarc.alphas=(1, 'a')", "'msarc.alphas' is .*; expected: valid number"),
    ],
)
def test_wrong_assignments_are_refused(assignment, message):
    with pytest.raises(InputError, match=message):
        override(PRESETS["lite"].method, [assignment])
