"""Random networks with a linear head, noisy inputs, and what the repair needs of them."""

import numpy as np
import pytest
from modelfix_core import Split, Task
from modelfix_testing import mlp

CLASSES = 5


@pytest.fixture(scope="session")
def model():
    """A random network 8-24-5, layers fc1 and fc2."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.5, (24, 8)), rng.normal(0, 0.5, (CLASSES, 24))]
    return mlp(weights, [np.zeros(24), rng.normal(0, 0.1, CLASSES)], (8, 1, 1))


@pytest.fixture(scope="session")
def split(model):
    """300 inputs; a third of the labels differ from what the model predicts."""
    rng = np.random.default_rng(1)
    x = rng.random((300, 8, 1, 1), dtype=np.float32)
    predicted = model.predict(x).argmax(axis=1)
    other = rng.integers(CLASSES, size=300)
    return Split(x, np.where(rng.random(300) < 0.4, other, predicted))


@pytest.fixture(scope="session")
def net(model):
    """The network in Keras; nothing of these tests may change its weights."""
    from modelfix_core.keras import load

    return load(model)


@pytest.fixture
def task():
    """Return a function that makes a task whose repair split also validates."""

    def make(model, split, risks=None, **values):
        return Task(model=model, repair=split, validation=split, risks=risks, **values)

    return make
