"""One run on a task: what localisation and repair share, and the candidates they lead to."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from modelfix_core.approach import Candidate, Localisation, Task
from modelfix_core.errors import Failure
from modelfix_core.seeds import generator
from modelfix_core.torch import load

from modelfix_care.approach import CareConfig
from modelfix_care.hidden import find_hidden
from modelfix_care.localisation import (
    Objective,
    average_causal_effects,
    objective,
    scored_neurons,
    select,
)
from modelfix_care.repair import Step, repair
from modelfix_care.tail import Tail


class Run:
    """CARE on one task.

    Parameters
    ----------
    task : Task
    config : CareConfig
    """

    def __init__(self, task: Task, config: CareConfig) -> None:
        self.task = task
        self.config = config
        self.hidden = find_hidden(task.model, config.layer)
        self.net = load(task.model, task.device)
        self.neurons = np.empty(0, dtype=np.int64)

    @cached_property
    def tail(self) -> Tail:
        """The network above the hidden vector, with the repair split."""
        return Tail(self.net, self.hidden, self.task.repair)

    @cached_property
    def validation(self) -> Tail:
        """The same with the validation split."""
        return Tail(self.net, self.hidden, self.task.validation)

    @cached_property
    def aim(self) -> Objective:
        """What the search raises."""
        return objective(self.tail.right, self.config.objective == "balanced")

    def localise(self) -> Localisation:
        """Select the neurons to scale.

        Raises
        ------
        Failure
            If no neuron has any effect.
        """
        task, config = self.task, self.config
        # One scale for all progress: scoring the neurons counts as one iteration.
        task.progress(0, config.iterations + 1, "running the repair split")
        scored = scored_neurons(self.hidden.size, config.stride)

        def report(done: int, total: int) -> None:
            task.progress(0, config.iterations + 1, f"{done} of {total} neurons scored")

        effects = average_causal_effects(self.tail, self.aim, scored, config.values, report)
        if not effects.any():
            raise Failure(
                "forcing neurons changes no prediction on the repair split, so that there is "
                "nothing to search; choose another layer"
            )
        chosen = select(effects, config.neurons, config.rank == "absolute")
        self.neurons = scored[chosen]
        kind, positions = self.hidden.positions(self.neurons, task.model)
        return Localisation(
            kind,
            [self.hidden.layer.name] * positions.size,
            positions.ravel(),
            np.repeat(effects[chosen], positions.shape[1]),
        )

    def repair(self) -> Iterator[Candidate]:
        """Search factors for the selected neurons."""
        config = self.config
        improved = False
        for step in repair(
            self.tail,
            self.aim,
            self.neurons,
            generator(self.task.seed, stage="swarm"),
            particles=config.particles,
            iterations=config.iterations,
            inertia=config.inertia,
            own_pull=config.own_pull,
            leader_pull=config.leader_pull,
            patience=config.patience,
            tolerance=config.tolerance,
        ):
            note = f"{step.gain:+.2%} on the repair split"
            self.task.progress(step.number, config.iterations + 1, note)
            if step.is_new:
                improved = True
                yield self._candidate(step)
        if not improved:
            yield Candidate(weights={})

    def _candidate(self, step: Step) -> Candidate:
        right = self.validation.scaled(self.neurons, step.factors[None])
        return Candidate(
            weights=self.hidden.folded(self.task.model, self.neurons, step.factors),
            validation_accuracy=float(right[0]) / len(self.task.validation),
            step=step.number,
            values={"gain": step.gain},
        )
