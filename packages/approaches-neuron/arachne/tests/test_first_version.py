import numpy as np
import pytest
from modelfix_arachne.first_version import (
    Edited,
    cross_entropy_gradient,
    fitness,
    localise,
    sibling_statistics,
    swarm,
)
from modelfix_arachne.front import pareto_front


@pytest.fixture
def layer():
    rng = np.random.default_rng(0)
    features = rng.random((9, 6))
    weight, bias = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=4)
    return features, features @ weight.T + bias, rng.integers(4, size=9), weight


def loss(logits, y):
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]


def test_gradient_of_the_logits(layer):
    _, logits, y, _ = layer
    step = np.zeros_like(logits)
    step[:, 2] = 1e-6
    slope = (loss(logits + step, y) - loss(logits - step, y)) / 2e-6
    assert np.allclose(cross_entropy_gradient(logits, y)[:, 2], slope, atol=1e-6)


def test_localises_on_the_front_of_the_largest_gradients(layer):
    features, logits, y, weight = layer
    gradient = np.zeros(weight.shape)
    for x, slope in zip(features, cross_entropy_gradient(logits, y), strict=True):
        gradient += np.outer(slope, x)
    gradient = np.abs(gradient).ravel()
    forward = np.abs(features[:, None, :] * weight).mean(axis=0).ravel()
    for count in (5, 24):
        kept = np.argsort(-gradient)[:count]
        expected = kept[pareto_front(gradient[kept], forward[kept])]
        assert sorted(localise(features, logits, y, weight, count)) == sorted(expected)


def test_keeps_twenty_candidates_per_input(layer):
    features, logits, y, weight = layer
    gradient = np.abs(cross_entropy_gradient(logits[:1], y[:1]).T @ features[:1]).ravel()
    kept = localise(features[:1], logits[:1], y[:1], weight)
    assert np.isin(kept, np.argsort(-gradient)[:20]).all()


def test_siblings_leave_out_row_and_column():
    rng = np.random.default_rng(1)
    weight = rng.normal(5, 0.1, (5, 7)).astype(np.float32)
    mean, deviation = sibling_statistics(weight, np.arange(35))
    for k in range(35):
        rest = np.delete(np.delete(weight.astype(np.float64), k // 7, axis=0), k % 7, axis=1)
        assert mean[k] == pytest.approx(rest.mean(), rel=1e-9)
        assert deviation[k] == pytest.approx(rest.std(), rel=1e-6)


def test_a_single_row_has_no_siblings():
    weight = np.arange(4.0, dtype=np.float32)[None]
    mean, deviation = sibling_statistics(weight, np.array([0, 3]))
    assert mean.tolist() == [1.5, 1.5]
    assert deviation == pytest.approx(weight.std())


def test_swarm_over_several_layers():
    rng = np.random.default_rng(2)
    first = Edited(rng.normal(3, 0.1, (6, 5)), np.array([1, 7]))
    second = Edited(rng.normal(-2, 1.0, (4, 6)), np.array([0]))
    search = swarm([first, second], np.random.default_rng(0), particles=2000)
    assert search.positions.shape == (2000, 3)
    for columns, edited in (([0, 1], first), ([2], second)):
        mean, deviation = sibling_statistics(edited.weight, edited.index)
        assert np.allclose(search.positions[:, columns].mean(axis=0), mean, atol=0.1)
        assert np.allclose(search.positions[:, columns].std(axis=0), deviation, rtol=0.1)
    search.ask()
    search.tell(np.zeros(2000))
    spread = np.array([np.ptp(first.weight)] * 2 + [np.ptp(second.weight)])
    speed = np.abs(search.velocities)
    assert (speed >= spread / 5 - 1e-12).all()
    assert (speed <= spread * 5 + 1e-12).all()


def test_fitness_by_hand():
    right = np.array([[True, False, True], [False, False, False]])
    loss = np.array([[0.5, 1.5, 0.25], [1.0, 2.0, 3.0]])
    failing = np.array([True, True, False])
    assert fitness(right, loss, failing).tolist() == [2 / 2 + 2 / 1.25, 1 / 2.5 + 1 / 4]


def test_swarm_repairs_a_planted_weight():
    rng = np.random.default_rng(3)
    features, weight = rng.random((300, 6)), rng.normal(size=(3, 6))
    y = (features @ weight.T).argmax(axis=1)
    broken = weight.copy()
    broken[0, 2] += 3
    failing = (features @ broken.T).argmax(axis=1) != y
    assert 20 < failing.sum() < 280
    search = swarm([Edited(broken, np.array([2]))], np.random.default_rng(0))
    while not search.finished:
        values, _ = search.ask()
        patched = np.repeat(broken[None], len(values), axis=0)
        patched[:, 0, 2] = values[:, 0]
        z = np.einsum("ni,pki->pnk", features, patched)
        losses = np.log(np.exp(z).sum(axis=2)) - z[:, np.arange(300), y]
        search.tell(fitness(z.argmax(axis=2) == y, losses, failing))
    broken[0, 2] = search.best[0]
    after = (features @ broken.T).argmax(axis=1) == y
    assert after[failing].mean() >= 0.9
    assert after[~failing].mean() >= 0.95
