"""A user's mistakes: one clear sentence, exit code 2, nothing half-written."""

import numpy as np
import pytest
from modelfix_testing import mlp


@pytest.fixture
def files(tmp_path):
    """A usable model and data that fit, to be spoilt by the tests."""
    rng = np.random.default_rng(0)
    model = mlp([rng.normal(size=(3, 16))], [np.zeros(3)], (1, 4, 4))
    model.save(tmp_path / "m.onnx")
    x = rng.random((60, 1, 4, 4), dtype=np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(60) % 3)
    return tmp_path


def spoil_model(files):
    (files / "m.onnx").write_bytes(b"not a model")


def spoil_classes(files):
    np.savez(files / "d.npz", x=np.zeros((60, 1, 4, 4), np.uint8), y=np.arange(60) % 5)


def spoil_shape(files):
    np.savez(files / "d.npz", x=np.zeros((60, 3, 4, 4), np.uint8), y=np.arange(60) % 3)


def spoil_pixels(files):
    np.savez(files / "d.npz", x=np.full((60, 1, 4, 4), np.nan), y=np.arange(60) % 3)


def spoil_labels(files):
    np.savez(files / "d.npz", x=np.zeros((60, 1, 4, 4), np.uint8), y=np.arange(60) % 3 - 1)


def spoil_data(files):
    (files / "d.npz").write_bytes(b"no zip")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_model, "m.onnx: is not an ONNX file"),
        (spoil_classes, "predicts 3 classes but the data have 5"),
        (spoil_shape, "takes images of shape [1, 4, 4]"),
        (spoil_pixels, "NaN"),
        (spoil_labels, "label -1"),
        (spoil_data, "d.npz: is not a readable NPZ"),
    ],
)
def test_comparing(modelfix, files, spoil, words):
    spoil(files)
    done = modelfix("compare", files / "m.onnx", files / "m.onnx", "--data", files / "d.npz")
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fix", "-a", "arachn"], "did you mean arachne"),
        (["fix", "-a", "arachne", "-s", "mnist"], "mnist-lenet5"),
        (["fix", "-a", "arachne", "--set", "alpha"], "expected KEY=VALUE"),
        (["fix", "-a", "arachne", "--model", "x.onnx"], "both --model"),
        (["fix", "-a", "auto", "--set", "alpha=1"], "leave out --set"),
        (["fix", "-a", "auto", "--keep", "joy"], "choose from accuracy, fairness"),
        (["fix", "-a", "arachne", "--time-limit", "soon"], "expected a duration"),
        (["prepare"], "give a named subject"),
        (["compare", "a", "b", "--data", "c", "--max-nfr", "lots"], "expected a share"),
        (["compare", "a.onnx", "b.onnx"], "with either --data or --subject"),
        (["compare", "a.pt", "b.onnx", "--data", "."], "no images found"),
        (["new", "neuron", "Mine"], "lower-case letters"),
        (["new", "neuron", "mine", "--abbreviation", "AR"], "give another one with --abbreviation"),
        (["evaluate", "nowhere"], "record.json: is missing"),
        (["fix", "--approach", "arachne", "--colour", "red"], "--colour"),
    ],
)
def test_command_line(modelfix, arguments, words):
    done = modelfix(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_unwritable_home(modelfix, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = modelfix("prepare", "fashion-mini-lenet5", "--home", tmp_path / "file")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_exit_code(modelfix, tmp_path):
    done = modelfix("doctor", "--subject", "nothing", "--home", tmp_path)
    assert done.returncode == 1
    assert "no prepared subject" in done.stdout
