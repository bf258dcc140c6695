"""The method as its authors describe it: what must hold of every implementation."""

import numpy as np
import pytest
from modelfix_core import Candidate, Outcome, Split
from modelfix_core.fixing import run
from modelfix_core.population import Patch
from modelfix_distrrep import DistrRep
from modelfix_distrrep.approach import DistrRepConfig
from modelfix_distrrep.blend import Blend
from modelfix_distrrep.risks import Misclassification, RiskSetting, Score, from_classes

CONFIG = DistrRepConfig(particles=30, iterations=15)


def unsigned(array):
    return array.view(np.uint32)


def entries_of(model, split, classes=3):
    predicted = model.predict(split).argmax(axis=1)
    return from_classes(dict.fromkeys(range(classes), 1.0), predicted, split.y)


def silent(*_):
    """Report to nobody."""


@pytest.fixture
def blamed(net, model, split, task):
    """The blame of six misclassifications, and the task."""
    from modelfix_core.keras import predict
    from modelfix_distrrep.patches import blame

    job = task(model, split)
    logits = predict(net, split)
    found = blame(net, job, logits, entries_of(model, split).misclassifications, 20)
    assert len(found) == 6
    return job, found, logits.argmax(axis=1)


def random_patches(rng, size, count, length):
    """Disjoint positions with random values."""
    every = rng.permutation(size)[: count * length].reshape(count, length)
    return [(np.sort(index), rng.normal(size=length).astype(np.float32)) for index in every]


class TestPatches:
    """Checks 1 and 10: every patch starts from the original model and knows no other."""

    def test_the_model_stays_and_the_order_changes_nothing(self, net, blamed):
        from modelfix_distrrep.patches import repair

        job, found, predicted = blamed
        before = {name: unsigned(array).copy() for name, array in net.model.weights.items()}
        one = repair(net, job, CONFIG, found, predicted, silent)
        other = repair(net, job, CONFIG, found[::-1], predicted, silent)[::-1]
        assert net.weights() == {}
        for name, array in net.model.weights.items():
            assert np.array_equal(unsigned(array), before[name])
        for mine, same in zip(one, other, strict=True):
            assert mine.blame is same.blame
            assert np.array_equal(unsigned(mine.values), unsigned(same.values))
            assert mine.repaired == same.repaired
        assert len({repair.values[0] for repair in one}) == len(one)

    def test_the_failing_inputs_are_those_of_the_misclassification(self, blamed):
        job, found, predicted = blamed
        for one in found:
            y, wrongly = job.repair.y[one.failing], predicted[one.failing]
            assert (y == one.entry.true).all()
            assert (wrongly != y).all()
            if one.entry.predicted is not None:
                assert (wrongly == one.entry.predicted).all()

    def test_gradient_equals_automatic_differentiation(self, net, blamed):
        job, found, _ = blamed
        for one in found:
            part = job.repair.select(one.failing)
            whole = net.weight_gradients(part, part.y, ["fc2.weight"])["fc2.weight"]
            expected = np.abs(whole.ravel()[one.index]) / len(part)
            assert np.allclose(one.gradient, expected, atol=1e-5)

    def test_blame_is_the_front_of_the_largest_gradients(self, net, blamed):
        from modelfix_arachne.front import pareto_front

        job, found, _ = blamed
        weight = net.model.weights["fc2.weight"]
        for one in found:
            part = job.repair.select(one.failing)
            gradient = np.abs(net.weight_gradients(part, part.y, ["fc2.weight"])["fc2.weight"])
            forward = np.abs(weight) * np.abs(net.prefix("h1", part)).mean(axis=0)
            kept = np.argsort(-gradient.ravel(), kind="stable")[: 20 * len(part)]
            front = kept[pareto_front(gradient.ravel()[kept], forward.ravel()[kept])]
            assert one.index.tolist() == sorted(front.tolist())


class TestBlend:
    """Checks 2, 3 and 5."""

    @pytest.fixture
    def weight(self, model):
        return model.weights["fc2.weight"]

    def test_corners_of_the_box_are_the_models_themselves(self, weight):
        patches = random_patches(np.random.default_rng(0), weight.size, 4, 6)
        blend = Blend(weight, patches)
        assert blend.dimensions == 4
        found = blend.values(np.vstack([np.zeros(4), np.eye(4), np.ones(4)]))
        expected = [weight.copy() for _ in range(6)]
        for m, (index, values) in enumerate(patches):
            expected[1 + m].flat[index] = values
            expected[5].flat[index] = values
        for values, kernel in zip(found, expected, strict=True):
            assert np.array_equal(unsigned(blend.weight(values)), unsigned(kernel))

    @pytest.mark.parametrize("kind", ["linear", "minmax"])
    def test_logits_equal_those_of_written_weights(self, net, model, split, weight, kind):
        from modelfix_core.keras import Population

        rng = np.random.default_rng(1)
        patches = random_patches(rng, weight.size, 3, 5)
        patches.append((patches[0][0][1:3], np.float32([0.7, -0.9])))
        blend = Blend(weight, patches, kind)
        assert blend.dimensions == 4 + 2
        coefficients = rng.random((50, blend.dimensions))
        values = blend.values(coefficients)
        logits = Population(net, [Patch("fc2", blend.index)], split).logits(values)
        for row, z in zip(coefficients, logits, strict=True):
            kernel = written(weight, patches, row, kind)
            expected = model.with_weights({"fc2.weight": kernel}).predict(split)
            assert np.abs(z - expected).max() < 1e-4
            assert np.array_equal(z.argmax(axis=1), expected.argmax(axis=1))

    def test_nine_patches_and_one_shared_weight(self, weight):
        rng = np.random.default_rng(2)
        patches = random_patches(rng, weight.size, 9, 2)
        assert Blend(weight, patches).dimensions == 9
        index, values = patches[8]
        patches[8] = np.array([patches[0][0][0], index[1]]), values
        blend = Blend(weight, patches)
        assert blend.dimensions == 9 + 1
        assert (blend.owners > 1).sum() == 1
        shared = np.flatnonzero(blend.owners > 1)[0]
        bounds = blend.values(np.array([[0.5] * 9 + [0], [0.5] * 9 + [1]]))[:, shared]
        every = [weight.ravel()[blend.index[shared]], patches[0][1][0], values[0]]
        assert bounds.tolist() == [min(every), max(every)]


def written(weight, patches, coefficients, kind):
    """Blend weight by weight, as the method is written down."""
    kernel, done = weight.astype(np.float64), 0
    for position in np.unique(np.concatenate([index for index, _ in patches])):
        w0 = float(weight.flat[position])
        values = {
            m: float(v[list(index).index(position)])
            for m, (index, v) in enumerate(patches)
            if position in index
        }
        low, high = min(w0, *values.values()), max(w0, *values.values())
        if len(values) > 1:
            kernel.flat[position] = low + coefficients[len(patches) + done] * (high - low)
            done += 1
        elif kind == "linear":
            ((m, value),) = values.items()
            kernel.flat[position] = w0 + coefficients[m] * (value - w0)
        else:
            kernel.flat[position] = low + coefficients[next(iter(values))] * (high - low)
    return kernel.astype(np.float32)


class TestScore:
    """Check 4."""

    Y = np.array([0, 0, 1, 1, 2, 3])
    SETTING = RiskSetting(
        (
            Misclassification(0, None, 0.3),
            Misclassification(1, None, 0.2),
            Misclassification(2, 1, 0.5),
        ),
        {0: 0.75, 1: 0.25},
    )

    def of(self, *predicted):
        score = Score(self.SETTING, self.Y)
        return float(score(score.errors(np.array([predicted])))[0])

    def test_perfect_predictions_earn_the_precision_weights(self):
        assert self.of(*self.Y) == pytest.approx(1.0)

    def test_a_class_that_is_wrong_throughout(self):
        assert self.of(3, 3, 1, 1, 2, 3) == pytest.approx(0.25 - 0.5 * 0.3)

    def test_by_hand(self):
        # Half of class 0 and all of class 2 are wrong, the latter in the targeted way.
        expected = 0.75 * 0.5 - 0.5 * 0.3 * 0.5 + 0.25 - 0.5 * 0.5
        assert self.of(0, 1, 1, 1, 1, 3) == pytest.approx(expected)
        assert self.of(0, 1, 1, 1, 0, 3) == pytest.approx(expected + 0.25)

    def test_falls_with_every_counted_error_and_with_no_other(self):
        found = [
            self.of(*self.Y),
            self.of(1, 0, 1, 1, 2, 3),
            self.of(1, 2, 1, 1, 2, 3),
            self.of(1, 2, 0, 1, 2, 3),
            self.of(1, 2, 0, 0, 2, 3),
            self.of(1, 2, 0, 0, 1, 3),
        ]
        assert (np.diff(found) < 0).all()
        assert self.of(0, 0, 1, 1, 2, 0) == self.of(0, 0, 1, 1, 2, 3)
        assert self.SETTING.counted(self.Y).tolist() == [0, 1, 2, 3, 4]


class TestMerge:
    """Checks 6, 7 and 9."""

    def test_nothing_outside_of_the_box_counts(self, net, model, split):
        from modelfix_distrrep.merge import Judge, fitness

        weight = model.weights["fc2.weight"]
        blend = Blend(weight, random_patches(np.random.default_rng(0), weight.size, 3, 4))
        judge = Judge(net, Patch("fc2", blend.index), split, entries_of(model, split))
        inside = np.full((1, 3), 0.5)
        coefficients = np.repeat(inside, 6, axis=0)
        coefficients[[1, 2], [0, 2]] = 1.01, -0.01
        coefficients[[3, 4], [0, 2]] = 1.0, 0.0
        found = fitness(judge, blend, coefficients)
        assert (found == -1).tolist() == [False, True, True, False, False, False]
        assert found[0] == judge(blend.values(inside)).score[0]
        assert (fitness(judge, blend, coefficients[1:3]) == -1).all()

    def test_the_best_never_falls_and_lies_inside(self, net, blamed, model, split):
        from modelfix_distrrep.merge import Judge, fitness, start
        from modelfix_distrrep.patches import repair

        job, found, predicted = blamed
        repairs = repair(net, job, CONFIG, found, predicted, silent)
        weight = model.weights["fc2.weight"]
        blend = Blend(weight, [(r.blame.index, r.values) for r in repairs])
        judge = Judge(net, Patch("fc2", blend.index), split, entries_of(model, split))
        search = start(blend.dimensions, DistrRepConfig(), np.random.default_rng(0))
        best = []
        while not search.finished:
            coefficients, _ = search.ask()
            search.tell(fitness(judge, blend, coefficients))
            best.append(search.best_fitness)
            assert ((search.best >= 0) & (search.best <= 1)).all()
        assert (np.diff(best) >= 0).all()
        assert best[0] > -1

    @pytest.fixture(scope="class")
    def conflict(self):
        """Two classes that overlap, a head that parts them in the middle, and two patches.

        The first patch predicts class 0 more often and the second class 1, so that each repairs
        one misclassification at the price of the other.
        """
        from modelfix_core.keras import load
        from modelfix_testing import mlp

        rng = np.random.default_rng(0)
        y = np.repeat([0, 1], 150)
        feature = np.clip(rng.normal(0.4 + 0.2 * y, 0.2), 0, 1)
        x = np.stack([feature, np.ones(300)], axis=1).astype(np.float32).reshape(300, 2, 1, 1)
        model = mlp([np.array([[-4.0, 2.0], [4.0, -2.0]])], [np.zeros(2)], (2, 1, 1))
        return load(model), Split(x, y)

    @pytest.mark.parametrize("seed", range(5))
    def test_the_larger_risk_wins(self, conflict, task, seed):
        from modelfix_distrrep.merge import merge
        from modelfix_distrrep.patches import Blame, Repair

        net, split = conflict
        errors = []
        for risk in (0.9, 0.1):
            pairs = Misclassification(0, 1, risk), Misclassification(1, 0, 1 - risk)
            repairs = [
                Repair(Blame(pair, np.arange(1), np.array([index]), np.ones(1)), value, 0)
                for pair, index, value in zip(
                    pairs, (1, 3), np.float32([[4.0], [0.0]]), strict=True
                )
            ]
            job = task(net.model, split, seed=seed)
            config = DistrRepConfig(selection="swarm")
            setting = RiskSetting(pairs, {})
            found = [
                proposal.apply(net.model)
                for proposal in merge(net, job, config, setting, repairs, silent)
                if isinstance(proposal, Candidate)
            ]
            predicted = found[-1].predict(split).argmax(axis=1)
            errors.append([int((predicted[split.y == k] != k).sum()) for k in (0, 1)])
        first, second = errors
        assert first[0] < second[0]
        assert first[1] > second[1]

    def test_only_blamed_weights_differ(self, model, split, task):
        approach = DistrRep("study", particles=30, iterations=15)
        proposals = list(approach.candidates(task(model, split, {0: 1.0, 2: 1.0})))
        blamed = set(proposals[0].index.tolist())
        candidates = [p for p in proposals if isinstance(p, Candidate)]
        assert candidates
        for candidate in candidates:
            fixed = candidate.apply(model)
            for name, array in model.weights.items():
                differs = np.flatnonzero(unsigned(fixed.weights[name]) != unsigned(array))
                assert set(differs.tolist()) <= (blamed if name == "fc2.weight" else set())
        scores = [candidate.values["score"] for candidate in candidates]
        assert (np.diff(scores) > 0).all()


class TestSetting:
    """Check 8."""

    def test_without_risks_it_is_unadaptable(self, model, split, task):
        for preset in DistrRep.presets:
            result = run(DistrRep(preset), task(model, split))
            assert result.outcome is Outcome.UNADAPTABLE
            assert "importance of classes" in result.reason

    def test_what_does_not_occur_has_no_patch(self, net, model, split, task, caplog):
        from modelfix_core.keras import predict
        from modelfix_distrrep.patches import blame

        logits = predict(net, split)
        wrong = (logits.argmax(axis=1) != split.y) & (split.y == 0)
        part = split.select(np.flatnonzero(~wrong))
        entries = Misclassification(0, None, 0.5), Misclassification(1, None, 0.5)
        found = blame(net, task(model, part), logits[~wrong], entries, 20)
        assert [one.entry for one in found] == [entries[1]]
        assert "class 0 predicted as another class: no failing input" in caplog.text

    def test_nothing_to_repair_is_a_failure(self, model, split, task):
        predicted = model.predict(split).argmax(axis=1)
        perfect = Split(split.x, predicted)
        result = run(DistrRep(), task(model, perfect, {0: 1.0}))
        assert result.outcome is Outcome.FAILURE
        assert "nothing to repair" in result.reason
