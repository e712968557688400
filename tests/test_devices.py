"""What `auto` stands for: the device, and the number format in which networks learn."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch

from dfkd_lab.records import environment
from dfkd_lab.trained import _says, as_taught
from dfkd_lite import devices, teach
from dfkd_lite.data import load
from dfkd_lite.devices import bfloat16_pays, mixed, resolve_device, settled
from dfkd_lite.distill import Distillation, DistillConfig
from dfkd_lite.errors import InputError
from dfkd_lite.methods import METHODS
from dfkd_lite.networks import NetworkSpec, build
from dfkd_lite.presets import PRESETS
from dfkd_lite.storage.checkpoint import load_checkpoint
from dfkd_lite.teach import TeachConfig, Teaching

CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda", "mps"))
FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK"
SPEC = NetworkSpec("wrn-10-1", 4, 1, 16, mean=(0.4,), std=(0.3,))
LOOP = DistillConfig(
    episodes=3, warm_up=0, student_steps=1, batch_size=4, checkpoint_every=1, precision="auto"
)
NOISE = METHODS["noise"].Config(synthesis_batch=4)


@pytest.fixture
def accelerator(monkeypatch):
    """A machine with this accelerator, as far as torch says."""

    def there(name: str, available: bool = True) -> None:
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: available)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(name))

    return there


@pytest.fixture
def pays(monkeypatch):
    """A machine on which bfloat16 pays, or does not."""
    return lambda does: monkeypatch.setattr(devices, "bfloat16_pays", lambda _: does)


# --- the device -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cuda", "xpu"])
def test_auto_is_what_torch_names_if_it_is_there(accelerator, name):
    accelerator(name)
    assert resolve_device() == torch.device(name)
    accelerator(name, available=False)  # built for it, and no driver
    assert resolve_device() == CPU


def test_mps_is_taken_where_the_cpu_does_what_it_lacks(accelerator, monkeypatch):
    accelerator("mps")
    monkeypatch.setenv(FALLBACK, "1")
    assert resolve_device() == MPS


@pytest.mark.parametrize("value", [None, "0"])
def test_else_the_cpu_is_and_that_is_said_once(accelerator, monkeypatch, value):
    accelerator("mps")
    monkeypatch.delenv(FALLBACK, raising=False)
    if value is not None:
        monkeypatch.setenv(FALLBACK, value)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        assert resolve_device() == CPU
        assert resolve_device("auto") == CPU  # from another line
    assert len(said) == 1 and "import dfkd_lite before torch" in str(said[0].message)


@pytest.mark.parametrize(
    ("first", "given", "expected"),
    [
        ("dfkd_lite", None, "1"),
        ("dfkd_lite.cli.main", None, "1"),
        ("dfkd_lite", "0", "0"),  # what was said before stays
        ("torch", None, "None"),  # too late: torch has read it
    ],
)
def test_torch_is_told_before_it_is_loaded(first, given, expected):
    known = {name: value for name, value in os.environ.items() if name != FALLBACK}
    known |= {FALLBACK: given} if given else {}
    code = f"import {first}, dfkd_lite, os; print(os.environ.get({FALLBACK!r}))"
    done = subprocess.run([sys.executable, "-c", code], env=known, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr


def test_the_environment_names_the_device(monkeypatch):
    assert environment()["device"] == "cpu"
    assert environment("mps")["device"] == "mps"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card of {device}")
    assert environment("cuda")["device"] == "card of cuda"


# --- the number format ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amx", "avx", "expected"),
    [(True, False, True), (False, True, True), (False, False, False)],
)
def test_on_the_cpu_it_pays_with_instructions_for_it(monkeypatch, amx, avx, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)
    assert bfloat16_pays(CPU) is expected


def test_a_torch_that_cannot_tell_says_no(monkeypatch):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert bfloat16_pays(CPU) is False


@pytest.mark.parametrize(
    ("capability", "supported", "expected"),
    [((7, 5), True, False), ((8, 0), True, True), ((9, 0), True, True), ((8, 6), False, False)],
)
def test_on_a_gpu_it_pays_from_ampere_on(monkeypatch, capability, supported, expected):
    """Turing (7.5) emulates it, and torch calls that supported."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert bfloat16_pays(CUDA) is expected


def test_elsewhere_it_does_not():
    assert not bfloat16_pays(MPS) and not bfloat16_pays(torch.device("xpu"))


def test_auto_is_settled_and_what_was_asked_for_stays(pays):
    for does, expected in ((True, "bfloat16"), (False, "float32")):
        pays(does)
        for kind in (TeachConfig, DistillConfig):
            auto = kind(precision="auto")
            assert settled(auto, CPU) == replace(auto, precision=expected)
            for said in ("float32", "bfloat16"):
                assert settled(kind(precision=said), CPU).precision == said
                assert settled(auto, CPU, begun=said).precision == said


def test_no_network_computes_in_auto():
    with pytest.raises(InputError, match="no precision called 'auto'"):
        mixed(CPU, "auto")
    with pytest.raises(InputError, match="Did you mean 'auto'"):
        TeachConfig(precision="autos")


def test_presets_of_records_and_chapters_name_their_format():
    """What is recorded and printed must not depend on the machine."""
    for name, preset in PRESETS.items():
        expected = "auto" if name in ("colab", "paper") else "float32"
        assert preset.teach.precision == preset.distill.precision == expected, name
    assert TeachConfig().precision == DistillConfig().precision == "float32"


# --- it is recorded, and a run goes on as it began ------------------------------------------------


def begun(precision: str = "auto") -> Distillation:
    torch.manual_seed(2)
    loop, teacher = replace(LOOP, precision=precision), build("wrn-10-1", 4, 1, 16)
    return Distillation(teacher, "wrn-10-1", SPEC, loop, NOISE, "cpu")


def test_a_run_names_its_format_and_learns_in_it(pays):
    students = {}
    for does, asked in ((True, "auto"), (True, "bfloat16"), (False, "auto"), (True, "float32")):
        pays(does)
        run = begun(asked)
        assert run.config == replace(LOOP, precision="bfloat16" if len(students) < 2 else "float32")
        students[does, asked] = run.run(progress=False).student.state_dict()["fc.weight"]
    low, low_too, high, high_too = students.values()
    assert low.equal(low_too) and high.equal(high_too) and not low.equal(high)


@pytest.mark.parametrize("first", [True, False])
def test_on_another_machine_a_run_goes_on_as_it_began(tmp_path, pays, first):
    pays(first)
    whole = begun().run(progress=False).student.state_dict()
    one = begun()
    with pytest.raises(KeyboardInterrupt):
        one.run(tmp_path, progress=False, watch=interrupt)
    pays(not first)
    other = begun()
    assert other.config.precision != one.config.precision
    result = other.run(tmp_path, resume=True, progress=False).student.state_dict()
    assert other.config == one.config
    assert all(result[key].equal(value) for key, value in whole.items())


def interrupt(run: Distillation, _: dict) -> None:
    if run.episode == 2:
        raise KeyboardInterrupt


def test_a_run_in_a_format_is_none_of_auto(tmp_path, pays):
    pays(False)
    begun().run(tmp_path, progress=False)
    with pytest.raises(InputError, match="other settings"):
        begun("float32").run(tmp_path, resume=True, progress=False)


def test_a_teacher_goes_on_as_it_began(tmp_path, pays):
    data, config = load("digits"), TeachConfig(epochs=2, batch_size=256, precision="auto")
    pays(True)
    whole = teach("wrn-10-1", data, config, "cpu", progress=False)[0].state_dict()
    one = Teaching("wrn-10-1", data, config, CPU)
    assert one.config == replace(config, precision="bfloat16")
    one.epoch()
    one.save(tmp_path)
    pays(False)
    last, _, history = teach(
        "wrn-10-1", data, config, "cpu", progress=False, folder=tmp_path, resume=True
    )
    assert len(history) == 2 and load_checkpoint(tmp_path).state["precision"] == "bfloat16"
    assert all(last.state_dict()[key].equal(value) for key, value in whole.items())


def test_auto_finds_a_teacher_of_either_format():
    auto = TeachConfig(epochs=7, precision="auto")
    for said in ("float32", "bfloat16"):
        kept = replace(auto, precision=said)
        assert _says(repr(kept), auto) and _says(repr(kept), kept)
        assert not _says(repr(replace(kept, epochs=8)), auto)
        assert as_taught(auto, {"settings": {"precision": said}}) == kept
    assert not _says(repr(replace(auto, precision="float32")), replace(auto, precision="bfloat16"))
