from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from modelfix_core import Model, Split
from modelfix_core.torch import export
from modelfix_testing import mlp
from modelfix_vere.suffix import Activation, Suffix
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from torch import nn


def trained(split, sizes, activation="ReLU", norm=False, steps=150, seed=0):
    """Train a fully connected network on `split`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = [nn.Flatten()]
        for before, after in pairwise(sizes[:-1]):
            parts.append(nn.Linear(before, after))
            parts += [nn.BatchNorm1d(after)] if norm else []
            parts += [getattr(nn, activation)(), nn.Dropout(0.1)]
        module = nn.Sequential(*parts, nn.Linear(*sizes[-2:]))
    x, y = torch.from_numpy(split.images()), torch.tensor(np.asarray(split.y))
    optimiser = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimiser.step()
    return export(module.eval(), split.x.shape[1:])


@dataclass
class Digits:
    """Real images of digits, 8 x 8, and networks trained on some of them."""

    train: Split
    repair: Split
    validation: Split
    made: dict

    def network(self, sizes=(64, 64, 64, 10), **options) -> Model:
        key = (sizes, *sorted(options.items()))
        if key not in self.made:
            self.made[key] = trained(self.train, sizes, **options)
        return self.made[key]


@pytest.fixture(scope="session")
def digits() -> Digits:
    data = load_digits()
    x = (data.images[:, None] / 16).astype(np.float32)
    y = data.target.astype(np.int64)
    cuts = (slice(0, 500), slice(500, 1150), slice(1150, None))
    return Digits(*(Split(x[c], y[c]) for c in cuts), {})


def random_suffix(
    widths: Sequence[int], operators: Sequence[str], seed: int = 0, leak: float = 0.2
) -> Suffix:
    """A chain of random affine maps; the last width is the number of classes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    affine = [(draw(b, a) / a**0.5, draw(b) / 2) for a, b in pairwise(widths)]
    activations = [Activation(o, leak if o == "LeakyRelu" else 0.0) for o in operators]
    return Suffix(affine, activations)


@pytest.fixture
def suffix_of():
    return random_suffix


@pytest.fixture
def problem():
    """Return a function that draws hidden vectors, rows and edges for a suffix."""

    def make(suffix: Suffix, inputs: int = 12, pieces: int = 5, seed: int = 1):
        generator = torch.Generator().manual_seed(seed)
        width, classes = suffix.affine[0][0].shape[1], len(suffix.affine[-1][1])
        hidden = torch.randn((inputs, width), generator=generator).relu() * 2
        labels = torch.randint(classes, (inputs,), generator=generator)
        rivals = (labels + 1 + torch.randint(classes - 1, (inputs,), generator=generator)) % classes
        one = torch.eye(classes)
        low, high = hidden.amin(dim=0), hidden.amax(dim=0)
        steps = torch.arange(pieces + 1) / pieces
        edges = (low - (high - low))[:, None] + (2 * (high - low))[:, None] * steps
        return hidden, one[labels] - one[rivals], torch.arange(width), edges

    return make


class Graph:
    """Builds an ONNX model node by node."""

    def __init__(self, shape):
        self.shape, self.nodes, self.weights = shape, [], []

    def add(self, operator, output, *inputs, weights=(), **attributes):
        for name, values in weights:
            self.weights.append(numpy_helper.from_array(np.float32(values), name))
        names = [*inputs, *(name for name, _ in weights)]
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [output], name, **attributes))
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
    return Graph


@pytest.fixture
def dense_model():
    """Return a function that makes an untrained fully connected model of the given widths."""

    def make(*widths, activation="Relu", seed=0):
        rng = np.random.default_rng(seed)
        pairs = list(pairwise(widths))
        weights = [rng.normal(0, a**-0.5, (b, a)) for a, b in pairs]
        return mlp(weights, [np.zeros(b) for _, b in pairs], (widths[0], 1, 1), activation)

    return make
