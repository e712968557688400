"""Two processes do what one does: means, batch-norm, meta-learning, whole runs, up to rounding.

Most tests call one function in each of two processes that hold half a batch, and once more here,
where ``parallel`` does nothing and the batch is whole; all three must return the same.
"""

import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from dfkd_lite import methods, parallel
from dfkd_lite.distill import DistillConfig, distill
from dfkd_lite.errors import InputError
from dfkd_lite.generator import GeneratorConfig
from dfkd_lite.image_pool import ImagePool
from dfkd_lite.inversion import BatchNormLoss
from dfkd_lite.meta import KINDS, MetaConfig, MetaLearner
from dfkd_lite.methods import FsscConfig
from dfkd_lite.networks import NetworkSpec, build

PROCESSES = 2


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """``both(function, *arguments)``: what it returns in each of two processes, in their order."""
    meeting = (tmp_path_factory.mktemp("parallel") / "meeting").as_uri()
    spawn = multiprocessing.get_context("spawn")
    workers = [ProcessPoolExecutor(1, spawn, join, (meeting, rank)) for rank in range(PROCESSES)]

    def call(function, *arguments):
        results = [worker.submit(function, *arguments) for worker in workers]
        return [result.result(timeout=600) for result in results]

    yield call
    for worker in workers:
        worker.shutdown()


def join(meeting, rank):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=PROCESSES, timeout=timedelta(minutes=2)
    )


def normal(*shape, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def arrays(tensors):
    """What travels between processes: no shared memory, no graph."""
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def assert_alike(found, expected, rtol=1e-10, atol=1e-12):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=rtol, atol=atol, err_msg=name)


# --- Parts and means ---------------------------------------------------------------------------


def parts(layout):
    x = normal(6, 3, 4, 2).contiguous(memory_format=layout).requires_grad_()
    mine = parallel.mine(x)
    back = parallel.gathered(mine)
    return arrays({"mine": mine, "back": back}) | {"graph": np.array(back.requires_grad)}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_parts_are_gathered_in_their_order(both, layout):
    x = normal(6, 3, 4, 2)
    for rank, found in enumerate(both(parts, layout)):
        np.testing.assert_array_equal(found["mine"], x[3 * rank : 3 * rank + 3])
        np.testing.assert_array_equal(found["back"], x)
        assert not found["graph"]
    assert torch.equal(parallel.mine(x), x)  # one process has it all
    assert parallel.gathered(x) is x


def points_and_weights():
    """A point for each process, and for each order of derivative and process a weight."""
    return normal(PROCESSES, 5), normal(3, PROCESSES, 5, seed=2)


def derivatives():
    points, weights = points_and_weights()
    x = points[parallel.rank()].requires_grad_()
    y = parallel.mean(x) ** 3
    found = {"mean": parallel.mean(x)}
    for order, weight in enumerate(weights[:, parallel.rank()], start=1):
        total = (weight * y).sum()
        (y,) = torch.autograd.grad(total, x, create_graph=True)
        found[f"order {order}"] = y
    return arrays(found)


def test_mean_and_its_derivatives(both):
    """sum_r w_r m^3, m the mean, by x_r is 3 w m^2, w the mean of the weights; and so on."""
    points, weights = points_and_weights()
    m, (w1, w2, w3) = points.mean(0), weights.mean(1)
    expected = {
        "mean": m,
        "order 1": 3 * w1 * m**2,
        "order 2": 6 * w1 * w2 * m,
        "order 3": 6 * w1 * w2 * w3,
    }
    for found in both(derivatives):
        assert_alike(found, arrays(expected))


def averaged():
    """Gradients of several shapes, one in another layout, and a weight that has none."""
    seeds = [10 * parallel.rank() + i for i in range(3)]
    weights = [nn.Parameter(torch.zeros(*shape)) for shape in ((2, 3), (4,), (3, 2), (5,))]
    grads = [normal(2, 3, seed=seeds[0]), normal(4, seed=seeds[1]), normal(2, 3, seed=seeds[2]).T]
    for weight, grad in zip(weights, grads, strict=False):
        weight.data = weight.data.double()
        weight.grad = grad
    parallel.average_gradients(iter(weights))
    assert weights[-1].grad is None
    parallel.average_gradients(weights[-1:])  # nothing to send is no reason to wait
    return arrays({str(i): weight.grad for i, weight in enumerate(weights[:-1])})


def test_gradients_are_averaged(both):
    means = [
        (normal(*shape, seed=i) + normal(*shape, seed=10 + i)) / 2
        for i, shape in enumerate([(2, 3), (4,), (2, 3)])
    ]
    means[2] = means[2].T
    for found in both(averaged):
        assert_alike(found, arrays({str(i): mean for i, mean in enumerate(means)}))


def refused(size):
    try:
        parallel.mine(torch.zeros(size))
    except InputError as error:
        return str(error)


def test_a_batch_that_cannot_be_split_is_refused(both, monkeypatch):
    for message in both(refused, 65):
        assert "batch of 65 cannot be split among 2 processes" in message
        assert "multiples of 2" in message
    assert both(refused, 64) == [None, None]
    monkeypatch.setattr(parallel, "count", lambda: 3)
    with pytest.raises(InputError, match="batch of 64 cannot be split among 3 processes"):
        parallel.mine(torch.zeros(64))


def test_without_accelerate_several_processes_are_refused(monkeypatch):
    parallel.start("cpu")
    assert (parallel.count(), parallel.rank()) == (1, 0)  # alone unless told otherwise
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InputError, match="pip install accelerate"):
        parallel.start("cpu")


# --- Batch-norm --------------------------------------------------------------------------------


def uneven(*shape, seed=1):
    """A batch whose halves differ in mean and spread."""
    x = normal(*shape, seed=seed)
    half = len(x) // 2
    return torch.cat([x[:half], 3 * x[half:] + 2])


def pooled():
    x = parallel.mine(uneven(6, 3, 4, 5)).requires_grad_()
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    mean, variance = parallel.pooled_statistics(mean, variance)
    loss = (normal(3, seed=2) * mean.sin() + normal(3, seed=3) * variance.log()).sum()
    (grad,) = torch.autograd.grad(loss, x)
    # the loss is the same everywhere, so its mean is itself
    grad = parallel.gathered(grad / parallel.count())
    return arrays({"mean": mean, "variance": variance, "grad": grad})


def test_pooled_statistics_are_those_of_the_whole_batch(both):
    expected = pooled()
    variance, mean = torch.var_mean(uneven(6, 3, 4, 5), dim=(0, 2, 3), correction=0)
    np.testing.assert_array_equal(expected["mean"], mean)
    np.testing.assert_array_equal(expected["variance"], variance)
    for found in both(pooled):
        assert_alike(found, expected)


def normalised(options, dtype=torch.float64):
    """Two training passes and one in eval mode; gradients are those of the mean loss."""
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(3, **options).double()
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(3) + 0.5)
    network = parallel.synchronise(nn.Sequential(layer))
    assert (type(layer) is nn.BatchNorm2d) == (parallel.count() == 1)
    if dtype != torch.float64:
        network.float()
    found = {}
    for step in range(2):
        x = parallel.mine(uneven(4, 3, 5, 2, seed=step).to(dtype)).requires_grad_()
        network.zero_grad()
        y = network(x)
        assert y.dtype == dtype
        (y.double().sin() * parallel.mine(normal(4, 3, 5, 2, seed=9))).mean().backward()
        parallel.average_gradients(network.parameters())
        found |= {f"y{step}": parallel.gathered(y).double()}
        found |= {f"x{step}": parallel.gathered(x.grad / parallel.count()).double()}
        found |= {f"{name}{step}": p.grad for name, p in network.named_parameters()}
    network.eval()
    found |= {"eval": parallel.gathered(network(parallel.mine(uneven(4, 3, 5, 2).to(dtype))))}
    return arrays({k: v.double() for k, v in {**found, **network.state_dict()}.items()})


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.3, "eps": 0.1}, {"momentum": None}, {"affine": False}], ids=str
)
def test_batch_norm_is_that_of_the_whole_batch(both, options):
    expected = normalised(options)
    for found in both(normalised, options):
        assert_alike(found, expected)


def test_batch_norm_takes_its_statistics_in_full_precision(both):
    """Of bfloat16 images: 8 bits of images, 24 of the running statistics."""
    expected = normalised({}, torch.bfloat16)
    exact = {"0.running_mean", "0.running_var"}
    for found in both(normalised, {}, torch.bfloat16):
        assert_alike(found, expected, rtol=0.02, atol=0.02)
        for name in exact:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


# --- Meta-learning -----------------------------------------------------------------------------


def small_teacher():
    """Frozen, with running statistics of its own; smooth, so that rounding stays rounding."""
    torch.manual_seed(5)
    body = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 2), nn.BatchNorm2d(4)]
    teacher = nn.Sequential(*body, nn.Tanh(), nn.Flatten(), nn.Linear(4 * 9, 3)).double()
    teacher(2 * normal(50, 1, 6, 6) + 1)
    return teacher.eval().requires_grad_(False)


def small_generator():
    """No bias before a batch-norm: its gradient is rounding alone, which Adam blows up."""
    torch.manual_seed(6)
    stem = [nn.Linear(5, 3 * 36, bias=False), nn.Unflatten(1, (3, 6, 6)), nn.BatchNorm2d(3)]
    body = [nn.Tanh(), nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Tanh()]
    return nn.Sequential(*stem, *body, nn.Conv2d(4, 1, 3, padding=1)).double()


def learnt(kind, optimiser):
    """Two tasks: gradients, weights and statistics after each, adapted latents, losses."""
    generator, teacher = parallel.synchronise(small_generator()), small_teacher()
    config = MetaConfig(
        kind=kind, steps=2, lr=0.05, lr_z=0.4, outer_lr=0.02, gamma=0.01, optimiser=optimiser
    )
    learner = MetaLearner(generator, config)
    found = {}
    with BatchNormLoss(teacher, momentum=0.9) as bn:
        for number in range(2):
            labels = parallel.mine(torch.tensor([0, 1, 2, 0, 1, 1, 2, 2]))

            def task(generate, z, labels=labels):
                logits = teacher(generate(z))
                return F.cross_entropy(logits, labels) + 0.5 * bn.loss()

            adapted = learner.step(task, parallel.mine(normal(8, 5, seed=20 + number)))
            bn.remember()
            now = {"z": parallel.gathered(adapted.z), **generator.state_dict()}
            now |= {f"{name} grad": p.grad for name, p in generator.named_parameters()}
            now["losses"] = torch.tensor(adapted.losses, dtype=torch.float64)
            now |= {f"average {name}": torch.stack(pair) for name, pair in bn.average.items()}
            found |= {f"{number} {name}": tensor.detach().clone() for name, tensor in now.items()}
    return arrays(found)


@pytest.mark.parametrize(
    ("kind", "optimiser"),
    [(kind, "sgd") for kind in KINDS] + [(kind, "adam") for kind in KINDS if kind != "maml"],
)
def test_meta_learning_is_that_of_the_whole_batch(both, kind, optimiser):
    expected = learnt(kind, optimiser)
    for name, before in small_generator().state_dict().items():
        assert np.abs(expected[f"0 {name}"] - before.numpy()).max() > 1e-3, name  # it learns
    for found in both(learnt, kind, optimiser):
        assert_alike(found, expected, rtol=1e-9)


# --- Whole runs --------------------------------------------------------------------------------

SPEC = NetworkSpec("wrn-10-1", classes=4, channels=1, size=16, mean=(0.4,), std=(0.3,))
CONFIG = DistillConfig(
    episodes=3,
    warm_up=1,
    student_steps=2,
    batch_size=8,
    lr=0.05,
    average=0.9,
    pool_size=20,
    shift=1,
)
METHOD = FsscConfig(generator=GeneratorConfig(z_dim=8, width=8), synthesis_batch=8, beta=0.1)


def distilled(method):
    """Losses, student and pool of a run in which everything is float64."""
    sample = ImagePool.sample
    torch.set_default_dtype(torch.float64)
    try:
        ImagePool.sample = lambda *arguments: sample(*arguments).double()
        torch.manual_seed(5)
        teacher = build("wrn-10-1", 4, 1, 16)
        teacher(torch.randn(64, 1, 16, 16))
        result = distill(teacher, "wrn-10-1", SPEC, CONFIG, method, device="cpu", progress=False)
    finally:
        ImagePool.sample = sample
        torch.set_default_dtype(torch.float32)
    losses = {
        f"{name} {row['episode']}": torch.tensor(row[name], dtype=torch.float64)
        for row in result.history
        for name in ("cls", "bn", "adv", "kd", "msarc")
        if name in row
    }
    pool = {"pool": result.pool.images().double()}
    return arrays({**losses, **result.student.state_dict(), **pool})


MAML = MetaConfig(kind="maml", optimiser="sgd")
# with these steps the halves of a batch would not choose the same step's images to keep
RESTLESS = MetaConfig(kind="reptile", optimiser="sgd", steps=6, lr=10.0, lr_z=100.0, outer_lr=0.01)


@pytest.mark.parametrize(
    "method",
    [METHOD, replace(METHOD, meta=MAML), replace(METHOD, bn_weight=0.01, meta=RESTLESS)],
    ids=lambda method: method.meta.kind,
)
def test_a_run_is_that_of_one_process(both, method):
    """The method's own generator, student and losses, as far as float64 can tell."""
    expected = distilled(method)
    assert {"cls 1", "bn 3", "adv 3", "kd 3", "msarc 3"} <= expected.keys()
    for found in both(distilled, method):
        assert_alike(found, expected, rtol=1e-8, atol=1e-10)


PLAIN = GeneratorConfig(z_dim=8, width=8, attention=None)
GENERATIVE = {"generator": PLAIN, "synthesis_batch": 8}
OTHERS = {
    "dafl": methods.DaflConfig(**GENERATIVE, steps=2),
    "zskt": methods.ZsktConfig(**GENERATIVE, steps=2),
    "dfad": methods.DfadConfig(**GENERATIVE, fresh=2),
    "dfq": methods.DfqConfig(**GENERATIVE, steps=2),
    "adi": methods.AdiConfig(synthesis_batch=8, steps=3),
    "nayer": methods.NayerConfig(generator=PLAIN, synthesis_batch=12, steps=3),  # a layer in both
    "fastdfkd": methods.FastDfkdConfig(**GENERATIVE, meta=MetaConfig(kind="first-order")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_methods_runs_are_those_of_one_process(both, name):
    expected = distilled(OTHERS[name])
    for found in both(distilled, OTHERS[name]):
        assert_alike(found, expected, rtol=1e-6, atol=1e-8)


def refused_method(config):
    with pytest.raises(InputError, match="cannot be split over several processes"):
        distilled(config)
    return True


@pytest.mark.parametrize("config", [
    methods.CmiConfig(**GENERATIVE), methods.SpaceshipNetConfig(**GENERATIVE),
    methods.LsGdfdConfig(**GENERATIVE), methods.MixConfig(synthesis_batch=8, exchange=0.5),
], ids=lambda config: type(config).__name__)  # fmt: skip
def test_methods_that_need_the_whole_batch_are_refused(both, config):
    assert all(both(refused_method, config))


EXPERIMENT = """\
about: x
data: digits
seeds: [0]
settings:
  distill: {episodes: 2, warm_up: 1, student_steps: 2, checkpoint_every: 1, measure_every: 1}
"""


def started(start, name, folder):
    """Run ``EXPERIMENT`` as a user would; its one record, and what was printed."""
    (folder / "split.yaml").write_text(EXPERIMENT)
    command = [*start, "-m", "dfkd_lite", "run", "split.yaml", "--device", "cpu"]
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [*command, "--records", f"{name}/records", "--work", f"{name}/work"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "DFKD_DATA": str(folder), "PYTHONPATH": root},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    (record,) = (folder / name / "records").rglob("*.json")
    assert record.parent.name == "split"
    return json.loads(record.read_text()), done.stdout


def test_two_processes_of_accelerate_write_the_record_of_one(tmp_path):
    """In float32: by the second episode Adam has made rounding visible. Another layout in memory
    changes ``adv`` by 3 %, ``cls`` by 0.4 %, the other losses and the student's statistics less."""
    pytest.importorskip("accelerate")
    launch = [
        Path(sys.executable).with_name("accelerate"), "launch", "--multi_gpu", "--num_machines",
        "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes", "2",
        "--main_process_port", "0",
    ]  # fmt: skip
    one, _ = started([sys.executable], "one", tmp_path)
    two, printed = started(launch, "two", tmp_path)
    assert (one["environment"]["processes"], two["environment"]["processes"]) == (1, 2)
    assert printed.count("[1/1]") == 1  # one of them speaks
    assert two["settings"] == one["settings"] and two["teacher"] == one["teacher"]
    tolerances = [{"cls": 1e-4, "bn": 1e-4}]
    tolerances += [{"cls": 0.02, "bn": 1e-3, "adv": 0.1, "kd": 0.01, "msarc": 0.02}]
    for row, other, tolerance in zip(one["history"], two["history"], tolerances, strict=True):
        assert row.keys() == other.keys()
        for name, rel in tolerance.items():
            assert other[name] == pytest.approx(row[name], rel=rel), (row["episode"], name)
    assert two["history"][0]["accuracy"] == pytest.approx(one["history"][0]["accuracy"], abs=0.005)
    weights, others = (
        load_file(tmp_path / name / "work" / "split" / one["name"] / "student.safetensors")
        for name in ("one", "two")
    )
    assert weights.keys() == others.keys()
    for name in [name for name in weights if name.endswith("running_var")]:
        apart, moved = (weights[name] - others[name]).norm(), (weights[name] - 1).norm()
        assert apart < 0.05 * moved, name
