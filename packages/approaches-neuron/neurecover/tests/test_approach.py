"""Options, what is refused, which version is compared, which inputs count."""

import subprocess
import sys

import numpy as np
import pytest
from modelfix_core import Failure, ModelfixError, Outcome, Split
from modelfix_core.fixing import run
from modelfix_core.population import Patch
from modelfix_neurecover import NeuRecover, inputs
from modelfix_neurecover.approach import NeuRecoverConfig


@pytest.fixture
def epochs(blobs, train):
    """Four epochs and noisy inputs."""
    split = blobs(1, n=300, noise=0.8)
    return train(split, seed=1, epochs=4), split


@pytest.fixture
def past():
    """Six inputs: two degraded, one wrong before and now, one improved, two right."""
    from modelfix_neurecover.history import Comparison

    y = np.array([0, 1, 1, 2, 0, 2])
    right_before = np.array([True, True, False, False, True, True])
    return Comparison({}, right_before, np.array([1, 2, 2, 2, 0, 2]), y)


@pytest.mark.parametrize(
    "values",
    [
        {"target": "some"},
        {"target": "type:0"},
        {"target": "class:-1"},
        {"prev": "first"},
        {"prev": 0},
        {"rho": 0},
        {"phi": 4.0},
        {"max_weights": 0},
        {"speed": 2},
    ],
)
def test_refused_options(values):
    with pytest.raises(ModelfixError, match=next(iter(values))):
        NeuRecover(**values)


def test_presets():
    study = NeuRecover("study").config
    assert (study.particles, study.iterations, study.n_pos, study.target) == (100, 100, 200, "all")
    assert not study.include_original
    assert NeuRecover("paper").config.target == "type:1"


def test_without_a_history_it_is_unadaptable(epochs, task):
    models, split = epochs
    result = run(NeuRecover(), task(models[-1], split))
    assert result.outcome is Outcome.UNADAPTABLE
    assert "history" in result.reason


def test_a_history_without_a_weight_is_unadaptable(epochs, train, task):
    models, split = epochs
    shallow = train(split, epochs=1, sizes=(8, 24, 16))[0]
    result = run(NeuRecover(), task(models[-1], split, [shallow, models[-1]]))
    assert result.outcome is Outcome.UNADAPTABLE
    assert "lacks weight 'fc3.weight'" in result.reason


def test_a_version_outside_of_the_history_is_a_mistake(epochs, task):
    models, split = epochs
    with pytest.raises(ModelfixError, match="the history has 4"):
        NeuRecover(prev=5).check(task(models[-1], split, models))


def test_importing_the_package_imports_no_framework():
    code = "import sys, modelfix_neurecover; print({'tensorflow', 'torch'} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


# -- the earlier version ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([0, 1, 3], [0, 1]),  # the history ends with the model
        ([0, 1, 2], [0, 1, 2]),  # it does not hold the model
        ([0, 3, 2], [0]),  # the weights of the best epoch were kept
        ([0, 3, 3], [0]),
        ([3, 3], []),
    ],
)
def test_what_came_before_the_model(epochs, history, order, expected):
    from modelfix_neurecover.history import before

    models, _ = epochs
    paths = history([models[k] for k in order])
    assert list(before(models[3], paths)) == paths[: len(expected)]


def right(model, split):
    return model.predict(split).argmax(axis=1) == split.y


def test_sets_of_the_last_version(epochs, net_of, history):
    from modelfix_neurecover.history import compare

    models, split = epochs
    net = net_of(models[-1])
    past = compare(net, history(models), split)
    then, now = right(models[-2], split), right(models[-1], split)
    assert np.array_equal(past.degraded, then & ~now)
    assert np.array_equal(past.improved, ~then & now)
    assert np.array_equal(past.earlier["fc1.weight"], models[-2].weights["fc1.weight"])
    assert net.weights() == {}


def test_the_best_version_was_right_where_the_model_is_wrong(epochs, net_of, history):
    from modelfix_neurecover.history import compare

    models, split = epochs
    wrong = ~right(models[-1], split)
    known = [int(right(model, split)[wrong].sum()) for model in models[:-1]]
    best = max(range(3), key=lambda t: (known[t], t))
    past = compare(net_of(models[-1]), history(models), split, "best")
    assert np.array_equal(past.earlier["fc1.weight"], models[best].weights["fc1.weight"])
    assert past.degraded.sum() == known[best]


def test_the_latest_of_equally_good_versions(epochs, net_of, history):
    from modelfix_neurecover.history import compare

    models, split = epochs
    bias = models[0].weights["fc1.bias"]
    twin = models[0].with_weights({"fc1.bias": np.nextafter(bias, np.inf)})
    past = compare(net_of(models[-1]), history([models[0], twin, models[-1]]), split, "best")
    assert np.array_equal(past.earlier["fc1.bias"], twin.weights["fc1.bias"])


def test_a_version_by_its_position(epochs, net_of, history):
    from modelfix_neurecover.history import compare

    models, split = epochs
    past = compare(net_of(models[-1]), history(models), split, 1)
    assert np.array_equal(past.earlier["fc1.weight"], models[0].weights["fc1.weight"])


# -- inputs ----------------------------------------------------------------------------------


def test_targets(past):
    assert inputs.failing(past, "all").tolist() == [0, 1, 2]
    assert inputs.failing(past, "deg").tolist() == [0, 1]
    assert inputs.failing(past, "class:1").tolist() == [1, 2]
    assert inputs.failing(past, "type:2").tolist() == [0]
    with pytest.raises(Failure, match="class:2 is empty"):
        inputs.failing(past, "class:2")


def test_passing_inputs_are_drawn_once_each(past):
    drawn = inputs.passing(past, 2, np.random.default_rng(0))
    assert len(set(drawn.tolist())) == 2
    assert set(drawn.tolist()) <= {3, 4, 5}
    assert inputs.passing(past, 200, np.random.default_rng(0)).tolist() == [3, 4, 5]


# -- localisation and search -----------------------------------------------------------------


def test_nothing_improved(epochs, net_of):
    """An empty set has no impact: nothing is protected and nothing divides by zero."""
    from modelfix_neurecover.history import Comparison
    from modelfix_neurecover.localisation import localise

    models, split = epochs
    now = right(models[-1], split)
    part = split.select((right(models[-2], split) & ~now) | now)
    predicted = models[-1].predict(part).argmax(axis=1)
    past = Comparison(models[-2].weights, np.ones(len(part), bool), predicted, part.y)
    assert not past.improved.any()
    found = localise(net_of(models[-1]), past, part)
    assert np.isfinite(found.score).all()
    assert len(found) > 0


def test_a_cap_keeps_the_largest_relative_changes(epochs, net_of, history):
    from modelfix_neurecover.history import compare
    from modelfix_neurecover.localisation import localise

    models, split = epochs
    net = net_of(models[-1])
    past = compare(net, history(models), split)
    every = localise(net, past, split, rho=3.0)
    few = localise(net, past, split, rho=3.0, max_weights=2)
    assert len(every) > 2
    assert (np.diff(every.score) <= 0).all()
    assert few.index.tolist() == every.index[:2].tolist()
    for layer, index, score in zip(every.layer, every.index, every.score, strict=True):
        name = f"{layer}.weight"
        change = np.abs(models[-1].weights[name] - models[-2].weights[name])
        assert score == pytest.approx(change.flat[index] / change.mean(), rel=1e-5)


def test_nothing_localised_is_a_failure(epochs, task):
    models, split = epochs
    result = run(NeuRecover(rho=1e-6), task(models[-1], split, models))
    assert result.outcome is Outcome.FAILURE
    assert "no weight is localised" in result.reason


def test_top_leaves_out_zeros():
    from modelfix_neurecover.localisation import top

    values = np.array([[0.0, 3.0], [1.0, 2.0]])
    assert top(values, 0).sum() == 0
    assert top(values, 2).tolist() == [[False, True], [False, True]]
    assert top(values, 4).tolist() == [[False, True], [True, True]]


def test_the_number_of_weights_rounds_half_to_even():
    from modelfix_neurecover.localisation import ranked

    assert [ranked(100, s, 1.0) for s in (0.005, 0.015, 0.025, 0.03)] == [0, 2, 2, 3]
    assert ranked(100, 0.5, 10.0) == 100


def test_one_particle_at_the_original(epochs):
    from modelfix_neurecover.repair import start

    models, _ = epochs
    patches = [Patch("fc1", np.array([4, 7])), Patch("fc3", np.array([0]))]
    weights = [models[-1].weights[f"{p.layer}.weight"].ravel()[p.index] for p in patches]
    for included in (True, False):
        config = NeuRecoverConfig(include_original=included)
        search = start(models[-1], patches, config, np.random.default_rng(0))
        values, _ = search.ask()
        assert np.array_equal(values[0], np.concatenate(weights)) == included


def test_it_repairs_a_spoiled_weight(blobs, train, task):
    split = blobs(0)
    model = train(split, epochs=10)[-1]
    spoiled = model.weights["fc3.weight"].copy()
    spoiled.flat[np.abs(spoiled).argmax()] *= -1
    broken = model.with_weights({"fc3.weight": spoiled})
    validation = Split(split.x, split.y)
    job = task(broken, validation, [model, broken])
    result = run(NeuRecover(iterations=30), job)
    assert result.outcome is Outcome.FIXED
    assert result.localisation.layer == ["fc3"]
    assert result.model.accuracy(split) >= model.accuracy(split) - 0.02
    assert result.model.accuracy(split) > broken.accuracy(split) + 0.02
