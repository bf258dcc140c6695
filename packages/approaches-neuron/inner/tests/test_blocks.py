import numpy as np
import pytest
import torch
from modelfix_core.errors import Unadaptable
from modelfix_core.subjects.architectures import build
from modelfix_core.torch import export, load
from modelfix_inner import Inner
from modelfix_inner.blocks import find_blocks
from modelfix_inner.localisation import Reading
from modelfix_testing import layerless_model, mlp, tiny_task
from torch import nn

# Untrained networks of the study's subjects and the layers that are repaired in them.
STUDY = {
    "lenet5": (1, 28, ["conv1", "conv2", "fc1", "fc2"]),
    "facenet": (3, 64, ["conv1", "conv2", "conv3", "conv4", "fc1"]),
    "vgg16": (
        3,
        32,
        [*(f"features.{i}" for i in (3, 10, 20, 30, 40)), "classifier.0", "classifier.3"],
    ),
    "resnet18": (3, 32, [f"layer{i}.1.conv2" for i in (1, 2, 3, 4)]),
    "densenet121": (
        3,
        64,
        [
            "features.conv0",
            "features.denseblock1.denselayer6.conv2",
            "features.denseblock2.denselayer12.conv2",
            "features.denseblock3.denselayer24.conv2",
            "features.denseblock4.denselayer16.conv2",
        ],
    ),
}


def exported(module, shape):
    return export(module.eval(), shape)


def names(model):
    return [block.layer.name for block in find_blocks(model)]


@pytest.fixture(scope="module", params=list(STUDY))
def study(request):
    channels, size, layers = STUDY[request.param]
    network = build(request.param, 10, channels)
    return exported(network, (channels, size, size)), layers


def test_the_studys_architectures_are_taken_and_cut_at_their_depths(study):
    model, layers = study
    Inner().check(tiny_task(model=model))
    assert names(model) == layers


def test_every_tap_can_be_read_from_its_layers_frontier(study):
    model, _ = study
    net = load(model)
    x = torch.rand(2, *model.input_shape)
    for block in find_blocks(model):
        reading = Reading(net, block, nn.Identity())
        with torch.no_grad():
            values = net.activations(x, [*reading.frontier, block.tap])
            again = reading([values[name] for name in reading.frontier])
        torch.testing.assert_close(again, values[block.tap], rtol=1e-5, atol=1e-5)


def test_a_shortcut_in_the_last_place_is_not_the_deepest_layer():
    model = exported(build("resnet8", 10, 3), (3, 16, 16))
    assert names(model) == ["layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2"]


class Branches(nn.Module):
    """A stage whose branches halve height and width apart, and a gate that weighs channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.left = nn.Conv2d(8, 8, 3, 2)
        self.right = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2))
        self.gate = nn.Conv2d(12, 12, 1)
        self.fc = nn.Linear(12, 10)

    def forward(self, x):
        x = self.conv(x).relu()
        x = torch.cat([self.left(x), self.right(x)], 1).relu()
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.fc(x.mean((2, 3)))


def test_cuts_lie_on_the_trunk():
    model = exported(Branches(), (1, 12, 12))
    blocks = find_blocks(model)
    assert [block.layer.name for block in blocks] == ["conv", "gate"]
    assert load(model).activations(torch.rand(1, 1, 12, 12), [blocks[0].tap])[
        blocks[0].tap
    ].shape == (1, 8, 10, 10)


def test_a_network_without_down_sampling_is_cut_where_it_becomes_a_vector():
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    )
    (block,) = find_blocks(exported(module, (1, 8, 8)))
    assert block.layer.name == "2"


def test_of_many_blocks_the_deepest_are_taken():
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(4, 4)) for _ in range(10)]
    model = mlp(weights, [np.zeros(4)] * 10, (1, 2, 2))
    assert names(model) == [f"fc{depth}" for depth in range(3, 10)]


def test_without_a_hidden_layer_it_is_unadaptable():
    model = tiny_task().model
    without = layerless_model(model.input_shape, model.num_classes)
    single = mlp([np.ones((3, 4))], [np.zeros(3)], (1, 2, 2))
    for refused in (without, single):
        with pytest.raises(Unadaptable, match="hidden"):
            find_blocks(refused)


def test_without_training_data_it_is_unadaptable():
    with pytest.raises(Unadaptable, match="training data"):
        Inner().check(tiny_task(train=None))
