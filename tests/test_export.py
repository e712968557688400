"""ONNX files answer as the network does, or are not kept; cards tell what is known."""

import hashlib

import pytest
import torch
from torch import nn

from dfkd_lite.distill import DistillConfig
from dfkd_lite.errors import InputError
from dfkd_lite.export import onnx as export
from dfkd_lite.export.card import model_card, write_card
from dfkd_lite.networks import NetworkSpec, build, normalise

SPEC = NetworkSpec("wrn-10-1", 3, 1, 16, (0.4,), (0.2,), ("cat", "dog", "cow"))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build("wrn-10-1", 3, 1, 16).eval()


def test_file_reads_pixels_in_batches_of_any_size(network, tmp_path):
    path = tmp_path / "student.onnx"
    extra = torch.rand(4, 1, 16, 16)
    assert export.export_onnx(network, SPEC, path, check=extra) < 1e-5
    for count in (1, 7):
        pixels = torch.rand(count, 1, 16, 16)
        with torch.no_grad():
            wanted = network(normalise(pixels, SPEC))
        torch.testing.assert_close(export.run_onnx(path, pixels), wanted, atol=1e-4, rtol=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["student.onnx"]  # nothing half-written beside
    with pytest.raises(InputError, match="no file"):
        export.run_onnx(tmp_path / "other.onnx", extra)


def test_file_that_answers_differently_is_not_kept(network, tmp_path, monkeypatch):
    real = export._run
    monkeypatch.setattr(export, "_run", lambda content, pixels: real(content, pixels) * 1.01)
    with pytest.raises(InputError, match="answers differently"):
        export.export_onnx(network, SPEC, tmp_path / "student.onnx")
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(network, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_NEEDED", ("onnx", "no_such_package"))
    with pytest.raises(InputError, match=r"pip install \"dfkd_lite\[export\]\""):
        export.export_onnx(network, SPEC, tmp_path / "student.onnx")


def card(weights, **more):
    settings = {"loop": DistillConfig(seed=5), "method": {"name": "fssc", "beta": 0.1}}
    student = nn.Linear(2, 3)
    return model_card("A student", student, SPEC, weights, settings, {"agreement": 0.91}, **more)


def test_card_says_what_is_known_and_what_is_not(tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"weights")
    text = card(weights)
    assert hashlib.sha256(b"weights").hexdigest() in text
    assert "9 parameters" in text and "images 1 x 16 x 16" in text and "cat, dog, cow" in text
    assert "Nothing was measured on real images." in text and "- agreement: 0.91" in text
    assert "  - seed: 5" in text and "  - beta: 0.1" in text
    measured = card(weights, measured={"accuracy": 0.5}, measured_on="ward 3")
    assert "Measured on ward 3" in measured and "- accuracy: 0.5000" in measured
    with pytest.raises(InputError, match="name of the data"):
        card(weights, measured={"accuracy": 0.5})
    with pytest.raises(InputError, match="no file"):
        card(tmp_path / "none")
    write_card(tmp_path / "CARD.md", text)
    assert (tmp_path / "CARD.md").read_text() == text
