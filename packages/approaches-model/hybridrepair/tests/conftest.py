from functools import cache

import numpy as np
import pytest
import torch
from modelfix_core import Split, Task
from modelfix_core.torch import export, load
from modelfix_core.torch.training import Feed
from modelfix_hybridrepair.repair import Repair
from modelfix_hybridrepair.run import unlabelled
from modelfix_hybridrepair.selection import Regions
from modelfix_testing import tiny_task
from torch import nn

torch.set_num_threads(1)  # the networks are tiny: threads would only wait for each other

QUICK = {"warm_up": 1, "epochs": 2, "n_iters": 2, "replay_images": 256}


@pytest.fixture
def quick():
    """Options that make it quick on the tiny subject."""
    return QUICK


@pytest.fixture
def lesson_of():
    """The lesson of repair on the tiny subject, with given labels of the pool and smooth images."""

    def make(config, labels=None, smooth=True, e=0.0):
        task = tiny_task()
        net = load(task.model)
        count = len(task.repair)
        label = np.full(count, -1)
        for position, given in (labels or {}).items():
            label[position] = given
        rows = np.flatnonzero(label >= 0)
        regions = Regions(label, rows, label[rows], label)
        pool = Split(task.repair.x, label)
        mask = np.broadcast_to(smooth, count).copy()
        values = np.broadcast_to(e, count).astype(float)
        lesson = Repair(net, task.train, pool, regions, mask, lambda _: values, config)
        return task, net, lesson

    return make


@pytest.fixture
def pool_of():
    """A feed of images without labels."""
    return lambda split: Feed(unlabelled(split), "cpu")


HALVES = {0: (0.9, 0.1), 1: (0.1, 0.9), 2: (0.8, 0.8)}


def blobs(counts, seed):
    """Images that are points of a plane: the brightness of the left and of the right half."""
    rng = np.random.default_rng(seed)
    y = np.repeat(list(counts), list(counts.values()))
    points = np.array([HALVES[k] for k in y]) + rng.normal(0, 0.05, (len(y), 2))
    x = np.repeat(points, 4, axis=1)[:, None, None, :].repeat(8, axis=2)
    x = np.clip(x + rng.normal(0, 0.02, x.shape), 0, 1)
    order = rng.permutation(len(y))
    return Split(np.round(x[order] * 255).astype(np.uint8), y[order].astype(np.int64))


@cache
def _two_of_three():
    train = blobs({0: 200, 1: 200}, 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        x, y = torch.from_numpy(train.images()), torch.from_numpy(train.y)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return export(net.eval(), (1, 8, 8)), train


@pytest.fixture
def missing_class():
    """A task whose model never saw class 2, and test images of that class."""
    model, train = _two_of_three()
    task = Task(
        model=model,
        train=train,
        repair=blobs({0: 130, 1: 130, 2: 140}, 1),
        validation=blobs({0: 100, 1: 100, 2: 100}, 2),
    )
    return task, blobs({2: 200}, 3)
