"""Small models and datasets built node by node, shared by core's tests."""

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
from modelfix_core import (
    Approach,
    ApproachConfig,
    ApproachInfo,
    Candidate,
    Category,
    Dataset,
    Framework,
    Localisation,
    Model,
    Need,
    Split,
    Task,
    Unadaptable,
)
from onnx import TensorProto, helper, numpy_helper

SHAPE = (1, 4, 4)
CLASSES = 3


def graph_model(nodes, weights, *, shape=SHAPE, classes=CLASSES, opset=17, batch="N"):
    """Return an unchecked ModelProto from nodes and named arrays."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def dense_proto(seed: int = 0, **options) -> onnx.ModelProto:
    """Flatten, dense with ReLU, dense: the smallest classifier with two layers."""
    rng = np.random.default_rng(seed)
    weights = {
        "fc1.weight": rng.normal(size=(8, 16)).astype(np.float32),
        "fc1.bias": rng.normal(size=8).astype(np.float32),
        "fc2.weight": rng.normal(size=(CLASSES, 8)).astype(np.float32),
        "fc2.bias": rng.normal(size=CLASSES).astype(np.float32),
    }
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc1.weight", "fc1.bias"], ["z1"], transB=1),
        helper.make_node("Relu", ["z1"], ["h1"]),
        helper.make_node("Gemm", ["h1", "fc2.weight", "fc2.bias"], ["out"], transB=1),
    ]
    return graph_model(nodes, weights, **options)


@pytest.fixture
def proto() -> onnx.ModelProto:
    return dense_proto()


@pytest.fixture
def make_proto() -> Callable[..., onnx.ModelProto]:
    return graph_model


@pytest.fixture
def model() -> Model:
    return Model(dense_proto(), "small")


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(1).random((20, *SHAPE), dtype=np.float32)


@pytest.fixture
def dataset(model: Model) -> Dataset:
    """Four splits whose labels the model gets right in about three of four cases."""
    rng = np.random.default_rng(2)
    splits, start = {}, 0
    for name, size in {"train": 60, "validation": 40, "repair": 40, "test": 40}.items():
        images = rng.integers(0, 256, (size, *SHAPE), dtype=np.uint8)
        y = model.predict(images.astype(np.float32) / 255).argmax(axis=1)
        wrong = rng.random(size) < 0.25
        y[wrong] = (y[wrong] + 1) % CLASSES
        splits[name] = Split(images, y.astype(np.int64), ids=np.arange(start, start + size))
        start += size
    return Dataset(splits, ["a", "b", "c"])


class Nudge(Approach):
    """Proposes the original model with its last bias moved step by step: a stand-in for a test."""

    info = ApproachInfo(
        name="nudge",
        abbreviation="ND",
        title="Nudge",
        category=Category.NEURON,
        framework=Framework.NONE,
        paper="none",
        summary="Moves a bias.",
        needs=frozenset({Need.REPAIR}),
    )

    class Config(ApproachConfig):
        steps: int = 3
        size: float = 1e-3
        fail: str = ""

    def check(self, task: Task) -> None:
        if self.config.fail == "unadaptable":
            raise Unadaptable("this model is too small")

    def candidates(self, task: Task) -> Iterator[Candidate | Localisation]:
        layer = task.model.layers("dense")[-1]
        yield Localisation("neuron", [layer.name], np.array([0]), np.array([1.0]))
        bias = task.model.weights[layer.bias]
        for step in range(1, self.config.steps + 1):
            task.progress(step, self.config.steps)
            if self.config.fail == "crash":
                raise ZeroDivisionError("the search divided by zero")
            moved = bias.copy()
            moved[0] += step * self.config.size
            yield Candidate(weights={layer.bias: moved}, step=step, values={"moved": moved[0]})


@pytest.fixture
def nudge() -> type[Nudge]:
    return Nudge
