"""The architectures of the study's subjects as ONNX graphs with random weights, no framework.

They have the nodes and the parameter names of what `modelfix_core.subjects.architectures` builds
and PyTorch exports: whatever reads the graph alone, as the check of an approach does, can be tried
on them at once. Fewer channels make them small without changing their structure.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelfix_core.errors import ModelfixError
from modelfix_core.model import Model
from modelfix_core.subjects.catalogue import named


def untrained(name: str, width: float = 1.0, seed: int = 0) -> Model:
    """Build the model of a named subject with random weights.

    Parameters
    ----------
    name : str
        Of a subject whose architecture is one of the study's.
    width : float
        Factor on the channels of convolutions and on hidden dense layers, at most 1; LeNet5 is
        small and stays as it is.
    seed : int
        Of the weights.

    Returns
    -------
    Model

    Raises
    ------
    ModelfixError
        If there is no such subject, or none of the study's architectures in it.
    """
    subject = named(name)
    if subject.architecture not in BUILDERS:
        raise ModelfixError(
            f"{name}: its architecture {subject.architecture} is not among those that can be built "
            f"without a framework ({', '.join(BUILDERS)})."
        )
    graph = _Graph(subject.input_shape, np.random.default_rng(seed))
    if subject.mean is not None and subject.std is not None:
        for operator, what, values in (("Sub", "mean", subject.mean), ("Div", "std", subject.std)):
            array = np.asarray(values, np.float32)[:, None, None]
            graph.node(operator, graph.weight(f"normalise.{what}", array))
    labels = subject.origin.classes
    BUILDERS[subject.architecture](graph, len(labels), lambda n: max(1, round(n * width)))
    return graph.model(subject.architecture, len(labels))


Width = Callable[[int], int]


class _Graph:
    """Builds a graph node by node; `x` is the tensor to go on from, `channels` its second axis."""

    def __init__(self, shape: Sequence[int], rng: np.random.Generator) -> None:
        self.shape, self.rng = tuple(shape), rng
        self.channels, self.side = shape[0], shape[1]
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.x = "images"

    def weight(self, name: str, values: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> None:
        name = name or f"{operator}_{len(self.nodes)}"
        out = f"{name}.output"
        self.nodes.append(helper.make_node(operator, [self.x, *inputs], [out], name, **attributes))
        self.x = out

    def conv(
        self, name: str, out: int, size: int, stride: int = 1, padding: int = 0, bias: bool = False
    ) -> None:
        fan_in = self.channels * size * size
        values = self.rng.normal(0, (2 / fan_in) ** 0.5, (out, self.channels, size, size))
        inputs = [self.weight(f"{name}.weight", values)]
        if bias:
            inputs.append(self.weight(f"{name}.bias", np.zeros(out)))
        self.node(
            "Conv",
            *inputs,
            name=name,
            kernel_shape=[size] * 2,
            strides=[stride] * 2,
            pads=[padding] * 4,
        )
        self.channels = out
        self.side = (self.side + 2 * padding - size) // stride + 1

    def norm(self, name: str) -> None:
        ones, zeros = np.ones(self.channels), np.zeros(self.channels)
        entries = (
            ("weight", ones),
            ("bias", zeros),
            ("running_mean", zeros),
            ("running_var", ones),
        )
        inputs = [self.weight(f"{name}.{entry}", values) for entry, values in entries]
        self.node("BatchNormalization", *inputs, name=name, epsilon=1e-5, momentum=0.9)

    def relu(self) -> None:
        self.node("Relu")

    def pool(self, size: int = 2, stride: int = 2, padding: int = 0, kind: str = "MaxPool") -> None:
        self.node(kind, kernel_shape=[size] * 2, strides=[stride] * 2, pads=[padding] * 4)
        self.side = (self.side + 2 * padding - size) // stride + 1

    def global_pool(self) -> None:
        self.node("GlobalAveragePool")
        self.side = 1

    def flatten(self) -> None:
        self.node("Flatten")
        self.channels *= self.side**2

    def dropout(self) -> None:
        rate = f"dropout_{len(self.nodes)}.rate"
        value = numpy_helper.from_array(np.float32(0.5))
        self.nodes.append(helper.make_node("Constant", [], [rate], value=value))
        self.node("Dropout", rate)

    def dense(self, name: str, out: int) -> None:
        values = self.rng.normal(0, self.channels**-0.5, (out, self.channels))
        inputs = [
            self.weight(f"{name}.weight", values),
            self.weight(f"{name}.bias", np.zeros(out)),
        ]
        self.node("Gemm", *inputs, name=name, transB=1)
        self.channels = out

    def model(self, name: str, classes: int) -> Model:
        self.nodes[-1].output[0] = "logits"
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", *self.shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
            self.initializers,
        )
        return Model(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
            name,
        )


def _lenet5(g: _Graph, classes: int, _width: Width) -> None:
    g.conv("conv1", 6, 5, bias=True)
    g.relu()
    g.pool(3, 3)
    g.conv("conv2", 16, 3, bias=True)
    g.relu()
    g.pool()
    g.flatten()
    for name, out in (("fc1", 120), ("fc2", 84)):
        g.dense(name, out)
        g.relu()
    g.dense("fc3", classes)


def _facenet(g: _Graph, classes: int, width: Width) -> None:
    for number, out in enumerate((32, 64, 128, 256), 1):
        g.conv(f"conv{number}", width(out), 3, padding=1, bias=True)
        g.relu()
        g.pool()
    g.flatten()
    g.dense("fc1", width(128))
    g.relu()
    g.dense("fc2", classes)


def _vgg16(g: _Graph, classes: int, width: Width) -> None:
    position = 0
    for out, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            g.conv(f"features.{position}", width(out), 3, padding=1)
            g.norm(f"features.{position + 1}")
            g.relu()
            position += 3
        g.pool()
        position += 1
    g.flatten()
    for position in (0, 3):
        g.dense(f"classifier.{position}", width(512))
        g.relu()
        g.dropout()
    g.dense("classifier.6", classes)


def _resnet18(g: _Graph, classes: int, width: Width) -> None:
    g.conv("conv1", width(64), 3, padding=1)
    g.norm("bn1")
    g.relu()
    for number, out in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            stride = 2 if number > 1 and block == 0 else 1
            _basic_block(g, f"layer{number}.{block}", width(out), stride)
    g.global_pool()
    g.flatten()
    g.dense("fc", classes)


def _basic_block(g: _Graph, name: str, out: int, stride: int) -> None:
    start, channels, side = g.x, g.channels, g.side
    g.conv(f"{name}.conv1", out, 3, stride, 1)
    g.norm(f"{name}.bn1")
    g.relu()
    g.conv(f"{name}.conv2", out, 3, 1, 1)
    g.norm(f"{name}.bn2")
    main = g.x
    if stride != 1:
        g.x, g.channels, g.side = start, channels, side
        g.conv(f"{name}.shortcut.0", out, 1, stride)
        g.norm(f"{name}.shortcut.1")
        start = g.x
    g.x = main
    g.node("Add", start)
    g.relu()


def _densenet121(g: _Graph, classes: int, width: Width) -> None:
    growth = width(32)
    g.conv("features.conv0", width(64), 7, 2, 3)
    g.norm("features.norm0")
    g.relu()
    g.pool(3, 2, 1)
    for number, count in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, count + 1):
            _dense_layer(g, f"features.denseblock{number}.denselayer{layer}", growth)
        if number < 4:
            g.norm(f"features.transition{number}.norm")
            g.relu()
            g.conv(f"features.transition{number}.conv", g.channels // 2, 1)
            g.pool(kind="AveragePool")
    g.norm("features.norm5")
    g.relu()
    g.global_pool()
    g.flatten()
    g.dense("classifier", classes)


def _dense_layer(g: _Graph, name: str, growth: int) -> None:
    start, channels = g.x, g.channels
    g.norm(f"{name}.norm1")
    g.relu()
    g.conv(f"{name}.conv1", 4 * growth, 1)
    g.norm(f"{name}.norm2")
    g.relu()
    g.conv(f"{name}.conv2", growth, 3, padding=1)
    new, g.x = g.x, start
    g.node("Concat", new, axis=1)
    g.channels = channels + growth


BUILDERS: dict[str, Callable[[_Graph, int, Width], None]] = {
    "lenet5": _lenet5,
    "facenet": _facenet,
    "vgg16": _vgg16,
    "resnet18": _resnet18,
    "densenet121": _densenet121,
}
