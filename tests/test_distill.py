"""The loop: reproducible, resumable, frozen where it must be, and Eqs. 16 and 17 added up right."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from dfkd_lite import kd, methods
from dfkd_lite.distill import Distillation, DistillConfig, distill, frozen, learning_rate
from dfkd_lite.errors import InputError
from dfkd_lite.generator import GeneratorConfig
from dfkd_lite.inversion import BatchNormLoss
from dfkd_lite.methods import FsscConfig, GivenConfig, NoiseConfig
from dfkd_lite.networks import NetworkSpec, build, capture
from dfkd_lite.storage.checkpoint import load_checkpoint

SPEC = NetworkSpec("wrn-10-1", classes=4, channels=1, size=16, mean=(0.4,), std=(0.3,))
CONFIG = DistillConfig(
    episodes=5,
    warm_up=1,
    student_steps=2,
    batch_size=8,
    lr=0.05,
    average=0.9,
    pool_size=20,
    shift=1,
    measure_every=1,
    checkpoint_every=2,
)
METHOD = FsscConfig(generator=GeneratorConfig(z_dim=8, width=8), synthesis_batch=8, beta=0.1)


@pytest.fixture
def teacher():
    """A teacher with running statistics of its own, as if it had been trained."""
    torch.manual_seed(5)
    network = build("wrn-10-1", 4, 1, 16)
    network(torch.randn(64, 1, 16, 16))
    return network


def run(teacher, folder=None, resume=False, measure=None, config=CONFIG, **options):
    return distill(
        teacher, "wrn-10-1", SPEC, config, METHOD, device="cpu", measure=measure,
        folder=folder, resume=resume, progress=False, **options,
    )  # fmt: skip


def weights(result):
    modules = {"student": result.student, **result.modules}
    return {f"{n}.{k}": v for n, m in modules.items() for k, v in m.state_dict().items()}


def assert_same(one, two):
    assert weights(one).keys() == weights(two).keys()
    for name, value in weights(one).items():
        assert torch.equal(value, weights(two)[name]), name
    assert torch.equal(one.pool.images(), two.pool.images())
    assert untimed(one.history) == untimed(two.history)


def untimed(history):
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in history]


def test_one_seed_governs_everything(teacher):
    torch.manual_seed(1)
    one = run(teacher)
    torch.manual_seed(2)  # the global state must not matter
    before = torch.random.get_rng_state()
    two = run(teacher)
    assert torch.equal(before, torch.random.get_rng_state())
    assert_same(one, two)
    other = run(teacher, config=replace(CONFIG, seed=1))
    assert not torch.equal(one.pool.images(), other.pool.images())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_and_resumed_equals_uninterrupted(teacher, tmp_path, error):
    def interrupt(student):
        calls.append(1)
        if len(calls) == 4:  # in episode 4; the last checkpoint is of episode 2
            raise error
        return {"calls": 1.0}

    calls: list[int] = []
    with pytest.raises(error):
        run(teacher, tmp_path, measure=interrupt)
    assert load_checkpoint(tmp_path).step == 2
    resumed = run(teacher, tmp_path, resume=True, measure=lambda student: {"calls": 1.0})
    assert_same(run(teacher, measure=lambda student: {"calls": 1.0}), resumed)


def test_a_finished_run_resumes_to_itself(teacher, tmp_path):
    first = run(teacher, tmp_path)
    assert_same(first, run(teacher, tmp_path, resume=True))


def test_a_folder_with_a_run_is_not_overwritten(teacher, tmp_path):
    run(teacher, tmp_path)
    with pytest.raises(InputError, match="already holds a run"):
        run(teacher, tmp_path)
    with pytest.raises(InputError, match="other settings"):
        run(teacher, tmp_path, resume=True, config=replace(CONFIG, seed=3))


def test_teacher_never_changes_and_nobody_trains_out_of_turn(teacher):
    before = copy.deepcopy(teacher.state_dict())
    distillation = Distillation(teacher, "wrn-10-1", SPEC, CONFIG, METHOD, "cpu")
    student, generator = distillation.network, distillation.method.generator
    student_before = copy.deepcopy(student.state_dict())
    generator_before = copy.deepcopy(generator.state_dict())
    with frozen(student):
        images, _ = distillation.method.synthesise(student, warm_up=False)
    # synthesis moved the generator and nothing else
    assert all(torch.equal(v, student_before[k]) for k, v in student.state_dict().items())
    assert all(p.grad is None for p in student.parameters())
    changed = [
        k for k, v in generator.state_dict().items() if not torch.equal(v, generator_before[k])
    ]
    assert "to_image.weight" in changed and "stem.weight" in changed
    distillation.pool.add(images)
    distillation.episode = CONFIG.warm_up
    generator_before = copy.deepcopy(generator.state_dict())
    student.train()
    distillation._transfer(0)
    # transfer moved the student and nothing else
    assert all(torch.equal(v, generator_before[k]) for k, v in generator.state_dict().items())
    moved = {k for k, v in student.state_dict().items() if not torch.equal(v, student_before[k])}
    assert {k for k, _ in student.named_parameters()} <= moved
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


def test_generator_loss_is_equation_16(teacher):
    config = replace(METHOD, kappa=2.0, bn_weight=3.0, class_weight=5.0, adversarial_weight=7.0)
    distillation = Distillation(teacher, "wrn-10-1", SPEC, CONFIG, config, "cpu")
    images, labels = torch.rand(8, 1, 16, 16), torch.arange(8) % 4
    student = distillation.network.eval()
    with distillation.method.bn:
        loss, _ = distillation.method.generator_loss(images, labels, student, warm_up=False)
    x = (images - 0.4) / 0.3
    with BatchNormLoss(teacher) as bn, torch.no_grad():
        t, s = teacher(x), student(x)
        expected = 2 * (3 * bn.loss() + 5 * nn.functional.cross_entropy(t, labels))
    agree = t.argmax(1) == s.argmax(1)
    kl = (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1)
    torch.testing.assert_close(loss, expected - 7 * (kl * agree).mean())
    with distillation.method.bn:
        warm, _ = distillation.method.generator_loss(images, labels, student, warm_up=True)
    torch.testing.assert_close(warm, expected)


def test_student_loss_is_equation_17(teacher):
    distillation = Distillation(teacher, "wrn-10-1", SPEC, CONFIG, replace(METHOD, beta=3.0), "cpu")
    running, student = distillation.method, distillation.network.train()
    x = torch.randn(8, 1, 16, 16)
    loss, logs = running.transfer_loss(student, x)
    teacher_logits, teacher_maps = running.msarc.teacher_maps(teacher, x)
    with capture(student, running.msarc.student_layers.stages) as features:
        logits = student(x)
    msarc = running.msarc(student, features, logits, teacher_logits, teacher_maps)
    expected = kd.kl_divergence(logits, teacher_logits, 20.0) + 3.0 * msarc
    torch.testing.assert_close(loss, expected)
    plain, _ = distill_method(teacher, replace(METHOD, beta=0.0)).transfer_loss(student, x)
    torch.testing.assert_close(plain, logs["kd"])


def distill_method(teacher, config):
    return Distillation(teacher, "wrn-10-1", SPEC, CONFIG, config, "cpu").method


def test_learning_rate_rises_linearly_then_follows_a_cosine():
    config = DistillConfig(lr=0.4, lr_final=0.1, lr_warm_up=0.2)
    assert learning_rate(config, 0.1) == pytest.approx(0.2)
    assert learning_rate(config, 0.2) == pytest.approx(0.4)
    assert learning_rate(config, 0.6) == pytest.approx(0.25)  # half of the cosine
    assert learning_rate(config, 1.0) == pytest.approx(0.1)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=50, eta_min=0.1)
    for step in range(50):
        share = 0.2 + 0.8 * step / 50
        assert learning_rate(config, share) == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        cosine.step()


def test_average_is_the_exponential_moving_average(teacher):
    distillation = Distillation(teacher, "wrn-10-1", SPEC, CONFIG, METHOD, "cpu")
    name, expected, count = "conv1.weight", None, 0
    original = distillation._transfer

    def transfer(number):
        nonlocal expected, count
        logs = original(number)
        now = distillation.network.state_dict()[name].double().clone()
        # torch's averaged model starts as a copy of the first weights that it is shown
        expected = now if expected is None else 0.9 * expected + 0.1 * now
        count += 1
        return logs

    distillation._transfer = transfer
    result = distillation.run(progress=False)
    assert count == (CONFIG.episodes - CONFIG.warm_up) * CONFIG.student_steps
    torch.testing.assert_close(
        result.student.state_dict()[name].double(), expected, atol=1e-6, rtol=0
    )
    assert result.student is not distillation.network


def test_labels_are_balanced(teacher):
    problem = distill_method(teacher, METHOD).problem
    counts = torch.bincount(problem.labels(10), minlength=4)
    assert sorted(counts.tolist()) == [2, 2, 3, 3]
    assert problem.labels(64).tolist() != sorted(problem.labels(64).tolist())


def test_given_images_are_the_only_ones_drawn(teacher):
    given = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    method = distill_method(teacher, GivenConfig(given, synthesis_batch=50))
    images, _ = method.synthesise(nn.Identity(), warm_up=False)
    drawn = {tuple(image.flatten().mul(255).round().int().tolist()) for image in images}
    assert drawn == {tuple(image.flatten().int().tolist()) for image in given}


def test_noise_has_the_spread_of_the_data(teacher):
    images, _ = distill_method(teacher, NoiseConfig(200)).synthesise(nn.Identity(), warm_up=True)
    # a normal variable clipped to [0, 1]: expectation by numerical integration
    grid = np.linspace(-4, 4, 20001)
    density = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    expected = np.trapezoid(np.clip(0.4 + 0.3 * grid, 0, 1) * density, grid)
    assert images.mean().item() == pytest.approx(expected, abs=0.01)
    assert images.min() >= 0 and images.max() <= 1


def test_distillation_moves_the_student_towards_the_teacher():
    """On images never shown: a short run more than halves the divergence from a real teacher."""
    from dfkd_lite import load, preset, teach
    from dfkd_lite.measure.evaluate import evaluate

    lite, data = preset("lite"), load("digits")
    teacher, spec, _ = teach(lite.teacher, data, replace(lite.teach, epochs=3), "cpu", False)
    torch.manual_seed(0)
    untrained = evaluate(build("wrn-10-1", 10, 1, 16).eval(), data.test, spec, teacher)
    config = replace(lite.distill, episodes=16, warm_up=2)
    student = distill(
        teacher, "wrn-10-1", spec, config, lite.method, device="cpu", progress=False
    ).student
    report = evaluate(student, data.test, spec, teacher)
    assert report["kl_to_teacher"] < 0.5 * untrained["kl_to_teacher"]
    assert report["accuracy"] > untrained["accuracy"] + 0.2


def test_networks_of_other_libraries_are_teachers_and_students():
    """Layers are found by name: torchvision's ResNet-18 teaches timm's smallest RegNet."""
    torch.manual_seed(0)
    spec = NetworkSpec("resnet18", 4, 3, 32, (0.5,) * 3, (0.25,) * 3)
    teacher = torchvision.models.resnet18(num_classes=4)
    teacher(torch.randn(16, 3, 32, 32))
    before = copy.deepcopy(teacher.state_dict())
    student = timm.create_model("regnetx_002", num_classes=4, in_chans=3)
    first = copy.deepcopy(student.state_dict())
    # three steps: timm starts residual branches at zero, so that the first moves only their ends
    config = replace(CONFIG, episodes=2, student_steps=3, average=0.0)
    result = distill(teacher, student, spec, config, METHOD, device="cpu", progress=False)
    assert result.student is student and result.history[-1]["msarc"] > 0
    weights = {name for name, _ in student.named_parameters()}
    moved = {n for n, v in student.state_dict().items() if not torch.equal(v, first[n])}
    assert weights <= moved
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


# --- Bad input ---------------------------------------------------------------------------------


def test_networks_that_do_not_fit_are_refused(teacher):
    with pytest.raises(InputError, match=r"teacher cannot read 3x16x16"):
        distill(teacher, "wrn-10-1", replace(SPEC, channels=3, mean=(0.4,) * 3, std=(0.3,) * 3))
    with pytest.raises(InputError, match=r"teacher answers .* not \(2, 5\)"):
        distill(teacher, "wrn-10-1", replace(SPEC, classes=5))
    with pytest.raises(InputError, match="student answers"):
        distill(teacher, build("wrn-10-1", 7, 1, 16), SPEC)
    with pytest.raises(InputError, match="Did you mean 'wrn-16-1'"):
        distill(teacher, "wrn16-1", SPEC)


def test_a_teacher_with_nan_is_refused(teacher):
    teacher.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"teacher has NaN or infinite numbers in 'fc.weight'"):
        distill(teacher, "wrn-10-1", SPEC)


def test_a_teacher_without_batch_norm_is_refused_with_the_alternative():
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    plain = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), *head)
    with pytest.raises(InputError, match="bn_weight=0"):
        distill(plain, "wrn-10-1", SPEC, CONFIG, METHOD, progress=False)
    result = distill(
        plain, "wrn-10-1", SPEC, CONFIG, replace(METHOD, bn_weight=0.0), progress=False
    )
    assert "bn" not in result.history[-1] and "cls" in result.history[-1]


def test_a_diverging_run_stops_and_names_the_loss(teacher):
    with pytest.raises(InputError, match=r"loss '(kd|msarc|adv)' became (nan|inf)"):
        run(teacher, config=replace(CONFIG, lr=1e12, lr_final=1e12, average=0.0))


@pytest.mark.parametrize(
    ("field", "value"),
    [("episodes", 0), ("warm_up", 5), ("lr", 0.0), ("momentum", 1.0), ("lr_final", 1.0),
     ("average", 1.0), ("pool_size", 0), ("batch_size", 1), ("lr", float("nan"))],
)  # fmt: skip
def test_loop_settings_out_of_range_are_refused(field, value):
    with pytest.raises(InputError, match=field):
        replace(CONFIG, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("kappa", -1.0), ("beta", -0.1), ("bn_weight", float("inf")), ("synthesis_batch", 1)],
)
def test_method_settings_out_of_range_are_refused(field, value):
    with pytest.raises(InputError, match=field):
        replace(METHOD, **{field: value})


def test_temperature_and_lambda_out_of_range_are_refused(teacher):
    with pytest.raises(InputError, match="temperature"):
        distill_method(teacher, replace(METHOD, temperature=0.0))
    generator = distill_method(teacher, METHOD).generator
    with pytest.raises(InputError, match="lam"):
        generator.lam = -0.1


def test_a_gpu_where_there_is_none_is_refused(teacher):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="no device 'cuda'"):
        distill(teacher, "wrn-10-1", SPEC, device="cuda")


def test_settings_of_no_method_are_refused(teacher):
    with pytest.raises(InputError, match="Did you mean 'NoiseConfig'"):
        methods.create(type("NoisConfig", (), {})(), None)


def test_a_place_that_cannot_be_written_is_refused(teacher, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="could not be saved"):
        run(teacher, tmp_path / "file" / "run")
