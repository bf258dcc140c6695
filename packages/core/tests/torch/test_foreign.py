"""A user's PyTorch code and weights become a model that answers as the module does."""

import numpy as np
import pytest
import torch
from modelfix_core import Dataset, ModelfixError
from modelfix_core.foreign import Conventions, adopt, read
from modelfix_core.subjects.__main__ import main
from safetensors.torch import save_file

SHAPE = (3, 8, 8)
CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(45, classes),
        )

    def forward(self, x):
        return self.body(x)

class Flat(nn.Linear):
    def __init__(self):
        super().__init__(192, 4)

def probabilities():
    return nn.Sequential(Net(), nn.Softmax(1))

def last():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()
        def forward(self, x):
            return self.net(x.permute(0, 3, 1, 2))
    return Last()

class Pair(Net):
    def forward(self, x):
        return super().forward(x), x

def no_module():
    return 3

def needs(size):
    return Net(size)
"""


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(CODE)
    return path


@pytest.fixture
def net(code):
    """The class Net, trained a little so that BatchNorm has seen data."""
    names = {}
    exec(CODE, names)
    module = names["Net"]()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        module(torch.rand(32, *SHAPE, generator=generator))
    return module.eval()


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, *SHAPE), dtype=np.uint8)
    return Dataset.from_arrays(x, rng.integers(0, 4, 40))


def adopted(code, name, dataset, weights=None, **conventions):
    asked = Conventions(scale=1, **conventions)
    original = read(f"{code}:{name}", weights, SHAPE, asked.layout)
    return original, adopt(original, dataset, asked)


@pytest.mark.parametrize("form", ["safetensors", "state dict", "checkpoint"])
def test_weights_are_read_as_tensors_alone(code, net, dataset, tmp_path, form):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    state = net.state_dict()
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state if form == "state dict" else {"state_dict": state, "epoch": 3}, path)
    _, model = adopted(code, "Net", dataset, path, mean=[0.5], std=[0.25])
    x = dataset["test"].images()
    with torch.no_grad():
        expected = net(torch.from_numpy((x - 0.5) / 0.25)).numpy()
    np.testing.assert_allclose(model.predict(x), expected, atol=1e-4)
    assert {"body.0.weight", "body.1.running_mean", "body.5.bias"} <= model.weights.keys()
    assert [layer.kind for layer in model.layers()] == ["conv", "batchnorm", "dense"]


@pytest.mark.parametrize(
    ("name", "layout"), [("Flat", None), ("probabilities", None), ("last", "nhwc")]
)
def test_modules_of_other_forms(code, dataset, name, layout):
    original, model = adopted(code, name, dataset, layout=layout)
    assert model.input_shape == SHAPE
    assert "no --weights" in original.notes[0]


def test_what_is_wrong_is_one_sentence(code, net, dataset, tmp_path):
    torch.save(net.body, tmp_path / "pickled.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.safetensors").write_text("hello")
    state = net.state_dict()
    torch.save({k: v for k, v in state.items() if k != "body.5.bias"}, tmp_path / "missing.pt")
    torch.save({**state, "body.5.bias": torch.zeros(7)}, tmp_path / "shape.pt")
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "needy.py").write_text("import a_module_that_nobody_has")
    cases = [
        (f"{code}:Nothing", None, r"has no 'Nothing'; it has .*Net"),
        (f"{code}:no_module", None, "gives a int; expected a torch.nn.Module"),
        (f"{code}:needs", None, r"calling needs\(\) without arguments failed"),
        (f"{code}:Pair", None, "its forward gives a tuple"),
        (f"{tmp_path}/none.py:Net", None, r"none\.py: does not exist"),
        (f"{tmp_path}/broken.py:Net", None, "importing .* failed .division by zero"),
        (f"{tmp_path}/needy.py:Net", None, "'a_module_that_nobody_has' is not found"),
        ("nowhere.at.all:Net", None, "'nowhere' is not found"),
        (f"{code}:Net", "none.pt", r"none\.pt: does not exist"),
        (f"{code}:Net", "pickled.pt", "holds more than tensors"),
        (f"{code}:Net", "list.pt", "holds no state dict"),
        (f"{code}:Net", "text.safetensors", "is not a readable safetensors file"),
        (f"{code}:Net", "missing.pt", r"missing body\.5\.bias; unknown nothing"),
        (f"{code}:Net", "shape.pt", r"body\.5\.bias has shape \[7\] where"),
    ]
    for factory, weights, words in cases:
        with pytest.raises(ModelfixError, match=words) as error:
            read(factory, None if weights is None else tmp_path / weights, SHAPE)
        assert "\n" not in str(error.value)


def test_pickled_code_is_never_run(tmp_path, code):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"body": Harm()}, tmp_path / "harm.pt")
    with pytest.raises(ModelfixError, match="holds more than tensors"):
        read(f"{code}:Net", tmp_path / "harm.pt", SHAPE)
    assert not (tmp_path / "harm").exists()


def test_a_subject_of_a_module(code, net, dataset, tmp_path, capsys):
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.integers(0, 256, (80, *SHAPE), dtype=np.uint8),
             y=np.arange(80) % 4)  # fmt: skip
    arguments = [
        "own", "--name", "mine", "--model", f"{code}:Net", "--data", str(tmp_path / "d.npz"),
        "--root", str(tmp_path / "s"), "--weights",
    ]  # fmt: skip
    assert main([*arguments, str(tmp_path / "w.safetensors")]) == 0
    assert "mine: prepared in" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "w.safetensors")]) == 0
    assert "mine: complete already" in capsys.readouterr().out
    code.write_text(CODE.replace("MaxPool2d", "AvgPool2d"))
    assert main([*arguments, str(tmp_path / "w.safetensors")]) == 0
    assert "mine: prepared in" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
