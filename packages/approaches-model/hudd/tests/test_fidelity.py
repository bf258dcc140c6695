"""What the specification of HUDD promises, numbered as its list of checks."""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
from modelfix_core import Evidence, Localisation, Outcome
from modelfix_core.fixing import run
from modelfix_core.torch import load
from modelfix_hudd import Hudd
from modelfix_hudd.clustering import (
    choose_k,
    cluster,
    cut,
    distances,
    normalise,
    replay,
    sums,
    ward,
    wicd,
)
from modelfix_hudd.selection import assign, bag, keep, quotas
from modelfix_testing import tiny_dataset, tiny_task
from scipy.cluster.hierarchy import fcluster, linkage
from torch import nn
from torch.nn import functional

DENSE = ("7", "10", "12")


def failures_like(n, dimensions=30, groups=4, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 3, (groups, dimensions))
    return (centres[np.arange(n) % groups] + rng.normal(size=(n, dimensions))).astype(np.float32)


# -- 1 to 3: heatmaps ------------------------------------------------------------------------------


def test_1_relevance_is_conserved_without_biases(model_of, images, heatmaps_of):
    model, x = model_of(bias=False), images(20)
    logit = model.predict(x).max(axis=1)
    found = heatmaps_of(model, x)
    assert list(found) == ["0", "3", *DENSE]
    for maps in found.values():
        np.testing.assert_allclose(maps.double().sum(dim=1), logit, rtol=1e-4)


def test_1_relevance_is_conserved_in_the_dense_tail_whatever_the_biases(
    model_of, images, heatmaps_of
):
    model, x = model_of(bias=True), images(20)
    logit = model.predict(x).max(axis=1)
    found = heatmaps_of(model, x)
    for layer in DENSE:
        np.testing.assert_allclose(found[layer].double().sum(dim=1), logit, rtol=1e-4)
    below = found["0"].double().sum(dim=1).numpy() / logit
    assert np.abs(below - 1).max() > 1e-3  # biases of convolutions take their share


def relprop(net, x, eps=1e-9):
    """The rules layer by layer, as a list of relevance at the inputs of all modules."""
    given = []
    for module in net:
        given.append((module, x))
        x = module(x)
    outputs = [y for _, y in given[1:]] + [x]
    relevance = functional.one_hot(x.argmax(dim=1), x.shape[1]) * x
    result = []
    for position in reversed(range(len(given))):
        module, value = given[position]
        y = outputs[position]
        if isinstance(module, nn.Linear):
            positive = module.weight.clamp(min=0)
            relevance = value * ((relevance / (value @ positive.T + eps)) @ positive)
        elif isinstance(module, nn.Conv2d):
            rectified = outputs[position + 1]  # the activation works in place in the original
            share = relevance / (rectified + eps)
            relevance = value * functional.conv_transpose2d(share, module.weight)
        elif isinstance(module, nn.MaxPool2d):
            size = module.kernel_size
            _, winner = functional.max_pool2d(value, size, return_indices=True)
            back = functional.max_unpool2d(
                relevance / (y + eps), winner, size, size, 0, value.shape
            )
            relevance = value * back
        elif isinstance(module, nn.Flatten):
            relevance = relevance.view(value.shape)
        result.insert(0, relevance)
    return result


@pytest.mark.parametrize("bias", [True, False])
def test_2_one_pass_gives_what_the_rules_give_layer_by_layer(
    model_of, network_of, images, heatmaps_of, bias
):
    model, x = model_of(bias=bias), images(16)
    with torch.no_grad():
        expected = relprop(network_of(model, bias), torch.from_numpy(x))
    # Our place behind a convolution is the input of the module after its activation.
    modules = {"0": 2, "3": 5, "7": 7, "10": 10, "12": 12}
    found = heatmaps_of(model, x)
    assert found.keys() == modules.keys()
    for layer, position in modules.items():
        theirs = expected[position].flatten(1)
        scale = float(theirs.abs().max())
        torch.testing.assert_close(found[layer], theirs, rtol=1e-5, atol=1e-5 * scale)


def test_3_dead_units_have_no_relevance(model_of, images, heatmaps_of):
    model, x = model_of(), images(16)
    net = load(model)
    dead = net.activations(torch.from_numpy(x), ["7"])["7"] <= 0
    relevance = heatmaps_of(model, x)["10"]
    assert dead.any()
    assert (~dead).any()
    assert (relevance[dead] == 0).all()


def test_3_scaled_logits_scale_heatmaps_and_leave_clusters(model_of, images, heatmaps_of):
    model, x = model_of(), images(40)
    last = model.layer("12")
    scaled = model.with_weights({name: model.weights[name] * 4 for name in last.parameters})
    before, after = heatmaps_of(model, x), heatmaps_of(scaled, x)
    for layer, maps in before.items():
        torch.testing.assert_close(after[layer], 4 * maps, rtol=1e-4, atol=1e-6)
        one, other = (cluster(found[layer].numpy()) for found in (before, after))
        np.testing.assert_array_equal(one.labels, other.labels)
        assert other.score == pytest.approx(4 * one.score, rel=1e-4)


# -- 4 and 5: clusters -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_4_planted_root_causes_are_told_apart(planted, seed):
    given = planted(seed=seed)
    task = given.task()
    wrong = task.model.predict(task.repair).argmax(axis=1) != task.repair.y
    np.testing.assert_array_equal(np.flatnonzero(wrong), given.first_failure + np.arange(48))
    proposals = list(Hudd(epochs=1).candidates(task))
    [found] = [p for p in proposals if isinstance(p, Evidence)]
    failure = np.array(found.columns["role"]) == "failure"
    patch = given.patch[found.columns["sample"][failure] - 1000 - given.first_failure]
    clusters = found.columns["cluster"][failure]
    counts = np.array([np.bincount(patch[clusters == c], minlength=2) for c in set(clusters)])
    assert len(counts) >= 2
    assert (counts.max(axis=1) / counts.sum(axis=1)).min() >= 0.9


def looped_wicd(matrix, labels):
    total = 0.0
    names = sorted(set(labels))
    for name in names:
        members = [i for i in range(len(labels)) if labels[i] == name]
        if len(members) > 1:
            inside = [matrix[i, j] for i, j in combinations(members, 2)]
            total += len(members) / len(labels) * sum(inside) / len(inside)
    return total / len(names)


def test_5_replay_equals_the_loops():
    matrix = distances(failures_like(90))
    top = normalise(matrix)
    tree = ward(matrix, top)
    np.testing.assert_allclose(tree, linkage(matrix, "ward"), rtol=1e-9)
    curve = replay(matrix, tree, 45)
    for k in range(2, 21):
        labels = fcluster(tree, k, "maxclust")
        assert curve[k - 2] == pytest.approx(looped_wicd(matrix, labels), abs=1e-12)
        ours, _ = cut(tree, k)
        assert len(set(zip(ours, labels, strict=True))) == k == len(set(ours))


def test_5_chosen_cut_reproduces_the_score():
    maps = failures_like(90)
    raw = distances(maps)
    profile = raw.copy()
    tree = ward(profile, normalise(profile))
    k = choose_k(replay(profile, tree, 45), 90)
    labels = fcluster(tree, k, "maxclust")
    found = cluster(maps)
    assert len(set(zip(found.labels, labels, strict=True))) == k
    assert found.score == pytest.approx(looped_wicd(raw, labels), rel=1e-12)


# -- 6 and 7: selection ----------------------------------------------------------------------------


def looped_assignment(distance, quota):
    """The walk over all images, as it is described."""
    assigned, left = [-1] * len(distance), list(quota)
    order = np.argsort(distance, axis=1, kind="stable")
    for r in range(distance.shape[1]):
        near = [(distance[i, order[i, r]], i) for i in range(len(distance))]
        for _, i in sorted(near):
            target = order[i, r]
            if assigned[i] < 0 and left[target] > 0:
                assigned[i], left[target] = target, left[target] - 1
    return assigned


def test_6_unsafe_set_keeps_its_quotas():
    rng = np.random.default_rng(0)
    for n, clusters in ((200, 9), (30, 9), (5, 3)):
        distance = rng.integers(0, 50, (n, clusters)).astype(float)  # with ties
        quota = rng.integers(1, 9, clusters)
        assigned = assign(distance, quota)
        np.testing.assert_array_equal(assigned, looped_assignment(distance, quota))
        counts = np.bincount(assigned[assigned >= 0], minlength=clusters)
        assert (counts <= quota).all()
        assert counts.sum() == min(n, quota.sum())


def test_6_failures_select_themselves(planted):
    proposals = Hudd(epochs=1).candidates(planted().task())
    evidence = next(p for p in proposals if isinstance(p, Evidence))
    columns = evidence.columns
    failure = np.array(columns["role"]) == "failure"
    # Every member of a root cause is in the pool at distance 0, so it is in the bag.
    assert (columns["copies"][failure] >= 1).all()
    assert (columns["copies"][~failure] == 0).all()
    assert len(np.unique(columns["sample"])) == len(columns["sample"])
    for name in np.unique(columns["cluster"]):
        members, others = (np.sum((columns["cluster"] == name) & f) for f in (failure, ~failure))
        assert members + others <= 2 * members


def test_7_every_cluster_gets_the_same_weight():
    rng = np.random.default_rng(0)
    sizes = np.array([17, 5, 2, 1, 9])
    distance = rng.random((120, 5))
    assigned = assign(distance, quotas(sizes, 2))
    kept = keep(assigned, distance, quotas(sizes, 1))
    assert [len(rows) for rows in kept] == sizes.tolist()
    for cluster_of, rows in enumerate(kept):
        own = np.sort(distance[assigned == cluster_of, cluster_of])
        np.testing.assert_array_equal(distance[rows, cluster_of], own[: len(rows)])
    bags = bag(kept, distance, rng)
    assert (bags.size, len(bags.rows)) == (17, 17 * 5)
    for rows, part in zip(kept, np.split(bags.rows, 5), strict=True):
        assert set(part) == set(rows)
    whole = bag(kept, distance, np.random.default_rng(1), "reference")
    assert len(whole.rows) == 17 * 5
    assert set(whole.rows) <= set(np.concatenate(kept))


def test_7_near_images_are_repeated_more_often():
    kept, distance = [np.arange(3), np.arange(3, 3003)], np.zeros((3003, 2))
    distance[:3, 0] = [0.0, 0.2, 0.8]
    rows = bag(kept, distance, np.random.default_rng(0)).rows[:3000]
    copies = np.bincount(rows)
    # A sweep takes each with probability 1, 0.8 and 0.2.
    np.testing.assert_allclose(copies / copies[0], [1, 0.8, 0.2], atol=0.05)


# -- 8 and 9: retraining ---------------------------------------------------------------------------


def test_8_without_learning_rate_nothing_changes():
    task = tiny_task()
    result = run(Hudd(learning_rates=(0.0,), epochs=2), task)
    assert result.outcome is Outcome.FIXED
    assert isinstance(result.localisation, Localisation)
    assert len(result.candidates) == 2
    for name, array in task.model.weights.items():
        assert result.model.weights[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("rate", [1e-3, 1e-1])
def test_9_the_books_balance(rate):
    task, test = tiny_task(), tiny_dataset()["test"]
    fixed = run(Hudd(learning_rates=(rate,), epochs=2), task).model
    right, after = (m.predict(test).argmax(axis=1) == test.y for m in (task.model, fixed))
    n = len(test)
    accuracy, new = Fraction(int(right.sum()), n), Fraction(int(after.sum()), n)
    repaired = Fraction(int((after & ~right).sum()), int((~right).sum()))
    flipped = Fraction(int((right & ~after).sum()), n)
    assert new == accuracy + repaired * (1 - accuracy) - flipped
    assert repaired > 0


def test_9_wicd_of_singletons_is_zero():
    matrix = distances(failures_like(6))
    within = np.diag(sums(matrix, np.arange(6), 6))
    assert wicd(within, np.ones(6)) == 0
