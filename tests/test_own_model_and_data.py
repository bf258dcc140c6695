"""Models of four frameworks, trained on real images, become subjects and are evaluated.

Each is trained and saved in the environment of its framework, as its users do, together with what
it answers; the command then sees the file alone.
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from modelfix.environments import clean_environ, ensure
from modelfix_core.subject import Subject
from modelfix_core.subjects.catalogue import named
from modelfix_core.subjects.prepare import make_dataset
from PIL import Image

IMAGES = 1500
DATA = """
import numpy as np
d = np.load("data.npz"); x, y = d["x"], d["y"]
"""
TORCH = (
    DATA
    + """
import sys; sys.path.insert(0, ".")
import torch
from net import Net
torch.manual_seed(0)
model, images, labels = Net(), torch.tensor(x[:, None] / 255, dtype=torch.float32), torch.tensor(y)
optimizer = torch.optim.Adam(model.parameters(), 2e-3)
for _ in range(2):
    for index in torch.randperm(len(y)).split(32):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[index] - 0.5), labels[index]).backward()
        optimizer.step()
model.eval()
with torch.no_grad():
    np.save("expected.npy", model(images - 0.5).numpy())
torch.save(model.state_dict(), "weights.pt")
torch.onnx.export(model, (images[:2],), "model.onnx", dynamo=False, opset_version=11)
"""
)
NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 4, 5, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
            nn.Linear(576, 10),
        )
"""
KERAS = (
    DATA
    + """
import keras
from keras import layers
keras.utils.set_random_seed(0)
model = keras.Sequential([
    keras.Input((28, 28, 1)), layers.Conv2D(4, 5, strides=2), layers.BatchNormalization(),
    layers.ReLU(), layers.Flatten(), layers.Dense(10, activation="softmax"),
])
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(x[..., None].astype("float32"), y, epochs=3, verbose=0)
np.save("expected.npy", model.predict(x[..., None].astype("float32"), verbose=0))
model.save("model.keras")
"""
)
# The file as Keras 2 writes it: its attributes, its configurations, its names of weights.
KERAS_2 = (
    KERAS
    + """
import h5py, json

def config(layer, **more):
    return {"name": layer.name, "trainable": True, "dtype": "float32", **more}

def initial(name):
    return {"class_name": name, "config": {}}

conv, norm, relu, flat, dense = model.layers
shape = {"batch_input_shape": [None, 28, 28, 1]}
described = [
    ("InputLayer", {"dtype": "float32", "sparse": False, "ragged": False, "name": "input_1",
                    **shape}),
    ("Conv2D", config(conv, **shape, filters=4, kernel_size=[5, 5], strides=[2, 2],
                      padding="valid", data_format="channels_last", dilation_rate=[1, 1], groups=1,
                      activation="linear", use_bias=True)),
    ("BatchNormalization", config(norm, axis=[3], momentum=0.99, epsilon=0.001, center=True,
                                  scale=True, moving_mean_initializer=initial("Zeros"))),
    ("ReLU", config(relu, max_value=None, negative_slope=0.0, threshold=0.0)),
    ("Flatten", config(flat, data_format="channels_last")),
    ("Dense", config(dense, units=10, activation="softmax", use_bias=True)),
]
names = {
    conv.name: ["kernel:0", "bias:0"], dense.name: ["kernel:0", "bias:0"],
    norm.name: ["gamma:0", "beta:0", "moving_mean:0", "moving_variance:0"],
}
with h5py.File("model.h5", "w") as file:
    file.attrs.update(keras_version="2.13.1", backend="tensorflow")
    file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {
        "name": "sequential", "layers": [{"class_name": k, "config": c} for k, c in described]}})
    group = file.create_group("model_weights")
    group.attrs.update(keras_version="2.13.1", backend="tensorflow")
    group.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
    for layer in model.layers:
        part = group.create_group(layer.name)
        full = [f"{layer.name}/{name}" for name in names.get(layer.name, [])]
        part.attrs["weight_names"] = [name.encode() for name in full]
        for name, value in zip(full, layer.get_weights()):
            part.create_dataset(name, data=value)
"""
)
SKLEARN = (
    DATA
    + """
from skl2onnx import to_onnx
from sklearn.neural_network import MLPClassifier
flat = x.reshape(len(x), -1).astype(np.float32)
model = MLPClassifier((24,), max_iter=10, random_state=0).fit(flat / 255, y)
np.save("expected.npy", model.predict_proba(flat / 255))
open("model.onnx", "wb").write(to_onnx(model, flat[:1]).SerializeToString())
"""
)
# environment, program, options of the command, whether the original answers with probabilities
CASES = {
    "torch.onnx": (
        "core-torch", TORCH, ["--model", "model.onnx", "--mean", "0.5", "--std", "1"], False,
    ),
    "PyTorch module": (
        "core-torch", TORCH,
        ["--model", "net.py:Net", "--weights", "weights.pt", "--mean=0.5", "--std=1"], False,
    ),
    "Keras 3": ("core-keras", KERAS, ["--model", "model.keras"], True),
    "Keras 2": ("core-keras", KERAS_2, ["--model", "model.h5"], True),
    "scikit-learn": ("modelfix", SKLEARN, ["--model", "model.onnx"], True),
}  # fmt: skip


@pytest.fixture(scope="module")
def images():
    """Real images: the first of those that are shipped."""
    train = make_dataset(named("fashion-mini-lenet5"), None, 0)["train"]
    return np.asarray(train.x[:IMAGES, 0]), np.asarray(train.y[:IMAGES])


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize("framework", CASES)
def test_a_model_of(framework, tmp_path, workspace, images, modelfix, home, monkeypatch):
    environment, program, options, probabilities = CASES[framework]
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", x=images[0], y=images[1])
    Path("net.py").write_text(NET)
    Path("train.py").write_text(program)
    python = ensure(workspace, workspace.environments[environment])
    trained = subprocess.run(
        [python, "train.py"], env=clean_environ(), capture_output=True, text=True, check=False
    )
    assert trained.returncode == 0, trained.stderr
    expected = np.load("expected.npy")

    name = framework.replace(" ", "-")
    done = modelfix("prepare", "--name", name, "--data", "data.npz", *options)
    assert done.returncode == 0, done.stderr
    subject = Subject.load(home / "subjects" / name, verify=True)
    for split in subject.dataset().splits.values():
        found = subject.model.predict(split)
        found = softmax(found) if probabilities else found
        np.testing.assert_allclose(found, expected[split.ids], rtol=0, atol=1e-4)
    assert modelfix("doctor", "--subject", name).returncode == 0

    given = dict(part.split("=") for part in options if "=" in part)
    plain = [part for part in options if "=" not in part]
    given |= dict(zip(plain[::2], plain[1::2], strict=True))
    compared = modelfix(
        "compare", given.pop("--model"), subject.folder / "model.onnx", "--data", "data.npz",
        "--max-nfr", "0%", "--json",
        *(f"{key.replace('--weights', '--old-weights')}={value}" for key, value in given.items()),
    )  # fmt: skip
    assert compared.returncode == 0, compared.stderr
    verdict = json.loads(compared.stdout)
    assert verdict["inputs"] == IMAGES
    assert verdict["newly_fixed"] == verdict["newly_broken"] == []

    fixed = modelfix(
        "fix", "-a", "IR", "--subject", name, "--no-attack", "--set", "iterations=20",
        "--set", "gamma=[2]", "--json",
    )  # fmt: skip
    assert fixed.returncode == 0, fixed.stderr
    (cell,) = json.loads(fixed.stdout)
    test = subject.dataset(("test",))["test"]
    table = pq.read_table(Path(cell["folder"]) / "predictions.parquet")
    before = np.stack(table["logits_before"].to_numpy(zero_copy_only=False))
    before = softmax(before) if probabilities else before
    np.testing.assert_allclose(before, expected[table["id"].to_numpy()], rtol=0, atol=1e-4)
    assert len(table) == len(test)


# -- a user's mistakes -----------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A model and images that fit, in the current folder."""
    from modelfix_testing import mlp

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    mlp([rng.normal(size=(3, 16))], [np.zeros(3)], (1, 4, 4)).save(tmp_path / "m.onnx")
    x = rng.integers(0, 256, (90, 4, 4), dtype=np.uint8)
    np.save("x.npy", x)
    np.save("y.npy", np.arange(90) % 3)
    np.save("y4.npy", np.arange(90) % 4)
    np.save("pickled.npy", np.array([{}] * 90), allow_pickle=True)
    Path("text.onnx").write_text("hello")
    Path("risks.yaml").write_text("0: 2\nunheard: 1\n")
    for number, pixels in enumerate(x):
        folder = Path("images") / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    Path("images/class1/1.png").write_bytes(b"broken")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "none.onnx"], "none.onnx: does not exist"),
        (["--model", "text.onnx"], "text.onnx: is not an ONNX file"),
        (["--data", "none"], "none: does not exist"),
        (["--data", "pickled.npy"], "without pickled objects"),
        (["--labels", "y4.npy"], "predicts 3 classes but the data have 4"),
        (["--risk", "risks.yaml"], "there is no class 'unheard'"),
        (["--mean", "a,b"], "'a,b' is not of the form 0.5,0.5,0.5"),
        (["--weights", "y.npy"], "--weights belong to a PyTorch factory"),
        (["--name", "../up"], "cannot be the name of your subject"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(modelfix, home, files, options, words):
    given = {"--model": "m.onnx", "--data": "x.npy", "--labels": "y.npy", "--name": "wrong"}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    done = modelfix("prepare", *[part for pair in given.items() for part in pair])
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not list((home / "subjects").glob("*wrong*/*"))


def test_an_unreadable_image(modelfix, files):
    done = modelfix("prepare", "--name", "wrong", "--model", "m.onnx", "--data", "images")
    assert done.returncode == 2
    assert "1.png: is not a readable image" in done.stderr
    assert len(done.stderr.splitlines()) == 1
