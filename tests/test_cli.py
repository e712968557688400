"""The command line: from no files to a measured student, and refusals a student understands."""

import hashlib
import json

import pytest

from dfkd_lite.cli import main as cli
from dfkd_lite.methods import METHODS
from dfkd_lite.storage.weights import load_network, read_metadata

TINY = ["--set", "episodes=4", "--set", "warm_up=1", "--set", "student_steps=2"]
TINY += ["--set", "method.generator.width=8", "--set", "checkpoint_every=2"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    command = ["teach", "--network", "wrn-10-1", "--set", "epochs=2", "--out", str(path)]
    assert cli.main([*command, "--device", "cpu"]) == 0
    return path


def distil(teacher, out, *more):
    paths = ["--teacher", str(teacher), "--out", str(out), "--device", "cpu"]
    return cli.main(["distill", *paths, *TINY, *more])


def test_from_teacher_to_report(teacher, tmp_path, capsys):
    assert float(read_metadata(teacher)["test_accuracy"]) > 0.6
    assert distil(teacher, tmp_path / "run", "--watch", "digits", "--seed", "3") == 0
    _, spec = load_network(tmp_path / "run" / "student.safetensors")
    assert spec.network == "wrn-10-1" and spec.class_names == tuple("0123456789")
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert [row["episode"] for row in history] == [1, 2, 3, 4]
    card = (tmp_path / "run" / "CARD.md").read_text()
    content = (tmp_path / "run" / "student.safetensors").read_bytes()
    assert f"SHA-256 `{hashlib.sha256(content).hexdigest()}`" in card
    assert f"test accuracy: {history[-1]['accuracy']:.4f}" in card and "Measured on digits" in card
    assert "  - seed: 3" in card and "  - generator.width: 8" in card
    capsys.readouterr()
    network = ["--network", str(tmp_path / "run" / "student.safetensors")]
    report = tmp_path / "report.json"
    command = ["evaluate", *network, "--data", "digits", "--teacher", str(teacher)]
    assert cli.main([*command, "--json", str(report)]) == 0
    values = json.loads(report.read_text())
    assert values["accuracy"] == pytest.approx(history[-1]["accuracy"])
    assert f"accuracy         {values['accuracy']:.4f}" in capsys.readouterr().out
    assert sum(map(sum, values["confusion"])) == 500


def test_what_is_saved_names_the_format_of_auto(tmp_path, monkeypatch):
    monkeypatch.setattr("dfkd_lite.devices.bfloat16_pays", lambda _: True)
    path, auto = tmp_path / "teacher.safetensors", ["--set", "precision=auto"]
    command = ["teach", "--network", "wrn-10-1", "--set", "epochs=1", "--out", str(path), *auto]
    assert cli.main([*command, "--device", "cpu"]) == 0
    assert distil(path, tmp_path, *auto) == 0
    for file in (path, tmp_path / "student.safetensors"):
        assert "precision='bfloat16'" in read_metadata(file)["config"]
    assert "precision: bfloat16" in (tmp_path / "CARD.md").read_text()


def test_interrupted_then_resumed_equals_uninterrupted(teacher, tmp_path, monkeypatch, capsys):
    assert distil(teacher, tmp_path / "whole") == 0
    original, calls = cli.Distillation.step, []

    def step(self):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(cli.Distillation, "step", step)
    assert distil(teacher, tmp_path / "cut") == 130
    assert "--resume" in capsys.readouterr().err
    assert not (tmp_path / "cut" / "student.safetensors").exists()
    monkeypatch.setattr(cli.Distillation, "step", original)
    assert distil(teacher, tmp_path / "cut") == 2  # without --resume nothing is overwritten
    assert distil(teacher, tmp_path / "cut", "--resume") == 0
    one, two = (load_network(tmp_path / n / "student.safetensors")[0] for n in ("whole", "cut"))
    for name, value in one.state_dict().items():
        assert value.equal(two.state_dict()[name]), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["teach", "--data", "digit"], "Did you mean 'digits'"),
        (["teach", "--network", "wrn-17-1"], "depth"),
        (["teach", "--set", "epoch=3"], "Did you mean 'epochs'"),
        (["teach", "--preset", "light"], "Did you mean 'lite'"),
        (["distill", "--teacher", "nowhere.safetensors"], "nowhere.safetensors"),
        (["evaluate", "--network", "nowhere.safetensors", "--data", "digits"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("dfkd: ") and message in error and "Traceback" not in error


def test_method_settings_and_data_must_fit(teacher, tmp_path, capsys):
    assert distil(teacher, tmp_path, "--method", "fsc") == 2
    assert "Did you mean 'fssc'" in capsys.readouterr().err
    assert distil(teacher, tmp_path, "--set", "method.gamma=1") == 2
    assert "'gamma' is not known" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in METHODS if name != "given"])
def test_every_method_distils(teacher, tmp_path, name):
    fields = METHODS[name].Config.__dataclass_fields__
    wanted = {"synthesis_batch": 16, "steps": 2, "meta.steps": 1, "generator.width": 8}
    small = {"episodes": 3, "warm_up": 0, "student_steps": 2, "batch_size": 8} | {
        f"method.{key}": value for key, value in wanted.items() if key.split(".")[0] in fields
    }
    settings = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    command = ["distill", "--teacher", str(teacher), "--method", name, *settings]
    assert cli.main([*command, "--out", str(tmp_path), "--device", "cpu"]) == 0
    history = json.loads((tmp_path / "history.json").read_text())
    assert [row["episode"] for row in history] == [1, 2, 3] and history[-1]["kd"] > 0
    assert METHODS[name].Config.__name__ in (tmp_path / "CARD.md").read_text()
    load_network(tmp_path / "student.safetensors")


def test_methods_are_listed_with_what_their_images_cost(capsys):
    assert cli.main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: line.split() for line in lines}
    listed = [name for name, method in METHODS.items() if method.about is not None]
    assert [line.split()[0] for line in lines[1:-1]] == listed
    assert table["dafl"][1:3] == ["2019", "1.00"]  # 1024 images for one step on 1024
    assert table["zskt"][2] == "0.10"  # one batch for ten steps
    assert table["cmi"][2] == "2.00"  # 200 steps of 256 images in two views; 400 steps on 256
    assert "disagree" in lines[listed.index("adi") + 1] and "CVPR 2020" in lines[4]


def test_help_shows_how_to_begin(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("dfkd teach --data digits", "dfkd distill --teacher", "dfkd evaluate --network"):
        assert word in text


def test_exported_file_answers_as_the_network(teacher, tmp_path, capsys):
    target = tmp_path / "teacher.onnx"
    assert cli.main(["export", "--network", str(teacher), "--onnx", str(target)]) == 0
    assert "same answers" in capsys.readouterr().out and target.stat().st_size > 10_000
