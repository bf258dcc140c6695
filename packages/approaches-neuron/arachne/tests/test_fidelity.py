"""The method as its authors describe it: what must hold of every implementation.

The impacts against direct loops and the front against brute force are in test_localisation.py; the
batched differential evolution against the sequential loop is in core's test_search.py.
"""

import numpy as np
import pytest
from modelfix_arachne import Arachne
from modelfix_arachne.approach import ArachneConfig
from modelfix_arachne.front import pareto_front
from modelfix_core import Candidate, Localisation, Outcome, Split
from modelfix_core.fixing import run
from modelfix_core.population import Patch
from modelfix_testing import tiny_task


def cross_entropy(logits, y):
    z = logits.astype(np.float64)
    top = z.max(axis=-1)
    own = np.take_along_axis(z, np.broadcast_to(y, z.shape[:-1])[..., None], axis=-1)[..., 0]
    return np.log(np.exp(z - top[..., None]).sum(axis=-1)) + top - own


def naive_logits(model, patches, values):
    """Set weights, run the model, and again for the next candidate."""
    logits = []
    for row in values:
        changed, done = {}, 0
        for patch in patches:
            name = model.layer(patch.layer).weight
            weight = changed.get(name, model.weights[name]).copy()
            weight.flat[patch.index] = row[done : done + len(patch.index)]
            changed[name], done = weight, done + len(patch.index)
        logits.append(model.with_weights(changed))
    return lambda x: np.stack([m.predict(x) for m in logits])


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(11)


class TestImpacts:
    """Check 1: shares sum to what they must."""

    @pytest.mark.parametrize("mode", ["reference", "abs"])
    def test_sums(self, convnet, mode):
        from modelfix_arachne.localisation import impacts
        from modelfix_core.keras import load

        model, split = convnet(n=30)
        found = impacts(load(model), model.layers(), split, mode)
        for layer in model.layers("dense"):
            o = model.activations(split.images(), [layer.input])[layer.input]
            assert (np.abs(o) @ np.abs(model.weights[layer.weight]).T > 0).all()
            assert found[layer.name].forward.sum() == pytest.approx(1, abs=1e-5)
        for layer in model.layers("conv"):
            total = np.abs(found[layer.name].forward).sum()
            assert 0 < total <= (1 if mode == "abs" else 1 / len(split)) + 1e-5

    def test_gradient_impact_of_the_classifier(self, convnet):
        """GL = |(softmax - onehot)^T o|, summed over the set, absolute value last."""
        from modelfix_arachne.localisation import impacts
        from modelfix_core.keras import load

        model, split = convnet(n=30)
        layer = model.layer("fc2")
        o = model.activations(split.images(), [layer.input])[layer.input].astype(np.float64)
        z = model.predict(split).astype(np.float64)
        slope = np.exp(z - z.max(axis=1, keepdims=True))
        slope /= slope.sum(axis=1, keepdims=True)
        slope[np.arange(30), split.y] -= 1
        found = impacts(load(model), [layer], split)["fc2"]
        assert np.allclose(found.gradient, np.abs(slope.T @ o), rtol=1e-3, atol=1e-4)


class TestFront:
    """Check 2."""

    def test_equals_brute_force_on_rounded_points(self, rng):
        first, second = rng.normal(0, 1, (2, 300)).round(1)
        points = np.stack([first, second], axis=1)
        dominated = [((points >= p).all(axis=1) & (points > p).any(axis=1)).any() for p in points]
        assert sorted(pareto_front(first, second)) == np.flatnonzero(~np.array(dominated)).tolist()


class TestEngine:
    """Check 3: what the search is told of a candidate is what the patched model does."""

    @pytest.mark.parametrize(
        "edited",
        [
            {"fc2": [0, 7]},
            {"fc1": [3, 40]},
            {"conv2": [0, 17, 30]},
            {"conv1": [5, 6, 50], "fc2": [2]},
            {"conv1": [1], "conv2": [11], "fc1": [9], "fc2": [4, 5]},
        ],
    )
    def test_equals_setting_weights(self, convnet, rng, edited):
        from modelfix_core.keras import Population, load

        model, split = convnet(n=23)
        patches = [Patch(name, np.array(index)) for name, index in edited.items()]
        values = rng.normal(size=(7, sum(map(len, edited.values())))).astype(np.float32)
        population = Population(load(model), patches, split, split.y)
        expected = naive_logits(model, patches, values)(split)
        assert np.allclose(population.logits(values), expected, atol=1e-5)
        scores = population.evaluate(values)
        assert np.array_equal(scores.right, expected.argmax(axis=2) == split.y)
        assert np.allclose(scores.loss, cross_entropy(expected, split.y), atol=1e-5)

    def test_batchnorm_residual_and_pooling(self, graph, rng):
        from modelfix_core.keras import Population, load

        def kernel(*shape):
            return rng.normal(0, 0.4, shape)

        net = graph((3, 8, 8))
        net.add("Conv", ("stem.weight", kernel(4, 3, 3, 3)), pads=[1, 1, 1, 1])
        skip = net.add("Relu").last
        net.add("Conv", ("inner.weight", kernel(4, 4, 3, 3)), pads=[1, 1, 1, 1])
        net.add(
            "BatchNormalization",
            ("bn.weight", rng.uniform(0.5, 2, 4)),
            ("bn.bias", kernel(4)),
            ("bn.mean", kernel(4)),
            ("bn.variance", rng.uniform(0.5, 2, 4)),
        )
        net.add("Add", inputs=[net.last, skip]).add("Relu")
        net.add("AveragePool", kernel_shape=[2, 2], strides=[2, 2]).add("GlobalAveragePool")
        net.add("Flatten").add("Gemm", ("fc.weight", kernel(5, 4)), transB=1)
        model = net.model(5)
        split = Split(rng.random((9, 3, 8, 8), dtype=np.float32), rng.integers(5, size=9))
        patches = [Patch("stem", np.array([3])), Patch("inner", np.array([0, 80]))]
        values = rng.normal(size=(6, 3)).astype(np.float32)
        population = Population(load(model), patches, split, split.y)
        expected = naive_logits(model, patches, values)(split)
        assert np.allclose(population.logits(values), expected, atol=1e-5)
        right = population.evaluate(values).right
        assert np.array_equal(right, expected.argmax(axis=2) == split.y)


@pytest.fixture
def trained(blobs, mlp):
    """Return a function that trains the 8-24-16-4 network and gives it with its inputs."""

    def make(seed, sizes=(8, 24, 16, 4)):
        split = blobs(seed)
        return mlp(split, sizes, seed), split

    return make


class TestFitness:
    """Check 4, and that racing and order do not matter."""

    @pytest.fixture
    def setting(self, blobs, mlp):
        from modelfix_core.keras import load

        split = blobs(5, n=700, noise=1.5)
        model = mlp(split, (8, 12, 4))
        logits = model.predict(split)
        wrong = logits.argmax(axis=1) != split.y
        assert 20 < wrong.sum() < 400
        return model, load(model), split, logits, wrong

    def test_of_the_original_weights(self, setting):
        from modelfix_arachne.repair import Fitness

        model, net, split, logits, wrong = setting
        failing, passing = np.flatnonzero(wrong)[:15], np.flatnonzero(~wrong)
        inputs = split.select(np.concatenate([failing, passing]))
        patch = Patch("fc2", np.array([1, 30]))
        fitness = Fitness(net, [patch], inputs, len(failing), alpha=7.0)
        original = model.weights["fc2.weight"].ravel()[patch.index]
        loss = cross_entropy(logits[failing], split.y[failing])
        expected = len(passing) + 7 * (1 / (1 + loss)).sum()
        found = fitness(original[None], np.array([-np.inf]))[0]
        assert found == pytest.approx(expected, rel=1e-6)
        assert fitness.largest == len(passing) + 7 * len(failing)

    def test_of_a_model_that_is_always_right(self, setting):
        from modelfix_arachne.repair import Fitness

        model, net, split, logits, _ = setting
        easy = split.select(logits.argmax(axis=1) == split.y)
        patch = Patch("fc2", np.array([0]))
        fitness = Fitness(net, [patch], easy, 40, alpha=10.0)
        original = model.weights["fc2.weight"].ravel()[:1]
        assert fitness(original[None], np.array([-np.inf]))[0] == fitness.largest

    def test_order_of_the_passing_inputs_does_not_matter(self, setting, rng):
        from modelfix_arachne.repair import Fitness

        _, net, split, _, wrong = setting
        failing, passing = np.flatnonzero(wrong)[:15], np.flatnonzero(~wrong)
        patches = [Patch("fc1", np.array([2, 3])), Patch("fc2", np.array([1]))]
        values = rng.normal(size=(40, 3)).astype(np.float32)
        totals = []
        for order in (passing, passing[::-1], rng.permutation(passing)):
            inputs = split.select(np.concatenate([failing, order]))
            fitness = Fitness(net, patches, inputs, 15, alpha=10.0)
            totals.append(fitness(values, np.full(40, -np.inf)))
        assert np.allclose(totals[0], totals[1], rtol=1e-9)
        assert np.allclose(totals[0], totals[2], rtol=1e-9)

    def test_racing_drops_only_what_cannot_win(self, setting, rng):
        from modelfix_arachne.repair import Fitness

        _, net, split, _, wrong = setting
        order = np.concatenate([np.flatnonzero(wrong), np.flatnonzero(~wrong)])
        patches = [Patch("fc1", np.array([2, 3, 50])), Patch("fc2", np.array([1]))]
        fitness = Fitness(net, patches, split.select(order), int(wrong.sum()), alpha=10.0)
        values = rng.normal(size=(40, 4)).astype(np.float32)
        complete = fitness(values, np.full(40, -np.inf))
        bars = np.where(np.arange(40) % 2, complete, np.median(complete))
        raced = fitness(values, bars)
        assert np.array_equal(raced[1::2], complete[1::2])
        kept = raced > -np.inf
        assert np.array_equal(raced[kept], complete[kept])
        assert (complete[~kept] < bars[~kept]).all()
        assert not kept.all()


class TestRun:
    """Checks 5, 6 and 9 on whole runs."""

    @pytest.fixture
    def faulty(self, trained):
        model, split = trained(1)
        broken, _, failing = planted(
            model, split, "fc3.weight", np.random.default_rng(1), 1, 4, least=15
        )
        assert failing.sum() >= 15
        return broken, split

    @pytest.fixture
    def proposals(self, faulty, task):
        model, split = faulty

        def run_it(seed=0):
            approach = Arachne(generations=8, target="all")
            return model, list(approach.candidates(task(model, split, seed=seed)))

        return run_it

    def test_only_the_front_changes_and_the_best_never_falls(self, proposals, faulty):
        model, (front, *candidates) = proposals()
        _, split = faulty
        assert isinstance(front, Localisation)
        assert all(isinstance(candidate, Candidate) for candidate in candidates)
        fitness = [candidate.values["fitness"] for candidate in candidates]
        assert fitness == sorted(fitness)
        assert [c.step for c in candidates] == sorted({c.step for c in candidates})
        for candidate in candidates:
            fixed = candidate.apply(model)
            accuracy = fixed.accuracy(split)
            assert candidate.validation_accuracy == pytest.approx(accuracy, abs=0.002)
            for name, array in model.weights.items():
                at = [
                    i
                    for k, i in zip(front.layer, front.index, strict=True)
                    if f"{k}.weight" == name
                ]
                same = fixed.weights[name].ravel() == array.ravel()
                assert np.delete(same, at).all()

    def test_one_seed_one_result(self, proposals):
        def weights(seed):
            return [c.weights for c in proposals(seed)[1][1:]]

        first, again, other = weights(0), weights(0), weights(1)
        assert len(first) == len(again)
        for a, b in zip(first, again, strict=True):
            assert a.keys() == b.keys()
            assert all(np.array_equal(a[name], b[name]) for name in a)
        assert not all(np.array_equal(first[-1][k], other[-1].get(k)) for k in first[-1])

    def test_racing_changes_no_result(self, proposals, monkeypatch):
        from modelfix_arachne.repair import Fitness

        raced = proposals()[1][1:]
        call = Fitness.__call__
        monkeypatch.setattr(
            Fitness, "__call__", lambda self, v, bars: call(self, v, np.full(len(v), -np.inf))
        )
        complete = proposals()[1][1:]
        assert len(raced) == len(complete)
        for a, b in zip(raced, complete, strict=True):
            assert a.values == b.values
            assert all(np.array_equal(a.weights[name], b.weights[name]) for name in a.weights)

    def test_the_job_accepts_the_result(self, faulty, task):
        approach = Arachne(target="all", generations=5, update="sync")
        result = run(approach, task(*faulty))
        assert result.outcome in (Outcome.FIXED, Outcome.CORRUPTED)
        assert result.reason is None or "fell" in result.reason

    def test_values_stay_inside_the_bounds(self, proposals, monkeypatch):
        from modelfix_arachne import repair

        spaces, asked = [], []
        make, call = repair.Space, repair.Fitness.__call__
        monkeypatch.setattr(repair, "Space", lambda *a: spaces.append(make(*a)) or spaces[-1])
        monkeypatch.setattr(
            repair.Fitness, "__call__", lambda self, v, b: asked.append(v) or call(self, v, b)
        )
        model, _ = proposals()
        (space,) = spaces
        initial, *trials = asked
        low, high = (np.float32(bound) for bound in (space.low, space.high))
        outside = set(initial[(initial < low) | (initial > high)])
        for values in trials:
            # A coordinate that is not crossed over may be one of the initial, unbounded ones.
            strays = values[(values < low) | (values > high)]
            assert set(strays) <= outside
        w = model.weights["fc3.weight"]
        in_fc3 = np.repeat(
            [p.layer == "fc3" for p in space.patches], [len(p.index) for p in space.patches]
        )
        assert np.allclose(space.low[in_fc3], 2 * w.min())
        assert np.allclose(space.high[in_fc3], 2 * w.max())


def test_bounds_of_kernels_of_one_sign(graph):
    from modelfix_arachne.repair import Space

    net = graph((2, 1, 1)).add("Flatten")
    net.add("Gemm", ("up.weight", [[1.0, 2.0], [3.0, 4.0]]), transB=1)
    net.add("Gemm", ("down.weight", [[-1.0, -2.0], [-3.0, -4.0]]), transB=1)
    front = Localisation("weight", ["down", "up"], np.array([1, 2]), np.zeros(2))
    space = Space(net.model(2), front)
    assert [patch.layer for patch in space.patches] == ["up", "down"]
    assert space.low.tolist() == [0.5, -8.0]
    assert space.high.tolist() == [8.0, -0.5]


def planted(model, split, name, rng, low, high, least):
    """Shift one random weight until between `least` and 200 inputs break; None if none does."""
    weight = model.weights[name]
    before = model.predict(split).argmax(axis=1) == split.y
    for _ in range(60):
        position = int(rng.integers(weight.size))
        shifted = weight.copy()
        shifted.flat[position] += rng.choice([-1, 1]) * rng.uniform(low, high)
        broken = model.with_weights({name: shifted})
        failing = before & (broken.predict(split).argmax(axis=1) != split.y)
        if least <= failing.sum() <= 200:
            return broken, position, failing
    return None


def evolve(net, model, split, patches, failing, passing, seed):
    """Search the given weights with the approach's own fitness and strategy."""
    from modelfix_arachne.repair import Fitness, Space
    from modelfix_core.search import DifferentialEvolution

    names = [patch.layer for patch in patches for _ in patch.index]
    index = np.concatenate([patch.index for patch in patches])
    space = Space(model, Localisation("weight", names, index, np.zeros(len(index))))
    order = np.concatenate([failing, passing])
    config = ArachneConfig()
    fitness = Fitness(net, space.patches, split.select(order), len(failing), config.alpha)
    rng = np.random.default_rng(seed)
    initial = space.draw(config.population, rng)
    search = DifferentialEvolution(
        initial, space.low, space.high, rng, patience=10, target=fitness.largest
    )
    while not search.finished:
        search.tell(fitness(*search.ask()))
    return model.with_weights(space.weights(search.best))


class TestPlantedFaults:
    """Checks 7 and 8: a single weight of a good model is shifted."""

    @pytest.mark.parametrize(
        "seeds", [range(3), pytest.param(range(3, 20), marks=pytest.mark.slow)]
    )
    def test_repair_restores_what_the_shift_broke(self, trained, seeds):
        from modelfix_core.keras import load

        restored = []
        for seed in seeds:
            model, split = trained(seed)
            rng = np.random.default_rng(seed)
            fault = planted(model, split, "fc3.weight", rng, 1, 4, least=15)
            if fault is None:
                continue
            broken, position, failing = fault
            passing = np.flatnonzero(broken.predict(split).argmax(axis=1) == split.y)
            patch = Patch("fc3", np.array([position]))
            fixed = evolve(
                load(broken), broken, split, [patch], np.flatnonzero(failing), passing, seed
            )
            right = fixed.predict(split).argmax(axis=1) == split.y
            restored.append(right[failing].mean())
        assert len(restored) >= 0.6 * len(seeds)
        assert np.mean(np.array(restored) >= 0.9) >= 0.9

    @pytest.mark.slow
    def test_localisation_ranks_the_planted_weight(self, trained):
        from modelfix_arachne.localisation import impacts
        from modelfix_core.keras import load

        classifier, hidden = [], []
        for seed in range(30):
            model, split = trained(seed, (8, 16, 12, 4))
            rng = np.random.default_rng(seed)
            for name in ("fc3", "fc2", "fc1"):
                deviation = model.weights[f"{name}.weight"].std()
                fault = planted(
                    model, split, f"{name}.weight", rng, 3 * deviation, 10 * deviation, least=15
                )
                if fault is None:
                    continue
                broken, position, failing = fault
                right = broken.predict(split).argmax(axis=1) == split.y
                contrast = rng.choice(np.flatnonzero(right), failing.sum(), replace=False)
                net, layers = load(broken), broken.layers()
                wrong = impacts(net, layers, split.select(np.flatnonzero(failing)))
                kept = impacts(net, layers, split.select(contrast))
                if name == "fc3":
                    classifier.append(_front_of(wrong, kept, name, position))
                else:
                    # Among the weights of its layer: the forward impacts of each sum to one.
                    forward = (wrong[name].forward / (1 + kept[name].forward)).ravel()
                    hidden.append((forward > forward[position]).mean())
        assert len(classifier) >= 20
        assert len(hidden) >= 30
        assert np.mean(np.array(classifier) <= 3) >= 0.8
        assert np.mean(np.array(hidden) <= 0.05) >= 0.6

    @pytest.mark.parametrize(("name", "on_the_front"), [("conv1", 3), ("fc3", 2)])
    def test_localisation_in_a_real_lenet(self, name, on_the_front):
        """With `abs`: planted weights of the first and the last layer are on the first two fronts.

        The LeNet5 of the tiny subject; the specification, on another one, found all four weights
        of the first convolution on the front itself, here one of four is on the second.
        """
        from modelfix_arachne.localisation import impacts
        from modelfix_core.keras import load

        task = tiny_task()
        parts = (task.train, task.repair, task.validation)
        split = Split(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))
        deviation = task.model.weights[f"{name}.weight"].std()
        fronts = []
        for seed in range(4):
            rng = np.random.default_rng(seed)
            broken, position, failing = planted(
                task.model, split, f"{name}.weight", rng, 3 * deviation, 10 * deviation, least=15
            )
            right = broken.predict(split).argmax(axis=1) == split.y
            contrast = rng.choice(np.flatnonzero(right), failing.sum(), replace=False)
            net, layers = load(broken), broken.layers()
            wrong = impacts(net, layers, split.select(np.flatnonzero(failing)), "abs")
            kept = impacts(net, layers, split.select(contrast), "abs")
            fronts.append(_front_of(wrong, kept, name, position))
        assert max(fronts) <= 2
        assert fronts.count(1) >= on_the_front


def _front_of(wrong, kept, name, position):
    """Return on which front (1 is the Pareto front) the weight lies; 4 for beyond the third."""
    gradient = np.concatenate([(wrong[k].gradient / (1 + kept[k].gradient)).ravel() for k in wrong])
    forward = np.concatenate([(wrong[k].forward / (1 + kept[k].forward)).ravel() for k in wrong])
    start = 0
    for layer in wrong:
        if layer == name:
            break
        start += wrong[layer].gradient.size
    left = np.arange(len(gradient))
    for rank in (1, 2, 3):
        front = pareto_front(gradient[left], forward[left])
        if start + position in left[front]:
            return rank
        left = np.delete(left, front)
    return 4
