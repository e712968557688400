"""Networks that people bring: where their features are, and what is seen before any training."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from dfkd_lite.cam import explain
from dfkd_lite.distill import Distillation, DistillConfig, distill
from dfkd_lite.door import LogitsOf, find_layers
from dfkd_lite.errors import InputError
from dfkd_lite.export.onnx import export_onnx
from dfkd_lite.generator import GeneratorConfig
from dfkd_lite.lipschitz import network_bound
from dfkd_lite.methods import FsscConfig
from dfkd_lite.networks import (
    Layers,
    NetworkSpec,
    batch_norms,
    build,
    capture,
)
from dfkd_lite.storage.weights import load_network, load_weights, save_network, save_weights

SPEC = NetworkSpec("mine", 4, 1, 16, (0.4,), (0.3,))
CONFIG = DistillConfig(
    episodes=2, warm_up=1, student_steps=2, batch_size=8, lr=0.05, pool_size=20, shift=1
)
METHOD = FsscConfig(generator=GeneratorConfig(z_dim=8, width=8), synthesis_batch=8)


def images(count: int = 3, channels: int = 1, size: int = 16) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def settled(network: nn.Module) -> nn.Module:
    """Running statistics as after training, eval mode."""
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(32, 1, 16, 16))
    return network.eval()


class Plain(nn.Module):
    """Three stages at 16, 8 and 4 px; ``activate`` says how the batch-norms' maps are bent."""

    def __init__(self, activate=None, conv=lambda c: c, bn=nn.BatchNorm2d) -> None:
        super().__init__()
        widths, strides = [1, 6, 8, 10], [1, 2, 2]
        self.convs = nn.ModuleList(
            conv(nn.Conv2d(widths[i], widths[i + 1], 3, strides[i], 1)) for i in range(3)
        )
        self.bns = nn.ModuleList(bn(w) for w in widths[1:])
        self.relus = nn.ModuleList([nn.ReLU(), nn.ReLU(), nn.ReLU()])
        self.activate = activate
        self.fc = nn.Linear(10, 4)

    def maps(self, x: Tensor) -> Tensor:
        for conv, bn, relu in zip(self.convs, self.bns, self.relus, strict=True):
            x = (self.activate or relu)(bn(conv(x)))
        return x

    def forward(self, x: Tensor):
        return self.fc(self.maps(x).mean((2, 3)))


def twins(first: nn.Module, second: nn.Module) -> None:
    """Give the second network the weights of the first."""
    missing, left = second.load_state_dict(first.state_dict(), strict=False)
    assert not missing and not left


def run(teacher, student="wrn-10-1", spec=SPEC, method=METHOD, **options):
    torch.manual_seed(0)
    return distill(teacher, student, spec, CONFIG, method, device="cpu", progress=False, **options)


# --- a module that runs more than once -------------------------------------------------------

REUSED = {
    "relu": lambda: nn.ReLU(),
    "in-place relu": lambda: nn.ReLU(inplace=True),
    "sequential": lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.3)),
    "identity after": lambda: nn.Sequential(nn.Identity(), nn.ReLU()),
}


@pytest.mark.parametrize("kind", REUSED)
def test_a_reused_module_is_read_at_each_of_its_calls(kind) -> None:
    teacher = settled(Plain())
    reused = Plain(REUSED[kind]())
    twins(teacher, reused)
    layers = find_layers(reused.eval(), SPEC.image_shape)
    assert layers == Layers(("activate#1", "activate#2", "activate#3"), "fc", averaged=True)
    wanted_layers = find_layers(teacher, SPEC.image_shape)
    assert wanted_layers.stages == ("relus.0", "relus.1", "relus.2")
    wanted, found = (
        explain(n, images(), at)[1] for n, at in ((teacher, wanted_layers), (reused, layers))
    )
    assert [m.shape[-1] for m in found] == [16, 8, 4]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_calls_are_counted_within_each_pass() -> None:
    reused = Plain(nn.ReLU()).eval()
    with capture(reused, ["activate#1", "activate"]) as features:
        reused(images(2))
        reused(images(3))
    assert features["activate#1"].shape == (3, 6, 16, 16)
    assert features["activate"].shape == (3, 10, 4, 4)  # the newest


def test_relu6_called_twice_at_a_resolution_is_read_after_the_second() -> None:
    class Twice(Plain):
        def maps(self, x):
            return self.activate(super().maps(x) - 0.1)

    layers = find_layers(settled(Twice(nn.ReLU6())), SPEC.image_shape)
    assert layers.stages == ("activate#1", "activate#2", "activate#4") and layers.averaged


# --- in-place operations -----------------------------------------------------------------------

IN_PLACE = {
    "F.relu": (lambda x: F.relu(x, inplace=True), F.relu),
    "relu_": (torch.relu_, F.relu),
    "leaky": (lambda x: F.leaky_relu_(x, 0.1), lambda x: F.leaky_relu(x, 0.1)),
    "add and scale": (lambda x: x.add_(1).mul_(2), lambda x: (x + 1) * 2),
}


@pytest.mark.parametrize("kind", IN_PLACE)
def test_an_output_changed_in_place_is_read_as_the_next_layer_reads_it(kind) -> None:
    changed, plain = IN_PLACE[kind]
    network = settled(Plain(changed))
    layers = find_layers(network, SPEC.image_shape)
    assert layers == Layers(("bns.0", "bns.1", "bns.2"), "fc", averaged=True)

    class Bend(nn.Module):
        def forward(self, x):
            return plain(x)

    twin = Plain(Bend())
    twins(network, twin)
    logits, found = explain(network, images(), layers)
    wanted_logits, wanted = explain(twin, images(), find_layers(twin, SPEC.image_shape))
    torch.testing.assert_close(logits, wanted_logits)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_networks_with_in_place_operations_distil(role) -> None:
    network = settled(Plain(lambda x: F.relu(x, inplace=True)))
    teacher = network if role == "teacher" else settled(Plain())
    student = network if role == "student" else "wrn-10-1"
    assert run(teacher, student).history[-1]["msarc"] > 0


# --- parametrised layers -----------------------------------------------------------------------

PARAMETRISED = {
    "spectral": torch.nn.utils.parametrizations.spectral_norm,
    "weight norm": torch.nn.utils.parametrizations.weight_norm,
    "orthogonal": torch.nn.utils.parametrizations.orthogonal,
}


@pytest.mark.parametrize("kind", PARAMETRISED)
def test_a_parametrised_weight_is_no_stage(kind) -> None:
    network = settled(Plain(conv=PARAMETRISED[kind]))
    assert find_layers(network, SPEC.image_shape).stages == ("relus.0", "relus.1", "relus.2")
    assert run(network).history[-1]["msarc"] > 0


@pytest.mark.parametrize("kind", PARAMETRISED)
def test_the_bound_of_a_parametrised_network_is_that_of_its_weights(kind) -> None:
    def chain(wrap):
        torch.manual_seed(2)
        layers = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        bent = wrap(layers[0]), nn.BatchNorm2d(4), nn.ReLU(), wrap(layers[1]), nn.ReLU()
        return nn.Sequential(*bent, *head).eval()

    network = chain(PARAMETRISED[kind])
    plain = chain(lambda c: c)
    for at in (0, 3):
        plain[at].weight.data.copy_(network[at].weight.detach())
    shape = (1, 8, 8)
    assert network_bound(network, shape).bound == pytest.approx(network_bound(plain, shape).bound)


# --- branches and classifiers ------------------------------------------------------------------


class Branches(Plain):
    """The middle stage lies on a branch of its own, beside the first."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Conv2d(1, 10, 3, 4, 1)
        self.middle = nn.Conv2d(1, 10, 5, 2, 2)

    def forward(self, x):
        first = self.relus[0](self.bns[0](self.convs[0](x)))
        second = self.middle(x)
        deep = self.side(x) + F.avg_pool2d(second, 2) + F.avg_pool2d(first, 4).mean(1, True)
        return self.fc(torch.relu(deep).mean((2, 3)))


def test_stages_on_parallel_branches_have_their_maps_in_a_frozen_network() -> None:
    network = settled(Branches())
    layers = find_layers(network, SPEC.image_shape)
    assert layers.stages == ("relus.0", "middle", "side")
    wanted = explain(network, images(), layers)[1]
    found = explain(copy.deepcopy(network).requires_grad_(False), images(), layers)[1]
    for a, b in zip(found, wanted, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b)
    assert run(network).history[-1]["msarc"] > 0
    assert run(settled(Plain()), Branches()).history[-1]["msarc"] > 0


def test_maps_that_the_logits_do_not_read_are_no_stages() -> None:
    class Aside(Plain):
        def forward(self, x):
            self.side(x)
            return super().forward(x)

    network = Aside()
    network.side = nn.Conv2d(1, 3, 3, 8)
    assert find_layers(settled(network), SPEC.image_shape).stages[-1] == "relus.2"


@pytest.mark.parametrize("order", ["pool, convolve", "convolve, pool"])
@pytest.mark.parametrize("kernel", [1, (1, 1)])
def test_a_1x1_convolution_is_a_classifier(order, kernel) -> None:
    class Net(Plain):
        def forward(self, x):
            x = self.maps(x)
            if order == "pool, convolve":
                return self.head(x.mean((2, 3), keepdim=True)).flatten(1)
            return self.head(x).mean((2, 3))

    network = Net()
    network.head = nn.Conv2d(10, 4, kernel)
    del network.fc
    layers = find_layers(settled(network), SPEC.image_shape)
    assert layers == Layers(("relus.0", "relus.1", "relus.2"), "head", averaged=True)
    logits, maps = explain(network, images(), layers)
    best = logits.amax(1) - network.head.bias.detach()[logits.argmax(1)]
    torch.testing.assert_close(maps[-1].mean((1, 2)), best)


def test_a_network_without_any_classifying_layer_has_grad_cam_at_all_stages() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    layers = find_layers(settled(net), SPEC.image_shape)
    assert layers == Layers(("2", "3"))
    assert [m.shape[-1] for m in explain(net, images(), layers)[1]] == [16, 8]


def test_squeezenet_is_read() -> None:
    network = torchvision.models.squeezenet1_1(num_classes=4).eval()
    layers = find_layers(network, (3, 64, 64))
    assert layers.classifier == "classifier.1" and layers.stages[-1] == "features"
    assert explain(network, images(2, 3, 64), layers)[1][-1].shape == (2, 3, 3)


# --- tokens and channels-last maps ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t"])
def test_networks_whose_features_are_no_maps_are_refused(name) -> None:
    options = {"image_size": 32} if name == "vit_b_16" else {}
    with torch.device("meta"):
        network = getattr(torchvision.models, name)(num_classes=4, **options)
    network = network.to_empty(device="cpu").eval()
    for value in network.state_dict().values():
        value.zero_() if not value.is_floating_point() else value.normal_(0, 0.02)
    with pytest.raises(InputError, match=r"tokens .*channels-last"):
        find_layers(network, (3, 32, 32))


def test_channels_last_within_a_block_hides_nothing() -> None:
    """As in ConvNeXt: blocks work on (B, H, W, C) and give (B, C, H, W) back."""

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, 2 * width)
            self.down = nn.Linear(2 * width, width)

        def forward(self, x):
            y = self.down(F.gelu(self.up(self.norm(x.permute(0, 2, 3, 1)))))
            return x + y.permute(0, 3, 1, 2)

    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), Block(16), nn.Conv2d(16, 8, 3, 2, 1), Block(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    assert find_layers(net, SPEC.image_shape) == Layers(("1", "3"), "6", averaged=True)


# --- answers that are no tensor ------------------------------------------------------------------


class Told(Plain):
    """Answers in the shape that ``form`` gives it."""

    def __init__(self, form) -> None:
        super().__init__()
        self.form = form

    def forward(self, x):
        return self.form(super().forward(x))


class Output:
    def __init__(self, logits):
        self.logits = logits


ANSWERS = {
    "tuple": (lambda y: (y, None), 0),
    "list": (lambda y: [None, y], 1),
    "dict": (lambda y: {"logits": y}, "logits"),
    "object": (Output, "logits"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_the_part_of_an_answer_that_is_the_logits_is_named(kind, tmp_path) -> None:
    form, part = ANSWERS[kind]
    network = Told(form)
    network.train()
    for act in (
        lambda: find_layers(network, SPEC.image_shape),
        lambda: explain(network, images(), Layers(("relus.0",), "fc")),
        lambda: run(network),
        lambda: export_onnx(network, SPEC, tmp_path / "n.onnx"),
    ):
        with pytest.raises(InputError, match=r"LogitsOf\(network, "):
            act()
    named = LogitsOf(network, part).eval()
    layers = find_layers(named, SPEC.image_shape)
    assert layers.classifier == "model.fc" and layers.averaged
    plain = Plain().eval()
    plain.load_state_dict(network.state_dict())
    assert torch.equal(explain(named, images(), layers)[0], plain(images()))
    assert run(named).history[-1]["msarc"] > 0
    with pytest.raises(InputError, match="no part"):
        LogitsOf(network, "nothing").eval()(images())


# --- batch-norms of any make -----------------------------------------------------------------


def frozen_bn(width):
    return torchvision.ops.FrozenBatchNorm2d(width)


@pytest.mark.parametrize("kind", ["sync", "frozen", "instance", "converted"])
def test_batch_norms_are_known_by_their_statistics(kind) -> None:
    if kind == "frozen":
        network = Plain(bn=frozen_bn).eval()
    elif kind == "instance":
        network = settled(Plain(bn=lambda w: nn.InstanceNorm2d(w, track_running_stats=True)))
    elif kind == "sync":
        network = settled(Plain(bn=nn.SyncBatchNorm))
    else:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(settled(Plain()))
    assert list(batch_norms(network)) == ["bns.0", "bns.1", "bns.2"]
    assert run(network).history[-1]["bn"] > 0


# --- wrappers ----------------------------------------------------------------------------------

WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": torch.compile,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "twice": lambda n: torch.compile(nn.DataParallel(n)),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers_are_taken_off(kind, tmp_path) -> None:
    plain = build("wrn-10-1", 4, 1, 16).eval()
    wrapped = WRAPPERS[kind](plain)
    spec = replace(SPEC, network="wrn-10-1")
    save_network(tmp_path / "n.safetensors", wrapped, spec)
    again, _ = load_network(tmp_path / "n.safetensors")
    assert torch.equal(again(images()), plain(images()))
    other = WRAPPERS[kind](build("wrn-10-1", 4, 1, 16))
    load_weights(tmp_path / "n.safetensors", other)
    assert find_layers(wrapped, SPEC.image_shape) == find_layers(plain, SPEC.image_shape)
    result = run(settled(copy.deepcopy(plain)), WRAPPERS[kind](build("wrn-10-1", 4, 1, 16)))
    assert set(result.student.state_dict()) == set(plain.state_dict())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "backbone."])
def test_a_prefix_of_all_names_is_named(prefix, tmp_path) -> None:
    class Box(nn.Module):
        pass

    box = Box()
    setattr(box, prefix[:-1], build("wrn-10-1", 4, 1, 16))
    save_weights(tmp_path / "n.safetensors", box, {})
    with pytest.raises(InputError, match=f"'{prefix}'"):
        load_weights(tmp_path / "n.safetensors", build("wrn-10-1", 4, 1, 16))


class Auxiliary(Plain):
    """Answers in training mode as torchvision's GoogLeNet does: logits, and a side head's."""

    def forward(self, x):
        logits = super().forward(x)
        return (logits, logits / 2) if self.training else logits


def test_a_student_with_auxiliary_heads_is_refused_or_its_logits_are_named() -> None:
    teacher = settled(Plain())
    with pytest.raises(
        InputError, match=r"The student that learns .* tuple.*LogitsOf\(network, 0\)"
    ):
        run(teacher, Auxiliary())
    assert math.isfinite(run(teacher, LogitsOf(Auxiliary(), 0)).history[-1]["kd"])
    assert LogitsOf(Auxiliary(), 0).eval()(images()).shape == (3, 4)


class Versioned(nn.Linear):
    """Refuses weights of no version, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, about, *rest) -> None:
        if about.get("version") != 2:
            raise ValueError("which version?")
        super()._load_from_state_dict(state, prefix, about, *rest)


def versioned() -> nn.Module:
    network = settled(Plain())
    network.fc = Versioned(10, 4)
    return network


def test_weights_keep_the_version_that_their_network_has(tmp_path) -> None:
    network, other = versioned(), versioned()
    save_weights(tmp_path / "n.safetensors", network, {})
    load_weights(tmp_path / "n.safetensors", other)
    assert torch.equal(other(images()), network(images()))


def test_a_run_whose_student_has_versions_is_resumed(tmp_path) -> None:
    def begun() -> Distillation:
        torch.manual_seed(1)
        config = replace(CONFIG, checkpoint_every=1)
        return Distillation(settled(Plain()), versioned(), SPEC, config, METHOD, "cpu")

    def stop(run: Distillation, row: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begun().run(tmp_path, watch=stop)
    history = begun().run(tmp_path, resume=True).history
    assert history[-1]["kd"] == begun().run().history[-1]["kd"]


# --- our memory layout is never their problem --------------------------------------------------

VIEWS = {
    "view": lambda x: x.view(x.size(0), -1),
    "view of rows": lambda x: x.view(-1, 10 * 16),
    "two views": lambda x: x.view(x.size(0), 10, 16).view(x.size(0), 160),
}


class Viewing(Plain):
    def __init__(self, view) -> None:
        super().__init__()
        self.view, self.fc = view, nn.Linear(160, 4)

    def forward(self, x):
        return self.fc(self.view(self.maps(x)))


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("kind", VIEWS)
def test_a_network_that_fails_with_channels_last_runs_without(kind, role) -> None:
    network = settled(Viewing(VIEWS[kind]))
    teacher = network if role == "teacher" else settled(Plain())
    student = network if role == "student" else "wrn-10-1"
    with pytest.warns(UserWarning, match=f"The {role} .*channels last") as said:
        result = run(teacher, student)
    assert len([w for w in said if "channels last" in str(w.message)]) == 1
    assert result.history[-1]["kd"] >= 0
    assert network(images()).shape == (3, 4)  # as it was


# --- signs at the door ---------------------------------------------------------------------------

PROBABILITIES = {
    "softmax": lambda y: y.softmax(1),
    "sigmoid": torch.sigmoid,
    "two columns": lambda y: torch.cat([y.sigmoid()[:, :2] / 2, 0.5 - y.sigmoid()[:, :2] / 2], 1),
    "squeezed softmax": lambda y: y.softmax(1)[:, None].squeeze(1),
}


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("kind", PROBABILITIES)
def test_probabilities_are_refused_before_any_training(kind, role) -> None:
    network = settled(Told(PROBABILITIES[kind]))
    pair = (network, "wrn-10-1") if role == "teacher" else (settled(Plain()), network)
    with pytest.raises(InputError, match=f"The {role} .*probabilities"):
        Distillation(*pair, SPEC, CONFIG, METHOD, "cpu")


def test_log_probabilities_are_logits_and_teach_the_same() -> None:
    plain = settled(Plain())
    logged = Told(lambda y: y.log_softmax(1)).eval()
    twins(plain, logged)
    method = replace(METHOD, beta=0.0)
    one, two = (run(network, method=method).history[-1]["kd"] for network in (plain, logged))
    assert one == pytest.approx(two, rel=1e-4)


@pytest.mark.parametrize(
    ("mean", "std"), [((123.7,), (58.4,)), ((0.0,), (255.0,)), ((127.5,), (0.5,)), ((0.5,), (58,))]
)
def test_a_spec_in_units_of_255_is_refused(mean, std) -> None:
    with pytest.raises(InputError, match="Divide by 255"):
        replace(SPEC, mean=mean, std=std)


@pytest.mark.parametrize("value", [-0.1, -1e-6, float("nan"), float("inf")])
def test_wrong_running_variances_are_refused(value, tmp_path) -> None:
    network = settled(Plain())
    network.bns[1].running_var[2] = value
    for act in (
        lambda: run(network),
        lambda: save_weights(tmp_path / "n.safetensors", network, {}),
        lambda: export_onnx(network, SPEC, tmp_path / "n.onnx"),
    ):
        with pytest.raises(InputError, match=r"bns\.1\.running_var"):
            act()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_one_rule_for_half_and_double_weights(dtype, tmp_path) -> None:
    from dfkd_lite import load
    from dfkd_lite.measure.evaluate import predict

    network, data = settled(Plain()).to(dtype), load("digits")
    for act in (
        lambda: run(network),
        lambda: run(settled(Plain()), network),
        lambda: predict(network, data.test, data),
        lambda: export_onnx(network, SPEC, tmp_path / "n.onnx"),
    ):
        with pytest.raises(InputError, match=rf"{dtype}.*network\.to\(torch\.float32\)"):
            act()


def test_a_frozen_student_is_refused_and_a_partly_frozen_one_learns_the_rest() -> None:
    student = Plain().requires_grad_(False)
    with pytest.raises(InputError, match=r"requires_grad_\(True\)"):
        run(settled(Plain()), student)
    before = copy.deepcopy(student.state_dict())
    student.fc.requires_grad_(True)
    assert run(settled(Plain()), student).history[-1]["msarc"] > 0
    now = student.state_dict()
    assert not torch.equal(now["fc.weight"], before["fc.weight"])
    assert torch.equal(now["convs.0.weight"], before["convs.0.weight"])


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_switched_off_are_noticed(off) -> None:
    with off(), pytest.raises(InputError, match=r"[Gg]radients are switched off"):
        run(Plain())

    class Decorated(Plain):
        def forward(self, x):
            with off():
                return super().forward(x)

    with pytest.raises(InputError, match="gradient"):
        run(settled(Decorated()))


def test_a_teacher_in_training_mode_is_put_into_evaluation_mode() -> None:
    network = settled(Plain())
    again = copy.deepcopy(network).train()
    one, two = run(network).student, run(again).student
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_last_batch_of_one_image_joins_the_one_before() -> None:
    from dfkd_lite import load, preset, teach

    data = load("digits")
    few = replace(data, train=replace(data.train, images=data.train.images[:17],
                                      labels=data.train.labels[:17]))  # fmt: skip
    config = replace(preset("lite").teach, epochs=1, batch_size=16)
    _, _, history = teach("vgg-11", few, config, "cpu", False)
    assert history[0]["loss"] > 0
