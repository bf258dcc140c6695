"""A tiny subject of real images with a trained LeNet5, and models built node by node."""

import shutil
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
from modelfix_core import Dataset, Model, Split, Task
from modelfix_core.subject import (
    HISTORY_FOLDER,
    MODEL_FILE,
    Subject,
    SubjectCard,
    data_hash,
    file_hash,
)
from onnx import TensorProto, helper, numpy_helper

SIZES = {"train": 600, "validation": 300, "repair": 300, "test": 300}
NAME = "tiny-lenet5"


def _data() -> Path:
    return Path(str(files("modelfix_testing"))) / "data"


@cache
def tiny_dataset() -> Dataset:
    """Return 1,500 Fashion-MNIST images in four splits, with made-up class risks."""
    with np.load(_data() / "images.npz") as file:
        x, y = file["x"][:, None], file["y"].astype(np.int64)
    splits, start = {}, 0
    for name, size in SIZES.items():
        part = slice(start, start + size)
        splits[name] = Split(x[part], y[part], ids=np.arange(start, start + size))
        start += size
    classes = [str(k) for k in range(10)]
    return Dataset(splits, classes, risks={k: 1.0 + (k == 6) for k in range(10)})


def tiny_task(seed: int = 0, **changes: object) -> Task:
    """Return a task on the tiny subject; `changes` replace fields of it."""
    dataset = tiny_dataset()
    fields: dict = {
        "model": Model.load(_data() / "model.onnx"),
        "repair": dataset["repair"],
        "validation": dataset["validation"],
        "train": dataset["train"],
        "history": sorted((_data() / "history").glob("epoch-*.onnx")),
        "risks": dataset.risks,
        "seed": seed,
    }
    return Task(**(fields | changes))


def tiny_subject(root: Path) -> Subject:
    """Write the tiny subject into a folder of `root` and return it."""
    folder = root / NAME
    dataset, model = tiny_dataset(), Model.load(_data() / "model.onnx")
    dataset.save(folder)
    model.save(folder / MODEL_FILE)
    shutil.copytree(_data() / HISTORY_FOLDER, folder / HISTORY_FOLDER)
    SubjectCard(
        name=NAME,
        summary="1,500 Fashion-MNIST images and a LeNet5, for tests.",
        dataset="Fashion-MNIST",
        architecture="lenet5",
        classes=list(dataset.classes),
        input_shape=model.input_shape,
        splits=SIZES,
        attack_epsilon=0.1,
        risks=dict(dataset.risks or {}),
        seed=0,
        validation_accuracy=model.accuracy(dataset["validation"]),
        model_hash=model.hash,
        data_hash=data_hash(folder),
        history_hashes=[file_hash(path) for path in sorted((folder / HISTORY_FOLDER).iterdir())],
        identity=NAME,
    ).save(folder)
    return Subject.load(folder)


def mlp(
    weights: Sequence[np.ndarray],
    biases: Sequence[np.ndarray],
    input_shape: tuple[int, int, int],
    activation: str = "Relu",
) -> Model:
    """Build a fully connected classifier: Flatten, then dense layers ``fc1``, ``fc2``, ...

    Parameters
    ----------
    weights : sequence of ndarray, [out, in] each
    biases : sequence of ndarray, [out] each
    input_shape : (C, H, W)
        With C * H * W inputs of the first layer.
    activation : str
        ONNX operator between the layers.
    """
    nodes = [helper.make_node("Flatten", ["image"], ["flat"], name="flatten")]
    initializers, tensor = [], "flat"
    for depth, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
        names = [f"fc{depth}.weight", f"fc{depth}.bias"]
        for name, array in zip(names, (weight, bias), strict=True):
            initializers.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        last = depth == len(weights)
        out = "logits" if last else f"z{depth}"
        nodes.append(helper.make_node("Gemm", [tensor, *names], [out], name=f"fc{depth}", transB=1))
        if not last:
            nodes.append(helper.make_node(activation, [out], [f"h{depth}"], name=f"act{depth}"))
            tensor = f"h{depth}"
    return _model(nodes, initializers, input_shape, len(biases[-1]))


def layerless_model(input_shape: tuple[int, int, int], classes: int) -> Model:
    """Build a classifier without a trainable layer: to every approach an UNADAPTABLE one."""
    pixels = int(np.prod(input_shape))
    picked = numpy_helper.from_array(np.linspace(0, pixels - 1, classes).astype(np.int64), "picked")
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], name="flatten"),
        helper.make_node("Gather", ["flat", "picked"], ["logits"], name="pick", axis=1),
    ]
    return _model(nodes, [picked], input_shape, classes)


def _model(nodes, initializers, input_shape, classes) -> Model:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *input_shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
        initializers,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(proto)
    return Model(proto, "tiny")
