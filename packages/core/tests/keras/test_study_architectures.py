"""The study's architectures over the Keras bridge and back, from their graphs."""

import numpy as np
import pytest
from modelfix_core.keras import export, load, predict
from modelfix_core.subjects.untrained import untrained

SUBJECTS = ("utkface-facenet", "cifar10-vgg16", "cifar10s-resnet18", "imagenet-densenet121")


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_bridge_keeps_weights_and_logits(name):
    model = untrained(name, width=1 / 8)
    net = load(model)
    x = np.random.default_rng(0).random((4, *model.input_shape), dtype=np.float32)
    expected = model.predict(x)
    np.testing.assert_allclose(predict(net, x), expected, atol=1e-4)
    assert set(net.tensors) == set(model.weights)
    again = export(net.keras)
    np.testing.assert_allclose(again.predict(x), expected, atol=1e-4)
    for layer in model.layers():
        for weight in (*layer.parameters, *layer.statistics):
            assert again.weights[weight].tobytes() == model.weights[weight].tobytes()
