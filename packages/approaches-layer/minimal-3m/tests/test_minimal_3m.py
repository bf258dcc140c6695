"""The graph, the engines, the proof, and how runs end."""

import importlib.util
import logging
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfix_core.approach import Budget, Candidate, Outcome
from modelfix_core.errors import BudgetExceeded, ModelfixError, Unadaptable
from modelfix_core.fixing import run
from modelfix_core.job import Job
from modelfix_core.model import Model
from modelfix_core.record import Record
from modelfix_minimal_3m import Minimal3M
from modelfix_minimal_3m.chain import find_chain
from modelfix_minimal_3m.change import NORMS, Change, Infeasible, Unsolved, norm_of, reduce
from modelfix_minimal_3m.encoding import encode
from modelfix_minimal_3m.highs import Solver
from modelfix_minimal_3m.inner_layer import InnerLayer
from modelfix_minimal_3m.last_layer import LastLayer
from modelfix_minimal_3m.memory import estimate
from modelfix_minimal_3m.proof import Proof
from modelfix_minimal_3m.separation import Rows
from modelfix_testing import layerless_model, tiny_subject, tiny_task
from scipy.optimize import linprog

MARGIN, LIMIT = 1e-3, 5.0


# -- the graph -------------------------------------------------------------------------------------


def test_chain_is_what_onnxruntime_computes(network):
    model = network(6, 8, 7, 4)
    chain = find_chain(model)
    assert chain.names() == ["fc1", "fc2", "fc3"]
    x = np.random.default_rng(0).random((50, 6, 1, 1), dtype=np.float32)
    shift = {"fc2.weight": np.full((7, 8), 0.1)}
    expected = model.with_weights({"fc2.weight": model.weights["fc2.weight"] + 0.1}).predict(x)
    np.testing.assert_allclose(chain.logits(x.reshape(50, 6), shift), expected, atol=1e-5)


def test_chain_of_lenet_ends_before_the_convolutions():
    chain = find_chain(tiny_task().model)
    assert len(chain.layers) == 3
    assert "Flatten" in chain.stopped


def test_other_activations_end_the_chain(network):
    chain = find_chain(network(6, 8, 4, activation="Tanh"))
    assert chain.names() == ["fc2"]
    assert "Tanh" in chain.stopped


def test_shared_weights_end_the_chain(network):
    proto = network(6, 6, 6, 4).proto()
    first, second = (n for n in proto.graph.node if n.name in ("fc1", "fc2"))
    second.input[1] = first.input[1]
    assert find_chain(Model(proto)).names() == ["fc3"]


@pytest.mark.parametrize(
    ("options", "widths", "reason"),
    [
        ({"mode": "multi"}, (6, 4), "ends in 1 dense layer .*1 separation layer need 2"),
        ({"mode": "multi", "separation_layers": 2}, (6, 5, 4), "2 separation layers need 3"),
        ({"layer": "conv1"}, (6, 5, 4), "fc1, fc2"),
    ],
)
def test_unadaptable_says_why(network, task, options, widths, reason):
    with pytest.raises(Unadaptable, match=reason):
        Minimal3M(**options).check(task(network(*widths), faults=0))


def test_without_a_dense_layer_at_the_end_it_is_unadaptable():
    model = layerless_model((1, 28, 28), 10)
    with pytest.raises(Unadaptable, match="Gather"):
        Minimal3M().check(tiny_task(model=model))


# -- the last layer --------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    features=st.integers(2, 12),
    classes=st.integers(2, 6),
    points=st.integers(1, 5),
    norm=st.sampled_from(NORMS),
)
def test_smallest_change_is_scipys(seed, features, classes, points, norm):
    rng = np.random.default_rng(seed)
    dense = find_chain(_single(rng, features, classes)).layers[0]
    h, y = rng.normal(size=(points, features)), rng.integers(classes, size=points)
    expected = scipy_optimum(dense(h), h, y, norm)
    layer = LastLayer(dense, h, y, norm, MARGIN, LIMIT, Solver(60.0, lambda: None))
    if expected is None:
        with pytest.raises(Infeasible):
            layer.solve(points)
        return
    found = layer.solve(points)
    assert found.cost == pytest.approx(expected, abs=1e-6)
    change = found.weights["fc1.weight"]
    assert norm_of(change, norm) == pytest.approx(expected, abs=1e-6)


def _single(rng, features, classes):
    from modelfix_testing import mlp

    return mlp([rng.normal(size=(classes, features))], [rng.normal(size=classes)], (features, 1, 1))


def scipy_optimum(z, h, y, norm) -> float | None:
    """Solve the program written row by row over all weights and their absolute values."""
    points, features = h.shape
    classes = z.shape[1]
    size = classes * features
    extra = 1 if norm == "linf" else size
    rows, bounds = [], []
    for i in range(points):
        for j in set(range(classes)) - {y[i]}:
            row = np.zeros((classes, features))
            row[j] += h[i]
            row[y[i]] -= h[i]
            rows.append(np.concatenate([row.ravel(), np.zeros(extra)]))
            bounds.append(z[i, y[i]] - z[i, j] - MARGIN)
    for w in range(size):
        for sign in (1, -1):
            row = np.zeros(size + extra)
            row[w], row[size + (0 if norm == "linf" else w)] = sign, -1
            rows.append(row)
            bounds.append(0.0)
    cost = np.concatenate([np.zeros(size), np.ones(extra)])
    box = [(-LIMIT, LIMIT)] * size + [(0, None)] * extra
    program = linprog(cost, np.array(rows), bounds, bounds=box)
    return None if program.status == 2 else program.fun


def test_features_that_are_never_active_keep_their_weights(case, solver):
    dense, h, y = case(20, 5, 6)
    h[:, [3, 7]] = 0.0
    for norm in NORMS:
        found = LastLayer(dense, h, y, norm, MARGIN, LIMIT, solver).solve(6)
        change = next(iter(found.weights.values()))
        assert not change[:, [3, 7]].any()
        assert np.abs(change).max() > 0


def test_l1_touches_fewer_weights_than_linf(last_layer):
    touched = {
        norm: np.count_nonzero(last_layer(40, 6, 8, norm).solve(8).weights["fc1.weight"])
        for norm in NORMS
    }
    assert touched["l1"] < touched["linf"] / 3


# -- one point and rows ----------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l1", np.inf)])
def test_one_point_reduces_to_one_feature(norm, dual):
    h = np.array([[1.0, -3.0, 0.0, 2.0]])
    feature, expansion = reduce(h, norm)
    assert feature == pytest.approx(np.linalg.norm(h[0], dual))
    np.testing.assert_allclose(expansion @ h.T, feature)
    assert norm_of(expansion, norm) == 1.0


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("points", [1, 3])
def test_rows_reach_their_targets_at_least_cost(solver, norm, points):
    rng = np.random.default_rng(0)
    h = np.maximum(rng.normal(size=(points, 12)), 0)
    targets = np.concatenate([rng.normal(size=(4, points)), np.zeros((1, points))])
    found = Rows(h, norm, LIMIT, solver).solve(targets)
    np.testing.assert_allclose(found @ h.T, targets, atol=1e-8)
    assert not found[-1].any()
    for row, target in zip(found[:4], targets, strict=False):
        program = linprog(
            np.append(np.zeros(12), 1) if norm == "linf" else np.ones(24),
            A_ub=np.block([[np.eye(12), -np.ones((12, 1))], [-np.eye(12), -np.ones((12, 1))]])
            if norm == "linf"
            else None,
            b_ub=np.zeros(24) if norm == "linf" else None,
            A_eq=np.c_[h, np.zeros(points)] if norm == "linf" else np.c_[h, -h],
            b_eq=target,
            bounds=(None, None) if norm == "linf" else (0, None),
        )
        assert norm_of(row, norm) == pytest.approx(program.fun, abs=1e-7)


def test_unreachable_rows_are_infeasible(solver):
    rows = Rows(np.ones((2, 5)), "l1", LIMIT, solver)
    with pytest.raises(Infeasible):
        rows.solve(np.array([[1.0, 2.0]]))
    with pytest.raises(Infeasible):
        rows.solve(np.array([[1e3, 1e3]]))


# -- inner layers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("widths", [(6, 5, 4), (6, 5, 4, 3)])
@pytest.mark.parametrize("points", [1, 2])
def test_inner_layer_is_made_right_and_nothing_smaller_is(layers, solver, norm, widths, points):
    chain = layers(*widths, seed=2)
    h = np.random.default_rng(1).random((points, 6))
    y = np.argsort(_logits(chain, h), axis=1)[:, -2]
    found = InnerLayer(chain, h, y, norm, MARGIN, LIMIT, solver).solve(points)
    change = found.weights["fc1.weight"]
    logits = _logits(chain, h, change)
    assert (logits.argmax(axis=1) == y).all()
    assert found.cost == pytest.approx(found.lower_bound, rel=1e-6)
    with pytest.raises(Infeasible):
        InnerLayer(chain, h, y, norm, MARGIN, 0.99 * found.cost, solver).solve(points)


def _logits(layers, h, change=None):
    values = layers[0](h, change)
    for dense in layers[1:]:
        values = dense(np.maximum(values, 0))
    return values


@pytest.mark.parametrize("norm", NORMS)
def test_encoding_holds_for_true_changes_and_their_values(layers, norm):
    chain = layers(6, 5, 4, 3)
    rng = np.random.default_rng(0)
    h, limit = rng.random((3, 6)), 0.4
    change = rng.normal(size=(5, 6))
    change *= limit / norm_of(change, norm)
    first = chain[0](h, change)
    second = chain[1](np.maximum(first, 0))
    y = chain[2](np.maximum(second, 0)).argmax(axis=1)
    encoding = encode(chain, h, y, norm, 1e-6, limit)
    parts = (first, np.maximum(first, 0), second, np.maximum(second, 0))
    columns = np.concatenate([change.ravel(), *(part.T.ravel() for part in parts)])
    assert (encoding.lower - 1e-9 <= columns).all()
    assert (columns <= encoding.upper + 1e-9).all()
    rows = encoding.rows @ columns
    assert (encoding.row_lower - 1e-9 <= rows).all()
    assert (rows <= encoding.row_upper + 1e-9).all()
    before, after = encoding.relus.T
    np.testing.assert_allclose(columns[after], np.maximum(columns[before], 0))


def test_inner_layer_through_the_approach(network, task):
    work = task(network(8, 6, 4), faults=3)
    result = run(Minimal3M(layer="fc1", faults=(1,)), work)
    assert result.model.hash != work.model.hash
    changed = [n for n, w in work.model.weights.items() if (w != result.model.weights[n]).any()]
    assert changed == ["fc1.weight"]
    assert result.candidates[result.best]["minimal"] == 1.0
    assert "mixed-integer" in result.evidence[0].columns["solver"][0]


# -- limits ----------------------------------------------------------------------------------------


def test_a_used_up_budget_stops_the_solver_inside_a_program(case):
    dense, h, y = case(300, 20, 150)

    def tick():
        raise BudgetExceeded("the time limit was reached")

    solver = Solver(60.0, tick)
    with pytest.raises(BudgetExceeded):
        LastLayer(dense, h, y, "linf", MARGIN, LIMIT, solver).solve(150)


def test_a_program_that_takes_too_long_is_unsolved(case):
    dense, h, y = case(200, 20, 100)
    with pytest.raises(Unsolved, match="did not end within"):
        LastLayer(dense, h, y, "linf", MARGIN, LIMIT, Solver(1e-3, lambda: None)).solve(100)


def test_too_little_time_is_a_failure_with_the_reason(case, network, task):
    work = task(network(10, 60, 10), faults=100)
    result = run(Minimal3M(query_seconds=1e-9, faults=(50,)), work)
    assert result.outcome is Outcome.FAILURE
    assert "did not end within" in result.reason


def test_a_used_up_budget_keeps_what_was_found(network, task):
    work = task(network(10, 14, 5))
    work.budget = Budget(seconds=1e4)

    def stop(entry):
        work.budget = Budget(seconds=0.0)

    result = run(Minimal3M(), work, on_candidate=stop)
    assert result.outcome is Outcome.FIXED
    assert "time limit" in result.reason
    assert len(result.candidates) == 1


def test_memory_of_the_task_is_a_limit(network, task):
    work = task(network(10, 14, 5))
    work.budget = Budget(memory=100)
    result = run(Minimal3M(), work)
    assert result.outcome is Outcome.FAILURE
    assert "memory: engine 'lp_lazy' would need about" in result.reason


def test_memory_limit_of_a_job_is_a_failure_with_the_figure(tmp_path):
    subject = tiny_subject(tmp_path)
    job = Job(
        approach="minimal-3m",
        config={"engine": "marabou", "norms": ["l1"], "faults": [1]},
        subject=tmp_path / subject.card.name,
        record=tmp_path / "runs" / "1",
        memory=500_000_000,
    )
    # In a process of its own, since a job that outgrows its limit is ended.
    command = [sys.executable, "-m", "modelfix_core.job", str(job.save())]
    subprocess.run(command, check=True, capture_output=True)
    record = Record.load(job.record)
    assert record.outcome is Outcome.FAILURE
    assert "would need about 0.494 GB for a layer of 84 inputs and 10 outputs" in record.reason


def test_a_solver_without_memory_is_a_failure(network, task, monkeypatch):
    def exhausted(*_):
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(Solver, "run", exhausted)
    result = run(Minimal3M(faults=(2,)), task(network(10, 14, 5)))
    assert result.outcome is Outcome.FAILURE
    assert "2 faults, l1: the solver ran out of memory" in result.reason


@pytest.mark.parametrize(
    ("arguments", "low", "high"),
    [
        (("marabou", "l1", 1, 84, 10, 10), 0.3e9, 0.7e9),
        (("marabou", "l1", 1, 128, 10, 10), 1.0e9, 1.4e9),
        (("marabou", "linf", 1, 1024, 1000, 1000), 14e9, 18e9),
        (("marabou", "linf", 10, 1024, 1000, 1000), 150e9, 180e9),
        (("lp", "l1", 100, 1024, 1000, 1000), 2e9, 10e9),
        (("lp_lazy", "l1", 20, 1024, 1000, 1000), 0, 200e6),
        (("milp", "linf", 1, 4096, 4096, 10), 0, 10e6),
        (("milp", "linf", 2, 4096, 4096, 10), 1e9, 4e9),
    ],
)
def test_memory_estimates_are_near_what_was_measured(arguments, low, high):
    assert low <= estimate(*arguments) <= high


def test_marabou_missing_is_said_with_what_to_install(network, task, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run(Minimal3M(engine="marabou", faults=(1,)), task(network(6, 4)))
    assert result.outcome is Outcome.FAILURE
    assert "modelfix-minimal-3m[verify]" in result.reason


def test_as_many_points_as_can_be_right_together(network, task):
    # Three features cannot give 30 random points their labels.
    work = task(network(3, 4), faults=30)
    result = run(Minimal3M(faults=(1, "all"), norms=("l1",)), work)
    approach = Minimal3M(faults=("all",), norms=("l1",))
    candidate, proofs = approach.candidates(work)
    assert len(proofs.columns["sample"]) == candidate.step
    assert result.outcome in (Outcome.FIXED, Outcome.CORRUPTED)
    assert 1 <= candidate.step < 30
    wrong = np.flatnonzero(work.model.predict(work.repair).argmax(axis=1) != work.repair.y)
    fixed = candidate.apply(work.model)
    assert fixed.accuracy(work.repair.select(wrong[: candidate.step])) == 1.0


# -- proof and candidates --------------------------------------------------------------------------


def test_candidates_get_better_and_ties_keep_fewer_faults(network, task):
    found = list(Minimal3M().candidates(task(network(10, 14, 5))))
    accuracies = [c.validation_accuracy for c in found if isinstance(c, Candidate)]
    assert accuracies == sorted(set(accuracies))


def test_proofs_are_those_of_the_fixed_model(network, task):
    work = task(network(10, 14, 5))
    result = run(Minimal3M(), work)
    (proofs,) = result.evidence
    assert proofs.name == "proofs"
    columns = proofs.columns
    assert len(columns["sample"]) == result.candidates[result.best]["faults"]
    place = {sample: position for position, sample in enumerate(work.repair.ids)}
    positions = [place[sample] for sample in columns["sample"]]
    logits, y = result.model.predict(work.repair.select(positions)), work.repair.y[positions]
    for row, label, margin, text in zip(
        logits, y, columns["margin"], columns["property"], strict=True
    ):
        assert margin == pytest.approx(row[label] - np.delete(row, label).max(), abs=1e-5)
        assert text == f"class {label} wins by at least 0.001 at the point"
    assert all(columns["holds"])
    assert set(columns["scope"]) == {"point"}
    assert all(text.startswith("HiGHS ") for text in columns["solver"])


def test_the_summary_says_what_was_proven_and_what_not(network, task, caplog):
    with caplog.at_level(logging.INFO, "modelfix_minimal_3m"):
        result = run(Minimal3M(faults=(3,), norms=("l1",)), task(network(10, 14, 5)))
    summary = result.evidence[0].summary
    for part in ("3 faults", "sum of absolute changes", "no cheaper change", "not around it"):
        assert part in summary
    assert summary in caplog.text


def test_a_margin_that_was_lost_does_not_hold():
    change = Change({"w": np.ones((2, 2))}, 1.0, 1.0, "highs-lp", 1e-9)
    margins = np.array([0.1, 0.099999, 0.05])
    proof = Proof(change, "l1", 0.1, np.arange(3), np.zeros(3, int), margins, 2e-6)
    assert list(proof.evidence().columns["holds"]) == [True, True, False]


def test_nothing_is_printed():
    code = "from modelfix_minimal_3m.highs import Solver; h = Solver(1.0, None).start(); h.run()"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert output.stdout == output.stderr == b""


def test_nothing_to_repair_proposes_the_original(network, task):
    work = task(network(10, 14, 5), faults=0)
    result = run(Minimal3M(), work)
    assert result.outcome is Outcome.FIXED
    assert result.model.hash == work.model.hash


def test_order_by_gap_takes_the_nearest_misses_first(network, task):
    work = task(network(10, 14, 5))
    _, proofs = Minimal3M(faults=(1,), norms=("linf",), order="gap").candidates(work)
    logits = work.model.predict(work.repair).astype(float)
    rows = np.arange(len(logits))
    gap = logits.max(axis=1) - logits[rows, work.repair.y]
    gap[logits.argmax(axis=1) == work.repair.y] = np.inf
    assert list(proofs.columns["sample"]) == [work.repair.ids[gap.argmin()]]


@pytest.mark.parametrize(
    "options",
    [
        {"faults": (0,)},
        {"norms": ()},
        {"margin": 0.0},
        {"mode": "multi", "engine": "marabou"},
        {"mode": "multi", "layer": "fc1"},
        {"what": 1},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(ModelfixError, match="minimal-3m"):
        Minimal3M(**options)


@pytest.mark.parametrize("preset", Minimal3M.presets)
def test_presets_run(network, task, preset):
    changes = {"proposals": 30} if preset == "paper" else {}
    result = run(Minimal3M(preset, **changes), task(network(10, 14, 14, 5)))
    assert result.outcome is Outcome.FIXED
