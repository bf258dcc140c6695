"""The checks of fidelity to the paper's algorithm and theorems."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from modelfix_core.approach import Outcome
from modelfix_core.errors import Unadaptable
from modelfix_core.fixing import run
from modelfix_reassure import Reassure, verify
from modelfix_reassure.block import Block, find_block
from modelfix_reassure.graph import extend
from modelfix_reassure.network import PatchNetwork
from modelfix_reassure.region import Region, Solver, build_region, constant_patch
from modelfix_reassure.repair import Repair
from scipy.optimize import linprog

NETS = [(5, 8, 8, 3), (10, 16, 16, 5), (20, 24, 24, 10)]


def patch_of(region: Region, label: int, h: np.ndarray, tau: float = 1e-4, **solver):
    return constant_patch(Solver(**solver).excesses(region, label, h), label, tau)


def single(block: Block, pattern: np.ndarray, patch: np.ndarray, n: float = 10.0) -> PatchNetwork:
    return PatchNetwork(block, pattern[None], patch[None], n)


def patched(network: PatchNetwork, h: np.ndarray) -> np.ndarray:
    return network.logits(network.block.preactivations(h)[-1], network.supports(h))


# 1 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", NETS)
@pytest.mark.parametrize("between", [("Relu",), ("LeakyRelu",), ("BatchNormalization", "Relu")])
def test_region_and_its_affine_map_are_true(mlp, case, hit_and_run, widths, between):
    block, region, pattern, h, _ = case(mlp(widths, between=between), seed=1)
    points = np.concatenate([h[None], hit_and_run(region, h, 100)])
    assert (points @ region.a.T <= region.b + 1e-9).all()
    assert (block.patterns(points) == pattern).all()
    logits = block.preactivations(points)[-1]
    np.testing.assert_allclose(points @ region.f.T + region.g, logits, atol=1e-9)


def test_block_is_what_onnxruntime_computes(mlp):
    model = mlp((6, 8, 7, 4), between=("BatchNormalization", "LeakyRelu"))
    x = np.random.default_rng(0).random((50, 6, 1, 1), dtype=np.float32)
    logits = find_block(model).preactivations(x.reshape(50, 6).astype(float))[-1]
    np.testing.assert_allclose(logits, model.predict(x), atol=1e-5)


# 2 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("early_exit", [False, True])
def test_sound_on_the_whole_area(mlp, case, hit_and_run, seed, early_exit):
    block, region, pattern, h, label = case(mlp((20, 24, 24, 10)), seed)
    network = single(block, pattern, patch_of(region, label, h, early_exit=early_exit))
    points = hit_and_run(region, h, 400)
    before = block.preactivations(points)[-1].argmax(axis=1)
    assert (before != label).any()
    assert (patched(network, points).argmax(axis=1) == label).all()


# 3 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10.0, 100.0, 1000.0])
def test_complete_every_consistent_fault_is_repaired(mlp, task, n):
    work = task(mlp((20, 24, 24, 10)))
    result = run(Reassure(n=(n,), faults=("all",)), work)
    assert result.outcome is Outcome.FIXED
    entry = result.candidates[0]
    assert entry["covered"] == 20 - entry["inconsistent"] > 15
    guarantees = verify(work.model, result.model, work.repair, work.validation)
    assert guarantees.complete
    assert guarantees.faults == 20
    assert guarantees.repaired == entry["covered"] == entry["repaired"]


# 4 ------------------------------------------------------------------------------------------------


def test_local_bit_equal_outside_the_supports(mlp, case):
    model = mlp((10, 16, 16, 5))
    block, region, pattern, h, label = case(model)
    fixed = extend(model, single(block, pattern, patch_of(region, label, h)))
    x = np.random.default_rng(5).random((500, 10, 1, 1), dtype=np.float32)
    x[0] = h.reshape(10, 1, 1)
    old, new = model.predict(x), fixed.predict(x)
    support = fixed.activations(x, ["reassure.patch"])["reassure.patch"][:, 0]
    assert support[0] == 1
    assert 0 < (support == 0).sum() < 500
    same = (old.view(np.uint32) == new.view(np.uint32)).all(axis=1)
    assert same[support == 0].all()
    assert not same[0]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_outside_a_positive_zero_is_subtracted(mlp, case, sign):
    # x - (+0) keeps the bits of every x; x - (-0) would turn -0 into +0.
    model = mlp((10, 16, 16, 5))
    block, _, pattern, _, _ = case(model)
    fixed = extend(model, single(block, pattern, sign * np.ones(5)))
    x = np.random.default_rng(5).random((500, 10, 1, 1), dtype=np.float32)
    patch = fixed.activations(x, ["reassure.patch"])["reassure.patch"]
    outside = patch[:, 0] == 0
    assert 0 < outside.sum() < 500
    assert (patch[outside].view(np.uint32) == 0).all()


# 5 ------------------------------------------------------------------------------------------------


def dual_norm(region: Region, label: int, tau: float) -> float:
    """Return the norm of the least affine patch by the paper's exact dual program."""
    size, classes = region.a.shape[1], len(region.g)
    a = np.concatenate([region.a, np.eye(size), -np.eye(size)])
    b = np.concatenate([region.b, region.upper, -region.lower])
    m = len(b)
    rivals = [j for j in range(classes) if j != label]
    p = np.arange(classes * m).reshape(classes, m)
    q = p + classes * m
    r = 2 * classes * m + np.arange(len(rivals) * m).reshape(-1, m)
    d = 2 * classes * m + len(rivals) * m + np.arange(classes)
    t = d[-1] + 1
    equal, equal_to, less, less_than = [], [], [], []

    def row() -> np.ndarray:
        return np.zeros(t + 1)

    for k in range(classes):
        for i in range(size):
            line = row()
            line[p[k]], line[q[k]] = a[:, i], a[:, i]
            equal.append(line)
            equal_to.append(0.0)
        for dual, sign in ((p, 1.0), (q, -1.0)):
            line = row()
            line[dual[k]], line[d[k]], line[t] = b, sign, -1.0
            less.append(line)
            less_than.append(0.0)
    for position, j in enumerate(rivals):
        for i in range(size):
            line = row()
            line[r[position]] = a[:, i]
            line[p[j]] -= a[:, i]
            line[p[label]] += a[:, i]
            equal.append(line)
            equal_to.append(region.f[j, i] - region.f[label, i])
        line = row()
        line[r[position]], line[d[j]], line[d[label]] = b, 1.0, -1.0
        less.append(line)
        less_than.append(-tau - region.g[j] + region.g[label])
    cost = row()
    cost[t] = 1.0
    free = [(0, None)] * d[0] + [(None, None)] * (classes + 1)
    result = linprog(cost, less, less_than, equal, equal_to, bounds=free)
    assert result.success
    return float(result.fun)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("widths", NETS)
def test_minimal_as_the_exact_program(mlp, case, widths, seed):
    _, region, _, h, label = case(mlp(widths, seed), seed)
    norm = np.abs(patch_of(region, label, h)).max()
    assert norm == pytest.approx(dual_norm(region, label, 1e-4), abs=1e-6)


def test_less_than_the_minimum_does_not_repair(mlp, case):
    _, region, _, h, label = case(mlp((10, 16, 16, 5)), 3)
    excesses = Solver(early_exit=False).excesses(region, label, h)
    patch = 0.99 * constant_patch(excesses, label, 0.0)
    worst = int(np.argmax(excesses))
    result = linprog(
        region.f[label] - region.f[worst],
        region.a,
        region.b,
        bounds=np.stack([region.lower, region.upper], axis=1),
    )
    logits = region.f @ result.x + region.g + patch
    assert logits[worst] > logits[label]


def test_early_exit_gives_the_same_norm(mlp, case):
    for seed in range(5):
        _, region, _, h, label = case(mlp((20, 24, 24, 10), seed), seed)
        norms = [np.abs(patch_of(region, label, h, early_exit=e)).max() for e in (True, False)]
        assert norms[0] == pytest.approx(norms[1], abs=1e-9)


def test_interior_point_agrees_and_never_falls_below(mlp, case):
    _, region, _, h, label = case(mlp((20, 24, 24, 10)), 1)
    exact = Solver(method="simplex", early_exit=False).excesses(region, label, h)
    near = Solver(method="ipm", early_exit=False).excesses(region, label, h)
    others = np.arange(10) != label
    np.testing.assert_allclose(near[others], exact[others], atol=1e-5)
    assert (near[others] >= exact[others] - 1e-9).all()


# 6 ------------------------------------------------------------------------------------------------


def support(network: PatchNetwork, h: np.ndarray) -> np.ndarray:
    rows, gamma = network.supports(h).gamma(1)
    g = np.zeros(len(h))
    g[rows] = gamma[:, 0]
    return g


def test_support_is_the_formula_of_the_paper(mlp, case):
    block, region, pattern, h, _ = case(mlp((10, 16, 16, 5)))
    rng = np.random.default_rng(0)
    points = h + rng.normal(0, 0.05, (400, 10))
    for n in (0.5, 3.0, 30.0):
        y = region.b - points @ region.a.T
        steps = np.maximum(n * y + 1, 0) - np.maximum(n * y, 0)
        formula = np.maximum(steps.sum(axis=1) - len(region.b) + 1, 0)
        g = support(single(block, pattern, np.ones(5), n), points)
        np.testing.assert_allclose(g, formula, atol=1e-9)
        assert ((g >= 0) & (g <= 1)).all()
        assert (g[1 - formula > 1e-6] < 1).all()


def test_support_is_one_inside_and_zero_beyond_a_row(mlp, case, hit_and_run):
    block, region, pattern, h, _ = case(mlp((10, 16, 16, 5)))
    n = 10.0
    network = single(block, pattern, np.ones(5), n)
    inside = hit_and_run(region, h, 200)
    assert (support(network, inside) == 1).all()
    lengths = np.linalg.norm(region.a, axis=1)
    distance = (region.b - region.a @ h) / lengths + 1.0001 / (n * lengths)
    beyond = h + distance[:, None] * region.a / lengths[:, None]
    assert (support(network, beyond) == 0).all()


# 7 ------------------------------------------------------------------------------------------------


def test_faults_of_one_region_become_one_patch(mlp, task):
    model = mlp((10, 16, 16, 5))
    work = task(model, faults=1)
    x = np.repeat(work.repair.x[:1], 4, axis=0)
    x[1:] += np.float32(1e-5)
    y = np.repeat(work.repair.y[:1], 4)
    y[3] = (y[3] + 1) % 5
    merged = replace(work.repair, x=x, y=y, ids=np.arange(4))
    work.repair = merged
    entry = run(Reassure(faults=("all",)), work).candidates[0]
    wrong = int((model.predict(x).argmax(axis=1) != y).sum())
    assert entry["patches"] == 1
    assert entry["covered"] == 3
    assert entry["inconsistent"] == wrong - 3


def test_patches_telescope_where_no_later_support_reaches(mlp, hit_and_run, case):
    model = mlp((10, 16, 16, 5))
    block = find_block(model)
    rng = np.random.default_rng(2)
    h = rng.random((30, 10))
    patterns, first = np.unique(block.patterns(h), axis=0, return_index=True)
    h, d = h[first], rng.normal(size=(len(first), 5))
    network = PatchNetwork(block, patterns, d, 100.0)
    supports = network.supports(h)
    leaking = supports.leaks(np.arange(len(h)), len(h))
    assert not leaking[-1]
    assert (~leaking).sum() > 10
    expected = block.preactivations(h)[-1] + d
    np.testing.assert_allclose(patched(network, h)[~leaking], expected[~leaking], atol=1e-9)


def test_a_later_patch_that_reaches_into_a_region_is_counted(mlp, case):
    block, _, pattern, h, _ = case(mlp((10, 16, 16, 5)))
    other = pattern.copy()
    other[0] = not other[0]
    network = PatchNetwork(block, np.stack([pattern, other]), np.eye(5)[:2], 1e-6)
    assert network.supports(h[None]).leaks(np.array([0]), 2).all()
    assert not network.supports(h[None]).leaks(np.array([0]), 1).any()


def test_each_region_is_right_where_no_later_patch_reaches(mlp, task, hit_and_run):
    # What the proofs of scope "region" say, sampled with all patches in place.
    work = task(mlp((20, 24, 24, 10)))
    repair = Repair(work, find_block(work.model), Reassure().config)
    given = repair._given(20)
    network, lower_upper = given.network(repair.block, 100.0), repair.box
    checked = 0
    for own, patch in enumerate(given.patches):
        pattern = network.patterns[own]
        region = build_region(repair.block, pattern, *lower_upper)
        start = repair.repair.h[given.faults.example[given.solved[own]]]
        points = hit_and_run(region, start, 50)
        supports = network.supports(points)
        free = ~supports.leaks(np.full(50, own), len(network))
        logits = patched(network, points)[free]
        rivals = np.delete(logits, patch.label, axis=1).max(axis=1)
        assert (logits[:, patch.label] - rivals >= patch.margin - 1e-7).all()
        checked += free.sum()
    assert checked > 500


# 8 ------------------------------------------------------------------------------------------------


def test_no_parameter_changes_and_two_runs_agree(mlp, task):
    def digest(model):
        arrays = sorted((name, array.tobytes()) for name, array in model.weights.items())
        return hashlib.sha256(repr(arrays).encode()).hexdigest()

    work = task(mlp((10, 16, 16, 5)))
    before, nodes = work.model.hash, work.model.proto().graph.node
    results = [run(Reassure(), task(mlp((10, 16, 16, 5)))) for _ in range(2)]
    assert results[0].model.hash == results[1].model.hash
    assert work.model.hash == before
    assert digest(results[0].model) == digest(work.model)
    kept = results[0].model.proto().graph.node[: len(nodes)]
    assert [n.op_type for n in kept] == [n.op_type for n in nodes]
    assert [list(n.input) for n in kept] == [list(n.input) for n in nodes]


# 9 ------------------------------------------------------------------------------------------------


def test_norm_scales_with_the_box_without_biases(mlp, case):
    _, region, _, h, label = case(mlp((10, 16, 16, 5), bias=0.0), 1)
    norms = [
        np.abs(patch_of(replace(region, upper=s * region.upper), label, s * h, tau=0.0)).max()
        for s in (1.0, 1.5, 3.0)
    ]
    np.testing.assert_allclose(norms, norms[0] * np.array([1.0, 1.5, 3.0]), rtol=1e-7)


@pytest.mark.parametrize("early_exit", [False, True])
def test_at_most_one_program_for_each_other_class(mlp, case, monkeypatch, early_exit):
    calls = []
    solve = Solver._maximum
    monkeypatch.setattr(Solver, "_maximum", lambda *a: calls.append(1) or solve(*a))
    _, region, _, h, label = case(mlp((10, 16, 16, 5)))
    Solver(early_exit=early_exit).excesses(region, label, h)
    assert len(calls) <= 4
    assert early_exit or len(calls) == 4


# 10 -----------------------------------------------------------------------------------------------


def test_three_dense_layers_pass(mlp, task):
    Reassure().check(task(mlp((5, 8, 8, 3))))
    Reassure().check(task(mlp((5, 8, 8, 3), between=("LeakyRelu", "Dropout", "Identity"))))
    Reassure(min_fc=2).check(task(mlp((5, 8, 3))))


@pytest.mark.parametrize(
    ("widths", "options", "reason"),
    [
        ((5, 3), {"before": ("GlobalAveragePool", "Flatten")}, "1 consecutive"),
        ((5, 8, 3), {}, "2 consecutive"),
        ((5, 8, 8, 3), {"between": ("Tanh",)}, "1 consecutive.*Tanh"),
        ((5, 8, 8, 3), {"between": ("Identity",)}, "no ReLU"),
    ],
)
def test_everything_else_is_unadaptable(mlp, task, widths, options, reason):
    with pytest.raises(Unadaptable, match=reason):
        Reassure().check(task(mlp(widths, **options), faults=0))
