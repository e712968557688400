"""Every method on the shared loop: gradients go where they should and nowhere else, runs repeat and
go on, and each loss is that of a formula worked out here."""

import copy
import math
from contextlib import nullcontext
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from dfkd_lab.file import read_experiment
from dfkd_lite import methods
from dfkd_lite.distill import Distillation, DistillConfig, distill
from dfkd_lite.door import find_layers, frozen
from dfkd_lite.errors import InputError
from dfkd_lite.generator import GeneratorConfig
from dfkd_lite.inversion import adversarial_loss
from dfkd_lite.methods import METHODS
from dfkd_lite.methods.adi import competition_loss
from dfkd_lite.methods.base import Problem
from dfkd_lite.methods.contrast import info_nce, local_view
from dfkd_lite.methods.exchange import FeatureMemory, exchanged
from dfkd_lite.methods.games import Generative, answer_entropy, mean_answer_entropy
from dfkd_lite.methods.nayer import embedded, standardised
from dfkd_lite.methods.spaceshipnet import regions
from dfkd_lite.methods.zskt import attention_distance
from dfkd_lite.networks import NetworkSpec, build, capture

NAMES = ("cat", "car", "dog", "dot")
SPEC = NetworkSpec("wrn-10-1", 4, 1, 16, mean=(0.4,), std=(0.3,), class_names=NAMES)
LOOP = DistillConfig(
    episodes=4, warm_up=1, student_steps=2, batch_size=8, lr=0.05, pool_size=20, shift=1,
    measure_every=1, checkpoint_every=1, seed=3,
)  # fmt: skip
PLAIN = GeneratorConfig(z_dim=8, width=8, attention=None)
#: What makes a method small enough for these tests, where it has such a setting.
SIZES = {
    "generator": PLAIN, "synthesis_batch": 8, "steps": 3, "fresh": 2, "shift": 1, "life": 2,
    "warm_up_loops": 3, "reset_at": 0.5, "bank_size": 40, "negatives": 10, "head": 6, "memory": 9,
}  # fmt: skip
#: And what else is tried of a method: ``mix`` with all its parts.
OPTIONS = {
    "fssc": {"beta": 0.1},
    "mix": {"beta": 0.1, "divergence": "js", "agree_only": False, "contrast_weight": 0.8}
    | {"exchange": 0.7},
}


def small(name):
    """A method's settings, small."""
    known = {field.name for field in fields(METHODS[name].Config)}
    sizes = {key: value for key, value in SIZES.items() if key in known}
    return METHODS[name].Config(**sizes | OPTIONS.get(name, {}))


SMALL = {name: small(name) for name in METHODS if name != "given"}
ALL = pytest.mark.parametrize("name", list(SMALL))
OWN = [name for name in SMALL if METHODS[name].about is not None]


@pytest.fixture
def teacher():
    """A teacher with running statistics of its own and sure answers, as if it had been trained."""
    torch.manual_seed(5)
    network = build("wrn-10-1", 4, 1, 16)
    network(torch.randn(64, 1, 16, 16))
    with torch.no_grad():
        network.get_submodule(find_layers(network.eval(), (1, 16, 16)).classifier).weight.mul_(20)
    return network.train()


def started(teacher, name, **loop):
    """A run of the method that has been through its warm-up and one more episode."""
    run = Distillation(teacher, "wrn-10-1", SPEC, replace(LOOP, **loop), SMALL[name], "cpu")
    for _ in range(LOOP.warm_up + 1):
        run.step()
    return run


@ALL
def test_every_method_learns_in_bfloat16(teacher, name):
    run = started(teacher, name, precision="bfloat16")
    row = run.step()
    assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
    assert all(p.dtype == torch.float32 for p in run.network.parameters())


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict, two: dict) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def test_the_authors_loops_are_loops():
    for name in OWN:
        assert METHODS[name].about.loop.keys() <= set(DistillConfig.__dataclass_fields__)
        replace(DistillConfig(), **METHODS[name].about.loop)  # values that the loop takes


# --- Gradients, modes and randomness --------------------------------------------------------------


@ALL
def test_synthesis_changes_no_network_but_the_method_s_own(teacher, name):
    run = started(teacher, name)
    before = state(run.teacher), state(run.network)
    with frozen(run.network):
        images, logs = run.method.synthesise(run.network, warm_up=False)
        assert not run.network.training and not run.teacher.training
    assert same(before[0], state(run.teacher)) and same(before[1], state(run.network))
    assert all(p.grad is None for p in run.teacher.parameters())
    assert images.shape[1:] == SPEC.image_shape and len(images) >= 8
    assert images.min() >= 0 and images.max() <= 1 and not images.requires_grad
    assert all(value.isfinite() and not value.requires_grad for value in logs.values())


@ALL
def test_transfer_reaches_the_student_and_nothing_else(teacher, name):
    run = started(teacher, name)
    for parameter in run.network.parameters():
        parameter.grad = None
    for module in run.method.modules().values():
        for parameter in module.parameters():
            parameter.grad = None
    own = {n: state(m) for n, m in run.method.modules().items()}
    before = state(run.teacher)
    run.network.train()
    x = run.normalise(run.pool.sample(8, run.rng))
    loss, _ = run.method.transfer_loss(run.network, x)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in run.network.parameters())
    assert same(before, state(run.teacher)) and not run.teacher.training
    for n, module in run.method.modules().items():
        assert same(own[n], state(module)), f"transfer changed {n}"
        assert all(p.grad is None for p in module.parameters()), f"transfer reached {n}"


@pytest.mark.parametrize("name", OWN)
def test_generator_learns_in_synthesis(teacher, name):
    run = started(teacher, name)
    if not run.method.modules():
        pytest.skip("it has no generator: pixels are optimised")
    own = {n: state(m) for n, m in run.method.modules().items()}
    with frozen(run.network):
        run.method.trained = False  # LS-GDFD's generators learn in the first call only
        run.method.synthesise(run.network, warm_up=False)
    assert not all(same(own[n], state(m)) for n, m in run.method.modules().items())


@pytest.mark.parametrize("name", OWN)
def test_no_disagreement_is_sought_during_the_warm_up(teacher, name):
    """A student that knows nothing must not matter; the games have no warm-up."""
    run = Distillation(teacher, "wrn-10-1", SPEC, LOOP, SMALL[name], "cpu")
    with frozen(run.network):
        _, logs = run.method.synthesise(run.network, warm_up=True)
        _, later = run.method.synthesise(run.network, warm_up=False)
    plays = issubclass(METHODS[name], Generative)  # these papers know no warm-up
    assert ("adv" in logs) == (plays and "adv" in later)


@ALL
def test_runs_repeat_and_go_on_to_the_same_bits(teacher, name, tmp_path):
    def run(folder=None, episodes=LOOP.episodes, resume=False):
        started = Distillation(teacher, "wrn-10-1", SPEC, LOOP, SMALL[name], "cpu")
        if episodes < LOOP.episodes:
            with pytest.raises(KeyboardInterrupt):
                started.run(folder, resume, False, watch=stop_after(episodes))
            return None
        return started.run(folder, resume, progress=False)

    whole = run()
    torch.manual_seed(1234)  # the global state must not matter
    run(tmp_path, episodes=2)
    resumed = run(tmp_path, resume=True)
    assert same(state(whole.student), state(resumed.student))
    assert all(same(state(m), state(resumed.modules[n])) for n, m in whole.modules.items())
    assert torch.equal(whole.pool.images(), resumed.pool.images())


def stop_after(episodes):
    def watch(distillation, row):
        if row["episode"] == episodes:
            raise KeyboardInterrupt

    return watch


@ALL
def test_seeds_differ(teacher, name):
    pools = [
        distill(teacher, "wrn-10-1", SPEC, replace(LOOP, seed=s, episodes=2), SMALL[name],
                device="cpu", progress=False).pool.images()
        for s in (1, 2)
    ]  # fmt: skip
    assert not torch.equal(*pools)


@ALL
def test_evaluations_are_those_that_the_teacher_sees(teacher, name):
    run = Distillation(teacher, "wrn-10-1", SPEC, LOOP, SMALL[name], "cpu")
    seen = []
    handle = run.teacher.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with frozen(run.network):
        for episode in range(LOOP.episodes):
            run.method.synthesise(run.network, episode < LOOP.warm_up)
    handle.remove()
    assert sum(seen) == METHODS[name].evaluations(SMALL[name], LOOP)


@pytest.mark.parametrize(
    ("experiment", "steps", "images"),
    [("methods-digits", 800, 10_240), ("methods-28px", 800, 12_800)],
)
def test_the_methods_are_compared_at_equal_budget(experiment, steps, images):
    runs = [run for run in read_experiment(experiment) if run.seed == 0]
    assert {run.method_name for run in runs} == {*OWN, "noise"} - {"mix"}
    for run in runs:
        loop = run.distill
        assert (loop.episodes - loop.warm_up) * loop.student_steps == steps
        assert loop.batch_size == 64
        if run.method_name != "noise":
            seen = METHODS[run.method_name].evaluations(run.method, loop)
            assert images <= seen <= 1.05 * images, run.title


NEEDS_BATCH_NORM = ("adi", "dfq", "ls-gdfd", "cmi", "spaceshipnet", "nayer", "fastdfkd", "fssc")


@pytest.mark.parametrize("name", NEEDS_BATCH_NORM)
def test_a_teacher_without_batch_norm_is_refused_with_the_reason(name):
    with pytest.raises(InputError, match="no batch-norm layers"):
        Distillation(bare(), "wrn-10-1", SPEC, LOOP, SMALL[name], "cpu")


@pytest.mark.parametrize("name", ["dafl", "zskt", "dfad", "fssc", "fastdfkd"])
def test_methods_that_the_refusal_offers_do_without_batch_norm(name):
    with pytest.raises(InputError) as refusal:
        Distillation(bare(), "wrn-10-1", SPEC, LOOP, SMALL["adi"], "cpu")
    offered = str(refusal.value)
    assert name in offered
    without = name in offered.rpartition("and ")[2]
    settings = replace(SMALL[name], bn_weight=0.0) if without else SMALL[name]
    result = Distillation(bare(), "wrn-10-1", SPEC, LOOP, settings, "cpu").run()
    assert math.isfinite(result.history[-1]["kd"])


def bare() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )


# --- Losses, by hand ------------------------------------------------------------------------------


def test_entropies_by_hand():
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    each = [-sum(x * math.log(x) for x in row) for row in p.tolist()]
    middle = [(a + b) / 2 for a, b in zip(*p.tolist(), strict=True)]
    assert answer_entropy(p.log()).item() == pytest.approx(sum(each) / 2, rel=1e-5)
    batch = -sum(x * math.log(x) for x in middle)
    assert mean_answer_entropy(p.log()).item() == pytest.approx(batch, rel=1e-5)
    sure = torch.tensor([[0.0, -1e4, -1e4]])
    sure.requires_grad_()
    assert mean_answer_entropy(sure).item() == pytest.approx(0, abs=1e-6)  # and no NaN
    assert torch.autograd.grad(mean_answer_entropy(sure), sure)[0].isfinite().all()


def parts_and_loss(teacher, name, **weights):
    """The method's image loss on fixed images, and the logits of both networks on them."""
    config = replace(SMALL[name], **weights)
    run = Distillation(teacher, "wrn-10-1", SPEC, LOOP, config, "cpu")
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with frozen(run.network), run.method.bn or nullcontext():
        loss, parts = run.method.image_loss(images, run.network)
        x = run.normalise(images)
        return loss.item(), parts, run.teacher(x), run.network(x), run


def test_dafl_by_hand(teacher):
    loss, _, logits, _, run = parts_and_loss(teacher, "dafl")
    p = logits.softmax(1)
    one_hot = -p.max(1).values.log().mean()
    mean_p = p.mean(0)
    features = {}
    name = run.method.problem.teacher_layers.stages[-1]
    module = dict(run.teacher.named_modules())[name]
    handle = module.register_forward_hook(lambda *a: features.update(f=a[2]))
    x = run.normalise(torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        run.teacher(x)
    handle.remove()
    activation = features["f"].mean((2, 3)).abs().mean()
    wanted = 0.05 * one_hot + 5 * (mean_p * mean_p.log10()).sum() - 0.01 * activation
    assert loss == pytest.approx(wanted.item(), rel=1e-5)


def test_dfad_by_hand(teacher):
    loss, _, t, s, run = parts_and_loss(teacher, "dfad")
    assert loss == pytest.approx(-(t - s).abs().mean().item(), rel=1e-6)
    x = torch.randn(8, 1, 16, 16)
    with frozen(run.network):
        got, _ = run.method.transfer_loss(run.network, x)
        assert got.item() == pytest.approx((run.teacher(x) - run.network(x)).abs().mean().item())


def kl(t, s):
    return (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1).mean()


def test_dfq_by_hand(teacher):
    loss, _, t, s, run = parts_and_loss(teacher, "dfq")
    p = t.softmax(1)
    entropy, batch = -(p * p.log()).sum(1).mean(), -(p.mean(0) * p.mean(0).log()).sum()
    seen = {}
    layers = [m for m in run.teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [m.register_forward_pre_hook(lambda mod, a: seen.update({mod: a[0]})) for m in layers]
    x = run.normalise(torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        run.teacher(x)
    for handle in handles:
        handle.remove()
    terms = [
        (m.running_mean - seen[m].mean((0, 2, 3))).norm()
        + (m.running_var - seen[m].var((0, 2, 3), correction=0)).norm()
        for m in layers
    ]
    bn = 5 * terms[0] + sum(terms[1:])
    wanted = -kl(t, s) + 0.1 * (bn + entropy - batch)
    assert loss == pytest.approx(wanted.item(), rel=1e-4)


def test_zskt_by_hand(teacher):
    loss, _, t, s, _ = parts_and_loss(teacher, "zskt")
    assert loss == pytest.approx(-kl(t, s).item(), rel=1e-4)
    student = torch.tensor([[[[1.0, 2.0], [0.0, 2.0]]]])  # one channel; squares 1, 4, 0, 4
    other = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]]])  # two channels
    a = [x / math.sqrt(33) for x in (1, 4, 0, 4)]
    wanted = sum((x - 0.5) ** 2 for x in a) / 4  # the other map is flat: 1/2 each, of norm 1
    assert attention_distance(student, other).item() == pytest.approx(wanted, rel=1e-6)
    small = torch.full((1, 3, 1, 1), 7.0)  # of another size: flat again once it is enlarged
    assert attention_distance(small, other).item() == pytest.approx(0, abs=1e-12)


def test_zskt_s_student_is_asked_for_a_mean_over_classes(teacher):
    run = started(teacher, "zskt")
    x = torch.randn(8, 1, 16, 16)
    with frozen(run.network):
        loss, parts = run.method.transfer_loss(run.network, x)
        assert parts["kd"].item() == pytest.approx(kl(run.teacher(x), run.network(x)).item() / 4)
    assert loss.item() == pytest.approx((parts["kd"] + 250 * parts["at"]).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("cmi", {"bn": 1.0, "cls": 1.0, "contrast": 0.8, "adv": 0.5}),
        ("nayer", {"bn": 10.0, "cls": 0.5, "adv": 1.33}),
        ("adi", {"bn": 10.0, "cls": 1.0, "tv": 2.5e-5, "l2": 3e-8, "adv": 10.0}),
    ],
)
def test_terms_are_added_up_with_the_published_weights(teacher, name, weights):
    run = Distillation(teacher, "wrn-10-1", SPEC, LOOP, SMALL[name], "cpu")
    images, labels = torch.rand(8, 1, 16, 16), torch.arange(8) % 4
    with frozen(run.network), run.method.bn:
        loss, parts = run.method.image_loss(images, labels, run.network, False)
    assert parts.keys() == weights.keys()
    wanted = sum(weight * parts[term].item() for term, weight in weights.items())
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_spaceshipnet_s_maps_are_what_the_logits_are_made_of(teacher):
    run = Distillation(teacher, "wrn-10-1", SPEC, LOOP, SMALL["spaceshipnet"], "cpu")
    layers, x = run.method.problem.teacher_layers, torch.randn(8, 1, 16, 16).requires_grad_()
    with capture(run.teacher, layers.stages) as features:
        logits = run.teacher(x)
    classes = torch.arange(8) % 4
    maps, graded = regions(run.teacher, features, logits, classes, layers)
    bias = run.teacher.get_submodule(layers.classifier).bias
    torch.testing.assert_close(maps.mean((2, 3)) + bias, logits)
    size = (
        maps.shape[2] * maps.shape[3]
    )  # the classifier reads means: d logit / d feature = w / size
    torch.testing.assert_close(graded[-1], maps[torch.arange(8), classes] / size)


def test_spaceshipnet_s_student_has_nothing_to_learn_from_itself(teacher):
    run = started(teacher, "spaceshipnet")
    images = run.pool.newest(8)
    itself = copy.deepcopy(run.teacher).requires_grad_()
    loss, parts = run.method.transfer_loss(itself, images)
    assert loss.item() == pytest.approx(0, abs=1e-6) and parts.keys() == {"kd", "cam", "grad_cam"}
    loss, parts = run.method.transfer_loss(run.network.eval(), images)
    assert all(part > 0 for part in parts.values())
    assert loss.item() == pytest.approx(sum(part.item() for part in parts.values()), rel=1e-5)


def test_ls_gdfd_s_generators_share_out_the_classes(teacher):
    config = replace(SMALL["ls-gdfd"], generators=3)
    run = Distillation(teacher, "wrn-10-1", SPEC, LOOP, config, "cpu")
    assert [part.tolist() for part in run.method.parts] == [[0, 1], [2], [3]]
    told = []
    for generator in run.method.generators:
        generator.register_forward_pre_hook(lambda _, args: told.append(args[0][:, -4:].argmax(1)))
    run.method.generators.eval()
    _, labels = run.method._images()
    assert [sorted(set(one.tolist())) for one in told] == [[0, 1], [2], [3]]
    assert torch.equal(torch.cat(told), labels)
    with pytest.raises(InputError, match="5 generators for 4 classes"):
        Distillation(teacher, "wrn-10-1", SPEC, LOOP, replace(config, generators=5), "cpu")


def test_competition_by_hand():
    s, t = torch.tensor([[0.0, 3.0]]), torch.tensor([[3.0, 0.0]])
    p, q = 1 / (1 + math.e), math.e / (1 + math.e)  # at temperature 3
    js = p * math.log(p / 0.5) + q * math.log(q / 0.5)  # alike for both directions
    assert competition_loss(s, t, 3.0).item() == pytest.approx(1 - js, rel=1e-5)
    assert competition_loss(t, t, 3.0).item() == pytest.approx(1, abs=1e-6)
    far = torch.tensor([[60.0, 0.0]])  # clamped to 0.99 and 0.01
    js = 0.99 * math.log(0.99 / 0.5) + 0.01 * math.log(0.01 / 0.5)
    assert competition_loss(far, -far + 60, 3.0).item() == pytest.approx(1 - js, rel=1e-4)


def test_info_nce_by_hand():
    queries = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])
    keys = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    rows = [[1, 0, -1], [0, 1, 0], [-1, 0, 1]]  # cosines of each query to all keys
    wanted = [
        -row[i] / 0.5 + math.log(sum(math.exp(c / 0.5) for c in row)) for i, row in enumerate(rows)
    ]
    assert info_nce(queries, keys, 0.5).tolist() == pytest.approx(wanted, rel=1e-6)


def test_contrast_by_hand(teacher):
    """New and banked pairs count alike, keys get no gradient, the bank keeps the newest pairs."""
    run = Distillation(teacher, "wrn-10-1", SPEC, LOOP, SMALL["cmi"], "cpu")
    contrast = run.method.contrast
    width = contrast.bank.shape[-1]
    bank = torch.randn(10, 2, width, generator=torch.Generator().manual_seed(2))
    contrast.remember(bank)
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    loss = contrast.loss(images)
    local, whole = contrast.newest.unbind(1)
    q = contrast.head(torch.cat([local, bank[:, 0]]))
    k = contrast.head(torch.cat([whole, bank[:, 1]]))
    q, k = (x / x.norm(dim=1, keepdim=True) for x in (q, k))
    each = -(q @ k.T.detach() / 0.1).log_softmax(1).diag()
    wanted = each[:8].mean() + each[8:].mean()  # all ten of the bank are drawn, in some order
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    bias = contrast.head[2].bias
    torch.testing.assert_close(
        torch.autograd.grad(loss, bias)[0], torch.autograd.grad(wanted, bias)[0]
    )
    contrast.remember(torch.zeros(35, 2, width))
    assert len(contrast.bank) == 40 and torch.equal(contrast.bank[:5], bank[5:])


@pytest.mark.parametrize("agree_only", [True, False])
@pytest.mark.parametrize("divergence", ["kl", "js", "l1"])
def test_adversarial_divergences_by_hand(divergence, agree_only):
    t, s = torch.tensor([[2.0, 0.0], [0.5, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])

    def softmax(row, tau):
        exps = [math.exp(value / tau) for value in row]
        return [e / sum(exps) for e in exps]

    def kl_of(p, q):
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    def apart(a, b):
        if divergence == "l1":
            return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 2
        tau = 3.0 if divergence == "js" else 1.0
        p, q = softmax(a, tau), softmax(b, tau)
        middle = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
        return kl_of(p, q) if divergence == "kl" else (kl_of(p, middle) + kl_of(q, middle)) / 2

    each = [apart(a, b) for a, b in zip(t.tolist(), s.tolist(), strict=True)]
    wanted = each[0] if agree_only else sum(each)  # on the second image they disagree
    got = adversarial_loss(s, t, agree_only, divergence)
    assert got.item() == pytest.approx(-wanted / 2, rel=1e-5)


def test_a_mix_at_its_defaults_is_the_book_s_method(teacher):
    """To the last bit: what is off costs no random number either."""
    fssc = SMALL["fssc"]
    settings = {f.name: getattr(fssc, f.name) for f in fields(fssc)}
    both = [
        distill(teacher, "wrn-10-1", SPEC, LOOP, config, device="cpu", progress=False)
        for config in (fssc, methods.MixConfig(**settings))
    ]
    assert same(state(both[0].student), state(both[1].student))


def test_contrast_in_a_mix_leaves_the_statistics_of_the_images(teacher):
    """L_BN's moving averages are of the images made, not of the views that contrast looks at."""
    averages = []
    for weight in (0.0, 1e-12):
        config = replace(SMALL["mix"], exchange=0.0, contrast_weight=weight)
        run = Distillation(teacher, "wrn-10-1", SPEC, LOOP, config, "cpu")
        with frozen(run.network):
            run.method.synthesise(run.network, warm_up=True)
        averages.append(run.method.bn.average)
    for one, two in zip(averages[0].values(), averages[1].values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_exchange_in_a_mix_adds_mixtures_of_the_present_generator(teacher):
    for exchange in (1e-9, 1.0):
        config = replace(SMALL["mix"], exchange=exchange)
        run = Distillation(teacher, "wrn-10-1", SPEC, LOOP, config, "cpu")
        with frozen(run.network):
            images, _ = run.method.synthesise(run.network, warm_up=True)
        assert len(images) == 16 and len(run.method.memory.entries) == 1
        plain = run.method.generator.eval().decode(run.method.memory.entries[0][0].float(), 0)
        nearest = torch.cdist(images[8:].flatten(1), plain.flatten(1)).amin(1)
        # the memory is in half precision; with 1e-9 nothing is exchanged
        assert (nearest < 5e-3).all() if exchange < 1 else (nearest > 2e-2).all()


def test_ls_gdfd_s_generators_rest_after_the_warm_up(teacher):
    run = started(teacher, "ls-gdfd")
    before = state(run.method.generators)
    with frozen(run.network):
        run.method.synthesise(run.network, warm_up=False)
    assert same(before, state(run.method.generators))  # running statistics too


def test_adi_begins_with_normalised_noise_and_ends_in_pixels(teacher):
    config = methods.AdiConfig(synthesis_batch=8, steps=1, lr=1e-9)
    run = Distillation(teacher, "wrn-10-1", SPEC, LOOP, config, "cpu")
    rng = torch.Generator().manual_seed(LOOP.seed)
    noise = torch.randn(8, 1, 16, 16, generator=rng)
    with frozen(run.network):
        images, _ = run.method.synthesise(run.network, warm_up=False)
    torch.testing.assert_close(images, (noise * 0.3 + 0.4).clamp(0, 1), rtol=0, atol=1e-5)


# --- What they are made of ------------------------------------------------------------------------


def test_exchange_keeps_half_of_the_channels():
    maps = torch.arange(6.0)[:, None, None, None].expand(6, 10, 2, 2).clone()  # image i holds i
    rng = torch.Generator().manual_seed(0)
    mixed = exchanged(maps, rng)
    for i in range(6):
        values = mixed[i, :, 0, 0]
        assert (values == i).sum() == 5 and (values == 5 - i).sum() == 5
    assert len({tuple((row == i).tolist()) for i, row in enumerate(mixed[:, :, 0, 0])}) > 1


def test_the_memory_mixes_generators_of_all_ages():
    """Its entries are told apart by their value; exchanged batches come at the given share."""

    class Passing(nn.Module):
        def decode(self, maps, level):
            return maps

    memory, rng = FeatureMemory(3), torch.Generator().manual_seed(0)
    for age in range(4):
        memory.add([torch.full((5, 4, 1, 1), float(age))])
    batches = [memory.images(Passing(), 16, 0.7, rng)[:, :, 0, 0] for _ in range(400)]
    assert torch.cat(batches).unique().tolist() == [1, 2, 3]  # the oldest has made room
    assert all(len(batch.unique()) > 1 for batch in batches)
    whole = [all(len(row.unique()) == 1 for row in batch) for batch in batches]
    assert sum(whole) / 400 == pytest.approx(0.3, abs=0.07)


def test_views_are_crops_with_gradient():
    rng = torch.Generator().manual_seed(0)
    ramp = torch.arange(16.0).view(1, 1, 1, 16).expand(64, 1, 16, 16) / 15
    ramp = ramp.clone().requires_grad_()
    local = local_view(ramp, rng, flip=True)
    inside = local[:, 0, 8, 4:12].diff(
        dim=1
    )  # steps across: of one sign in an image, 0.5 to 1 wide
    assert ((inside > 0).all(1) | (inside < 0).all(1)).all()
    assert (inside.abs() * 15).min() >= 0.49 and (inside.abs() * 15).max() <= 1.01
    assert 0 < (inside[:, 0] < 0).float().mean() < 1  # some are mirrored
    assert (local_view(ramp, rng, flip=False)[:, 0, 8, 4:12].diff(dim=1) > 0).all()
    local.sum().backward()
    assert ramp.grad.abs().sum() > 0


def test_augmented_images_are_moved_by_whole_pixels_with_gradient(teacher):
    problem = Distillation(teacher, "wrn-10-1", SPEC, LOOP, SMALL["cmi"], "cpu").method.problem
    image = torch.arange(256.0).view(1, 1, 16, 16)
    images = image.expand(64, 1, 16, 16).clone().requires_grad_()
    moved = problem.augmented(images, 2, flip=False)
    found = {
        (dy, dx)
        for one in moved.detach()
        for dy in range(-2, 3)
        for dx in range(-2, 3)
        if torch.equal(one[0, 4:12, 4:12], image[0, 0, 4 + dy : 12 + dy, 4 + dx : 12 + dx])
    }
    assert len(found) > 12 and {dy for dy, _ in found} == {-2, -1, 0, 1, 2}
    flipped = problem.augmented(images, 0, flip=True).detach()
    turned = sum(torch.equal(one, image[0].flip(2)) for one in flipped)
    assert 16 < turned < 48 and sum(torch.equal(one, image[0]) for one in flipped) == 64 - turned
    moved.sum().backward()
    assert images.grad.sum() == moved.numel()
    assert problem.augmented(images, 0, flip=False) is images


def test_labels_are_even_and_not_always_the_same_classes(teacher):
    problem = Distillation(teacher, "wrn-10-1", SPEC, LOOP, SMALL["fssc"], "cpu").method.problem
    counts = problem.labels(10).bincount(minlength=4)
    assert counts.max() - counts.min() <= 1
    few = [tuple(sorted(problem.labels(2).tolist())) for _ in range(50)]
    assert all(a != b for a, b in few) and len(set(few)) == 6  # all pairs of four classes


def test_zskt_s_student_gets_the_images_after_the_step(teacher):
    run = started(teacher, "zskt")
    with frozen(run.network):
        images, _ = run.method.synthesise(run.network, warm_up=False)
    with torch.no_grad():
        torch.testing.assert_close(images, run.method.generator(run.method.z))


def test_names_that_share_letters_have_alike_vectors():
    vectors = standardised(embedded(NAMES))
    assert vectors.shape == (4, 512)
    torch.testing.assert_close(vectors.mean(0), torch.zeros(512), atol=1e-5, rtol=0)
    similar = torch.nn.functional.cosine_similarity
    cat, car, dog, dot = vectors
    assert similar(cat, car, 0) > similar(cat, dog, 0)
    assert similar(dog, dot, 0) > similar(dog, car, 0)
    assert torch.equal(embedded(NAMES), embedded(NAMES))


@pytest.mark.parametrize("name", ["cmi", "fastdfkd", "spaceshipnet", "nayer"])
def test_images_are_moved_before_the_networks_see_them(teacher, name, monkeypatch):
    run = started(teacher, name)
    asked = []

    def augmented(self, images, shift, flip):
        asked.append((shift, flip))
        return images

    monkeypatch.setattr(Problem, "augmented", augmented)
    with frozen(run.network):
        run.method.synthesise(run.network, warm_up=False)
    assert asked and set(asked) == {(1, True)}


@pytest.mark.parametrize(("name", "fresh"), [("cmi", [1, 2, 3]), ("nayer", [2])])
def test_generators_are_drawn_anew(teacher, name, fresh):
    """With a learning rate of nothing their weights change in no other way."""
    config = replace(SMALL[name], lr=1e-12)
    run = Distillation(teacher, "wrn-10-1", SPEC, LOOP, config, "cpu")
    before, drawn = state(run.method.generator)["stem.weight"], []
    for call in range(4):
        with frozen(run.network):
            run.method.synthesise(run.network, warm_up=False)
        after = state(run.method.generator)["stem.weight"]
        if (after - before).abs().max() > 1e-6:
            drawn.append(call)
        before = after
    assert drawn == ([0, *fresh] if name == "cmi" else fresh)


def test_what_cmi_and_nayer_remember(teacher):
    run = started(teacher, "cmi")
    assert len(run.method.contrast.bank) == 16  # two calls of eight images
    pairs = run.method.contrast.bank[-8:]
    assert pairs.std(0).min() > 0 and not torch.equal(pairs[:, 0], pairs[:, 1])
    run = started(teacher, "nayer")
    before = {name: pair[0].clone() for name, pair in run.method.bn.average.items()}
    assert before.keys() == run.method.bn.layers.keys()
    with frozen(run.network):
        run.method.synthesise(run.network, warm_up=False)
    assert not same(before, {name: pair[0] for name, pair in run.method.bn.average.items()})


def test_fastdfkd_draws_its_first_layer_anew_once(teacher):
    run = Distillation(teacher, "wrn-10-1", SPEC, LOOP, SMALL["fastdfkd"], "cpu")
    jumps = []
    for _ in range(LOOP.episodes):
        before = run.method.generator.stem.weight.detach().clone()
        run.step()
        jumps.append((run.method.generator.stem.weight - before).abs().mean().item())
    assert jumps.index(max(jumps)) == 1  # the second of four
    assert max(jumps) > 3 * sorted(jumps)[-2]
