"""One run on a task: the network, both sets, and what the repair proposes for each gamma."""

from collections.abc import Iterator

import numpy as np
import torch
from modelfix_core.approach import Candidate, Localisation, Task
from modelfix_core.errors import Unadaptable
from modelfix_core.seeds import seed_for
from modelfix_core.torch import load, predict

from modelfix_i_repair.approach import SOFTMAX_REASON, IRepairConfig
from modelfix_i_repair.localisation import scores
from modelfix_i_repair.repair import Samples, Step, gradients, repair
from modelfix_i_repair.sets import draw_sets

PROBABILITY_TOLERANCE = 1e-4


class Run:
    """What every gamma of one run shares.

    Parameters
    ----------
    task : Task
    config : IRepairConfig

    Raises
    ------
    Unadaptable
        If the outputs are probabilities or no sample of the repair split is classified correctly.
    """

    def __init__(self, task: Task, config: IRepairConfig) -> None:
        self.task = task
        self.config = config
        with task.timing("conversion"):
            self.net = load(task.model, task.device)
        self.layers = task.model.layers()
        self.names = list(dict.fromkeys(n for layer in self.layers for n in layer.parameters))
        self.parameters = [self.net.tensors[name] for name in self.names]
        logits = predict(self.net, task.repair)
        if are_probabilities(logits):
            raise Unadaptable(SOFTMAX_REASON)
        y = task.repair.y
        sets = draw_sets(logits, y, config.general_per_class, config.specific, task.seed)
        if not len(sets.general):
            raise Unadaptable("the model classifies no sample of the repair split correctly")
        self.general = self._samples(sets.general)
        self.specific = self._samples(sets.specific)
        self._influences = gradients(
            self.net, self.parameters, self.general, self.specific, config.batch_size
        )
        slow = bool(task.model.layers("batchnorm"))
        self.learning_rate = config.learning_rate or (1e-5 if slow else 1e-4)

    def _samples(self, index: np.ndarray) -> Samples:
        x = torch.from_numpy(self.task.repair.images(index))
        y = torch.from_numpy(np.asarray(self.task.repair.y[index], dtype=np.int64))
        return Samples(x.to(self.task.device), y.to(self.task.device))

    @property
    def nothing_to_repair(self) -> bool:
        """Whether the model classifies the whole repair split correctly."""
        return len(self.specific.y) == 0

    def repair(self, gamma: float) -> Iterator[Candidate]:
        """Repair the original model with one gamma; the last candidate is the last model."""
        self.net.reset()
        every = self.config.evaluate_every
        step = Step(0, len(self.specific.y), 0.0)
        for step in repair(
            self.net,
            self.parameters,
            self.general,
            self.specific,
            gamma=gamma,
            learning_rate=self.learning_rate,
            iterations=self.config.iterations,
            batch_size=self.config.batch_size,
            seed=seed_for(seed=self.task.seed, stage="dropout"),
        ):
            self._report(gamma, step)
            if step.number % every == 0:
                yield self._candidate(gamma, step)
        if step.number == 0 or step.number % every:
            yield self._candidate(gamma, step)

    def localise(self, gamma: float) -> Localisation:
        """Return the weights (not the biases) that `gamma` unlocks in the original model.

        Weights without any influence on the faults are left out: nothing is blamed on them, and a
        score of 1 only says that they have none on the general set either (or that `gamma` is 0).
        """
        found = self._influences
        by_name = dict(zip(self.names, scores(found.specific, found.general, gamma), strict=True))
        influence = dict(zip(self.names, found.specific, strict=True))
        layers, positions, values = [], [], []
        for layer in self.layers:
            score = by_name[layer.weight].flatten()
            blamed = (score >= 1) & (influence[layer.weight].flatten() != 0)
            index = blamed.nonzero()[:, 0]
            layers += [layer.name] * len(index)
            positions.append(index.cpu().numpy())
            values.append(score[index].cpu().numpy())
        return Localisation("weight", layers, np.concatenate(positions), np.concatenate(values))

    def _candidate(self, gamma: float, step: Step) -> Candidate:
        right = predict(self.net, self.task.validation).argmax(axis=1) == self.task.validation.y
        values = {"gamma": gamma, "remaining": step.remaining, "unlocked": step.unlocked}
        return Candidate(
            weights=self.net.weights(),
            validation_accuracy=float(right.mean()),
            step=step.number,
            values=values,
        )

    def _report(self, gamma: float, step: Step) -> None:
        before = self.config.gamma.index(gamma) * self.config.iterations
        total = len(self.config.gamma) * self.config.iterations
        note = f"gamma {gamma:g}, {step.remaining} of {len(self.specific.y)} faults remain"
        self.task.progress(before + step.number, total, note)


def are_probabilities(logits: np.ndarray) -> bool:
    """Return whether every row is non-negative and sums to 1."""
    sums = logits.sum(axis=1, dtype=np.float64)
    return bool((logits >= 0).all() and (np.abs(sums - 1) <= PROBABILITY_TOLERANCE).all())
