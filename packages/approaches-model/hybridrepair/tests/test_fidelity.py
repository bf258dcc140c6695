"""What the specification of HybridRepair promises, numbered as its list of checks."""

from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from modelfix_core import Evidence, Split
from modelfix_core.fixing import run
from modelfix_core.seeds import generator
from modelfix_core.torch import load
from modelfix_core.torch.training import Epoch, FineTuning, Training
from modelfix_hybridrepair import HybridRepair, HybridRepairConfig
from modelfix_hybridrepair.annotation import Annotator
from modelfix_hybridrepair.repair import draw, mixed, sharpened, smoothed
from modelfix_hybridrepair.run import Run
from modelfix_hybridrepair.selection import choose
from modelfix_hybridrepair.smoothness import (
    mean_predictions,
    sparsity,
    threshold,
    unsmoothness,
)
from modelfix_testing import mlp, tiny_dataset, tiny_task
from sklearn.cluster import HDBSCAN
from torch.nn import functional

DATA = Path(__file__).parent / "data"


def unit_points(n=300, groups=9, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(groups, 6))[np.arange(n) % groups] + rng.normal(0, 0.1, (n, 6))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# -- 1: annotations --------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 5, 20])
def test_1_each_call_labels_a_whole_cluster(budget):
    labels = np.random.default_rng(0).integers(0, 10, 300)
    e = np.random.default_rng(1).random(300)
    annotate = Annotator(labels, budget)
    found = choose(unit_points(), e, annotate, HybridRepairConfig(), seed=0)
    assert annotate.spent == budget == len(found.taken) == len(set(found.centres))
    sizes = [int((found.cluster == name).sum()) for name in found.taken]
    assert len(found.index) == sum(sizes)
    for name, centre in zip(found.taken, found.centres, strict=True):
        members = found.cluster == name
        assert members[centre]
        assert (found.label[members] == labels[centre]).all()
    # The clusters that were taken are the least smooth ones in sum.
    sums = np.bincount(found.cluster[found.cluster >= 0], weights=e[found.cluster >= 0])
    others = np.delete(sums, found.taken)
    assert sums[found.taken].min() >= others.max()


def test_1_centre_is_the_member_nearest_to_the_middle():
    points = unit_points()
    found = choose(points, np.ones(300), Annotator(np.zeros(300, int), 8), HybridRepairConfig(), 0)
    for name, centre in zip(found.taken, found.centres, strict=True):
        members = np.flatnonzero(found.cluster == name)
        far = np.linalg.norm(points[members] - points[members].mean(axis=0), axis=1)
        assert centre == members[far.argmin()]


def test_1_labels_that_were_not_asked_for_change_nothing(quick):
    task = tiny_task()
    whole = run(HybridRepair(**quick), task)
    [evidence] = whole.evidence
    roles = np.array(evidence.columns["role"])
    asked = np.isin(task.repair.ids, evidence.columns["sample"][roles == "annotated"])
    assert asked.sum() == 3  # 1 % of 300
    for poison in (-999, 12345):
        y = np.where(asked, task.repair.y, poison)
        poisoned = tiny_task(repair=Split(task.repair.x, y, ids=task.repair.ids))
        assert run(HybridRepair(**quick), poisoned).model.hash == whole.model.hash
    wrong = np.where(asked, (task.repair.y + 1) % 10, task.repair.y)
    misled = tiny_task(repair=Split(task.repair.x, wrong, ids=task.repair.ids))
    assert run(HybridRepair(**quick), misled).model.hash != whole.model.hash


# -- 2 and 3: smoothness and density ---------------------------------------------------------------


def unsmoothness_of(model, split, pool_of):
    q = mean_predictions(load(model), pool_of(split), 4, np.random.default_rng(0))
    return unsmoothness(q)


def test_2_unsmoothness_is_a_share_of_the_largest(pool_of):
    task = tiny_task()
    e, top = unsmoothness_of(task.model, task.repair, pool_of)
    assert e.min() >= 0
    assert e.max() == 1
    assert 0 < top <= np.log2(10)


def test_2_constant_predictions_are_equally_unsmooth(pool_of):
    bias = np.linspace(0, 2, 10).astype(np.float32)
    constant = mlp([np.zeros((10, 784), np.float32)], [bias], (1, 28, 28))
    e, top = unsmoothness_of(constant, tiny_task().repair, pool_of)
    p = np.exp(bias) / np.exp(bias).sum()
    assert top == pytest.approx(-(p * np.log2(p)).sum(), rel=1e-5)
    np.testing.assert_allclose(e, 1, atol=1e-6)


def test_2_certain_predictions_are_smooth(pool_of):
    certain = mlp(
        [np.zeros((10, 784), np.float32)], [np.eye(10)[3].astype(np.float32) * 200], (1, 28, 28)
    )
    e, top = unsmoothness_of(certain, tiny_task().repair, pool_of)
    assert top < 1e-9
    assert (e == 0).all()
    q = np.tile(np.eye(10)[3], (50, 1))
    q[7] = 0.1
    e, _ = unsmoothness(q)
    assert e[7] == 1
    assert np.delete(e, 7).max() < 1e-6


def test_3_density_equals_brute_force():
    rng = np.random.default_rng(0)
    points, reference = rng.normal(size=(200, 10)), rng.normal(size=(500, 10))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (points, reference)]
    expected = np.sort(1 - unit[0] @ unit[1].T, axis=1)[:, :100].mean(axis=1)
    found = sparsity(torch.tensor(points).float(), torch.tensor(reference).float(), 100)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_3_tau_lies_within_the_unsmoothness_of_validation_images():
    rng = np.random.default_rng(0)
    e, sparse = rng.random(500), rng.random(500)
    tau = threshold(e, sparse, 100)
    near = np.abs(sparse - sparse.mean()).argsort()[:100]
    assert tau == pytest.approx(e[near].mean())
    assert threshold(e, sparse, 1000) == pytest.approx(e.mean())
    task = tiny_task()
    assert 0 < Run(load(task.model), task, HybridRepairConfig(n_iters=2)).tau() < 1


# -- 4: density clusters ---------------------------------------------------------------------------


def test_4_labels_are_those_of_the_authors_library():
    with np.load(DATA / "hdbscan.npz") as file:
        x, expected = file["x"], file["labels"]
    found = HDBSCAN(min_samples=4, min_cluster_size=5, algorithm="brute", copy=True).fit(x).labels_
    assert (found == -1).tolist() == (expected == -1).tolist()
    pairs = set(zip(found, expected, strict=True))
    assert len(pairs) == len(set(expected)) == len(set(found))


def test_4_options_say_min_samples_as_the_authors_library_does():
    from modelfix_hybridrepair.selection import dense

    with np.load(DATA / "hdbscan.npz") as file:
        x, expected = file["x"], file["labels"]
    np.testing.assert_array_equal(dense(x, HybridRepairConfig()), expected >= 0)


# -- 5: guesses and mixing -------------------------------------------------------------------------


def epoch_of(net, number=1):
    net.train()
    return Epoch(number, net, partial(generator, 0, run="test", epoch=number), lambda note: None)


def test_5_guesses_are_sharp_and_known_labels_stay(lesson_of):
    _, net, lesson = lesson_of(HybridRepairConfig(n_iters=3), labels={4: 7, 9: 2})
    x = torch.from_numpy(tiny_task().repair.images(slice(0, 12)))
    region = torch.from_numpy(lesson.regions.label[:12])
    stack = x.repeat(4, 1, 1, 1)
    q = lesson.guess(epoch_of(net), stack, region)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(12))
    for position, label in ((4, 7), (9, 2)):
        assert float(q[position, label]) == pytest.approx(0.9)
        others = np.delete(q[position].numpy(), label)
        np.testing.assert_allclose(others, 0.1 / 9, rtol=1e-6)
    plain = functional.softmax(net(x), dim=1)
    unknown = (region < 0).numpy()
    assert (q.max(dim=1).values >= plain.max(dim=1).values - 1e-6)[unknown].all()


def test_5_sharpening_raises_the_maximum():
    q = functional.softmax(torch.randn(100, 10, generator=torch.Generator().manual_seed(0)), dim=1)
    sharp = sharpened(q, 0.5)
    torch.testing.assert_close(sharp, q**2 / (q**2).sum(dim=1, keepdim=True))
    torch.testing.assert_close(sharp.sum(dim=1), torch.ones(100))
    assert (sharp.max(dim=1).values > q.max(dim=1).values).all()


def test_5_mixed_targets_are_probabilities_and_shares_favour_the_own_part():
    rng = np.random.default_rng(0)
    x = torch.rand(32, 1, 4, 4)
    q = functional.softmax(torch.randn(32, 5), dim=1)
    for _ in range(50):
        inputs, targets, share = mixed(x, q, 0.75, rng)
        assert 0.5 <= share <= 1
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(32))
        partner = (targets - share * q) / (1 - share + 1e-12)
        if share < 0.99:
            assert torch.cdist(partner, q).min(dim=1).values.max() < 1e-3
        assert inputs.shape == x.shape


def test_5_smoothed_labels_leave_the_same_to_all_other_classes():
    target = smoothed(torch.tensor([2, 0]), 4, 0.1)
    expected = torch.tensor([[0.1 / 3, 0.1 / 3, 0.9, 0.1 / 3], [0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3]])
    torch.testing.assert_close(target, expected)


# -- 6: limits of the lesson -----------------------------------------------------------------------


def plain_replay(net, task, config, number=1):
    """One epoch of plain replay as one would write it; returns the losses."""
    draws = partial(generator, task.seed, run="repair", epoch=number)
    x, y = torch.from_numpy(task.train.images()), torch.from_numpy(task.train.y)
    optimizer = torch.optim.SGD(
        net.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay
    )
    order = draws(stage="images").permutation(len(x))
    with torch.no_grad():
        right = (net(x).argmax(dim=1) == y).numpy()
    kept = draws(stage="order").permutation(order[right[order]])
    losses = []
    net.train()
    for step in range(len(kept) // config.batch_size):
        part = torch.from_numpy(kept[step * config.batch_size : (step + 1) * config.batch_size])
        log_p = functional.log_softmax(net(x[part]), dim=1)
        own = log_p[torch.arange(len(part)), y[part]]
        rest = config.label_smoothing / (log_p.shape[1] - 1)
        loss = -((1 - config.label_smoothing) * own + rest * (log_p.sum(dim=1) - own)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def losses_of(lesson, net, task, config):
    """The losses of an epoch of the lesson, as training takes them."""
    losses = []

    class Recorded:
        identity = lesson.identity

        def __len__(self):
            return len(lesson)

        def epoch(self, epoch):
            for step in lesson.epoch(epoch):
                losses.append(step.loss.item())
                yield step

    recipe = FineTuning(
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        nesterov=False,
        weight_decay=config.weight_decay,
        schedule="constant",
        patience=None,
    )
    Training(net, Recorded(), recipe, seed=task.seed, name="repair").epoch(1)
    return losses


def test_6_without_regions_and_smooth_images_it_is_plain_replay(lesson_of):
    config = HybridRepairConfig(lam_ul=0, learning_rate=0.01)
    task, net, lesson = lesson_of(config, smooth=False)
    expected = plain_replay(load(task.model), task, config)
    found = losses_of(lesson, net, task, config)
    assert len(found) == len(expected) >= 6
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_6_without_weight_guesses_are_without_effect(lesson_of, monkeypatch):
    config = HybridRepairConfig(lam_ul=0, n_iters=2)
    task, net, lesson = lesson_of(config)
    one = losses_of(lesson, net, task, config)
    task, net, lesson = lesson_of(config)
    guess = lesson.guess
    monkeypatch.setattr(lesson, "guess", lambda *given: torch.full_like(guess(*given), 0.1))
    assert losses_of(lesson, net, task, config) == one
    assert len(one) > len(task.train) // 64


def test_6_loss_without_labels_counts_from_the_second_pass_on(lesson_of):
    traces = []
    for weight in (0, 100):
        config = HybridRepairConfig(lam_ul=weight, n_iters=2)
        task, net, lesson = lesson_of(config, labels={3: 1})
        traces.append(losses_of(lesson, net, task, config))
    right = int((task.model.predict(task.train).argmax(axis=1) == task.train.y).sum())
    first = (right + 1) // 64
    assert traces[0][:first] == traces[1][:first]
    assert traces[1][first] > traces[0][first]
    assert len(traces[1]) - first >= 300 // 64


# -- 7: draws of images without labels -------------------------------------------------------------


def test_7_images_are_drawn_by_their_weights():
    rng = np.random.default_rng(0)
    e = rng.random(100)
    smooth = e <= 0.6
    weight = np.where(smooth, 1 - e, 0)
    weight[:10] = 1
    drawn = np.bincount(draw(weight, 10_000, rng), minlength=100)
    assert drawn[weight == 0].sum() == 0
    known, others = drawn[:10].mean(), drawn[10:][smooth[10:]].mean()
    assert known / others == pytest.approx(1 / (1 - e[10:][smooth[10:]].mean()), rel=0.1)


def test_7_lesson_shows_no_image_without_weight(lesson_of, monkeypatch):
    config = HybridRepairConfig(n_iters=1)
    smooth = np.arange(300) % 3 == 0
    task, net, lesson = lesson_of(config, labels={1: 4, 2: 4}, smooth=smooth, e=0.5)
    seen = []
    batches = lesson.pool.batches
    monkeypatch.setattr(
        lesson.pool, "batches", lambda rows, size: seen.append(rows) or batches(rows, size)
    )
    losses_of(lesson, net, task, config)
    [rows] = seen
    assert set(rows) <= {1, 2, *np.flatnonzero(smooth)}
    counts = np.bincount(rows, minlength=300)
    assert counts[[1, 2]].mean() > 1.3 * counts[smooth].mean()


def test_7_weights_follow_the_model_on_the_same_images(lesson_of):
    config = HybridRepairConfig()
    smooth = np.arange(300) < 100
    _, _, lesson = lesson_of(config, labels={200: 3, 5: 3}, smooth=smooth)
    lesson.unsmoothness = lambda finished: np.full(300, 0.1 + 0.3 * finished)
    for finished, expected in ((0, 0.9), (2, 0.3)):
        weight = lesson.weights(finished)
        assert weight[200] == weight[5] == 1
        assert weight[6] == pytest.approx(expected)
        assert (np.delete(weight, 200)[100:] == 0).all()


# -- 8 and 9: behaviour ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_8_missing_class_is_learned_from_few_labels(missing_class, seed):
    task, test = missing_class
    assert task.model.accuracy(test) == 0
    options = {"p_budget": 5, "warm_up": 1, "epochs": 5, "learning_rate": 3e-3}
    result = run(HybridRepair("paper", **options), replace(task, seed=seed))
    assert result.model.accuracy(test) > 0.5
    [evidence] = result.evidence
    assert (np.array(evidence.columns["role"]) == "annotated").sum() == 20


def test_9_the_books_balance(quick):
    task, test = tiny_task(), tiny_dataset()["test"]
    fixed = run(HybridRepair(**quick | {"learning_rate": 0.02}), task).model
    right, after = (m.predict(test).argmax(axis=1) == test.y for m in (task.model, fixed))
    n = len(test)
    accuracy, new = Fraction(int(right.sum()), n), Fraction(int(after.sum()), n)
    repaired = Fraction(int((after & ~right).sum()), int((~right).sum()))
    flipped = Fraction(int((right & ~after).sum()), n)
    assert new == accuracy + repaired * (1 - accuracy) - flipped
    assert repaired > 0


def test_evidence_is_about_images_of_the_repair_split(quick):
    task = tiny_task()
    evidence = next(HybridRepair(**quick).candidates(task))
    assert isinstance(evidence, Evidence)
    columns = evidence.columns
    where = {int(sample): row for row, sample in enumerate(task.repair.ids)}
    rows = np.array([where[int(sample)] for sample in columns["sample"]])
    asked = np.array(columns["role"]) == "annotated"
    np.testing.assert_array_equal(columns["label"][asked], task.repair.y[rows[asked]])
    for name in np.unique(columns["cluster"]):
        own = columns["cluster"] == name
        assert asked[own].sum() == 1
        assert len(set(columns["label"][own])) == 1
