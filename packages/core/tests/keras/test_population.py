import numpy as np
import pytest
from modelfix_core import ModelfixError, Split
from modelfix_core.keras import Population, load, predict
from modelfix_core.keras import population as module
from modelfix_core.population import Patch

N, P = 40, 37  # no multiples of a chunk


@pytest.fixture(scope="module")
def nets(built):
    return {name: load(model) for name, model in built.items()}


def draw(net, *picks, seed=0, scale=0.5):
    """Random patches (layer and number of weights each) and values."""
    rng = np.random.default_rng(seed)
    patches = []
    for layer, count in picks:
        size = net.model.weights[net.model.layer(layer).weight].size
        patches.append(Patch(layer, rng.choice(size, count, replace=False)))
    total = sum(count for _, count in picks)
    return patches, rng.normal(0, scale, (P, total)).astype(np.float32)


def naive(net, patches, values, x):
    logits = []
    for candidate in values:
        changed, done = {}, 0
        for patch in patches:
            name = net.model.layer(patch.layer).weight
            array = changed.setdefault(name, net.model.weights[name].copy())
            array.flat[patch.index] = candidate[done : done + len(patch.index)]
            done += len(patch.index)
        net.set_weights(changed)
        logits.append(predict(net, x))
    net.reset()
    return np.stack(logits)


def losses(logits, y):
    logits = logits.astype(np.float64)
    top = logits.max(axis=2, keepdims=True)
    total = np.log(np.exp(logits - top).sum(axis=2)) + top[..., 0]
    return total - logits[:, np.arange(len(y)), y]


def compare(net, patches, values, **options):
    x = np.random.default_rng(3).random((N, *net.model.input_shape), dtype=np.float32)
    y = np.random.default_rng(4).integers(0, net.model.num_classes, N)
    population = Population(net, patches, x, y, **options)
    expected = naive(net, patches, values, x)
    found, scores = population.logits(values), population.evaluate(values)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.argmax(axis=2), expected.argmax(axis=2))
    np.testing.assert_array_equal(scores.right, expected.argmax(axis=2) == y)
    np.testing.assert_allclose(scores.loss, losses(expected, y), rtol=1e-4, atol=1e-5)
    assert scores.right.shape == scores.loss.shape == (P, N)
    return population


CASES = {
    "T0 few classes": ("lenet5", ("fc3", 3)),
    "T0 all classes": ("lenet5", ("fc3", 120)),
    "T1 hidden dense": ("lenet5", ("fc2", 5)),
    "T1 before two dense layers": ("vgg", ("classifier.0", 6)),
    "T2 convolution, then pooling and dense": ("lenet5", ("conv2", 4)),
    "T2 BatchNorm and pooling": ("vgg", ("features.0", 3)),
    "T2 inside a residual block": ("resnet", ("block1.conv1", 3)),
    "T2 behind a residual block": ("resnet", ("block2.conv2", 4)),
    "T2 in a shortcut": ("resnet", ("block2.shortcut", 2)),
    "T2 concatenation": ("densenet", ("block0.1.conv", 3)),
    "T2 whole kernel": ("densenet", ("transition0.conv", 60)),
    "T3 convolution and dense": ("lenet5", ("conv2", 3), ("fc1", 4), ("fc3", 2)),
    "T3 two convolutions": ("lenet5", ("conv1", 3), ("conv2", 3)),
    "T3 both branches": ("resnet", ("block2.conv2", 3), ("block2.shortcut", 3)),
    "T3 dense block": ("densenet", ("stem", 2), ("block1.0.conv", 3), ("fc", 2)),
}


@pytest.mark.parametrize("case", CASES)
def test_population_is_the_naive_loop(nets, case):
    name, *picks = CASES[case]
    compare(nets[name], *draw(nets[name], *picks))


def test_grouped_depthwise_dilated_and_flattened_channels_last(graph):
    g = graph((3, 9, 8))
    g.conv("grouped", 3, 6, 3, groups=3, pads=[1, 1, 1, 1])
    g.node("Sigmoid")
    g.conv("mixing", 6, 8, 3, groups=2, dilations=[2, 2])
    g.node("Mul", g.weight("scale", 1, 8, 1, 1, low=1))
    g.conv("striding", 8, 4, 3, strides=[2, 2], pads=[0, 1, 1, 1])
    g.node("Transpose", perm=[0, 2, 3, 1])
    g.node("Tanh")
    g.node("Flatten")
    g.fc("out", 16, 4)
    net = load(g.model(4))
    for picks in (
        [("grouped", 3)],
        [("mixing", 2)],
        [("striding", 2)],
        [("grouped", 2), ("mixing", 2)],
    ):
        compare(net, *draw(net, *picks))


@pytest.mark.parametrize(
    ("case", "memory"),
    [
        ("T0 few classes", 40_000),
        ("T2 BatchNorm and pooling", 600_000),
        ("T3 convolution and dense", 1_000_000),
    ],
)
def test_a_small_memory_changes_nothing(nets, case, memory):
    name, *picks = CASES[case]
    population = compare(nets[name], *draw(nets[name], *picks), memory=memory)
    assert population.chunk < N


def test_kept_tensors_that_do_not_fit_are_computed_anew(nets, monkeypatch):
    population = compare(nets["vgg"], *draw(nets["vgg"], ("features.1", 3)), memory=40_000)
    assert population._kept is None


def test_a_candidates_scores_do_not_depend_on_its_company(nets):
    net = nets["lenet5"]
    x = np.random.default_rng(3).random((N, 1, 28, 28), dtype=np.float32)
    y = np.zeros(N, np.int64)
    for picks in ([("fc3", 5)], [("fc1", 4)], [("conv2", 4)]):
        patches, values = draw(net, *picks)
        population = Population(net, patches, x, y)
        whole = population.evaluate(values)
        order = np.random.default_rng(0).permutation(P)
        mixed = population.evaluate(values[order])
        few = population.evaluate(values[30:33])
        assert mixed.loss.tobytes() == whole.loss[order].tobytes()
        assert few.loss.tobytes() == whole.loss[30:33].tobytes()


def test_a_part_of_the_images(nets):
    net = nets["lenet5"]
    patches, values = draw(net, ("fc2", 4))
    x = np.random.default_rng(3).random((N, 1, 28, 28), dtype=np.float32)
    y = np.random.default_rng(4).integers(0, 10, N)
    population = Population(net, patches, x, y, chunk=16)
    whole = population.evaluate(values)
    for part in (slice(5, 30), slice(0, 16), slice(35, None)):
        assert population.evaluate(values, part).loss.tobytes() == whole.loss[:, part].tobytes()


def test_equal_logits_go_to_the_lower_class(nets):
    """Rows of the last layer made equal: touched against touched, and against untouched."""
    net = nets["lenet5"]
    weight, bias = net.model.weights["fc3.weight"], net.model.weights["fc3.bias"]
    changed = {"fc3.bias": np.where(np.isin(np.arange(10), [2, 5, 7]), bias.max() + 9, bias)}
    changed["fc3.weight"] = weight.copy()
    changed["fc3.weight"][[2, 5, 7]] = weight[2]
    net.set_weights(changed)
    patches = [Patch("fc3", np.array([5 * 84 + 3, 7 * 84 + 3]))]
    values = np.tile(weight[2, 3], (1, 2))
    x = np.random.default_rng(0).random((10, 1, 28, 28), dtype=np.float32)
    for label in (2, 5, 7):
        scores = Population(net, patches, x, np.full(10, label)).evaluate(values)
        assert (scores.right == (label == 2)).all()
    net.reset()


def test_a_split_brings_its_labels(nets):
    net = nets["lenet5"]
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (N, 1, 28, 28)).astype(np.uint8), rng.integers(0, 10, N)
    patches, values = draw(net, ("fc3", 4))
    split = Population(net, patches, Split(x, y)).evaluate(values)
    arrays = Population(net, patches, (x.astype(np.float32) / 255), y).evaluate(values)
    np.testing.assert_array_equal(split.loss, arrays.loss)


def test_unchanged_values_give_the_models_own_logits(nets, images):
    net = nets["resnet"]
    patches, _ = draw(net, ("block1.conv2", 5))
    own = net.model.weights["block1.conv2.weight"].ravel()[patches[0].index]
    x = images(net.model)
    found = Population(net, patches, x, np.zeros(len(x), int)).logits(own[None])[0]
    np.testing.assert_allclose(found, net.model.predict(x), atol=1e-5)


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        ([Patch("nothing", np.array([0]))], "no layer 'nothing'"),
        ([Patch("fc3", np.array([840]))], "positions in 0 to 839"),
        ([Patch("fc3", np.array([1])), Patch("fc3", np.array([1]))], "patched twice"),
    ],
)
def test_patches_that_do_not_fit_are_explained(nets, images, patches, message):
    x = images(nets["lenet5"].model, 2)
    with pytest.raises(ModelfixError, match=message):
        Population(nets["lenet5"], patches, x, np.zeros(2, int))


def test_values_that_do_not_fit_are_explained(nets, images):
    x = images(nets["lenet5"].model, 2)
    population = Population(nets["lenet5"], [Patch("fc3", np.array([1]))], x, np.zeros(2, int))
    with pytest.raises(ModelfixError, match=r"\[2, 3\].*\[candidates, 1\]"):
        population.evaluate(np.zeros((2, 3)))
    with pytest.raises(ModelfixError, match="one label per image"):
        Population(nets["lenet5"], [Patch("fc3", np.array([1]))], x, np.zeros(3, int))


def test_a_batchnorm_cannot_be_patched(nets, images):
    x = images(nets["vgg"].model, 2)
    with pytest.raises(ModelfixError, match="BatchNormalization"):
        Population(nets["vgg"], [Patch("norms.0", np.array([1]))], x, np.zeros(2, int))


def test_passes_have_one_shape(nets, images, monkeypatch):
    """Populations of any size run through one trace."""
    monkeypatch.setattr(module, "CANDIDATES", 8)
    x = images(nets["lenet5"].model, 6)
    population = Population(nets["lenet5"], [Patch("fc3", np.array([1, 9]))], x, np.zeros(6, int))
    for count in (1, 8, 19):
        assert population.evaluate(np.ones((count, 2))).right.shape == (count, 6)
    assert population._score.experimental_get_tracing_count() == 1
