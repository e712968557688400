"""A GPU is seldom here, so a fake one stands in: tensors with a shape, a type and a device `cuda`,
and no numbers (torch's FakeTensorMode). Every method and all that is measured runs on it. A tensor
that was made on the wrong device is an error then, on any machine; so is a double on the device,
because MPS has none.

What needs numbers, or a driver, is patched here and nowhere else: a fake tensor gives no item, and
torch's engine cannot go backward on a device that is not there.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_methods import LOOP, NAMES, PLAIN, SMALL, SPEC
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dfkd_lite.bound_terms import bound_terms
from dfkd_lite.cam import explain
from dfkd_lite.data.images import ImageData, Split
from dfkd_lite.distill import Distillation
from dfkd_lite.door import find_layers
from dfkd_lite.generator import AttentionGenerator
from dfkd_lite.lipschitz import local_lipschitz, network_bound
from dfkd_lite.measure import evaluate as measures
from dfkd_lite.measure.fidelity import image_report
from dfkd_lite.measure.privacy import losses, membership_auc
from dfkd_lite.measure.signs import data_free_signs
from dfkd_lite.methods import METHODS
from dfkd_lite.networks import build, normalise
from dfkd_lite.teach import TeachConfig, Teaching

CUDA = torch.device("cuda")
RealGenerator, real_any = torch.Generator, Tensor.any


class Generator(RealGenerator):
    """One on the CPU that says it is where it was asked to be."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.said = torch.device(device)
        return made

    @property
    def device(self):
        return self.said


class Strict(TorchDispatchMode):
    """Refuses what a GPU refuses and FakeTensorMode lets pass, and doubles on the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for made in tree_leaves(out):
            if isinstance(made, FakeTensor) and made.device.type == "cuda":
                assert made.dtype != torch.float64, f"a double on the device: {func}"
        if "index" in func.__name__ and isinstance(args[0], Tensor):
            kinds = {one.device.type for one in tree_leaves(args[1:]) if isinstance(one, Tensor)}
            # a GPU's tensor takes an index on the CPU, and not the other way round
            assert args[0].device.type == "cuda" or "cuda" not in kinds, f"a foreign index: {func}"
        return out


class OwnChance(TorchFunctionMode):
    """Refuses a generator of another device than the tensor has that it fills."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        rng = (kwargs or {}).get("generator")
        if rng is not None:
            assert rng.device.type == out.device.type, f"another device's generator: {func}"
        return out


def leaves(nodes: list[Any]) -> Iterator[Tensor]:
    """The weights that a graph ends in."""
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
            if hasattr(node, "variable"):
                yield node.variable


def backward(loss: Tensor, *_: Any, **__: Any) -> None:
    for leaf in leaves([loss.grad_fn]):
        leaf.grad = torch.zeros_like(leaf)


def grad(outputs, inputs, *_: Any, create_graph: bool = False, **__: Any) -> tuple[Tensor, ...]:
    inputs = [inputs] if isinstance(inputs, Tensor) else inputs
    if create_graph:  # then it depends on all that the outputs depend on
        return tuple(torch.zeros_like(x) + 0 * outputs.sum() for x in inputs)
    return tuple(torch.zeros_like(x) for x in inputs)


def vjp(function, x):
    """A product with no numbers; J^T of rows, and again of images, as the double product is."""
    y = function(x)
    return y, lambda rows: (torch.zeros_like(x) + 0 * rows.sum(),)


def moved(module: nn.Module, to, recurse=True) -> nn.Module:
    """Move a module by new parameters: torch would swap the old ones', which fake ones refuse."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(to(value.detach()), value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = to(value)
    return module


def number(x: Tensor) -> float | int | bool:
    return {torch.bool: True}.get(x.dtype, 0.5 if x.is_floating_point() else 0)


def numpy(x: Tensor, *, force: bool = False) -> np.ndarray:
    assert x.device.type == "cpu" or force
    dtype = np.dtype(str(x.dtype).removeprefix("torch."))
    return (np.arange(x.numel()) % SPEC.classes).reshape(x.shape).astype(dtype)


@pytest.fixture
def fake(monkeypatch):
    """A machine with a GPU, for the code that runs on it."""
    for name in ("__bool__", "__int__", "__float__", "__index__"):
        kind = {"__bool__": bool, "__float__": float}.get(name, int)
        monkeypatch.setattr(Tensor, name, lambda x, kind=kind: kind(number(x)))
    monkeypatch.setattr(Tensor, "item", number)
    monkeypatch.setattr(Tensor, "tolist", lambda x: np.full(x.shape, number(x)).tolist())
    monkeypatch.setattr(Tensor, "numpy", numpy)
    # all() of what is looked at is true, any() is not: finite numbers, no negative variance
    monkeypatch.setattr(Tensor, "any", lambda x, *dim: real_any(x, *dim) if dim else False)
    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(Tensor, "unique", lambda x: torch.arange(SPEC.classes, device=x.device))
    monkeypatch.setattr(Tensor, "nonzero", lambda x: x.new_zeros(*x.shape, x.ndim).long())
    monkeypatch.setattr(torch.autograd, "grad", grad)
    monkeypatch.setattr(torch.func, "vjp", vjp)
    monkeypatch.setattr(torch, "allclose", lambda a, b, **_: bool((a - b).all()))
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(nn.Module, "_apply", moved)
    monkeypatch.setattr("dfkd_lite.devices.bfloat16_pays", None)  # asks the driver
    monkeypatch.setattr("dfkd_lite.devices._global_generators", list)
    # a copy of a fake tensor belongs to the same machine
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, raising=False)
    for name in ("door._are_probabilities", "measure.evaluate._check"):  # compare numbers
        monkeypatch.setattr(f"dfkd_lite.{name}", lambda *_: False)
    with FakeTensorMode(), Strict(), OwnChance():
        yield


@pytest.mark.parametrize("name", list(METHODS))
def test_an_episode_and_a_step_of_every_method(fake, name):
    """One that makes images only, as in the warm-up, and one that the student learns in."""
    settings = SMALL.get(name)
    if settings is None:
        images = torch.zeros(20, *SPEC.image_shape, dtype=torch.uint8)
        settings = METHODS[name].Config(images, synthesis_batch=8, beta=0.1)
    run = Distillation(build("wrn-10-1", 4, 1, 16), "wrn-10-1", SPEC, LOOP, settings, "cuda")
    for _ in range(LOOP.warm_up + 2):
        run.step()
    assert all(p.device.type == "cuda" for p in run.network.parameters())
    assert all(p.grad is not None for p in run.network.parameters())
    newest = run.pool.newest(8)
    assert newest.device.type == "cuda"


def shots(count: int) -> Split:
    return Split(torch.zeros(count, 1, 16, 16, dtype=torch.uint8), torch.arange(count) % 4)


@pytest.fixture
def pair(fake):
    """A teacher and a student there, and eight images."""
    teacher, student = (build("wrn-10-1", 4, 1, 16).to(CUDA).eval() for _ in range(2))
    return teacher, student, torch.rand(8, 1, 16, 16, device=CUDA)


def test_teaching(fake):
    data = ImageData("made", NAMES, 1, 16, (0.4,), (0.3,), shots(20), None, shots(8))
    teaching = Teaching("wrn-10-1", data, TeachConfig(epochs=1, batch_size=8, shift=1), CUDA)
    assert teaching.epoch()["epoch"] == 1
    assert all(p.grad.device.type == "cuda" for p in teaching.model.parameters())


def test_the_evaluations_with_images(pair):
    teacher, student, images = pair
    report = measures.evaluate(student, shots(10), SPEC, teacher)
    assert {"accuracy", "auc", "ece", "kl_to_teacher", "mse_to_teacher"} <= report.keys()
    logits, labels = measures.predict(student, shots(10), SPEC)
    assert logits.device.type == labels.device.type == "cpu"
    there = student(normalise(images, SPEC))
    wanted = torch.zeros(8, dtype=torch.long, device=CUDA)
    for measure in (measures.accuracy, measures.macro_f1, measures.auc, measures.confusion_matrix):
        measure(there, wanted)
    measures.expected_calibration_error(there, wanted)
    members = losses(there, wanted)
    membership_auc(members, members, resamples=2)


def test_the_evaluations_without_images(pair):
    teacher, student, images = pair
    x = normalise(images, SPEC)
    assert "effective_classes" in data_free_signs(teacher, student, images, x)
    many = torch.rand(80, 1, 16, 16, device=CUDA)
    layers = find_layers(teacher, SPEC.image_shape)
    found = image_report(teacher, layers, shots(80), many, lambda x: normalise(x, SPEC))
    assert found.keys() == {"precision", "recall", "density", "coverage"}


@pytest.mark.parametrize("averaged", [True, False])
def test_maps_and_their_likeness(pair, averaged):
    teacher, student, images = pair
    layers = replace(find_layers(teacher, SPEC.image_shape), averaged=averaged)
    logits, maps = explain(teacher, normalise(images, SPEC), layers)
    assert [part.device.type for part in (logits, *maps)] == ["cuda"] * 4
    measures.cam_consistency(explain(student, images, layers)[1][-1], maps[-1])


def test_slopes_and_the_bound(pair):
    teacher, student, images = pair
    assert local_lipschitz(teacher, images).device.type == "cuda"
    network_bound(teacher, SPEC.image_shape)
    one, two = (AttentionGenerator(16, 1, PLAIN).to(CUDA) for _ in range(2))
    z = torch.randn(8, PLAIN.z_dim, device=CUDA)
    terms = bound_terms(student, teacher, one, two, z, 1.0, 1.0)
    assert terms.lhs.device.type == "cuda"
