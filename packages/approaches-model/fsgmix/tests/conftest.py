from functools import cache

import numpy as np
import pytest
import torch
from modelfix_core import Split, Task
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

torch.set_num_threads(1)  # the networks are tiny: threads would only wait for each other


@cache
def _digits():
    """The 1,797 digits of scikit-learn at 28x28 as uint8, in a fixed random order."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    small = np.round(data.images[order] * (255 / 16)).astype(np.uint8)
    large = [Image.fromarray(x).resize((28, 28), Image.Resampling.BILINEAR) for x in small]
    return Split(np.stack(large)[:, None], data.target[order].astype(np.int64))


def transformed(split, name, value):
    """Apply an operation of Pillow to all images of a split."""
    from modelfix_core.torch import augment

    x = torch.from_numpy(split.images())
    number = np.full(len(split), augment.NUMBER[name])
    changed = augment.apply(x, number, np.full(len(split), float(value)))
    return Split(changed.numpy(), split.y)


@cache
def _classifier(seed=0):
    """A dense classifier of digits, trained on the first 1,000."""
    from modelfix_core.torch import export

    train = _digits().select(slice(0, 1000))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        x, y = torch.from_numpy(train.images()), torch.from_numpy(train.y)
        for _ in range(30):
            for part in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[part]), y[part]).backward()
                optimizer.step()
    return export(net.eval(), (1, 28, 28))


@pytest.fixture
def digits():
    return _digits()


@pytest.fixture
def classifier():
    return _classifier


@pytest.fixture
def transform():
    return transformed


@pytest.fixture
def rotated_task():
    """A task whose repair split is rotated by 12 degrees, and a disjoint rotated and clean test."""

    def make(seed=0, **changes):
        data = _digits()
        fields = {
            "model": _classifier(seed),
            "train": data.select(slice(0, 1000)),
            "validation": data.select(slice(1000, 1200)),
            "repair": transformed(data.select(slice(1200, 1500)), "rotate", 12),
            "seed": seed,
        }
        clean = data.select(slice(1500, None))
        return Task(**fields | changes), transformed(clean, "rotate", 12), clean

    return make


class Oracle:
    """A black box: it is wrong for exactly the first images of any split, and has nothing else."""

    def __init__(self, failures):
        self.failures = failures

    def predict(self, x):
        wrong = np.arange(len(x)) < self.failures
        return np.eye(10, dtype=np.float32)[(x.y + wrong) % 10]

    def __getattr__(self, name):
        raise AssertionError(f"a black box has no {name}")


@pytest.fixture
def oracle():
    return Oracle


@pytest.fixture
def model_of():
    def make(shape, layers):
        from modelfix_core.torch import export

        return export(nn.Sequential(*layers).eval(), shape)

    return make
