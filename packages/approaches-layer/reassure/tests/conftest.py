"""Small networks, faults in them, and points of a region."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx
import pytest
from modelfix_core.approach import Task
from modelfix_core.dataset import Split
from modelfix_core.model import Model
from modelfix_reassure.block import Block, find_block
from modelfix_reassure.region import Region, build_region
from onnx import TensorProto, helper, numpy_helper


def make_mlp(
    widths: Sequence[int],
    seed: int = 0,
    between: Sequence[str] = ("Relu",),
    before: Sequence[str] = ("Flatten",),
    bias: float = 0.3,
) -> Model:
    """Build an MLP with random weights on images [widths[0], 1, 1]."""
    rng = np.random.default_rng(seed)
    nodes, tensors = [], []
    last = "x"

    def add(op: str, parameters: Sequence[str] = (), **attributes) -> None:
        nonlocal last
        output = f"t{len(nodes)}"
        nodes.append(helper.make_node(op, [last, *parameters], [output], output, **attributes))
        last = output

    def tensor(name: str, values: np.ndarray) -> str:
        tensors.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def batchnorm(name: str, width: int) -> None:
        values = [
            rng.uniform(0.5, 1.5, width),
            rng.normal(0, 0.2, width),
            rng.normal(0, 0.2, width),
            rng.uniform(0.5, 1.5, width),
        ]
        parts = ("weight", "bias", "mean", "var")
        add(
            "BatchNormalization",
            [tensor(f"{name}.{part}", v) for part, v in zip(parts, values, strict=True)],
        )

    for op in before:
        add(op)
    for depth, (width_in, width) in enumerate(pairwise(widths)):
        weight = tensor(f"fc{depth}.weight", rng.normal(size=(width, width_in)) / width_in**0.5 * 2)
        shift = tensor(f"fc{depth}.bias", bias * rng.normal(size=width))
        add("Gemm", [weight, shift], transB=1)
        if depth < len(widths) - 2:
            for op in between:
                if op == "BatchNormalization":
                    batchnorm(f"bn{depth}", width)
                else:
                    add(op, **({"alpha": 0.1} if op == "LeakyRelu" else {}))
    shapes = [["N", widths[0], 1, 1], ["N", widths[-1]]]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(("x", last), shapes, strict=True)
    ]
    graph = helper.make_graph(nodes, "mlp", values[:1], values[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(proto)
    return Model(proto, "mlp")


@pytest.fixture
def mlp():
    return make_mlp


def make_task(model: Model, seed: int = 0, faults: int = 20, n: int = 300) -> Task:
    """Label random images by the model itself, but for `faults` ones of the repair split."""
    rng = np.random.default_rng(seed)

    def split(count: int, wrong: int = 0) -> Split:
        x = rng.random((count, *model.input_shape), dtype=np.float32)
        y = model.predict(x).argmax(axis=1).astype(np.int64)
        y[:wrong] = (y[:wrong] + rng.integers(1, model.num_classes, wrong)) % model.num_classes
        return Split(x, y)

    return Task(model, repair=split(n, faults), validation=split(n), train=split(n))


@pytest.fixture
def task():
    return make_task


def make_case(model: Model, seed: int = 0) -> tuple[Block, Region, np.ndarray, np.ndarray, int]:
    """Return block, region, pattern and features of a random input, and a wrong label for it."""
    rng = np.random.default_rng(seed)
    block = find_block(model)
    h = rng.random(block.maps[0].weight.shape[1])
    pattern = block.patterns(h[None])[0]
    label = int(np.argsort(block.preactivations(h[None])[-1][0])[-2])
    size = len(h)
    return block, build_region(block, pattern, np.zeros(size), np.ones(size)), pattern, h, label


@pytest.fixture
def case():
    return make_case


def walk(region: Region, start: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Draw `count` points of the region, box included, by hit and run."""
    rng = np.random.default_rng(seed)
    size = len(start)
    rows = np.concatenate([region.a, np.eye(size), -np.eye(size)])
    bounds = np.concatenate([region.b, region.upper, -region.lower])
    points, h = [], start
    for _ in range(count):
        direction = rng.normal(size=size)
        speed, room = rows @ direction, np.maximum(bounds - rows @ h, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = room / speed
        forward = np.min(steps[speed > 0])
        backward = np.max(steps[speed < 0])
        h = h + rng.uniform(0.999 * backward, 0.999 * forward) * direction
        points.append(h)
    return np.array(points)


@pytest.fixture
def hit_and_run():
    return walk
