"""Fitness: how many samples each variant gets right, with no layer run more often than needed."""

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from modelfix_core.dataset import Split
from modelfix_core.model import Model
from modelfix_core.population import DEFAULT_MEMORY, Patch
from modelfix_core.torch import Population, TorchModel

# Losses are compared to what float32 can tell apart, so that batching does not decide ties.
LOSS_DIGITS = 6
# Variants that share their front layers are worth a pass of their own from this number on.
WORTH_A_PASS = 12
POPULATIONS = 4


class Group(NamedTuple):
    """Variants that agree in all blamed weights before a layer.

    Attributes
    ----------
    rows : ndarray of int64
        Which variants.
    depth : int
        Position of the first layer in which they may differ.
    """

    rows: np.ndarray
    depth: int


class Fitness:
    """Scores variants; those that share the weights of their front layers share their outputs.

    Selection lets few ancestors survive and a mutation changes a few weights only, so that many
    variants of a generation agree up to some layer. The network is then given these weights, and
    nothing before that layer is run for each variant. Variants met before are looked up.

    Parameters
    ----------
    net : TorchModel
        In evaluation mode with the original weights; has them again after each call.
    patches : sequence of Patch
        One for each layer in graph order.
    x : Split
        The fitness data.
    memory : int
        Bytes for cached activations, chunks in work and patched weights.
    progress : callable
        Called now and then.
    """

    def __init__(
        self,
        net: TorchModel,
        patches: Sequence[Patch],
        x: Split,
        memory: int = DEFAULT_MEMORY,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._net = net
        self._patches = list(patches)
        self._x = x
        self._memory = memory // (POPULATIONS + 1)
        self._progress = progress
        self._ends = np.cumsum([0] + [len(patch.index) for patch in patches])
        self._weights = [net.model.layer(patch.layer).weight for patch in patches]
        weights = [net.model.weights[name] for name in self._weights]
        # What one variant's patched weights may take, in the worst case all of each layer.
        self._together = max(1, self._memory // (2 * sum(weight.nbytes for weight in weights)))
        self._known: dict[bytes, np.ndarray] = {}
        self._populations: dict[bytes, Population] = {}

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return right answers and negated mean loss, float64 [P, 2], of variants [P, K]."""
        names = [blake2b(row.tobytes(), digest_size=16).digest() for row in values]
        new = {name: row for row, name in enumerate(names) if name not in self._known}
        if new:
            self._known.update(zip(new, self._score(values[list(new.values())]), strict=True))
        return np.stack([self._known[name] for name in names])

    def _score(self, values: np.ndarray) -> np.ndarray:
        fitness = np.empty((len(values), 2))
        for rows, depth in self._groups(values):
            start = self._ends[depth]
            population = self._enter(values[rows[0], :start], depth)
            for begin in range(0, len(rows), self._together):
                part = rows[begin : begin + self._together]
                scores = population.evaluate(values[part, start:])
                loss = scores.loss.mean(axis=1, dtype=np.float64)
                fitness[part, 0] = scores.right.sum(axis=1)
                fitness[part, 1] = -np.round(loss, LOSS_DIGITS)
                self._progress()
            self._leave(depth)
        return fitness

    def _groups(self, values: np.ndarray) -> Iterator[Group]:
        """Divide the variants: each goes to the deepest layer up to which enough others agree."""
        remaining = np.arange(len(values))
        for depth in range(len(self._patches) - 1, 0, -1):
            front = np.ascontiguousarray(values[remaining, : self._ends[depth]])
            _, member, count = np.unique(front, axis=0, return_inverse=True, return_counts=True)
            member = member.ravel()
            for number in np.flatnonzero(count >= WORTH_A_PASS):
                yield Group(remaining[member == number], depth)
            remaining = remaining[count[member] < WORTH_A_PASS]
        if len(remaining):
            yield Group(remaining, 0)

    def _enter(self, front: np.ndarray, depth: int) -> Population:
        """Give the network the front's weights and return the evaluation of what follows."""
        self._net.set_weights(patched(self._net.model, self._patches[:depth], front))
        name = depth.to_bytes(4, "little") + front.tobytes()
        population = self._populations.pop(name, None)
        if population is None:
            if len(self._populations) == POPULATIONS:
                del self._populations[next(iter(self._populations))]
            population = Population(self._net, self._patches[depth:], self._x, memory=self._memory)
        self._populations[name] = population  # the last used is the last to go
        return population

    def _leave(self, depth: int) -> None:
        original = self._net.model.weights
        self._net.set_weights({name: original[name] for name in self._weights[:depth]})


def patched(model: Model, patches: Sequence[Patch], values: np.ndarray) -> dict[str, np.ndarray]:
    """Return the weights of the patched layers with `values`, [D], in place of the original's."""
    changed = {}
    ends = np.cumsum([len(patch.index) for patch in patches])
    for patch, part in zip(patches, np.split(values, ends), strict=False):
        name = model.layer(patch.layer).weight
        weight = model.weights[name].copy()
        weight.flat[patch.index] = part
        changed[name] = weight
    return changed
