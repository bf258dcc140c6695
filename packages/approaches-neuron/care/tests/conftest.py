from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
from modelfix_core.dataset import Split
from modelfix_core.model import Model
from modelfix_core.torch import export
from onnx import TensorProto, helper, numpy_helper
from torch import nn

torch.set_num_threads(1)  # the networks are tiny: threads would only wait for each other


@dataclass(frozen=True)
class Trained:
    """A module trained on inputs of 8 features in 4 classes, and the model exported from it."""

    module: nn.Sequential
    model: Model
    split: Split


def build(activation="ReLU", norm=False):
    middle = [nn.BatchNorm1d(16)] if norm else []
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(8, 24),
        nn.ReLU(),
        nn.Linear(24, 16),
        *middle,
        getattr(nn, activation)(),
        nn.Linear(16, 4),
    )


def blobs(seed, n=600, noise=0.6):
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 1, (8, 8))
    label = rng.integers(8, size=n)
    x = centres[label] + rng.normal(0, noise, (n, 8))
    return Split(x.astype(np.float32).reshape(n, 8, 1, 1), (label % 4).astype(np.int64))


@pytest.fixture(scope="session")
def trained():
    """Return a function that trains an 8-24-16-4 network and gives it with its inputs."""
    made = {}

    def make(seed=0, activation="ReLU", norm=False, steps=150):
        key = seed, activation, norm, steps
        if key not in made:
            split = blobs(seed)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                module = build(activation, norm)
            x, y = torch.from_numpy(split.images()), torch.tensor(split.y)
            optimiser = torch.optim.Adam(module.parameters(), 1e-2)
            for _ in range(steps):
                optimiser.zero_grad()
                nn.functional.cross_entropy(module(x), y).backward()
                optimiser.step()
            model = export(module.eval(), (8, 1, 1))
            made[key] = Trained(module, model, split)
        return made[key]

    return make


class Graph:
    """Builds an ONNX model node by node."""

    def __init__(self, shape):
        self.shape, self.nodes, self.weights = shape, [], []

    def add(self, op, output, *inputs, weights=(), **attributes):
        """Append a node; `weights` are (name, values) and follow the inputs."""
        for name, values in weights:
            self.weights.append(numpy_helper.from_array(np.float32(values), name))
        names = [*inputs, *(name for name, _ in weights)]
        self.nodes.append(
            helper.make_node(op, names, [output], f"n{len(self.nodes)}", **attributes)
        )
        return self

    def dense(self, name, output, source, weight, bias=None):
        weights = [(f"{name}.weight", weight)]
        if bias is not None:
            weights.append((f"{name}.bias", bias))
        return self.add("Gemm", output, source, weights=weights, transB=1)

    def model(self, output, classes):
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self.shape])
        z = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", classes])
        graph = helper.make_graph(self.nodes, "tiny", [x], [z], self.weights)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        proto.ir_version = 9
        onnx.checker.check_model(proto)
        return Model(proto, "tiny")


@pytest.fixture
def graph():
    """Return the builder of ONNX models."""
    return Graph


@pytest.fixture
def networks(graph, trained):
    """Return models of every shape that the tail above a hidden vector can have, by name."""
    rng = np.random.default_rng(0)

    def w(*shape):
        return rng.normal(0, 0.6, shape)

    def start():
        return graph((8, 1, 1)).add("Flatten", "flat", "x")

    deep = start().dense("fc1", "z1", "flat", w(6, 8), w(6)).add("Tanh", "h1", "z1")
    deep.dense("fc2", "z2", "h1", 3 * w(5, 6), w(5)).add("Sigmoid", "h2", "z2")
    classifier = w(4, 5)
    # Centred, so that no class wins everywhere.
    deep.dense("fc3", "z3", "h2", 4 * classifier, -2 * classifier.sum(axis=1))

    beside = start().dense("fc1", "z1", "flat", w(6, 8), w(6)).add("Relu", "h1", "z1")
    beside.dense("fc2", "z2", "h1", w(6, 6)).add("Add", "s", "z2", "h1").add("Relu", "h2", "s")
    beside.dense("fc3", "z3", "h2", w(4, 6), w(4))

    norm = start().dense("fc1", "z1", "flat", w(6, 8), w(6)).add("Relu", "h1", "z1")
    statistics = [("n.weight", w(6)), ("n.bias", w(6)), ("n.mean", w(6)), ("n.var", w(6) ** 2 + 1)]
    norm.add("BatchNormalization", "b1", "h1", weights=statistics)
    norm.dense("fc2", "z2", "b1", w(4, 6), w(4))

    pooled = graph((2, 4, 4)).add(
        "Conv", "c", "x", weights=[("conv.weight", w(7, 2, 3, 3)), ("conv.bias", w(7))]
    )
    pooled.add("Relu", "r", "c").add("GlobalAveragePool", "p", "r").add("Flatten", "f", "p")
    pooled.dense("fc", "z", "f", w(4, 7), w(4))

    return {
        "relu": trained().model,
        "tanh": trained(activation="Tanh").model,
        "norm below": trained(norm=True).model,
        "deep": deep.model("z3", 4),
        "beside": beside.model("z3", 4),
        "norm above": norm.model("z2", 4),
        "pooled": pooled.model("z", 4),
    }


@pytest.fixture
def inputs():
    """Return a function that draws inputs for a model, with labels it is mostly right on."""

    def make(model, n=70, seed=1):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n, *model.input_shape)).astype(np.float32)
        y = model.predict(x).argmax(axis=1).astype(np.int64)
        wrong = rng.random(n) < 0.2
        y[wrong] = rng.integers(model.num_classes, size=wrong.sum())
        return Split(x, y)

    return make
