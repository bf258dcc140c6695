"""Points, networks and tasks for the tests."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from modelfix_core.approach import Task
from modelfix_core.dataset import Split
from modelfix_core.model import Model
from modelfix_minimal_3m.chain import Dense, find_chain
from modelfix_minimal_3m.highs import Solver
from modelfix_minimal_3m.last_layer import LastLayer
from modelfix_testing import mlp

MARGIN, LIMIT = 1e-3, 5.0


@pytest.fixture
def solver() -> Solver:
    return Solver(60.0, lambda: None)


@pytest.fixture
def network():
    """Build an MLP with random weights on images [widths[0], 1, 1]."""

    def build(*widths: int, seed: int = 0, activation: str = "Relu") -> Model:
        rng = np.random.default_rng(seed)
        pairs = list(pairwise(widths))
        weights = [rng.normal(size=(b, a)) * (2 / a) ** 0.5 for a, b in pairs]
        biases = [0.1 * rng.normal(size=b) for _, b in pairs]
        return mlp(weights, biases, (widths[0], 1, 1), activation)

    return build


@pytest.fixture
def layers(network):
    """The dense layers of a random MLP."""

    def build(*widths: int, seed: int = 0) -> Sequence[Dense]:
        return find_chain(network(*widths, seed=seed)).layers

    return build


@pytest.fixture
def task():
    """Label random images by the model itself, but for `faults` of the repair split."""

    def build(model: Model, faults: int = 8, n: int = 200, seed: int = 0) -> Task:
        rng = np.random.default_rng(seed)

        def split(wrong: int = 0) -> Split:
            x = rng.random((n, *model.input_shape), dtype=np.float32)
            y = model.predict(x).argmax(axis=1).astype(np.int64)
            y[:wrong] = (y[:wrong] + rng.integers(1, model.num_classes, wrong)) % model.num_classes
            return Split(x, y)

        return Task(model, repair=split(faults), validation=split())

    return build


@pytest.fixture
def case(layers):
    """A last layer, its inputs and labels that it does not give."""

    def build(features: int, classes: int, points: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        (dense,) = layers(features, classes, seed=seed)
        h = np.maximum(rng.normal(size=(points, features)), 0)
        y = np.argsort(dense(h), axis=1)[:, -2]
        return dense, h, y

    return build


@pytest.fixture
def last_layer(case, solver):
    """The search for the smallest change of a random last layer."""

    def build(features, classes, points, norm, seed=0, limit=LIMIT, lazy=True) -> LastLayer:
        dense, h, y = case(features, classes, points, seed)
        return LastLayer(dense, h, y, norm, MARGIN, limit, solver, lazy)

    return build
