"""The method as its authors describe it: what must hold of every implementation."""

import numpy as np
import pytest
from modelfix_core import Candidate, Failure, Outcome
from modelfix_core.fixing import run
from modelfix_core.population import Patch, Scores
from modelfix_neurecover import NeuRecover
from modelfix_neurecover.approach import NeuRecoverConfig

SEEDS = 40


def cross_entropy(logits, y):
    z = logits.astype(np.float64)
    top = z.max(axis=-1)
    own = np.take_along_axis(z, np.broadcast_to(y, z.shape[:-1])[..., None], axis=-1)[..., 0]
    return np.log(np.exp(z - top[..., None]).sum(axis=-1)) + top - own


def patched(model, patches, values):
    """One model per row of values: set weights, as a loop over candidates would."""
    for row in values:
        changed, done = {}, 0
        for patch in patches:
            name = model.layer(patch.layer).weight
            weight = model.weights[name].copy()
            weight.flat[patch.index] = row[done : done + len(patch.index)]
            changed[name], done = weight, done + len(patch.index)
        yield model.with_weights(changed)


@pytest.fixture
def two_epochs(blobs, train):
    """Two neighbouring epochs of a short training, and noisy inputs."""
    split = blobs(3, noise=0.8)
    *_, earlier, model = train(split, seed=3, epochs=8)
    return earlier, model, split


@pytest.fixture
def compared(two_epochs, net_of, history):
    """The network, both versions compared, and the inputs."""
    from modelfix_neurecover.history import compare

    earlier, model, split = two_epochs
    net = net_of(model)
    return net, compare(net, history([earlier, model]), split), split


class TestImpacts:
    """Check 1."""

    def test_forward_impact_is_the_explicit_mean(self, compared):
        from modelfix_neurecover.localisation import impacts

        net, past, split = compared
        part = split.select(past.degraded)
        layers = net.model.layers("dense")
        found = impacts(net, layers, part)
        o = net.model.activations(part.images(), [layer.input for layer in layers])
        for layer, impact in zip(layers, found, strict=True):
            terms = np.abs(o[layer.input][:, None, :] * net.model.weights[layer.weight][None])
            assert np.allclose(impact.forward, terms.mean(axis=0), rtol=1e-6, atol=1e-6)

    def test_gradient_is_that_of_the_summed_loss(self, compared):
        from modelfix_neurecover.localisation import impacts

        net, past, split = compared
        part = split.select(past.degraded)
        layers = net.model.layers("dense")
        found = impacts(net, layers, part)
        for layer, impact in zip(layers, found, strict=True):
            for position in impact.backward.ravel().argsort()[[-1, -7]]:
                losses = []
                for step in (2e-3, -2e-3):
                    weight = net.model.weights[layer.weight].copy()
                    weight.flat[position] += step
                    logits = net.model.with_weights({layer.weight: weight}).predict(part)
                    losses.append(cross_entropy(logits, part.y).sum())
                slope = abs(losses[0] - losses[1]) / 4e-3
                assert impact.backward.flat[position] == pytest.approx(slope, rel=0.02, abs=1e-2)


class TestSets:
    """Check 2."""

    def test_equal_python_sets(self, compared):
        from modelfix_neurecover.localisation import impacts, localise

        net, past, split = compared
        layers, weights = net.model.layers("dense"), net.model.weights
        bad = impacts(net, layers, split.select(past.degraded))
        good = impacts(net, layers, split.select(past.improved))
        means = {name: np.abs(w - past.earlier[name]).mean() for name, w in weights.items()}

        def largest(values, k):
            order = sorted(np.ndindex(values.shape), key=lambda at: -values[at])
            return {at for at in order[:k] if values[at] > 0}

        for rho in (1.0, 4.0):
            expected = set()
            for position, layer in enumerate(layers):
                size = weights[layer.weight].size
                phi = [
                    impact[position].forward.mean() / sum(i.forward.mean() for i in impact)
                    for impact in (bad, good)
                ]
                share = means[layer.weight] / sum(means.values())
                k = int(np.rint(size * phi[0] / (phi[0] + phi[1]) * share * rho))
                change = np.abs(weights[layer.weight] - past.earlier[layer.weight])
                harmful = (
                    largest(change, k)
                    & largest(bad[position].forward, k)
                    & largest(bad[position].backward, k)
                )
                protected = largest(good[position].forward, k) & largest(good[position].backward, k)
                chosen = harmful - protected
                assert not chosen & protected
                expected |= {
                    (layer.name, int(np.ravel_multi_index(at, change.shape))) for at in chosen
                }
            found = localise(net, past, split, rho)
            assert set(zip(found.layer, found.index.tolist(), strict=True)) == expected
            assert len(found) == len(expected) > 0

    def test_every_weight_meets_all_conditions(self):
        from modelfix_neurecover.localisation import Impact, spoiled

        rng = np.random.default_rng(0)
        for k in (0, 1, 20, 60, 100):
            change, *tensors = rng.random((5, 10, 10)) * (rng.random((5, 10, 10)) > 0.2)
            mask = spoiled(change, Impact(*tensors[:2]), Impact(*tensors[2:]), k)

            def rank(values):
                return (values.ravel() > values.reshape(-1, 1)).sum(axis=1).reshape(values.shape)

            for values in (change, *tensors[:2]):
                assert (rank(values)[mask] < k).all()
                assert (values[mask] > 0).all()
            protected = [(rank(values) < k) & (values > 0) for values in tensors[2:]]
            assert not (mask & protected[0] & protected[1]).any()


class TestIdenticalVersions:
    """Check 3."""

    def test_is_a_failure_with_its_reason(self, two_epochs, task):
        _, model, split = two_epochs
        job = task(model, split, [model, model])
        before = {name: array.copy() for name, array in model.weights.items()}
        result = run(NeuRecover(), job)
        assert result.outcome is Outcome.FAILURE
        assert "no degraded input" in result.reason
        assert result.model is None
        assert all(np.array_equal(array, before[name]) for name, array in model.weights.items())


class TestUnadaptable:
    """Check 4."""

    def test_one_checkpoint(self, two_epochs, task):
        _, model, split = two_epochs
        result = run(NeuRecover(), task(model, split, [model]))
        assert result.outcome is Outcome.UNADAPTABLE
        assert "at least two epochs" in result.reason

    def test_a_checkpoint_of_another_shape(self, two_epochs, train, task):
        _, model, split = two_epochs
        other = train(split, epochs=1, sizes=(8, 20, 16, 4))[0]
        result = run(NeuRecover(), task(model, split, [other, model]))
        assert result.outcome is Outcome.UNADAPTABLE
        assert "same architecture" in result.reason


class TestPlantedRegression:
    """Check 5: one weight spoiled between two versions; blame it or nothing."""

    def test_it_is_that_weight_or_nothing(self, blobs, train, net_of, history):
        from modelfix_neurecover.history import compare
        from modelfix_neurecover.localisation import localise

        hits = 0
        for seed in range(SEEDS):
            split = blobs(seed)
            model = train(split, seed=seed, epochs=10)[-1]
            broken, layer, index = self.break_one(model, split, seed)
            net = net_of(broken)
            past = compare(net, history([model, broken]), split)
            try:
                found = localise(net, past, split)
            except Failure:
                continue
            assert list(zip(found.layer, found.index, strict=True)) == [(layer, index)]
            hits += 1
        assert hits >= 0.6 * SEEDS

    @staticmethod
    def break_one(model, split, seed):
        rng = np.random.default_rng(seed)
        right = model.predict(split).argmax(axis=1) == split.y
        while True:
            layer = f"fc{rng.integers(2, 4)}"
            weight = model.weights[f"{layer}.weight"].copy()
            index = int(rng.integers(weight.size))
            weight.flat[index] += rng.choice([-1, 1]) * rng.uniform(1, 3)
            broken = model.with_weights({f"{layer}.weight": weight})
            wrong = broken.predict(split).argmax(axis=1) != split.y
            if 12 <= (right & wrong).sum() <= 200:
                return broken, layer, index


class TestRealHistory:
    """Check 6."""

    @pytest.mark.parametrize("seed", range(5))
    def test_few_weights_are_localised(self, blobs, train, net_of, history, seed):
        from modelfix_neurecover.history import compare
        from modelfix_neurecover.localisation import localise

        split = blobs(seed, noise=0.8)
        models = train(split, seed=seed, epochs=8)
        net = net_of(models[-1])
        past = compare(net, history(models), split)
        assert past.degraded.any()
        assert past.improved.any()
        assert 1 <= len(localise(net, past, split)) <= 12


class TestFitness:
    """Check 7."""

    def test_of_the_original_weights(self, two_epochs, net_of):
        from modelfix_neurecover.repair import Fitness

        _, model, split = two_epochs
        logits = model.predict(split)
        wrong = logits.argmax(axis=1) != split.y
        failing, passing = np.flatnonzero(wrong), np.flatnonzero(~wrong)[:50]
        inputs = split.select(np.concatenate([failing, passing]))
        patch = Patch("fc2", np.array([3, 200]))
        evaluate = Fitness(net_of(model), [patch], inputs, len(failing), alpha=1.0)
        original = model.weights["fc2.weight"].ravel()[patch.index]
        loss = cross_entropy(logits, split.y)
        expected = 1 / (loss[failing].mean() + 1) + 2 / (loss[passing].mean() + 1)
        assert evaluate(original[None])[0] == pytest.approx(expected, rel=1e-5)

    def test_grows_with_every_repaired_input(self):
        from modelfix_neurecover.repair import fitness

        right = np.arange(6)[None, :] < np.arange(7)[:, None]  # none, one, ..., all six
        right = np.hstack([right, np.ones((7, 4), bool)])
        assert (np.diff(fitness(Scores(right, np.ones((7, 10))), 6, 1.0)) > 0).all()

    def test_by_hand(self):
        from modelfix_neurecover.repair import fitness

        scores = Scores(
            np.array([[True, False, True], [False, False, False]]),
            np.array([[0.5, 1.5, 0.25], [1.0, 2.0, 3.0]]),
        )
        expected = [1.5 / 2 + 3 * 2 / 1.25, 1 / 2.5 + 3 * 1 / 4]
        assert fitness(scores, 2, 3.0) == pytest.approx(expected, rel=1e-12)


class TestEngine:
    """Check 8."""

    def test_equals_setting_weights_in_two_layers(self, two_epochs, net_of):
        from modelfix_core.keras import Population
        from modelfix_neurecover.repair import Fitness

        _, model, split = two_epochs
        rng = np.random.default_rng(0)
        patches = [Patch("fc1", np.array([0, 9, 100])), Patch("fc3", np.array([5, 40]))]
        values = rng.normal(size=(9, 5)).astype(np.float32)
        logits = np.stack([m.predict(split) for m in patched(model, patches, values)])
        population = Population(net_of(model), patches, split)
        assert np.allclose(population.logits(values), logits, rtol=1e-5, atol=1e-5)
        right, loss = logits.argmax(axis=2) == split.y, cross_entropy(logits, split.y)
        assert np.array_equal(population.evaluate(values).right, right)
        expected = (right[:, :70].mean(axis=1) + 1) / (loss[:, :70].mean(axis=1) + 1)
        expected += 0.5 * (right[:, 70:].mean(axis=1) + 1) / (loss[:, 70:].mean(axis=1) + 1)
        found = Fitness(net_of(model), patches, split, 70, alpha=0.5)(values)
        assert np.allclose(found, expected, rtol=1e-5)


class TestRepair:
    """Check 9."""

    @pytest.fixture(scope="class")
    def tiny(self):
        """One run on a convolutional network: what it proposed and how often the swarm moved."""
        from modelfix_testing import tiny_task

        moves = []
        job = tiny_task(reporter=lambda done, total, note: moves.append(done))
        found, *candidates = NeuRecover("study", rho=2.0).candidates(job)
        return job.model, found, candidates, moves[-1]

    def test_all_but_the_localised_weights_stay(self, tiny):
        model, found, candidates, _ = tiny
        assert model.layers("conv")
        blamed = {}
        for layer, index in zip(found.layer, found.index, strict=True):
            blamed.setdefault(model.layer(layer).weight, []).append(index)
        for candidate in candidates:
            fixed = candidate.apply(model)
            for name, array in model.weights.items():
                differs = fixed.weights[name].view(np.uint32) != array.view(np.uint32)
                assert set(np.flatnonzero(differs)) <= set(blamed.get(name, []))

    def test_the_best_never_falls(self, tiny):
        _, _, candidates, _ = tiny
        assert all(isinstance(candidate, Candidate) for candidate in candidates)
        values = [candidate.values["fitness"] for candidate in candidates]
        assert len(values) > 1
        assert (np.diff(values) > 0).all()

    def test_it_stops_at_the_first_iteration_without_gain_over_ten(self, tiny):
        _, _, candidates, last = tiny
        gains = [candidate.step for candidate in candidates]
        stalled = [t for t in range(11, 101) if not any(t - 10 < gain <= t for gain in gains)]
        assert last == min([*stalled, 100])

    @pytest.mark.parametrize("last_gain", [1, 5, 30, 95])
    def test_stop_rule(self, two_epochs, last_gain):
        from modelfix_neurecover.repair import start

        _, model, _ = two_epochs
        config = NeuRecoverConfig(particles=3)
        search = start(model, [Patch("fc2", np.array([1, 2]))], config, np.random.default_rng(0))
        while not search.finished:
            search.ask()
            search.tell(np.full(3, min(search.iteration + 1, last_gain)))
        assert search.iteration == min(100, max(11, last_gain + 10))
