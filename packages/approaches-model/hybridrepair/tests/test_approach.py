from dataclasses import replace

import numpy as np
import pytest
import torch
from modelfix_core import Failure, Outcome, Unadaptable
from modelfix_core.fixing import run
from modelfix_core.subjects.architectures import build
from modelfix_core.torch import export
from modelfix_hybridrepair import HybridRepair, HybridRepairConfig
from modelfix_hybridrepair.annotation import Annotator
from modelfix_hybridrepair.run import unlabelled
from modelfix_hybridrepair.selection import choose, dense
from modelfix_hybridrepair.smoothness import OPERATIONS, augmentation, versions
from modelfix_testing import layerless_model, tiny_task
from torch import nn

# -- annotations -------------------------------------------------------------------------------


def test_annotator_counts_and_refuses():
    annotate = Annotator(np.arange(10) * 2, 3)
    np.testing.assert_array_equal(annotate(np.array([4, 1])), [8, 2])
    np.testing.assert_array_equal(annotate(np.array([1])), [2])
    assert annotate.spent == 2
    with pytest.raises(Failure, match="4 images would exceed the budget of 3"):
        annotate(np.array([5, 6]))
    assert annotate.spent == 2
    annotate(np.array([5]))
    assert annotate.spent == 3
    assert not any("label" in name for name in dir(annotate) if not name.startswith("_"))


def test_pool_has_no_labels():
    split = tiny_task().repair
    pool = unlabelled(split)
    assert (pool.y == -1).all()
    assert pool.x is split.x


def scattered(n=120, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, 12))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_all_noise_is_clustered_as_a_whole():
    config = HybridRepairConfig(min_cluster_size=40)
    found = choose(scattered(), np.ones(120), Annotator(np.arange(120), 5), config, seed=0)
    assert (found.cluster >= 0).all()
    assert len(found.centres) == 5


def test_budget_beyond_the_clusters_goes_to_noise():
    groups = np.repeat(scattered(3), 8, axis=0) + np.random.default_rng(1).normal(0, 1e-3, (24, 12))
    points = np.concatenate([groups, scattered(100, seed=2)])
    labels, config = np.arange(len(points)), HybridRepairConfig()
    inside = dense(points, config)
    budget = int(inside.sum()) + 7
    assert 24 <= budget < len(points)
    annotate = Annotator(labels, budget)
    found = choose(points, np.ones(len(points)), annotate, config, seed=0)
    assert annotate.spent == budget == len(found.index)
    assert (found.label[found.index] == labels[found.index]).all()
    assert set(np.flatnonzero(inside)) <= set(found.index)


def test_equal_images_leave_budget_unspent():
    points = np.repeat(scattered(4), 30, axis=0)
    annotate = Annotator(np.zeros(120, int), 20)
    with pytest.warns(match="distinct clusters"):
        found = choose(points, np.ones(120), annotate, HybridRepairConfig(), seed=0)
    assert annotate.spent == 4
    assert len(found.index) == 120


def test_outsiders_may_be_asked_as_in_the_original():
    rng = np.random.default_rng(0)
    points = scattered(300)
    points[:150] = points[0] + rng.normal(0, 0.05, (150, 12))
    e, labels = rng.random(300), rng.integers(0, 5, 300)
    inside = choose(points, e, Annotator(labels, 6), HybridRepairConfig(), seed=0)
    config = HybridRepairConfig(centres="pool")
    anyone = choose(points, e, Annotator(labels, 6), config, seed=0)
    np.testing.assert_array_equal(inside.cluster, anyone.cluster)
    assert (inside.cluster[inside.centres] == inside.taken).all()
    for name, centre in zip(anyone.taken, anyone.centres, strict=True):
        assert (anyone.label[anyone.cluster == name] == labels[centre]).all()


# -- augmentation ------------------------------------------------------------------------------


def test_operations_are_alike_and_levels_as_in_the_original():
    mixing = augmentation()
    shares = dict.fromkeys(OPERATIONS, 0.0)
    for variant, share in zip(mixing.variants, mixing.probabilities, strict=True):
        shares[variant.operation] += share
        assert variant.level == 3
    assert len(shares) == 9
    np.testing.assert_allclose(list(shares.values()), 1 / 9)
    assert (mixing.width, mixing.depth, mixing.weight) == (1, 3, None)
    assert mixing.span == pytest.approx(2.9)


def test_versions_begin_with_the_image():
    x = torch.from_numpy(tiny_task().repair.images(slice(0, 8)))
    stack = versions(x, 8, np.random.default_rng(0))
    assert stack.shape == (9, 8, 1, 28, 28)
    assert torch.equal(stack[0], x)
    assert not torch.equal(stack[1], stack[2])
    assert stack.min() >= 0
    assert stack.max() <= 1 + 1e-6


# -- the run -----------------------------------------------------------------------------------


def test_candidates_are_the_epochs_of_repair(quick):
    _, *candidates = HybridRepair(**quick).candidates(tiny_task())
    assert [c.step for c in candidates] == [1, 2]


@pytest.mark.parametrize("stop", ["evidence", "first epoch"])
def test_interrupted_run_goes_on(tmp_path, quick, stop):
    approach = HybridRepair(**quick)
    whole = run(approach, tiny_task())
    task = tiny_task(folder=tmp_path)
    started = approach.candidates(task)
    next(started)
    if stop == "first epoch":
        next(started)
    started.close()
    again = run(approach, task)
    assert again.model.hash == whole.model.hash
    assert [e["loss"] for e in again.candidates] == [e["loss"] for e in whole.candidates]


def test_interruption_of_the_warm_up(tmp_path, quick, monkeypatch):
    from modelfix_core.torch import training

    options = quick | {"warm_up": 3, "epochs": 1}
    whole = run(HybridRepair(**options), tiny_task())
    monkeypatch.setattr(training, "REPORT_EVERY", 0.0)

    def interrupt(done, total, note):
        if "warm-up, epoch 3" in note:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(HybridRepair(**options), tiny_task(folder=tmp_path, reporter=interrupt))
    assert len(list(tmp_path.rglob("warm-up/epoch-*.npz"))) == 2
    again = run(HybridRepair(**options), tiny_task(folder=tmp_path))
    assert again.model.hash == whole.model.hash


@pytest.mark.parametrize(
    "options",
    [
        {"tau": 0.01},
        {"replay": "once", "learning_rate": 0.05},
        {"warm_up": 0},
        {"p_budget": 3.0},
        {"n_iters": 3},
        {"crop": 2, "flip": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_change_the_result(quick, options):
    quick = quick | {"epochs": 1}
    given = {key: value for key, value in options.items() if key == "learning_rate"}
    plain = list(HybridRepair(**quick | given).candidates(tiny_task()))[-1]
    other = list(HybridRepair(**quick | options).candidates(tiny_task()))[-1]
    assert other.values["loss"] != plain.values["loss"]
    assert np.isfinite(other.values["loss"])


def test_few_training_images_are_enough(quick):
    train = tiny_task().train
    for count in (1, 5, 70):
        few = tiny_task(train=train.select(slice(0, count)))
        result = run(HybridRepair(**quick), few)
        assert result.outcome in (Outcome.FIXED, Outcome.CORRUPTED), result.reason


# -- applicability -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels", "size", "classes"),
    [
        ("lenet5", 1, 28, 10),
        ("vgg16", 3, 32, 10),
        ("resnet18", 3, 32, 10),
        ("densenet121", 3, 64, 20),
        ("resnet8", 3, 32, 10),
    ],
)
def test_the_studys_architectures_are_taken(name, channels, size, classes):
    torch.manual_seed(0)
    net = build(name, classes, channels, mean=[0.4] * channels, std=[0.3] * channels)
    model = export(net.eval(), (channels, size, size))
    HybridRepair().check(replace(tiny_task(), model=model))


def test_what_cannot_be_taken():
    task = tiny_task()
    with pytest.raises(Unadaptable, match="no training images"):
        HybridRepair().check(replace(task, train=None))
    with pytest.raises(Unadaptable, match="no dense layer"):
        HybridRepair().check(replace(task, model=layerless_model((1, 28, 28), 10)))
    with pytest.raises(Unadaptable, match="at least 100"):
        HybridRepair().check(replace(task, repair=task.repair.select(slice(0, 99))))
    with pytest.raises(Unadaptable, match="at least 300"):
        HybridRepair(min_cluster_size=150).check(
            replace(task, repair=task.repair.select(slice(0, 299)))
        )
    with pytest.raises(Unadaptable, match="no image to annotate"):
        HybridRepair(p_budget=0.3).check(task)
    for shape in ((2, 8, 8), (1, 1, 16)):
        layers = [nn.Flatten(), nn.Linear(int(np.prod(shape)), 10)]
        model = export(nn.Sequential(*layers).eval(), shape)
        with pytest.raises(Unadaptable, match="images with 1 or 3 channels"):
            HybridRepair().check(replace(task, model=model))


def test_budget_is_a_share_of_the_pool():
    assert HybridRepairConfig().budget(5000) == 50
    assert HybridRepairConfig(p_budget=0.7).budget(1000) == 7
    assert HybridRepairConfig().budget(199) == 1
