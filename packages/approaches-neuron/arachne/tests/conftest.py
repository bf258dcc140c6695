"""Tiny models with known weights, as ONNX, and the data they are right on."""

import itertools

import numpy as np
import onnx
import pytest
from modelfix_core import Model, Split, Task
from onnx import TensorProto, helper, numpy_helper


def _softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _train(x, y, sizes, seed, steps=400):
    """Train an MLP with Adam; returns [(W [out, in], b), ...]."""
    rng = np.random.default_rng(seed)
    layers = [
        [rng.normal(0, np.sqrt(2 / i), (o, i)), np.zeros(o)] for i, o in itertools.pairwise(sizes)
    ]
    moments = [[[np.zeros_like(p), np.zeros_like(p)] for p in layer] for layer in layers]
    for step in range(1, steps + 1):
        hs = [x]
        for k, (w, b) in enumerate(layers):
            z = hs[-1] @ w.T + b
            hs.append(np.maximum(z, 0) if k < len(layers) - 1 else z)
        d = _softmax(hs[-1])
        d[np.arange(len(y)), y] -= 1
        d /= len(y)
        for k in reversed(range(len(layers))):
            grads = [d.T @ hs[k], d.sum(axis=0)]
            d = (d @ layers[k][0]) * (hs[k] > 0)
            for p, g, m in zip(layers[k], grads, moments[k], strict=True):
                m[0] = 0.9 * m[0] + 0.1 * g
                m[1] = 0.999 * m[1] + 0.001 * g**2
                hat = m[0] / (1 - 0.9**step), m[1] / (1 - 0.999**step)
                p -= 0.01 * hat[0] / (np.sqrt(hat[1]) + 1e-8)
    return layers


class Graph:
    """Builds an ONNX model node by node."""

    def __init__(self, shape):
        self.shape, self.nodes, self.weights, self.last = shape, [], [], "x"

    def add(self, op, *arrays, inputs=None, **attributes):
        """Append a node; `arrays` are (name, values)."""
        for name, values in arrays:
            self.weights.append(numpy_helper.from_array(np.float32(values), name))
        output = f"t{len(self.nodes)}"
        inputs = inputs or [self.last]
        names = [*inputs, *(name for name, _ in arrays)]
        self.nodes.append(
            helper.make_node(op, names, [output], f"n{len(self.nodes)}", **attributes)
        )
        self.last = output
        return self

    def model(self, classes):
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self.shape])
        z = helper.make_tensor_value_info(self.last, TensorProto.FLOAT, ["N", classes])
        graph = helper.make_graph(self.nodes, "tiny", [x], [z], self.weights)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        proto.ir_version = 9
        onnx.checker.check_model(proto)
        return Model(proto, "tiny")


@pytest.fixture
def graph():
    """Return the builder of ONNX models: graph((C, H, W)).add(...).model(classes)."""
    return Graph


@pytest.fixture
def blobs():
    """Return a function that draws n standardised inputs of 8 features in 4 classes of 2 blobs."""

    def make(seed, n=600, noise=0.5):
        rng = np.random.default_rng(seed)
        centres = rng.normal(0, 1, (8, 8))
        label = rng.integers(8, size=n)
        x = centres[label] + rng.normal(0, noise, (n, 8))
        return Split(x.astype(np.float32).reshape(n, 8, 1, 1), (label % 4).astype(np.int64))

    return make


@pytest.fixture
def mlp():
    """Return a function that trains an MLP on a split and gives it as ONNX, layers fc1, fc2, ..."""

    def make(split, sizes, seed=0):
        x = split.images().reshape(len(split), -1).astype(np.float64)
        net = Graph(split.x.shape[1:]).add("Flatten")
        layers = _train(x, split.y, sizes, seed)
        for k, (w, b) in enumerate(layers, start=1):
            net.add("Gemm", (f"fc{k}.weight", w), (f"fc{k}.bias", b), transB=1)
            if k < len(layers):
                net.add("Relu")
        return net.model(sizes[-1])

    return make


@pytest.fixture
def convnet(graph):
    """Return a function that gives a random conv-pool-conv-dense network and random inputs."""

    def make(seed=0, n=7, stride=1, dilation=1, dead=False):
        rng = np.random.default_rng(seed)
        net = graph((2, 8, 8))
        net.add(
            "Conv",
            ("conv1.weight", rng.normal(0, 0.5, (3, 2, 3, 3))),
            ("conv1.bias", rng.normal(0, 0.1, 3)),
            pads=[1, 1, 1, 1],
            strides=[stride, stride],
        )
        net.add("Relu").add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
        net.add(
            "Conv",
            ("conv2.weight", rng.normal(0, 0.5, (4, 3, 2, 2))),
            kernel_shape=[2, 2],
            dilations=[dilation, dilation],
            pads=[dilation, 0, 0, dilation],
        )
        net.add("Tanh").add("Flatten")
        side = 8 // stride // 2
        net.add(
            "Gemm",
            ("fc1.weight", rng.normal(0, 0.3, (6, 4 * side * side))),
            ("fc1.bias", rng.uniform(0.5, 1.5, 6)),
            transB=1,
        )
        net.add("Relu")
        net.add(
            "Gemm", ("fc2.weight", rng.normal(0, 0.5, (3, 6))), ("fc2.bias", [0, 0, 0]), transB=1
        )
        x = rng.random((n, 2, 8, 8), dtype=np.float32)
        if dead:
            x[:, :, :4, :4] = 0
        return net.model(3), Split(x, rng.integers(3, size=n))

    return make


@pytest.fixture
def task():
    """Return a function that makes a task whose repair split also validates."""

    def make(model, split, **values):
        return Task(model=model, repair=split, validation=split, **values)

    return make
