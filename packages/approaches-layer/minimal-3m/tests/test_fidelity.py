"""The checks of fidelity to the papers' algorithms."""

import highspy
import numpy as np
import pytest
from modelfix_core.approach import Candidate, Outcome
from modelfix_core.fixing import run
from modelfix_core.margins import margins
from modelfix_core.seeds import generator
from modelfix_minimal_3m import Minimal3M
from modelfix_minimal_3m.chain import find_chain
from modelfix_minimal_3m.change import NORMS, Infeasible
from modelfix_minimal_3m.heuristics import HEURISTICS
from modelfix_minimal_3m.last_layer import LastLayer, Program
from modelfix_minimal_3m.marabou import Marabou
from modelfix_minimal_3m.repair import Repair
from modelfix_minimal_3m.separation import Separation
from modelfix_testing import mlp, tiny_task

MARGIN, LIMIT = 1e-3, 5.0


def changed(found) -> np.ndarray:
    (change,) = found.weights.values()
    return change


# 1 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_one_point_linf_is_the_closed_form(last_layer, solver, seed):
    layer = last_layer(84, 10, 1, "linf", seed)
    z, h = layer.points.z[0], layer.points.h[0]
    y = layer.points.y[0]
    closed = (np.delete(z, y).max() - z[y] + MARGIN) / (2 * np.abs(h).sum())
    found = layer.solve(1)
    assert found.cost == pytest.approx(closed, abs=1e-9)
    assert np.abs(changed(found)).max() == pytest.approx(closed, abs=1e-9)
    # The program over all weights, which is not reduced to one feature, agrees.
    _, cost = Program(layer.points, "linf", LIMIT, solver).minimise(1)
    assert cost == pytest.approx(closed, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_one_point_l1_reduced_is_the_full_program(last_layer, solver, seed):
    layer = last_layer(20, 6, 1, "l1", seed)
    change, cost = Program(layer.points, "l1", LIMIT, solver).minimise(1)
    assert layer.solve(1).cost == pytest.approx(cost, abs=1e-9)
    assert np.abs(change).sum() == pytest.approx(cost, abs=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("parts", [1, 3])
def test_program_is_the_one_written_down_entry_by_entry(last_layer, solver, norm, parts):
    points = last_layer(7, 5, 6, norm).points
    wanted = np.arange(5) != points.y[:, None]
    program = Program(points, norm, LIMIT, solver)
    for part in range(parts):
        program.require(wanted & (np.arange(6) % parts == part)[:, None])
    lp = program.highs.getLp()
    start, index = np.array(lp.a_matrix_.start_), np.array(lp.a_matrix_.index_)
    major = np.repeat(np.arange(len(start) - 1), np.diff(start))
    by_row = lp.a_matrix_.format_ != highspy.MatrixFormat.kColwise
    row, column = (major, index) if by_row else (index, major)
    matrix = np.zeros((lp.num_row_, lp.num_col_))
    matrix[row, column] = lp.a_matrix_.value_
    assert np.count_nonzero(matrix) == len(row)

    def weight(c: int, d: int) -> np.ndarray:
        """Change of a weight as a combination of columns; the bound t stays out."""
        combination = np.zeros(lp.num_col_)
        combination[program.first[c] + d] = 1
        if norm == "l1":
            combination[program.first[c] + 7 + d] = -1
        return combination

    expected = []
    for i, j in zip(*np.nonzero(wanted), strict=True):
        y = points.y[i]
        terms = [points.h[i, d] * (weight(y, d) - weight(j, d)) for d in range(7)]
        expected.append((points.z[i, j] - points.z[i, y] + MARGIN, *np.sum(terms, axis=0)))
    of_points = np.array(lp.row_lower_) > -np.inf
    found = np.column_stack([np.array(lp.row_lower_), matrix])[of_points]
    np.testing.assert_allclose(sorted(map(tuple, found)), sorted(expected), atol=1e-12)
    if norm == "l1":
        assert of_points.all()
        np.testing.assert_array_equal(lp.col_cost_, np.ones(2 * 35))
        np.testing.assert_array_equal(lp.col_upper_, np.full(2 * 35, LIMIT))
    else:
        below = [weight(c, d) - 2 * np.eye(lp.num_col_)[0] for c in range(5) for d in range(7)]
        rest = matrix[~of_points]
        np.testing.assert_allclose(sorted(map(tuple, rest)), sorted(map(tuple, below)))
        np.testing.assert_array_equal(lp.col_cost_, np.eye(36)[0])


# 2 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("count", [1, 5, 20])
def test_points_are_right_after_write_back_and_nothing_else_changed(norm, count):
    task = tiny_task()
    repair = Repair(task, find_chain(task.model).last(1), Minimal3M().config)
    change = repair._solve(norm, MARGIN)(count)
    fixed = task.model.with_weights(repair._weights(change))
    faults = task.repair.select(repair.faults.index[:count])
    assert fixed.accuracy(faults) == 1.0
    assert task.model.accuracy(faults) == 0.0
    assert margins(fixed.predict(faults), faults.y).min() >= MARGIN - 1e-5
    different = {
        name
        for name, array in task.model.weights.items()
        if array.tobytes() != fixed.weights[name].tobytes()
    }
    assert different == {task.model.layers("dense")[-1].weight}


# 3 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4, 8])
def test_nothing_smaller_is_feasible(case, solver, count):
    dense, h, y = case(30, 5, count)
    best = LastLayer(dense, h, y, "linf", MARGIN, LIMIT, solver).solve(count).cost
    LastLayer(dense, h, y, "linf", MARGIN, 1.01 * best, solver).solve(count)
    with pytest.raises(Infeasible):
        LastLayer(dense, h, y, "linf", MARGIN, 0.99 * best, solver).solve(count)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("count", [1, 3])
def test_marabou_agrees_on_what_is_smallest(case, solver, norm, count):
    pytest.importorskip("maraboupy")
    dense, h, y = case(10, 4, count)
    best = LastLayer(dense, h, y, norm, MARGIN, LIMIT, solver).solve(count).cost
    marabou = Marabou([dense], h, y, norm, MARGIN, LIMIT, 1e-4, solver, 8 * 10**9)
    found = marabou.query(count, 1.05 * best)
    assert margins(dense(h, found), y).min() > 0
    assert marabou.query(count, 0.95 * best) is None
    bisected = marabou.solve(count)
    assert bisected.lower_bound - 1e-6 <= best <= bisected.cost + 1e-6
    assert bisected.cost - bisected.lower_bound <= 1e-4 + 1e-9


# 4 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(5))
def test_rows_on_demand_give_the_optimum_of_all_rows(last_layer, norm, seed):
    lazy = last_layer(20, 6, 8, norm, seed)
    full = last_layer(20, 6, 8, norm, seed, lazy=False)
    assert lazy.solve(8).cost == pytest.approx(full.solve(8).cost, abs=1e-9)
    assert lazy.program.required.sum() < full.program.required.sum() == 8 * 5


# 5 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_costs_grow_with_points_and_linf_is_below_l1(last_layer, seed):
    layers = {norm: last_layer(40, 6, 12, norm, seed) for norm in NORMS}
    costs = {
        norm: [layer.solve(count).cost for count in (1, 2, 4, 8, 12)]
        for norm, layer in layers.items()
    }
    assert (np.array(costs["linf"]) <= np.array(costs["l1"]) + 1e-9).all()
    for series in costs.values():
        assert (np.diff(series) >= -1e-9).all()
        assert series[-1] > series[0]


@pytest.mark.parametrize("norm", NORMS)
def test_growing_gives_what_starting_anew_gives(last_layer, norm):
    grown = last_layer(40, 6, 12, norm)
    for count in (2, 5, 9):
        grown.solve(count)
    fresh = last_layer(40, 6, 12, norm)
    assert grown.solve(12).cost == pytest.approx(fresh.solve(12).cost, abs=1e-9)


# 6 ------------------------------------------------------------------------------------------------


def test_equal_features_with_two_labels_are_infeasible(case, solver):
    dense, h, _ = case(20, 5, 1)
    h, y = np.repeat(h, 2, axis=0), np.argsort(dense(h[0]))[:2]
    with pytest.raises(Infeasible):
        LastLayer(dense, h, y, "l1", MARGIN, LIMIT, solver).solve(2)


def test_of_equal_images_with_two_labels_one_is_made_right(network, task):
    work = task(network(10, 12, 5), faults=2)
    x, y = np.array(work.repair.x), work.repair.y.copy()
    right = work.model.predict(x[:1]).argmax()
    x[1], (y[0], y[1]) = x[0], np.delete(np.arange(5), right)[:2]
    work.repair = type(work.repair)(x, y)
    result = run(Minimal3M(faults=("all",)), work)
    assert result.outcome is Outcome.FIXED
    assert result.candidates[0]["step"] == 1
    assert result.model.predict(x[:1]).argmax() == y[0]


def test_too_small_a_limit_is_a_failure_and_the_model_stays(network, task):
    work = task(network(10, 12, 5))
    before = work.model.hash
    result = run(Minimal3M(epsilon_max=1e-6), work)
    assert result.outcome is Outcome.FAILURE
    assert "infeasible" in result.reason
    assert result.model is None
    assert work.model.hash == before


# 7 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mode", ["single", "multi"])
def test_two_runs_give_bit_equal_weights(network, task, norm, mode):
    model = network(10, 12, 12, 5)

    def fixed():
        options = {"faults": (4,), "norms": (norm,), "mode": mode, "proposals": 40}
        return run(Minimal3M(**options), task(model)).model

    assert fixed().hash == fixed().hash != model.hash


# 8 ------------------------------------------------------------------------------------------------


def planted():
    """A 2-3-3-2 network, right everywhere but for one corrupted weight of the second layer."""
    rng = np.random.default_rng(3)
    weights = [
        np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]),
        np.array([[1.0, 0.0, 0.1], [0.0, 1.0, 0.1], [0.3, 0.3, 0.2]]),
        np.array([[1.0, -1.0, 0.1], [-1.0, 1.0, 0.1]]),
    ]
    biases = [np.zeros(3), np.zeros(3), np.zeros(2)]
    truth = mlp(weights, biases, (2, 1, 1))
    corrupted = [w.copy() for w in weights]
    corrupted[1][0, 0] -= 1.2
    model = mlp(corrupted, biases, (2, 1, 1))
    x = rng.random((200, 2, 1, 1), dtype=np.float32)
    y = truth.predict(x).argmax(axis=1)
    wrong = model.predict(x).argmax(axis=1) != y
    assert wrong.sum() >= 3
    return model, x, y, wrong


@pytest.mark.parametrize("heuristic", HEURISTICS)
@pytest.mark.parametrize("norm", NORMS)
def test_several_layers_cost_less_where_an_inner_weight_is_wrong(solver, heuristic, norm):
    model, x, y, wrong = planted()
    chain = find_chain(model).last(2)
    count = 2
    features = model.activations(x[wrong], [chain.layers[0].layer.input])
    h = next(iter(features.values())).astype(float)
    values = chain.layers[0](h)
    accepted = []

    def accept(change):
        weights = {n: model.weights[n] + w for n, w in change.weights.items()}
        right = model.with_weights(weights).predict(x[wrong][:count]).argmax(axis=1) == y[wrong][:2]
        if right.all():
            accepted.append(change.cost)
        return bool(right.all())

    separation = Separation(
        chain, h[:count], y[wrong][:count], [0.1 * values.std(axis=0)], norm, MARGIN, LIMIT, solver
    )
    single = separation.single()
    search = HEURISTICS[heuristic](generator(0, stage="search"), 3, single.cost, 1.4)
    best = separation.search(single, search, 400, 60.0, accept)
    assert best.single_cost == single.cost
    assert best.cost < single.cost
    assert accepted == sorted(accepted, reverse=True)
    assert accepted[-1] == best.cost
    assert len(best.weights) == 2


@pytest.mark.parametrize("heuristic", HEURISTICS)
def test_multi_repairs_all_points_on_the_real_network(network, task, heuristic):
    work = task(network(10, 14, 14, 5))
    approach = Minimal3M(
        mode="multi", heuristic=heuristic, faults=(1, 4), separation_layers=2, proposals=60
    )
    found = [p for p in approach.candidates(work) if isinstance(p, Candidate)]
    for candidate in found:
        count = int(candidate.values["faults"])
        wrong = np.flatnonzero(work.model.predict(work.repair).argmax(axis=1) != work.repair.y)
        assert candidate.apply(work.model).accuracy(work.repair.select(wrong[:count])) == 1.0
        assert _cost(candidate) <= candidate.values["single_cost"]
        assert candidate.values["least_margin"] > 0


def _cost(candidate: Candidate) -> float:
    return next(value for key, value in candidate.values.items() if key.startswith("cost_"))


# 9 ------------------------------------------------------------------------------------------------


@pytest.fixture
def densenet_task(task):
    """The last layer of DenseNet121: 1024 features, 1000 classes."""
    rng = np.random.default_rng(0)
    model = mlp([rng.normal(size=(1000, 1024)) / 32], [np.zeros(1000)], (1024, 1, 1))
    return task(model, faults=4, n=20)


def test_densenet_is_out_of_memory_for_marabou_before_anything_is_allocated(densenet_task):
    result = run(Minimal3M(engine="marabou"), densenet_task)
    assert result.outcome is Outcome.FAILURE
    assert "1 fault, linf: memory: engine 'marabou' would need about 16.4 GB" in result.reason
    assert "1024 inputs and 1000 outputs" in result.reason


def test_densenet_runs_with_rows_on_demand(densenet_task):
    result = run(Minimal3M(faults=(1, 2)), densenet_task)
    assert result.outcome is Outcome.FIXED
    assert result.candidates[-1]["minimal"] == 1.0
