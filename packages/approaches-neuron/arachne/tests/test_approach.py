"""Options, what is refused, and what a run yields."""

import subprocess
import sys

import numpy as np
import pytest
from modelfix_arachne import Arachne
from modelfix_core import ModelfixError, Outcome, Unadaptable
from modelfix_core.fixing import run


@pytest.mark.parametrize(
    "target", ["all", "sample:0.1", "sample:1", "sample:.5", "type:1", "type:12"]
)
def test_targets(target):
    assert Arachne(target=target).config.target == target


@pytest.mark.parametrize(
    "values",
    [
        {"target": "some"},
        {"target": "sample:0"},
        {"target": "sample:1.5"},
        {"target": "type:0"},
        {"alpha": 0},
        {"factor": (1.0, 0.5)},
        {"population": 3},
        {"speed": 2},
    ],
)
def test_refused_options(values):
    with pytest.raises(ModelfixError, match=next(iter(values))):
        Arachne(**values)


@pytest.mark.parametrize("preset", ["default", "paper", "study"])
def test_presets(preset):
    config = Arachne(preset).config
    assert (config.population, config.generations, config.alpha) == (100, 100, 10)


def test_layers_that_may_be_edited(convnet):
    model, _ = convnet()
    names = lambda **values: [layer.name for layer in Arachne(**values).layers(model)]  # noqa: E731
    assert names() == ["conv1", "conv2", "fc1", "fc2"]
    assert names(layers="last_dense") == ["fc2"]
    assert names(layers=["fc1", "conv1"]) == ["conv1", "fc1"]
    with pytest.raises(ModelfixError, match="its layers are conv1, conv2, fc1, fc2"):
        names(layers=["fc9"])


def test_grouped_convolutions_are_not_edited(graph, blobs, task):
    rng = np.random.default_rng(0)
    net = graph((8, 1, 1)).add("Conv", ("depth.weight", rng.normal(size=(8, 1, 1, 1))), group=8)
    model = net.add("Flatten").model(8)
    with pytest.raises(Unadaptable, match="no dense layer and no 2-D convolution"):
        Arachne().check(task(model, blobs(0)))
    with pytest.raises(Unadaptable, match="'depth' is neither"):
        Arachne(layers=["depth"]).check(task(model, blobs(0)))
    with pytest.raises(Unadaptable, match="no dense layer to repair"):
        Arachne(layers="last_dense").check(task(model, blobs(0)))


def test_probabilities_are_unadaptable(graph, blobs, task):
    weight = np.random.default_rng(0).normal(size=(4, 8))
    net = graph((8, 1, 1)).add("Flatten").add("Gemm", ("fc.weight", weight), transB=1)
    model = net.add("Softmax").add("Flatten").model(4)
    result = run(Arachne(), task(model, blobs(0)))
    assert result.outcome is Outcome.UNADAPTABLE
    assert "probabilities" in result.reason


def test_nothing_to_fix_is_a_failure(blobs, mlp, task):
    split = blobs(0)
    model = mlp(split, (8, 12, 4))
    right = model.predict(split).argmax(axis=1) == split.y
    result = run(Arachne(), task(model, split.select(right)))
    assert result.outcome is Outcome.FAILURE
    assert "nothing to fix" in result.reason
    result = run(Arachne(), task(model, split.select(~right)))
    assert result.outcome is Outcome.FAILURE
    assert "none to preserve" in result.reason


def test_importing_the_package_imports_no_framework():
    code = "import sys, modelfix_arachne; print({'tensorflow', 'torch'} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
