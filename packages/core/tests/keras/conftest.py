"""Graphs as the PyTorch exporter writes them, built node by node, and Keras models."""

import importlib.util

import numpy as np
import pytest
from modelfix_core import Model
from onnx import TensorProto, helper, numpy_helper

if importlib.util.find_spec("tensorflow") is None:
    collect_ignore_glob = ["test_*.py"]


class Graph:
    """Builds a model node by node; `x` is the tensor to go on from."""

    def __init__(self, shape, seed=0):
        self.shape, self.rng = shape, np.random.default_rng(seed)
        self.nodes, self.initializers, self.x = [], {}, "input"

    def weight(self, name, *shape, low=None):
        fan_in = max(1, int(np.prod(shape[1:])))
        values = self.rng.normal(0, fan_in**-0.5, shape)
        if low is not None:
            values = self.rng.uniform(low, low + 1, shape)
        self.initializers[name] = values.astype(np.float32)
        return name

    def const(self, values, dtype=np.float32):
        name = f"constant_{len(self.nodes)}"
        tensor = numpy_helper.from_array(np.asarray(values, dtype))
        self.nodes.append(helper.make_node("Constant", [], [name], f"/Const_{name}", value=tensor))
        return name

    def node(self, op, *inputs, name=None, start=None, **attributes):
        name = name or f"/{op}_{len(self.nodes)}"
        inputs = [self.x if start is None else start, *inputs]
        self.x = f"{name}_output_0"
        self.nodes.append(helper.make_node(op, inputs, [self.x], name, **attributes))
        return self.x

    def conv(self, name, channels, out, size, *, bias=True, groups=1, start=None, **attributes):
        inputs = [self.weight(f"{name}.weight", out, channels // groups, size, size)]
        if bias:
            inputs.append(self.weight(f"{name}.bias", out))
        attributes = {"kernel_shape": [size, size], "group": groups, **attributes}
        return self.node("Conv", *inputs, name=f"/{name}/Conv", start=start, **attributes)

    def bn(self, name, channels):
        inputs = [
            self.weight(f"{name}.weight", channels, low=0.5),
            self.weight(f"{name}.bias", channels),
            self.weight(f"{name}.running_mean", channels),
            self.weight(f"{name}.running_var", channels, low=0.2),
        ]
        return self.node("BatchNormalization", *inputs, momentum=0.9, epsilon=1e-5)

    def fc(self, name, features, out):
        inputs = [self.weight(f"{name}.weight", out, features), self.weight(f"{name}.bias", out)]
        return self.node("Gemm", *inputs, name=f"/{name}/Gemm", transB=1)

    def pool(self, op="MaxPool", size=2, **attributes):
        return self.node(op, kernel_shape=[size, size], **{"strides": [size, size], **attributes})

    def model(self, classes):
        def value(name, shape):
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])

        graph = helper.make_graph(
            self.nodes,
            "main_graph",
            [value("input", self.shape)],
            [value(self.x, [classes])],
            [numpy_helper.from_array(array, name) for name, array in self.initializers.items()],
        )
        opset = helper.make_opsetid("", 17)
        return Model(helper.make_model(graph, opset_imports=[opset], ir_version=8), "test")


def lenet5():
    g = Graph((1, 28, 28))
    g.conv("conv1", 1, 6, 5)
    g.node("Relu")
    g.pool(size=3)
    g.conv("conv2", 6, 16, 3)
    g.node("Relu")
    g.pool()
    g.node("Flatten")
    for name, features, out in (("fc1", 144, 120), ("fc2", 120, 84)):
        g.fc(name, features, out)
        g.node("Relu")
    g.fc("fc3", 84, 10)
    return g.model(10)


def vgg():
    g = Graph((3, 16, 16))
    for index, (channels, out) in enumerate(((3, 8), (8, 12))):
        g.conv(f"features.{index}", channels, out, 3, pads=[1, 1, 1, 1])
        g.bn(f"norms.{index}", out)
        g.node("Relu")
        g.pool()
    g.node("Reshape", g.const([-1, 192], np.int64))
    g.fc("classifier.0", 192, 24)
    g.node("Relu")
    g.node("Dropout", g.const(0.5))
    g.fc("classifier.1", 24, 5)
    return g.model(5)


def resnet():
    g = Graph((3, 16, 16))
    g.conv("stem", 3, 8, 3, bias=False, pads=[1, 1, 1, 1])
    g.bn("stem_bn", 8)
    g.node("Relu")
    for name, channels, out in (("block1", 8, 8), ("block2", 8, 16)):
        start, strides = g.x, [out // channels] * 2
        g.conv(f"{name}.conv1", channels, out, 3, bias=False, pads=[1, 1, 1, 1], strides=strides)
        g.bn(f"{name}.bn1", out)
        g.node("Relu")
        g.conv(f"{name}.conv2", out, out, 3, bias=False, pads=[1, 1, 1, 1])
        main = g.bn(f"{name}.bn2", out)
        if channels != out:
            g.conv(f"{name}.shortcut", channels, out, 1, bias=False, start=start, strides=strides)
            start = g.bn(f"{name}.shortcut_bn", out)
        g.node("Add", start, start=main)
        g.node("Relu")
    g.node("GlobalAveragePool")
    g.node("Flatten")
    g.fc("fc", 16, 5)
    return g.model(5)


def densenet():
    g = Graph((3, 16, 16))
    g.conv("stem", 3, 8, 3, bias=False, pads=[1, 1, 1, 1])
    channels = 8
    for block in range(2):
        for index in range(2):
            name, start = f"block{block}.{index}", g.x
            g.bn(f"{name}.bn", channels)
            g.node("Relu")
            new = g.conv(f"{name}.conv", channels, 4, 3, bias=False, pads=[1, 1, 1, 1])
            g.node("Concat", new, start=start, axis=1)
            channels += 4
        g.bn(f"transition{block}.bn", channels)
        g.node("Relu")
        g.conv(f"transition{block}.conv", channels, channels // 2, 1, bias=False)
        channels //= 2
        g.pool("AveragePool")
    g.node("ReduceMean", axes=[2, 3], keepdims=0)
    g.fc("fc", channels, 5)
    return g.model(5)


TORCH_LIKE = {"lenet5": lenet5, "vgg": vgg, "resnet": resnet, "densenet": densenet}


@pytest.fixture
def graph():
    """The builder: ``graph(shape)``."""
    return Graph


@pytest.fixture(scope="session", params=list(TORCH_LIKE))
def torch_like(request):
    """A model as the PyTorch exporter writes it."""
    return TORCH_LIKE[request.param]()


@pytest.fixture(scope="session")
def built():
    """Models as the PyTorch exporter writes them, by name."""
    return {name: build() for name, build in TORCH_LIKE.items()}


@pytest.fixture(scope="session")
def images():
    """``images(model, n)``: random images [n, C, H, W]."""

    def draw(model, n=20):
        return np.random.default_rng(7).random((n, *model.input_shape), dtype=np.float32)

    return draw
