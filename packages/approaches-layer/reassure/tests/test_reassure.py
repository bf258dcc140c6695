"""The graph, the grid, and how runs end."""

import subprocess
import sys

import numpy as np
import pytest
from modelfix_core.approach import Budget, Candidate, Outcome
from modelfix_core.errors import ModelfixError
from modelfix_core.fixing import run
from modelfix_core.job import Job
from modelfix_core.model import Model
from modelfix_core.record import Record, load_evidence
from modelfix_reassure import Reassure, repair, verify
from modelfix_reassure.block import find_block
from modelfix_reassure.faults import locate, merge
from modelfix_reassure.graph import extend
from modelfix_reassure.memory import estimate
from modelfix_reassure.network import PatchNetwork
from modelfix_reassure.region import Solver
from modelfix_testing import tiny_subject


def random_network(model: Model, n: float, count: int = 12) -> PatchNetwork:
    rng = np.random.default_rng(0)
    block = find_block(model)
    patterns = np.unique(block.patterns(rng.random((count, model.input_shape[0]))), axis=0)
    return PatchNetwork(block, patterns, rng.normal(size=(len(patterns), model.num_classes)), n)


@pytest.mark.parametrize("n", [0.3, 10.0, 1000.0])
@pytest.mark.parametrize(
    ("widths", "between"),
    [
        ((6, 8, 4), ("Relu",)),
        ((6, 8, 8, 4), ("Relu",)),
        ((6, 8, 8, 8, 4), ("LeakyRelu", "Dropout")),
        ((6, 8, 8, 4), ("BatchNormalization", "Relu")),
        ((6, 8, 8, 4), ("Relu", "BatchNormalization")),
    ],
)
def test_graph_computes_what_numpy_does(mlp, tmp_path, widths, between, n):
    model = mlp(widths, between=between)
    network = random_network(model, n)
    extend(model, network).save(tmp_path / "fixed.onnx")
    fixed = Model.load(tmp_path / "fixed.onnx")
    x = np.random.default_rng(0).random((200, 6, 1, 1), dtype=np.float32)
    h = x.reshape(200, 6).astype(float)
    supports = network.supports(h)
    assert len(supports.row)
    expected = network.logits(model.predict(x), supports)
    np.testing.assert_allclose(fixed.predict(x), expected, atol=2e-5)
    # One by one, so that batches without any touched input occur.
    np.testing.assert_allclose(fixed.predict(x[:40], batch_size=1), expected[:40], atol=2e-5)
    assert fixed.output_name == model.output_name
    assert fixed.weights.keys() == model.weights.keys()


def test_supports_do_not_depend_on_memory(mlp):
    network = random_network(mlp((6, 8, 8, 4)), 0.3)
    h = np.random.default_rng(0).random((100, 6))
    whole, pieces = network.supports(h), network.supports(h, memory=8 * 8 * 12 * 7)
    np.testing.assert_array_equal(whole.row, pieces.row)
    np.testing.assert_array_equal(whole.patch, pieces.patch)
    np.testing.assert_allclose(whole.value, pieces.value, atol=1e-12)


def test_fewer_patches_are_the_first_ones(mlp):
    network = random_network(mlp((6, 8, 8, 4)), 0.3)
    h = np.random.default_rng(0).random((100, 6))
    few, base = network.first(3), np.zeros((100, 4))
    np.testing.assert_allclose(
        few.logits(base, network.supports(h)), few.logits(base, few.supports(h)), atol=1e-12
    )


def test_adjacent_dense_layers_are_one_map(mlp):
    block = find_block(mlp((6, 8, 7, 4), between=("Identity",)))
    assert block.dense == 3
    assert [m.weight.shape for m in block.maps] == [(4, 6)]


def test_gradients_pass_through_the_patched_graph(mlp, case):
    torch = pytest.importorskip("torch")
    bridge = pytest.importorskip("modelfix_core.torch")
    model = mlp((6, 8, 8, 4))
    block, _, pattern, h, _ = case(model)
    patch = np.array([[1.0, -2.0, 0.5, 0.0]])
    fixed = extend(model, PatchNetwork(block, pattern[None], patch, 0.5))
    net = bridge.load(fixed)
    x = torch.tensor(np.random.default_rng(1).random((64, 6, 1, 1)), dtype=torch.float32)
    x[0] = torch.tensor(h, dtype=torch.float32).reshape(6, 1, 1)
    support = fixed.activations(x.numpy(), ["reassure.patch"])["reassure.patch"][:, 0]
    falling = np.flatnonzero((support > 0.05) & (support < 0.95))
    assert len(falling)
    x.requires_grad_()
    net(x)[:, 1].sum().backward()
    with_patch = x.grad.clone()
    x.grad = None
    bridge.load(model)(x)[:, 1].sum().backward()
    changed = (with_patch - x.grad).abs().amax(dim=(1, 2, 3)).numpy()
    assert changed[support == 0].max() < 1e-5
    assert changed[falling].max() > 1e-3


# -- faults and regions ----------------------------------------------------------------------------


def test_merge_takes_the_majority_and_the_earlier_on_ties():
    patterns = np.array([[1, 0], [0, 0], [1, 0], [0, 0], [1, 0]], dtype=bool)
    faults = merge(patterns, np.array([2, 1, 0, 0, 0]))
    np.testing.assert_array_equal(faults.patterns, [[True, False], [False, False]])
    np.testing.assert_array_equal(faults.labels, [0, 1])
    np.testing.assert_array_equal(faults.example, [2, 1])
    np.testing.assert_array_equal(faults.region, [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(faults.consistent, [False, True, True, False, True])


def test_locate_finds_regions():
    regions = np.array([[1, 1, 0], [0, 0, 1]], dtype=bool)
    patterns = np.array([[0, 0, 1], [1, 1, 1], [1, 1, 0]], dtype=bool)
    np.testing.assert_array_equal(locate(patterns, regions), [1, -1, 0])


def test_skip_conflicts_leaves_out_regions_with_other_training_images(mlp, task):
    work = task(mlp((10, 16, 16, 5)), faults=6)
    work.train = work.validation.select(slice(0, 50))
    x = np.array(work.train.x)
    x[0] = work.repair.x[0]  # has the predicted label there, so that its region is in conflict
    y = work.model.predict(x).argmax(axis=1)
    work.train = type(work.train)(x, y)
    every = run(Reassure(faults=("all",)), work).candidates[0]
    free = run(Reassure(faults=("all",), skip_conflicts=True), work).candidates[0]
    assert free["patches"] < every["patches"]
    assert free["covered"] < every["covered"]


# -- runs ------------------------------------------------------------------------------------------


def test_candidates_cover_the_grid_and_the_claimed_accuracy_is_true(mlp, task):
    work = task(mlp((10, 16, 16, 5)))
    approach = Reassure(faults=(2, 5, "all"), n=(10.0, 1.0))
    candidates = [p for p in approach.candidates(work) if isinstance(p, Candidate)]
    assert [c.values["n"] for c in candidates] == [1.0, 10.0] * 3
    assert [c.step for c in candidates][:4] == [2, 2, 5, 5]
    for candidate in candidates:
        assert candidate.model.accuracy(work.validation) == pytest.approx(
            candidate.validation_accuracy, abs=1e-3
        )


def test_nothing_to_repair_proposes_the_original(mlp, task):
    work = task(mlp((10, 16, 16, 5)), faults=0)
    result = run(Reassure(), work)
    assert result.outcome is Outcome.FIXED
    assert result.model.hash == work.model.hash


def test_failure_if_no_program_ends_in_time(mlp, task):
    work = task(mlp((20, 24, 24, 10)))
    result = run(Reassure(seconds_per_point=1e-9), work)
    assert result.outcome is Outcome.FAILURE
    assert "time limit" in result.reason


def test_a_used_up_budget_keeps_what_was_found(mlp, task):
    work = task(mlp((10, 16, 16, 5)))
    work.budget = Budget(seconds=1e4)
    seen = []

    def stop_after_first(entry):
        seen.append(entry)
        work.budget = Budget(seconds=0.0)

    result = run(Reassure(n=(100.0, 1000.0)), work, on_candidate=stop_after_first)
    assert result.outcome is Outcome.FIXED
    assert len(result.candidates) == len(seen) == 1
    assert "time limit" in result.reason


def test_without_training_data_the_box_comes_from_validation(mlp, task):
    work = task(mlp((10, 16, 16, 5)))
    work.train = None
    assert run(Reassure(faults=(5,)), work).outcome is Outcome.FIXED


def test_training_images_in_pieces_give_the_same_box(mlp, task, monkeypatch):
    whole = run(Reassure(faults=(5,)), task(mlp((10, 16, 16, 5))))
    monkeypatch.setattr(repair, "CHUNK", 7 * 8 * 10)  # seven images at a time
    pieces = run(Reassure(faults=(5,)), task(mlp((10, 16, 16, 5))))
    assert pieces.model.hash == whole.model.hash


def test_nothing_is_printed():
    code = "from modelfix_core.highs import QuietHighs; QuietHighs().run()"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert output.stdout == output.stderr == b""


# -- memory ----------------------------------------------------------------------------------------


def test_too_little_memory_is_a_failure_with_the_figure(mlp, task):
    work = task(mlp((10, 16, 16, 5)))
    for changes, budget in (({"memory": 1e-6}, None), ({}, 100)):
        work.budget = Budget(memory=budget)
        result = run(Reassure(**changes), work)
        assert result.outcome is Outcome.FAILURE
        assert "memory: 600 inputs with 10 features and regions of 32" in result.reason
        assert "would need about" in result.reason


def test_a_solver_without_memory_is_a_failure(mlp, task, monkeypatch):
    def exhausted(*_):
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(Solver, "excesses", exhausted)
    result = run(Reassure(), task(mlp((10, 16, 16, 5))))
    assert result.outcome is Outcome.FAILURE
    assert "no patch could be computed" in result.reason
    assert "out of memory" in result.reason


def test_memory_limit_of_a_job_is_a_failure(tmp_path):
    subject = tiny_subject(tmp_path)
    job = Job(
        approach="reassure",
        subject=tmp_path / subject.card.name,
        record=tmp_path / "runs" / "1",
        memory=50_000_000,  # less than Python takes with onnxruntime
    )
    # In a process of its own, since a job that outgrows its limit is ended.
    command = [sys.executable, "-m", "modelfix_core.job", str(job.save())]
    subprocess.run(command, check=True, capture_output=True)
    record = Record.load(job.record)
    assert record.outcome is Outcome.FAILURE
    assert "memory" in record.reason


def test_memory_estimates_grow_with_inputs_and_regions():
    lenet = estimate(11_000, 144, [120, 84], 2)
    vgg = estimate(11_000, 512, [4096, 4096], 2)
    assert 10e6 < lenet < 50e6
    assert 0.3e9 < vgg < 2e9


# -- evidence --------------------------------------------------------------------------------------


@pytest.fixture
def shown(mlp, task):
    work = task(mlp((20, 24, 24, 10)))
    result = run(Reassure(faults=("all",), n=(100.0,)), work)
    return work, result, {evidence.name: evidence for evidence in result.evidence}


def test_guarantees_are_checked_on_the_fixed_model(shown):
    work, result, evidence = shown
    columns = evidence["guarantees"].columns
    rows = list(zip(*(columns[name] for name in ("split", "guarantee", "holds")), strict=True))
    entry, kept = (
        result.candidates[0],
        verify(work.model, result.model, work.repair, work.validation),
    )
    assert rows.count(("repair", "right after the repair", True)) == entry["repaired"]
    assert rows.count(("validation", "unchanged outside all regions", True)) == kept.outside
    assert len(rows) == 20 + kept.outside
    assert list(columns["constraints"][:20]) == [48] * 20
    assert all(0 < faces <= 48 for faces in columns["faces"][:20])
    assert f"{kept.outside} of {kept.outside} validation inputs" in evidence["guarantees"].summary


def test_proofs_hold_at_faults_and_in_their_regions(shown):
    work, result, evidence = shown
    columns = evidence["proofs"].columns
    assert all(columns["holds"])
    assert len(columns["sample"]) == 2 * result.candidates[0]["covered"]
    labels = dict(zip(work.repair.ids, work.repair.y, strict=True))
    for sample, text, scope, margin in zip(
        columns["sample"], columns["property"], columns["scope"], columns["margin"], strict=True
    ):
        where = "at the point" if scope == "point" else "everywhere in the linear region"
        assert text.startswith(f"class {labels[sample]} wins by at least 0.0001 {where}")
        assert margin > 0


def test_growth_is_that_of_the_graph(shown):
    work, result, evidence = shown
    columns = evidence["growth"].columns
    graphs = [model.proto().graph for model in (work.model, result.model)]
    assert [columns["before"][0], columns["after"][0]] == [len(g.node) for g in graphs]
    sizes = [sum(int(np.prod(t.dims)) for t in g.initializer) for g in graphs]
    assert [columns["before"][1], columns["after"][1]] == sizes


def test_evidence_lies_in_the_record(tmp_path):
    subject = tiny_subject(tmp_path)
    job = Job(
        approach="reassure",
        config={"faults": [3], "n": [100.0]},
        subject=tmp_path / subject.card.name,
        record=tmp_path / "runs" / "1",
    )
    job.save()
    subprocess.run(
        [sys.executable, "-m", "modelfix_core.job", str(job.partial / "job.json")], check=True
    )
    assert [e.name for e in load_evidence(job.record)] == ["growth", "guarantees", "proofs"]


def test_verify_refuses_a_model_without_patches(mlp, task):
    work = task(mlp((10, 16, 16, 5)))
    with pytest.raises(ModelfixError, match="holds no patches"):
        verify(work.model, work.model, work.repair, work.validation)


@pytest.mark.parametrize("options", [{"n": (0.0,)}, {"faults": (0,)}, {"tau": -1}, {"what": 1}])
def test_bad_options_are_refused(options):
    with pytest.raises(ModelfixError, match="reassure"):
        Reassure(**options)


@pytest.mark.parametrize("preset", Reassure.presets)
def test_presets_run(mlp, task, preset):
    result = run(Reassure(preset), task(mlp((20, 24, 24, 10)), faults=5))
    assert result.outcome is Outcome.FIXED
    assert result.candidates[result.best]["repaired"] == 5
