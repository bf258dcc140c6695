"""What the specification of Apricot promises, numbered as its list of checks."""

import itertools

import numpy as np
import pytest
import torch
from modelfix_apricot import Apricot, ApricotConfig
from modelfix_apricot import repair as repair_module
from modelfix_apricot.adaptation import move
from modelfix_apricot.repair import Loop
from modelfix_apricot.repair import recipe_of as retraining_recipe
from modelfix_apricot.submodels import Submodels, flat, subset
from modelfix_core.torch import load
from modelfix_core.torch.training import fine_tune

STRATEGIES = ("both", "correct", "incorrect")
FAILING, K, P = 64, 20, 50
VARIANTS = list(itertools.product(STRATEGIES, (-1, 1)))


def problem(seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    right = rng.random((FAILING, K)) < rng.random((FAILING, 1))
    theta, weights = rng.normal(size=P), rng.normal(size=(K, P))
    return right, torch.tensor(theta, dtype=dtype), torch.tensor(weights, dtype=dtype)


def one_after_the_other(theta, weights, right, eta, strategy, sigma):
    """The update as it is described, sample by sample."""
    for row in right:
        votes = int(row.sum())
        if votes in (0, len(row)):
            continue
        p_c, p_w = votes / len(row), 1 - votes / len(row)
        to_right = theta - weights[torch.from_numpy(row)].mean(dim=0)
        to_wrong = theta - weights[torch.from_numpy(~row)].mean(dim=0)
        if strategy == "both":
            theta = theta + sigma * eta * (p_c * to_right - p_w * to_wrong)
        elif strategy == "correct":
            theta = theta + sigma * eta * p_c * to_right
        else:
            theta = theta - sigma * eta * p_w * to_wrong
    return theta


# -- 1 to 5: the adaptation ------------------------------------------------------------------------


@pytest.mark.parametrize(("strategy", "sigma"), VARIANTS)
@pytest.mark.parametrize("eta", [1e-3, 0.3])
def test_1_closed_form_is_the_loop(strategy, sigma, eta):
    right, theta, weights = problem()
    expected = one_after_the_other(theta, weights, right, eta, strategy, sigma)
    found = move(right, eta, strategy, sigma).apply(theta, weights)
    # What is compared may have grown far beyond 1 with the larger rate.
    assert float((found - expected).abs().max()) < 1e-12 * max(1, float(expected.abs().max()))
    assert float((found - theta).abs().max()) > eta / 10


@pytest.mark.parametrize("sigma", [-1, 1])
def test_2_direction(sigma):
    right, theta, weights = problem()
    (row,) = right[[4]]
    p_c = row.mean()
    assert 0 < p_c < 1
    w_c, w_w = weights[torch.from_numpy(row)].mean(0), weights[torch.from_numpy(~row)].mean(0)
    eta = 0.05
    moved = move(row[None], eta, "correct", sigma).apply(theta, weights)
    ratio = float((moved - w_c).norm() / (theta - w_c).norm())
    assert ratio == pytest.approx(1 + sigma * eta * p_c, abs=1e-12)
    moved = move(row[None], eta, "incorrect", sigma).apply(theta, weights)
    ratio = float((moved - w_w).norm() / (theta - w_w).norm())
    assert ratio == pytest.approx(1 - sigma * eta * (1 - p_c), abs=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("vote", [False, True])
def test_3_unanimous_votes_move_nothing(strategy, vote):
    _, theta, weights = problem(dtype=torch.float32)
    step = move(np.full((FAILING, K), vote), 1e-3, strategy)
    assert step.samples == 0
    assert torch.equal(step.apply(theta, weights), theta)


def test_3_submodels_that_are_the_model_move_nothing(digits_task):
    task = digits_task()
    net = load(task.model)
    right = task.model.predict(task.train).argmax(axis=1) == task.train.y
    same = Submodels(flat(net).expand(K, -1), np.repeat(right[:, None], K, axis=1))
    loop = Loop(net, task, Apricot(eta=0.5).config, same)
    assert loop._adapt(1)["moved"] == 0
    assert net.weights() == {}


def test_4_fixed_point():
    _, theta, weights = problem()
    weights = torch.cat([weights[: K // 2]] * 2)  # the same mean on both sides
    row = np.arange(K) < K // 2
    moved = move(np.repeat(row[None], 5, axis=0), 0.1).apply(theta, weights)
    assert float((moved - theta).abs().max()) < 1e-14


@pytest.mark.parametrize(("strategy", "sigma"), VARIANTS)
def test_5_stays_in_the_span_of_the_submodels(strategy, sigma):
    right, theta, weights = problem()
    step = move(right, 1e-2, strategy, sigma)
    rest = step.apply(theta, weights) - step.scale * theta
    residual = weights.T @ torch.linalg.lstsq(weights.T, rest[:, None]).solution[:, 0] - rest
    assert float(residual.abs().max()) < 1e-10
    assert float(rest.norm()) > 1e-3


# -- 6 and 7: what is kept, and when it ends -------------------------------------------------------


@pytest.fixture
def accuracies(monkeypatch):
    """Let the validation accuracy be what a test says."""

    def set_to(values):
        stream = iter(values)
        monkeypatch.setattr(repair_module, "validate", lambda net, feed: (0.0, next(stream)))

    return set_to


def submodels_of(net, images, seed=1):
    """Submodels that disagree: the weights of the net, disturbed, and random votes."""
    rng = np.random.default_rng(seed)
    theta = flat(net)
    noise = torch.from_numpy(rng.normal(0, 0.5, (6, len(theta))).astype(np.float32))
    return Submodels(theta + noise, rng.random((images, 6)) < 0.5)


def loop_of(task, **options):
    net = load(task.model)
    quick = {"rounds": 4, "eta": 0.1, "learning_rate": 1e-3, "batch_size": 64}
    config = Apricot(**quick | options).config
    return Loop(net, task, config, submodels_of(net, len(task.train)))


def test_6_what_is_worse_is_taken_back_bit_for_bit(digits_task, accuracies, caplog):
    accuracies([0.9, *np.linspace(0.8, 0.1, 20)])
    loop = loop_of(digits_task("conv"))
    for number in (1, 2):
        values = loop._adapt(number)
        assert values["moved"] > 0
        assert values["kept"] == 0
        assert loop.net.weights() == {}  # no initializer differs in any bit, statistics included
        loop.state.current = values
        loop._retrain(number)
        changed = loop.net.weights()
        assert any("running_mean" in name for name in changed)
    assert all(c.weights == {} and c.validation_accuracy == 0.9 for c in loop.run())
    assert "no adaptation was kept" in caplog.text


def test_6_the_best_is_a_copy(digits_task, accuracies):
    accuracies([0.5, 0.6, 0.7])
    loop = loop_of(digits_task("conv"))
    loop._adapt(1)
    kept = {name: array.copy() for name, array in loop.best.items()}
    assert kept
    with torch.no_grad():
        for tensor in loop.net.tensors.values():
            tensor.add_(1)
    for name, array in kept.items():
        np.testing.assert_array_equal(loop.best[name], array)


def test_6_equal_accuracy_keeps_the_moved_weights_but_not_as_the_best(digits_task, accuracies):
    accuracies([0.5, 0.5])
    loop = loop_of(digits_task())
    assert loop._adapt(1)["kept"] == 1
    assert loop.net.weights() != {}
    assert loop.best == {}


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_7_stops_after_patience_and_one_rounds(digits_task, accuracies, patience, monkeypatch):
    accuracies(itertools.repeat(0.5))
    loop = loop_of(digits_task(), patience=patience, rounds=10)
    begun = []
    adapt = loop._adapt
    monkeypatch.setattr(loop, "_adapt", lambda number: begun.append(number) or adapt(number))
    assert len(list(loop.run())) == patience
    assert begun == list(range(1, patience + 2))


@pytest.mark.parametrize("number", [0, 1, 7])
def test_7_subsets_are_stratified(digits, number):
    y = digits.y[:700]
    for config, share in (
        (ApricotConfig(), 0.2),
        (ApricotConfig(subset_mode="partition", submodels=8), 1 / 8),
    ):
        index = subset(y, number, config, seed=0)
        assert len(np.unique(index)) == len(index)
        expected = (np.bincount(y) * share).astype(int)
        np.testing.assert_array_equal(np.bincount(y[index]), expected)


def test_7_subsets_differ_and_parts_are_disjoint(digits):
    y = digits.y[:700]
    one, other = (subset(y, k, ApricotConfig(), seed=0) for k in (0, 1))
    assert not np.array_equal(one, other)
    assert np.intersect1d(one, other).size > 0
    parts = ApricotConfig(subset_mode="partition", submodels=8)
    drawn = np.concatenate([subset(y, k, parts, seed=0) for k in range(8)])
    assert len(np.unique(drawn)) == len(drawn) > 600


# -- 8 and 9: against plain retraining, and towards against away -----------------------------------


def test_8_without_adaptation_it_is_plain_retraining(digits_task, accuracies):
    task = digits_task("conv")
    options = {"eta": 0, "rounds": 3, "retraining_epochs": 2, "batch_size": 32}
    config = Apricot(**options).config
    net = load(task.model)
    recipe = retraining_recipe(config, len(task.train))
    plain = list(fine_tune(net, task, task.train, recipe, name="retraining"))
    # An accuracy that always rises, so that each round's model is the best.
    accuracies(np.linspace(0.5, 0.9, 10))
    _, *rounds = Apricot(**options).candidates(task)
    assert [c.step for c in rounds] == [1, 2, 3]
    for candidate, epoch in zip(rounds, plain[1::2], strict=True):
        assert candidate.weights.keys() == epoch.weights.keys()
        for name, array in epoch.weights.items():
            assert candidate.weights[name].tobytes() == array.tobytes()
        assert candidate.values["loss"] == epoch.values["loss"]


def test_8_submodels_without_a_rate_move_nothing():
    right, theta, weights = problem(dtype=torch.float32)
    assert torch.equal(move(right, 0.0).apply(theta, weights), theta)


@pytest.mark.parametrize("taken_back", [True, False])
def test_9_towards_the_right_submodels_is_better_than_away(
    digits_task, digits, accuracies, tmp_path, taken_back
):
    test = digits.select(slice(1000, None))
    options = {
        "submodel_epochs": 25,
        "submodel_learning_rate": 1e-3,
        "learning_rate": 1e-3,
        "patience": None,
    }
    gains = []
    for seed in range(3):
        task = digits_task(seed=seed, folder=tmp_path / str(seed))  # the submodels are shared
        reached = []
        for sigma in (-1, 1):
            if not taken_back:
                # An accuracy that always rises keeps every move, so the directions alone count.
                accuracies(np.linspace(0.1, 0.9, 50))
            *_, last = Apricot(sigma=sigma, **options).candidates(task)
            reached.append(last.apply(task.model).accuracy(test))
        gains.append(reached[0] - reached[1])
    assert np.mean(gains) > 0.05
