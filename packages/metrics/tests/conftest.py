"""Tiny models without training, and record and subject folders around them."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import settings
from modelfix_core.dataset import Dataset, Split
from modelfix_core.model import Model
from onnx import TensorProto, helper, numpy_helper

settings.register_profile("fast", max_examples=40, deadline=None)
settings.load_profile("fast")


def linear_model(weight, bias=None, shape=(1, 2, 2), before=(), after=()):
    """Return ``flatten -> Gemm`` with nodes (operator, constant, leads) before and after."""
    weight = np.asarray(weight, dtype=np.float32)
    bias = np.zeros(len(weight), np.float32) if bias is None else np.asarray(bias, np.float32)
    nodes, tensors, value = [], [], "x"

    def chain(steps, stem):
        nonlocal value
        for number, (operator, constant, leads) in enumerate(steps):
            name = f"{stem}{number}"
            inputs = [value]
            if constant is not None:
                array = np.asarray(constant, dtype=np.float32)
                tensors.append(numpy_helper.from_array(array, f"{name}.constant"))
                inputs = [f"{name}.constant", value] if leads else [value, f"{name}.constant"]
            nodes.append(helper.make_node(operator, inputs, [name], name=name))
            value = name

    chain(before, "pre")
    nodes.append(helper.make_node("Flatten", [value], ["flat"], name="flatten", axis=1))
    nodes.append(helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["fc"], transB=1))
    tensors += [
        numpy_helper.from_array(weight, "fc.weight"),
        numpy_helper.from_array(bias, "fc.bias"),
    ]
    value = "fc"
    chain(after, "post")
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["N", len(weight)])],
        tensors,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 9
    onnx.checker.check_model(proto)
    return Model(proto, "tiny")


@pytest.fixture
def linear():
    return linear_model


@pytest.fixture
def random_split():
    def make(n=60, shape=(1, 2, 2), classes=3, seed=0, groups=None):
        rng = np.random.default_rng(seed)
        group = None if groups is None else rng.integers(0, groups, n)
        x = rng.random((n, *shape), dtype=np.float32)
        return Split(x, rng.integers(0, classes, n), group, rng.permutation(10 * n)[:n])

    return make


@pytest.fixture
def cell(tmp_path):
    """A record folder and a subject folder: a linear model, its disturbed copy, 200 test images."""
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(3, 4)).astype(np.float32) * 4
    original = linear_model(weight)
    x = rng.random((200, 1, 2, 2), dtype=np.float32)
    y = original.predict(x).argmax(axis=1).astype(np.int64)
    y = np.where(rng.random(200) < 0.2, rng.integers(0, 3, 200), y)
    test = Split(x, y, rng.integers(0, 2, 200), np.arange(200) + 7)
    dataset = Dataset({"test": test}, ["a", "b", "c"], None, "colour")
    subject = tmp_path / "subjects" / "toy"
    dataset.save(subject)
    original.save(subject / "model.onnx")
    fixed = original.with_weights({"fc.weight": weight + rng.normal(size=(3, 4)) * 0.3})
    record = tmp_path / "runs" / "toy" / "approach" / "1"
    fixed.save(record / "fixed.onnx")
    card = {
        "name": "toy",
        "summary": "A linear model on noise.",
        "dataset": "noise",
        "architecture": "linear",
        "classes": ["a", "b", "c"],
        "input_shape": [1, 2, 2],
        "splits": {"test": 200},
        "attack_epsilon": 0.05,
        "sensitive_attribute": "colour",
        "seed": 0,
        "validation_accuracy": 0.8,
        "model_hash": original.hash,
        "data_hash": "unknown",
        "identity": "toy",
    }
    (subject / "subject.json").write_text(json.dumps(card))
    content = {
        "outcome": "FIXED",
        "hashes": {"original": original.hash, "fixed": fixed.hash},
        "repetition": 2,
        "something": {"else": [1, None]},
    }
    (record / "record.json").write_text(json.dumps(content))
    return SimpleNamespace(
        record=record, subject=subject, original=original, fixed=fixed, test=test, content=content
    )
