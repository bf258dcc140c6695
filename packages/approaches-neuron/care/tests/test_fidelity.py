"""The fidelity checks of the specification, by number."""

import numpy as np
import pytest
import torch
from modelfix_care import Care
from modelfix_care.hidden import find_hidden
from modelfix_care.localisation import average_causal_effects, objective, select
from modelfix_care.repair import Gain, repair
from modelfix_care.tail import Tail
from modelfix_core.approach import Candidate, Localisation, Task
from modelfix_core.dataset import Split
from modelfix_core.search import InertiaSwarm
from modelfix_core.search.inertia_swarm import wrap
from modelfix_core.torch import load
from modelfix_core.torch.margins import margins
from modelfix_testing import mlp

ALL = np.full(10, -np.inf)


def tail_of(model, split, layer=None):
    return Tail(load(model), find_hidden(model, layer), split)


def effects_of(tail, values=8, neurons=None):
    neurons = np.arange(len(tail.low)) if neurons is None else neurons
    return average_causal_effects(tail, objective(tail.right), neurons, values)


def search(tail, neurons, seed=0, **options):
    options = {"particles": 10, "iterations": 50, **options}
    rng = np.random.default_rng(seed)
    return list(repair(tail, objective(tail.right), neurons, rng, **options))


# -- 1 ------------------------------------------------------------------------------------------


def shifted_sphere(x):
    return ((x - [0.9, -0.7, 0.2, 1.3]) ** 2).sum(axis=1)


@pytest.fixture
def reference_of(tmp_path, monkeypatch):
    """Return a function that runs pyswarms, which draws from numpy's global generator."""
    monkeypatch.chdir(tmp_path)  # the import alone leaves a log in the folder
    import pyswarms

    state = np.random.get_state()  # noqa: NPY002

    def run(cost, seed, iterations):
        np.random.seed(seed)  # noqa: NPY002
        calls = []

        def counted(x):
            calls.append(x.copy())
            return cost(x)

        swarm = pyswarms.single.GlobalBestPSO(
            10,
            4,
            {"c1": 0.41, "c2": 0.41, "w": 0.8},
            bounds=(-np.ones(4), np.ones(4)),
            bh_strategy="periodic",
            init_pos=np.zeros((10, 4)),
            ftol=1e-3,
            ftol_iter=10,
        )
        best_cost, best = swarm.optimize(counted, iterations, verbose=False)
        return best_cost, best, calls

    yield run
    np.random.set_state(state)  # noqa: NPY002


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("steps", [0, 40])
def test_1_the_swarm_is_that_of_pyswarms_bit_for_bit(reference_of, seed, steps):
    def cost(x):
        # With steps the cost has plateaus and ties, as a count has.
        return np.round(shifted_sphere(x) * steps) / steps if steps else shifted_sphere(x)

    best_cost, best, calls = reference_of(cost, seed, 100)
    rng = np.random.RandomState(seed)
    rng.uniform(0, 1, (10, 4))  # pyswarms draws the velocities twice
    ours = InertiaSwarm(np.zeros((10, 4)), -1.0, 1.0, rng, iterations=100)
    asked = []
    while not ours.finished:
        values, _ = ours.ask()
        asked.append(values)
        ours.tell(-cost(values))
    assert ours.iteration == len(calls) < 100
    np.testing.assert_array_equal(asked, calls)
    np.testing.assert_array_equal(ours.best, best)
    assert ours.best_fitness == -best_cost


# -- 2 ------------------------------------------------------------------------------------------


NOTHING_ABOVE = ("relu", "tanh", "norm below")  # the versions' layer gives the logits


@pytest.mark.parametrize("name", [*NOTHING_ABOVE, "deep", "beside", "pooled"])
def test_2_position_zero_costs_nothing_and_keeps_every_bit(networks, inputs, name):
    model = networks[name]
    split = inputs(model)
    tail = tail_of(model, split)
    neurons = np.array([0, 2])
    at_zero = Gain(tail, objective(tail.right), neurons)(np.zeros((3, 2)), ALL[:3])
    np.testing.assert_array_equal(at_zero, np.zeros(3))
    net = load(model)
    with torch.no_grad():
        original = net(torch.from_numpy(split.images())).numpy()
    order = margins(torch.from_numpy(original), torch.from_numpy(split.y)).argsort(stable=True)
    ours, original = tail.logits(neurons, np.ones((1, 2)))[:, 0], original[order.numpy()]
    assert len({row.tobytes() for row in ours}) > 1
    if name in NOTHING_ABOVE:
        assert ours.tobytes() == original.tobytes()
    # Other layers are run again on the sorted rows; kernels may round a row by its place.
    np.testing.assert_allclose(ours, original, rtol=0, atol=1e-6)


def test_2_the_first_iteration_is_the_unmodified_model(networks, inputs):
    tail = tail_of(networks["relu"], inputs(networks["relu"]))
    first = search(tail, np.array([0, 1]))[0]
    assert first.number == 1
    assert first.gain == 0.0
    assert not first.is_new
    np.testing.assert_array_equal(first.factors, [1, 1])
    swarm = InertiaSwarm(np.zeros((5, 2)), -1.0, 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(swarm.ask()[0], np.zeros((5, 2)))


# -- 3 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "norm"), [("ReLU", False), ("Tanh", False), ("GELU", False), ("ReLU", True)]
)
def test_3_folded_weights_are_scaled_values(trained, activation, norm):
    made = trained(activation=activation, norm=norm)
    hidden = find_hidden(made.model)
    neurons = np.array([1, 5, 14])
    factors = np.array([0.0, 1.6, 0.35])
    changed = made.model.with_weights(hidden.folded(made.model, neurons, factors))
    below, above = made.module[: 5 if norm else 4], made.module[5 if norm else 4 :]
    with torch.no_grad():
        z = below(torch.from_numpy(made.split.images()))
        before = above(z).numpy()
        z[:, neurons] *= torch.tensor(factors, dtype=torch.float32)
        expected = above(z).numpy()
    np.testing.assert_allclose(changed.predict(made.split), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected - before).max() > 0.1


# -- 4 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["ReLU", "Tanh"])
def test_4_effects_are_those_of_the_naive_loop(trained, activation):
    made = trained(activation=activation, steps=20)
    tail = tail_of(made.model, made.split)
    y = torch.tensor(made.split.y)
    naive = np.zeros(16)
    with torch.no_grad():
        z = made.module[:4](torch.from_numpy(made.split.images()))
        before = int((made.module[4:](z).argmax(dim=1) == y).sum())
        for j in range(16):
            if z[:, j].min() == z[:, j].max():
                continue
            for value in np.linspace(float(z[:, j].min()), float(z[:, j].max()), 8):
                changed = z.clone()
                changed[:, j] = float(value)
                naive[j] += before - int((made.module[4:](changed).argmax(dim=1) == y).sum())
    effects = effects_of(tail)
    assert (effects > 0).sum() > 8
    np.testing.assert_array_equal(np.rint(effects * 8 * 600).astype(int), naive)
    np.testing.assert_allclose(effects, naive / (8 * 600), rtol=1e-12)


def test_4_neurons_without_consequence_and_constant_ones_have_no_effect(trained):
    made = trained()
    weights = {name: array.copy() for name, array in made.model.weights.items()}
    layers = made.model.layers("dense")
    weights[layers[2].weight][:, 3] = 0  # nothing leaves neuron 3
    weights[layers[1].weight][6] = 0  # neuron 6 is constant 5
    weights[layers[1].bias][6] = 5
    effects = effects_of(tail_of(made.model.with_weights(weights), made.split))
    assert effects[3] == 0
    assert effects[6] == 0
    assert effects_of(tail_of(made.model, made.split))[3] != 0


def test_4_the_order_of_the_inputs_does_not_matter(trained):
    made = trained(steps=20)
    order = np.random.default_rng(1).permutation(600)
    shuffled = made.split.select(order)
    np.testing.assert_array_equal(
        effects_of(tail_of(made.model, made.split)), effects_of(tail_of(made.model, shuffled))
    )


# -- 5 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_5_the_only_neuron_in_use_loses_all_but_the_larger_class(share):
    rng = np.random.default_rng(0)
    x = rng.uniform(0.05, 1, (1000, 5)).astype(np.float32)
    x[:, 0] *= np.where(rng.permutation(1000) < 1000 * share, 1, -1)
    x[:2, 0] = [1, -1]  # the range is symmetric, so half of the values are on either side
    split = Split(x.reshape(1000, 5, 1, 1), (x[:, 0] > 0).astype(np.int64))
    classifier = np.zeros((2, 5))
    classifier[1, 0] = 1
    model = mlp([np.eye(5), classifier], [np.zeros(5), np.zeros(2)], (5, 1, 1), "Identity")
    tail = tail_of(model, split)
    effects = effects_of(tail, values=8)
    # Forced to positive values all inputs are of class 1, forced to negative ones of class 0.
    assert effects[0] == pytest.approx(tail.right.mean() - 0.5, abs=1e-12)
    np.testing.assert_array_equal(effects[1:], 0)
    assert select(effects, 1).tolist() == [0]


# -- 6 ------------------------------------------------------------------------------------------


def test_6_what_leaves_the_box_enters_on_the_other_side():
    np.testing.assert_allclose(wrap(np.array([[1.3, -1.3, 0.4]]), -1, 1), [[-0.7, 0.7, 0.4]])


def test_6_positions_stay_in_the_box():
    rng = np.random.default_rng(0)
    swarm = InertiaSwarm(np.zeros((8, 3)), -1.0, 1.0, rng, patience=60, iterations=60)
    moved = 0.0
    while not swarm.finished:
        values, _ = swarm.ask()
        assert (np.abs(values) <= 1).all()
        moved = max(moved, float(np.abs(swarm.velocities).max()))
        swarm.tell(rng.normal(size=8))
    assert moved > 0.5


# -- 7 ------------------------------------------------------------------------------------------


def test_7_the_best_never_falls_and_only_the_rows_change(trained):
    made = trained(steps=20)
    task = Task(model=made.model, repair=made.split, validation=made.split, seed=2)
    proposals = list(Care(neurons=4, iterations=40).candidates(task))
    blamed, candidates = proposals[0], proposals[1:]
    assert isinstance(blamed, Localisation)
    assert all(isinstance(candidate, Candidate) for candidate in candidates)
    gains = [candidate.values["gain"] for candidate in candidates]
    assert gains[0] > 0
    assert gains == sorted(gains)
    before = made.model.accuracy(made.split)
    layer = made.model.layer(blamed.layer[0])
    for candidate in candidates:
        assert set(candidate.weights) == {layer.weight, layer.bias}
        for name, array in candidate.weights.items():
            changed = array != made.model.weights[name]
            assert set(np.flatnonzero(changed.any(axis=tuple(range(1, array.ndim))))) <= set(
                blamed.index
            )
        after = candidate.apply(made.model).accuracy(made.split)
        assert after - before == pytest.approx(candidate.values["gain"], abs=1.5 / 600)


# -- 8 ------------------------------------------------------------------------------------------


def planted(made, neuron):
    layer = made.model.layers("dense")[1]
    weights = {name: made.model.weights[name].copy() for name in layer.parameters}
    for array in weights.values():
        array[neuron] *= 1.95
    return made.model.with_weights(weights)


def test_8_planted_faults_are_found_and_repaired(trained):
    cases = found = repaired = 0
    for seed in range(9):
        made = trained(seed=seed)
        healthy = made.model.accuracy(made.split)
        for neuron in range(16):
            model = planted(made, neuron)
            drop = healthy - model.accuracy(made.split)
            if drop < 0.02:
                continue
            tail = tail_of(model, made.split)
            chosen = select(effects_of(tail), 4)
            cases += 1
            found += neuron in chosen
            repaired += search(tail, chosen, seed=neuron)[-1].gain >= drop / 2
    assert cases >= 12
    assert found >= 0.8 * cases
    assert repaired >= 0.9 * cases
