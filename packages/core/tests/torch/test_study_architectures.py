"""The big architectures: against torchvision, against their graphs, and over the bridge."""

import numpy as np
import pytest
import torch
from modelfix_core import Split
from modelfix_core.subjects import CATALOGUE
from modelfix_core.subjects.architectures import build, densenet121, facenet, resnet, vgg
from modelfix_core.subjects.untrained import BUILDERS, untrained
from modelfix_core.torch import export, load

STUDY = {s.architecture: name for name, s in CATALOGUE.items() if s.architecture in BUILDERS}


def network_of(name):
    subject = CATALOGUE[name]
    classes, channels = len(subject.origin.classes), subject.input_shape[0]
    return build(subject.architecture, classes, channels, subject.mean, subject.std)


def test_densenet121_is_torchvisions():
    from torchvision.models import densenet121 as reference

    theirs, ours = reference(num_classes=7).eval(), densenet121(7).eval()
    ours.load_state_dict(theirs.state_dict())
    assert sum(p.numel() for p in densenet121().parameters()) == 7_978_856
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_vgg16_has_a_square_dense_layer_and_three_in_a_row():
    shapes = [
        (m.in_features, m.out_features) for m in vgg().classifier if hasattr(m, "in_features")
    ]
    assert shapes == [(512, 512), (512, 512), (512, 10)]


def test_facenet_has_11_layers_counted_as_lenet5s_8():
    def count(network):
        counted = torch.nn.Conv2d, torch.nn.MaxPool2d, torch.nn.Flatten, torch.nn.Linear
        return sum(isinstance(part, counted) for part in network.modules())

    assert count(build("lenet5", 10, 1)) == 8
    assert count(facenet()) == 11


@pytest.mark.parametrize("architecture", STUDY)
def test_the_graph_without_a_framework_is_what_pytorch_exports(architecture):
    """Same parameters, same kinds of nodes and, with the same weights, the same logits."""
    name = STUDY[architecture]
    graph, network = untrained(name), network_of(name).eval()
    exported = export(network, graph.input_shape)
    assert {k: v.shape for k, v in graph.weights.items()} == {
        k: v.shape for k, v in exported.weights.items()
    }
    kinds = [[(layer.name, layer.kind) for layer in m.layers()] for m in (graph, exported)]
    assert kinds[0] == kinds[1]
    operators = [
        sorted(node.op_type for node in m.proto().graph.node if node.op_type != "Constant")
        for m in (graph, exported)
    ]
    assert operators[0] == operators[1]
    x = np.random.default_rng(0).random((2, *graph.input_shape), dtype=np.float32)
    same = graph.with_weights(exported.weights)
    np.testing.assert_allclose(same.predict(x), exported.predict(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", STUDY)
def test_over_the_bridge_and_back(architecture):
    model = untrained(STUDY[architecture], width=1 / 8)
    net = load(model)
    rng = np.random.default_rng(0)
    x = rng.random((4, *model.input_shape), dtype=np.float32)
    with torch.inference_mode():
        logits = net(torch.from_numpy(x)).numpy()
    expected = model.predict(x)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))
    assert model.with_weights(net.weights()).hash == model.hash


@pytest.mark.parametrize(
    "network",
    [
        lambda: vgg(
            10, 3, 32, blocks=((8,), (8,), (16,), (16,), (16,)), hidden=(16, 16), dropout=0
        ),
        lambda: resnet(10, 3, widths=(8, 8, 16, 16)),
        lambda: densenet121(10, 3, blocks=(2, 2, 2, 2), growth=4, stem=8),
        lambda: facenet(10, 3, size=32, widths=(8, 8, 16, 16), hidden=12),
    ],
    ids=["vgg16", "resnet18", "densenet121", "facenet"],
)
def test_it_learns_real_images(network, fashion):
    """A few images of Fashion-MNIST, brought to 3 x 32 x 32, are learnt by heart."""
    torch.manual_seed(0)
    network = network().train()
    x, y = torch.from_numpy(fashion.images()), torch.from_numpy(fashion.y)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    first = None
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(network(x), y)
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.6 * first
    export(network.eval(), (3, 32, 32))  # raises unless onnxruntime agrees


@pytest.fixture(scope="module")
def fashion() -> Split:
    from modelfix_core.subjects.constructions import bring_to

    whole = CATALOGUE["fashion-mini-lenet5"].origin.read()["test"]
    return bring_to({"test": whole.select(slice(64))}, (3, 32, 32))["test"]
