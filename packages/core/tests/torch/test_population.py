"""Population evaluation against setting the weights and running the network."""

import numpy as np
import pytest
import torch
from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.population import Patch
from modelfix_core.torch import Population, export, load, predict
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CANDIDATES, IMAGES, WEIGHTS = 3, 11, 12

# T0: the last dense layer; T1: hidden dense layers; T2: convolutions before BatchNorm, pooling,
# residual additions and concatenations; T3: several layers, in one chain or on two branches.
PATCHED = [
    ("lenet5", ["fc3"]),
    ("lenet5", ["fc2"]),
    ("lenet5", ["fc1"]),
    ("lenet5", ["conv2"]),
    ("lenet5", ["conv1"]),
    ("lenet5", ["fc3", "fc2"]),
    ("lenet5", ["conv1", "fc1", "fc3"]),
    ("vgg", ["features.0"]),
    ("vgg", ["features.7"]),
    ("vgg", ["classifier.0"]),
    ("resnet8", ["fc"]),
    ("resnet8", ["layer3.0.conv2"]),
    ("resnet8", ["layer3.0.conv1"]),
    ("resnet8", ["layer3.0.shortcut.0"]),
    ("resnet8", ["layer1.0.conv1"]),
    ("resnet8", ["conv1"]),
    ("resnet8", ["layer3.0.conv2", "layer3.0.shortcut.0"]),
    ("resnet8", ["layer2.0.conv2", "fc"]),
    ("densenet", ["fc"]),
    ("densenet", ["block2.1.conv"]),
    ("densenet", ["block2.0.conv"]),
    ("densenet", ["transition1.2", "block2.1.conv"]),
]


def problem(model, layers, weights=WEIGHTS, seed=0):
    rng = np.random.default_rng(seed)
    sizes = [model.weights[model.layer(name).weight].size for name in layers]
    patches = [
        Patch(name, rng.choice(size, weights, replace=False))
        for name, size in zip(layers, sizes, strict=True)
    ]
    values = rng.normal(0, 0.5, (CANDIDATES, weights * len(layers))).astype(np.float32)
    return patches, values, rng.integers(0, model.num_classes, IMAGES)


def naive_logits(net, patches, values, x):
    logits = []
    for candidate in values:
        changed = {}
        for patch, part in zip(patches, np.split(candidate, len(patches)), strict=True):
            weight = net.model.layer(patch.layer).weight
            changed[weight] = net.model.weights[weight].copy()
            changed[weight].reshape(-1)[patch.index] = part
        net.set_weights(changed)
        logits.append(predict(net, x))
    net.reset()
    return np.stack(logits)


def assert_scores(scores, logits, y):
    labels = torch.from_numpy(np.tile(y, (len(logits), 1)))
    loss = functional.cross_entropy(
        torch.from_numpy(logits).flatten(0, 1), labels.flatten(), reduction="none"
    )
    np.testing.assert_array_equal(scores.right, logits.argmax(2) == labels.numpy())
    np.testing.assert_allclose(scores.loss, loss.view_as(labels).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "layers"), PATCHED)
def test_equals_the_naive_loop(network_of, images, name, layers):
    _, model = network_of(name)
    net = load(model)
    x = images(model, IMAGES)
    patches, values, y = problem(model, layers)
    expected = naive_logits(net, patches, values, x)
    assert np.abs(expected - predict(net, x)).max() > 1e-4  # the patches do something
    population = Population(net, patches, x, y)
    logits = population.logits(values)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(logits.argmax(2), expected.argmax(2))
    assert_scores(population.evaluate(values), expected, y)


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation made."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.bytes = max([self.bytes, *(t.numel() * t.element_size() for t in tensors)])
        return result


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("lenet5", ["conv2"]),
        ("vgg", ["features.7"]),
        ("resnet8", ["layer3.0.conv1"]),
        ("densenet", ["block2.1.conv", "fc"]),
    ],
)
def test_a_small_budget_changes_the_chunks_alone(network_of, images, name, layers):
    _, model = network_of(name)
    net = load(model)
    x = images(model, IMAGES)
    patches, values, y = problem(model, layers)
    roomy = Population(net, patches, x, y)
    memory = 5 * 2 * roomy.bytes_per_pair  # five pairs at once, of 33
    tight = Population(net, patches, x, y, memory=memory)
    with Largest() as largest:
        logits = tight.logits(values)
    np.testing.assert_allclose(logits, roomy.logits(values), rtol=1e-5, atol=1e-5)
    assert_scores(tight.evaluate(values), logits, y)
    weights = 4 * max(array.size for array in model.weights.values())
    one_image = tight._cache.bytes_per_pass
    assert largest.bytes <= max(memory // 2, weights, logits.nbytes, one_image)


def test_the_accounting_bounds_every_chunk(network_of, images):
    """One pair at a time, no tensor of the chunk exceeds what is booked for a pair."""
    _, model = network_of("resnet8")
    net = load(model)
    patches, values, y = problem(model, ["layer2.0.conv1"])
    population = Population(net, patches, images(model, IMAGES), y)
    population._pairs = 1
    base = population._cache.bytes_per_image
    kernels = 4 * max(array.size for array in model.weights.values())
    with Largest() as largest:
        population.evaluate(values)
    assert largest.bytes <= max(population.bytes_per_pair, base, kernels)


def test_a_part_of_the_images_is_scored_alone(network_of, images):
    _, model = network_of("lenet5")
    patches, values, y = problem(model, ["fc2"])
    population = Population(load(model), patches, images(model, IMAGES), y)
    whole, part = population.evaluate(values), population.evaluate(values, slice(3, 8))
    np.testing.assert_array_equal(part.right, whole.right[:, 3:8])
    np.testing.assert_allclose(part.loss, whole.loss[:, 3:8], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", ["fc3", "conv2"])
def test_original_weights_score_as_the_original(network_of, images, layer):
    _, model = network_of("lenet5")
    net = load(model)
    x = images(model, IMAGES)
    patches, _, y = problem(model, [layer])
    original = model.weights[f"{layer}.weight"].reshape(-1)[patches[0].index]
    scores = Population(net, patches, x, y).evaluate(original[None])
    assert_scores(scores, predict(net, x)[None], y)


def test_takes_a_split_with_its_labels(network_of, images):
    _, model = network_of("lenet5")
    patches, values, y = problem(model, ["fc3"])
    pixels = (images(model, IMAGES) * 255).astype(np.uint8)
    split = Split(pixels, y)
    net = load(model)
    scores = Population(net, patches, split).evaluate(values)
    assert_scores(scores, naive_logits(net, patches, values, split), y)


def test_two_patches_of_one_layer_join(network_of, images):
    _, model = network_of("lenet5")
    net = load(model)
    x = images(model, IMAGES)
    (patch,), values, y = problem(model, ["fc2"], weights=6)
    halves = [Patch("fc2", patch.index[:2]), Patch("fc2", patch.index[2:])]
    joined = Population(net, halves, x, y).logits(values)
    np.testing.assert_array_equal(joined, Population(net, [patch], x, y).logits(values))


def test_ties_go_to_the_lowest_class():
    """As with `argmax`, on the short way that knows only the touched logits."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False)).eval()
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[1.0], [2.0], [2.0], [0.0]]).expand(4, 4))
    net = load(export(module, (1, 2, 2)))
    x = np.full((4, 1, 2, 2), 0.5, np.float32)
    population = Population(net, [Patch("1", np.array([12]))], x, np.arange(4))
    # The last class reaches 2 * 0.5 * 4 = 4 exactly with 8; then with 10 it is the largest.
    scores = population.evaluate(np.array([[8.0], [10.0]]))
    np.testing.assert_array_equal(scores.right, [[False, True, False, False], [False] * 3 + [True]])


@pytest.mark.parametrize("groups", [2, 6])
def test_grouped_convolutions(images, groups):
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=groups), nn.Tanh()),
        *(nn.Conv2d(12, 6, 2, groups=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(150, 10)),
    ).eval()
    net = load(export(module, (3, 8, 8)))
    x = images(net.model, IMAGES)
    for layers in (["2"], ["4"], ["0", "2"]):
        patches, values, y = problem(net.model, layers)
        logits = Population(net, patches, x, y).logits(values)
        np.testing.assert_allclose(logits, naive_logits(net, patches, values, x), atol=1e-5)


def test_weights_of_the_moment_count(network_of, images):
    _, model = network_of("lenet5")
    net = load(model)
    x = images(model, IMAGES)
    patches, values, y = problem(model, ["fc2"])
    net.set_weights({"fc1.bias": model.weights["fc1.bias"] + 1})
    moved = load(model.with_weights(net.weights()))
    logits = Population(net, patches, x, y).logits(values)
    np.testing.assert_allclose(logits, naive_logits(moved, patches, values, x), atol=1e-5)


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        ([], "at least one"),
        ([Patch("fc3", np.array([840]))], "840"),
        ([Patch("fc3", np.array([4, 4]))], "twice"),
        ([Patch("fc9", np.array([0]))], "no layer 'fc9'"),
    ],
)
def test_wrong_patches_are_refused(network_of, images, patches, message):
    _, model = network_of("lenet5")
    with pytest.raises(ModelfixError, match=message):
        Population(load(model), patches, images(model, 2), np.zeros(2))


def test_wrong_use_is_refused(network_of, images):
    _, model = network_of("resnet8")
    net, x = load(model), images(model, 2)
    with pytest.raises(ModelfixError, match="batchnorm"):
        Population(net, [Patch("bn1", np.array([0]))], x, np.zeros(2))
    population = Population(net, [Patch("fc", np.array([0]))], x, np.zeros(2))
    with pytest.raises(ModelfixError, match=r"expected \[P, 1\]"):
        population.evaluate(np.zeros((3, 2)))
    with pytest.raises(ModelfixError, match="labels"):
        Population(net, [Patch("fc", np.array([0]))], x)
    net.train()
    with pytest.raises(ModelfixError, match="evaluation mode"):
        Population(net, [Patch("fc", np.array([0]))], x, np.zeros(2))
