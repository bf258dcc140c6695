"""Search over the values of separation layers: random, greedy and Monte Carlo tree search.

A heuristic is a generator of offsets, in grid steps, that is sent the cost of each; infinite stands
for a proposal that is not below the best so far. The paper names the three; their steps are ours.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

import numpy as np

Heuristic = Generator[np.ndarray, float, None]

GREEDY_NEURONS = 32
GREEDY_FAILURES = 5
ROLLOUT = 5


def random(rng: np.random.Generator, neurons: int, cost: float, ucb: float) -> Heuristic:
    """Walk at random from the cheapest proposal; return to it after a step with probability 1/2."""
    current = best = np.zeros(neurons)
    while True:
        proposal = _moved(current, int(rng.integers(neurons)), rng.choice([-1.0, 1.0]))
        found = yield proposal
        if found < cost:
            best, cost = proposal, found
        current = proposal if rng.random() < 0.5 else best


def greedy(rng: np.random.Generator, neurons: int, cost: float, ucb: float) -> Heuristic:
    """Move to the cheapest neighbour; halve the step after rounds without a cheaper one."""
    current, step, failures = np.zeros(neurons), 1.0, 0
    while True:
        nearest, lowest = current, cost
        for neuron in rng.choice(neurons, min(GREEDY_NEURONS, neurons), replace=False):
            for sign in (step, -step):
                proposal = _moved(current, neuron, sign)
                found = yield proposal
                if found < lowest:
                    nearest, lowest = proposal, found
        if lowest < cost:
            current, cost, failures = nearest, lowest, 0
            continue
        failures += 1
        if failures == GREEDY_FAILURES:
            step, failures = step / 2, 0


@dataclass
class _Node:
    """A state of the tree: offsets, untried moves, children and what they brought."""

    offsets: np.ndarray
    untried: list[int]
    children: list["_Node"] = field(default_factory=list)
    visits: int = 0
    reward: float = 0.0

    def promising(self, ucb: float) -> "_Node":
        """Return the child with the largest upper confidence bound (UCB1)."""
        visits = np.array([child.visits for child in self.children])
        means = np.array([child.reward for child in self.children]) / visits
        bounds = means + ucb * np.sqrt(np.log(self.visits) / visits)
        return self.children[int(bounds.argmax())]


def mcts(rng: np.random.Generator, neurons: int, cost: float, ucb: float) -> Heuristic:
    """Grow a tree of moves; reward is the relative saving against `cost`, in [-1, 1]."""

    def node(offsets: np.ndarray) -> _Node:
        return _Node(offsets, list(rng.permutation(2 * neurons)))

    root = node(np.zeros(neurons))
    while True:
        path = [root]
        while not path[-1].untried:
            path.append(path[-1].promising(ucb))
        action = path[-1].untried.pop()
        child = node(_moved(path[-1].offsets, *_action(action)))
        path[-1].children.append(child)
        path.append(child)
        rollout = child.offsets
        for random_action in rng.integers(2 * neurons, size=ROLLOUT):
            rollout = _moved(rollout, *_action(random_action))
        found = min((yield child.offsets), (yield rollout))
        reward = max((cost - found) / cost, -1.0) if cost else 0.0
        for visited in path:
            visited.visits += 1
            visited.reward += reward


HEURISTICS: Mapping[str, Callable[[np.random.Generator, int, float, float], Heuristic]] = {
    "random": random,
    "greedy": greedy,
    "mcts": mcts,
}


def _action(number: int) -> tuple[int, float]:
    return int(number) // 2, 1.0 if number % 2 else -1.0


def _moved(offsets: np.ndarray, neuron: int, by: float) -> np.ndarray:
    moved = offsets.copy()
    moved[neuron] += by
    return moved
