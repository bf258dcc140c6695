"""Small trained networks with their history, and the noisy blobs they were trained on."""

import itertools

import numpy as np
import pytest
from modelfix_core import Split, Task
from modelfix_testing import mlp

SIZES = (8, 24, 16, 4)


def _softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _gradients(layers, x, y):
    """Gradients of the mean cross-entropy, [(dW, db), ...]."""
    hs = [x]
    for k, (w, b) in enumerate(layers):
        z = hs[-1] @ w.T + b
        hs.append(np.maximum(z, 0) if k < len(layers) - 1 else z)
    d = _softmax(hs[-1])
    d[np.arange(len(y)), y] -= 1
    d /= len(y)
    gradients = []
    for k in reversed(range(len(layers))):
        gradients.append((d.T @ hs[k], d.sum(axis=0)))
        d = (d @ layers[k][0]) * (hs[k] > 0)
    return gradients[::-1]


def _epochs(x, y, sizes, seed, epochs, batch=16, rate=0.03, momentum=0.9):
    """Train with momentum; yield copies of [(W [out, in], b), ...] after each epoch."""
    rng = np.random.default_rng(seed)
    layers = [
        (rng.normal(0, np.sqrt(2 / i), (o, i)), np.zeros(o)) for i, o in itertools.pairwise(sizes)
    ]
    parameters = [p for layer in layers for p in layer]
    speeds = [np.zeros_like(p) for p in parameters]
    for _ in range(epochs):
        order = rng.permutation(len(y))
        for start in range(0, len(y), batch):
            part = order[start : start + batch]
            gradients = [g for layer in _gradients(layers, x[part], y[part]) for g in layer]
            for p, speed, g in zip(parameters, speeds, gradients, strict=True):
                speed *= momentum
                speed -= rate * g
                p += speed
        yield [(w.copy(), b.copy()) for w, b in layers]


@pytest.fixture
def blobs():
    """Return a function that draws n standardised inputs of 8 features in 4 classes of 2 blobs."""

    def make(seed, n=600, noise=0.5):
        rng = np.random.default_rng(seed)
        centres = rng.normal(0, 1, (8, 8))
        label = rng.integers(8, size=n)
        x = centres[label] + rng.normal(0, noise, (n, 8))
        return Split(x.astype(np.float32).reshape(n, 8, 1, 1), (label % 4).astype(np.int64))

    return make


@pytest.fixture
def train():
    """Return a function that trains an MLP on a split; gives one model per epoch."""

    def make(split, seed=0, epochs=8, sizes=SIZES):
        x = split.images().reshape(len(split), -1).astype(np.float64)
        return [
            mlp(*zip(*layers, strict=True), split.x.shape[1:])
            for layers in _epochs(x, split.y, sizes, seed, epochs)
        ]

    return make


@pytest.fixture
def history(tmp_path):
    """Return a function that writes models as the epochs of a training history."""

    def write(models):
        paths = [tmp_path / f"epoch-{k:02}.onnx" for k in range(1, len(models) + 1)]
        for model, path in zip(models, paths, strict=True):
            model.save(path)
        return paths

    return write


@pytest.fixture
def task(history):
    """Return a function that makes a task whose repair split also validates."""

    def make(model, split, versions=(), **values):
        return Task(
            model=model, repair=split, validation=split, history=history(versions), **values
        )

    return make


@pytest.fixture(scope="session")
def net_of():
    """Return a function that gives a network with a model's weights; one per architecture.

    Building the graph of a network takes a second, so models of one shape share it.
    """
    nets = {}

    def make(model):
        from modelfix_core.keras import load

        shapes = tuple((name, array.shape) for name, array in model.weights.items())
        net = nets.setdefault(shapes, None) or load(model)
        nets[shapes] = net
        net.model = model
        net.reset()
        return net

    return make
