"""One run on a task: rounds that localise a neuron and repair it, and what they lead to."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from modelfix_core.approach import Candidate, Evidence, Localisation, Task
from modelfix_core.dataset import Split
from modelfix_core.errors import Failure
from modelfix_core.population import DEFAULT_MEMORY
from modelfix_core.seeds import generator
from modelfix_core.torch import batches, load
from torch import Tensor

from modelfix_vere.approach import VeReConfig
from modelfix_vere.localisation import faults, intervals, scores, significance
from modelfix_vere.repair import Aim, fit, read_neuron, write_back
from modelfix_vere.site import find_site
from modelfix_vere.suffix import Suffix, read_suffix
from modelfix_vere.targets import Targets, targets


class State(NamedTuple):
    """The model of the moment on the drawn inputs.

    Attributes
    ----------
    suffix : Suffix
    hidden : Tensor of float32, [N, D]
    right : Tensor of bool, [N]
    """

    suffix: Suffix
    hidden: Tensor
    right: Tensor

    @property
    def score(self) -> int:
        """J: how many inputs are right."""
        return int(self.right.sum())


class Held(NamedTuple):
    """What is kept of a split: the tensor u before the repaired neurons, and the labels."""

    source: Tensor
    labels: Tensor
    ids: np.ndarray


class Round(NamedTuple):
    """What a round chose.

    Attributes
    ----------
    number, neuron : int
    ranking : ndarray of float32, [D]
        RS of every neuron.
    wrong : Tensor of int64, [I]
        Positions of the faulty inputs.
    values : Tensor of float32, [I]
        The neuron's values on them.
    aimed : Targets
    """

    number: int
    neuron: int
    ranking: np.ndarray
    wrong: Tensor
    values: Tensor
    aimed: Targets


class Run:
    """VeRe on one task.

    Parameters
    ----------
    task : Task
    config : VeReConfig
    """

    def __init__(self, task: Task, config: VeReConfig) -> None:
        self.task = task
        self.config = config
        self.site = find_site(task.model, config.relaxed, config.layer)
        self.net = load(task.model, task.device)

    def proposals(self) -> Iterator[Candidate | Localisation | Evidence]:
        """Yield the first ranking and, after each round, evidence and any better candidate."""
        self._report(1, "running the repair split")
        self.inputs = self._drawn(self._hold(self.task.repair))
        state = original = self._state(self.inputs)
        best = original.score
        rounds: list[Round] = []
        reached: list[int] = []
        for number in range(1, self.config.rounds + 1):
            chosen = self._localised(number, state, original)
            if chosen is None:
                break
            if number == 1:
                yield self._localisation(chosen.ranking)
            self._repair(chosen, state, original)
            state = self._state(self.inputs)
            rounds.append(chosen)
            reached.append(state.score)
            yield self._history(rounds, reached)
            yield self._proofs(rounds)
            if state.score > best:
                best = state.score
                yield self._candidate(number, best)
        if best == original.score:
            yield Candidate(weights={})

    # -- inputs --------------------------------------------------------------------------------

    def _hold(self, split: Split) -> Held:
        width = self.task.model.weights[(self.site.maker or self.site.reader).weight].shape[1]
        needed = 4 * len(split) * width
        if needed > DEFAULT_MEMORY // 2:
            raise Failure(
                f"the tensors before the repaired neurons need {needed / 2**30:.1f} GiB for "
                f"{len(split)} inputs; use a smaller split or a later layer"
            )
        name = self.site.source
        with torch.no_grad():
            parts = [
                self.net.activations(x, [name])[name]
                for x in batches(split, device=self.net.device)
            ]
        labels = torch.tensor(np.asarray(split.y), dtype=torch.int64, device=self.net.device)
        return Held(torch.cat(parts), labels, split.ids)

    def _drawn(self, inputs: Held) -> Held:
        """Draw the faulty and the correct inputs, in the order of the split."""
        right = self._state(inputs).right.cpu().numpy()
        rng = generator(self.task.seed, stage="draw")
        kept = []
        for members, amount in (
            (np.flatnonzero(~right), self.config.faults),
            (np.flatnonzero(right), self.config.correct),
        ):
            few = amount is None or len(members) <= amount
            kept.append(members if few else rng.choice(members, amount, replace=False))
        index = np.sort(np.concatenate(kept))
        where = torch.from_numpy(index).to(self.net.device)
        return Held(inputs.source[where], inputs.labels[where], inputs.ids[index])

    @cached_property
    def _validation(self) -> Held:
        return self._hold(self.task.validation)

    @torch.no_grad()
    def _state(self, inputs: Held) -> State:
        site = self.site
        suffix = read_suffix(self.net, site.suffix)
        hidden = self.net.run({site.source: inputs.source}, [site.hidden])[site.hidden]
        return State(suffix, hidden, suffix(hidden).argmax(dim=1) == inputs.labels)

    # -- localisation --------------------------------------------------------------------------

    def _localised(self, number: int, state: State, original: State) -> Round | None:
        """Choose a neuron and its targets; None where nothing is wrong or no neuron helps."""
        config = self.config
        wrong = (~state.right & ~original.right).nonzero()[: config.cap, 0]
        if len(wrong) == 0:
            return None
        labels = self.inputs.labels[wrong]
        found = faults(state.suffix, state.hidden[wrong], labels)
        edges = intervals(state.hidden, config.pieces, config.interval_times, config.limits)

        def report(done: int, total: int) -> None:
            self._report(number, f"{done} of {total} neurons bounded")

        ranking = scores(significance(state.suffix, found, edges, report)).cpu().numpy()
        neuron = int(ranking.argmax())
        if ranking[neuron] == 0:
            return None
        aimed = targets(
            state.suffix,
            found,
            labels,
            neuron,
            edges[neuron],
            config.strict_ideal,
            config.only_gains,
        )
        return Round(number, neuron, ranking, wrong, found.hidden[:, neuron], aimed)

    def _localisation(self, ranking: np.ndarray) -> Localisation:
        """Name the neurons that promise anything, by falling score.

        Neurons that no layer makes are blamed by the weights that carry them on.
        """
        order = np.argsort(-ranking, kind="stable")
        order = order[ranking[order] > 0]
        site = self.site
        if site.maker is not None:
            return Localisation("neuron", [site.maker.name] * len(order), order, ranking[order])
        units, width = self.task.model.weights[site.reader.weight].shape
        index = (np.arange(units) * width + order[:, None]).ravel()
        score = np.repeat(ranking[order], units)
        return Localisation("weight", [site.reader.name] * len(index), index, score)

    # -- repair --------------------------------------------------------------------------------

    def _repair(self, chosen: Round, state: State, original: State) -> None:
        config, neuron = self.config, chosen.neuron
        kept = (state.right & original.right).nonzero()[:, 0]
        if config.correct_per_fault is not None:
            kept = kept[: config.correct_per_fault * len(chosen.wrong)]
        rows = torch.cat([chosen.wrong, kept])
        values = state.hidden[rows, neuron].cpu().numpy()
        ends = (chosen.aimed.low, chosen.aimed.high)
        low, high = (np.append(e.cpu().numpy(), values[len(chosen.wrong) :]) for e in ends)
        made = self.site.maker is not None
        source = self.inputs.source[rows].cpu().numpy() if made else values
        aim = Aim(source, low, high, np.arange(len(rows)) < len(chosen.wrong))

        def report(epoch: int) -> None:
            note = f"neuron {neuron}, epoch {epoch} of {config.epochs}"
            self._report(chosen.number, note)

        parameters = fit(
            read_neuron(self.net, self.site, neuron),
            aim,
            generator(self.task.seed, stage="fit", round=chosen.number),
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            batch_size=config.batch_size,
            loss=config.loss,
            progress=report,
        )
        write_back(self.net, self.site, neuron, parameters)

    # -- what is shown -------------------------------------------------------------------------

    def _candidate(self, number: int, score: int) -> Candidate:
        right = self._state(self._validation).right
        return Candidate(
            weights=self.net.weights(),
            validation_accuracy=float(right.double().mean()),
            step=number,
            values={"right": score},
        )

    def _history(self, rounds: Sequence[Round], reached: Sequence[int]) -> Evidence:
        return Evidence(
            "rounds",
            f"One neuron of {self._place} was repaired in each round: its score, the faulty inputs "
            "it was fitted to, for how many a target is proved, and how many inputs were right "
            "after it.",
            {
                "round": [r.number for r in rounds],
                "neuron": [r.neuron for r in rounds],
                "score": [float(r.ranking[r.neuron]) for r in rounds],
                "faults": [len(r.wrong) for r in rounds],
                "proved": [int(r.aimed.ideal.sum()) for r in rounds],
                "right": list(reached),
            },
        )

    def _proofs(self, rounds: Sequence[Round]) -> Evidence:
        def joined(values: Iterable[Tensor]) -> np.ndarray:
            return torch.cat(list(values)).cpu().numpy()

        size = [len(r.wrong) for r in rounds]
        return Evidence(
            "targets",
            "Where the neuron's value should lie for each faulty input; where it is proved, every "
            "value from low to high makes the label beat the predicted class.",
            {
                "round": np.repeat([r.number for r in rounds], size),
                "sample": self.inputs.ids[joined(r.wrong for r in rounds)],
                "neuron": np.repeat([r.neuron for r in rounds], size),
                "value": joined(r.values for r in rounds),
                "low": joined(r.aimed.low for r in rounds),
                "high": joined(r.aimed.high for r in rounds),
                "proved": joined(r.aimed.ideal for r in rounds),
            },
        )

    @property
    def _place(self) -> str:
        if self.site.maker is None:
            return f"the vector before layer {self.site.reader.name!r}"
        return f"layer {self.site.maker.name!r}"

    def _report(self, number: int, note: str) -> None:
        rounds = self.config.rounds
        self.task.progress(number - 1, rounds, f"round {number} of {rounds}: {note}")
