"""``python -m modelfix_core.conversion``: a foreign model as ONNX, or one sentence."""

import numpy as np
import pytest
from modelfix_core import Model
from modelfix_core.conversion import main
from onnx import TensorProto, helper, numpy_helper, save


@pytest.fixture
def files(tmp_path):
    """A model of pixels up to 255 in [N, H, W, C] that gives probabilities, and images."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 48)).astype(np.float32) / 255
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight"], ["z"], transB=1),
            helper.make_node("Softmax", ["z"], ["p"]),
        ],
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 4, 3])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    save(model, tmp_path / "foreign.onnx")
    x = rng.integers(0, 256, (60, 3, 4, 4), dtype=np.uint8)
    logits = x.transpose(0, 2, 3, 1).reshape(60, 48) @ weight.T
    np.savez(tmp_path / "images.npz", x=x, y=logits.argmax(axis=1))
    return tmp_path, x, logits


def run(folder, *options):
    arguments = ["foreign.onnx", "--images=images.npz", "--to=new.onnx"]
    named = [part.replace("=", f"={folder}/") for part in arguments[1:]]
    return main([str(folder / arguments[0]), *named, *options])


def test_the_new_model_answers_as_the_foreign_one(files):
    folder, x, logits = files
    assert run(folder, "--scale=255", "--layout=nhwc") == 0
    found = Model.load(folder / "new.onnx").predict(x.astype(np.float32) / 255)
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--mean=a,b", "'a,b' is not of the form 0.5,0.5,0.5"),
        ("--mean=1,2", "--mean has 2 values but the images have 3 channels"),
        ("--weights=w.pt", "--weights belong to a PyTorch factory"),
    ],
)
def test_a_mistake_is_one_sentence(files, capsys, option, words):
    folder = files[0]
    assert run(folder, option) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert not (folder / "new.onnx").exists()
