"""One repair: faults to regions, regions to patches, patches to candidates (section 4.6)."""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from modelfix_core.approach import Candidate, Task
from modelfix_core.dataset import Split
from modelfix_core.errors import Failure

from modelfix_reassure.block import Block
from modelfix_reassure.faults import Faults, locate, merge
from modelfix_reassure.graph import extend
from modelfix_reassure.network import PatchNetwork
from modelfix_reassure.region import NotSolved, Solver, build_region, constant_patch
from modelfix_reassure.verification import verify

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Features:
    """What the grid needs of a split, computed once.

    Attributes
    ----------
    h : ndarray of float64, [N, d]
        Input of the block.
    logits : ndarray of float32, [N, K]
        Of the original model.
    y : ndarray of int64, [N]
    """

    h: np.ndarray
    logits: np.ndarray
    y: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        """Which inputs the original model mispredicts, bool [N]."""
        return self.logits.argmax(axis=1) != self.y


class Repair:
    """The repair of one task.

    Parameters
    ----------
    task : Task
    block : Block
        The trailing dense block of the task's model.
    config : ReassureConfig
    """

    def __init__(self, task: Task, block: Block, config) -> None:
        self.task = task
        self.block = block
        self.config = config
        seconds = min(config.seconds_per_point, task.budget.seconds or np.inf)
        self.solver = Solver(seconds, config.solver, config.early_exit)
        self.unsolved: list[str] = []

    def candidates(self) -> Iterator[Candidate]:
        """Yield candidates, few patches first, then log the guarantees of the best."""
        if not self.repair.wrong.any():
            yield Candidate(weights={})
            return
        best: Candidate | None = None
        highest = 0.0
        for count in self._counts():
            network, solved = self._network(count)
            for n in sorted(self.config.n):
                candidate = self._candidate(PatchNetwork(self.block, *network, n), solved)
                accuracy = candidate.validation_accuracy
                assert accuracy is not None, "every candidate is measured as it is made"
                if accuracy >= highest:
                    best, highest = candidate, accuracy
                yield candidate
        self._log_guarantees(best)

    # -- data ----------------------------------------------------------------------------------

    def _features(self, split: Split) -> Features:
        model = self.task.model
        tensors = [self.block.features, model.output_name]
        values = model.activations(split, tensors)
        return Features(values[tensors[0]].astype(float), values[tensors[1]], split.y)

    @cached_property
    def repair(self) -> Features:
        """The repair split."""
        return self._features(self.task.repair)

    @cached_property
    def validation(self) -> Features:
        """The validation split."""
        return self._features(self.task.validation)

    @cached_property
    def train(self) -> Features:
        """The training split; where the task has none, the validation split stands in."""
        return self.validation if self.task.train is None else self._features(self.task.train)

    @cached_property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Range of each feature over training data and faults."""
        faults = self.repair.h[self.repair.wrong]
        lower = np.minimum(self.train.h.min(axis=0), faults.min(axis=0))
        return lower, np.maximum(self.train.h.max(axis=0), faults.max(axis=0))

    @cached_property
    def faults(self) -> Faults:
        """The faults of the repair split by region."""
        wrong = self.repair.wrong
        return merge(self.block.patterns(self.repair.h[wrong]), self.repair.y[wrong])

    @cached_property
    def regions(self) -> np.ndarray:
        """Regions to be patched, in data order."""
        everything = np.arange(len(self.faults.labels))
        if not self.config.skip_conflicts:
            return everything
        free = everything[~self._conflicts()]
        if not len(free):
            raise Failure(
                "every region with faults also holds training images of another class; repair "
                "them all the same with skip_conflicts=false"
            )
        return free

    def _conflicts(self) -> np.ndarray:
        """Return which regions hold training images of another class, bool [R]."""
        found = locate(self.block.patterns(self.train.h), self.faults.patterns)
        other = (found >= 0) & (self.train.y != self.faults.labels[found])
        return np.isin(np.arange(len(self.faults.labels)), found[other])

    def _counts(self) -> list[int]:
        total = len(self.regions)
        return sorted({total if c == "all" else min(c, total) for c in self.config.patches})

    # -- patches -------------------------------------------------------------------------------

    def _network(self, count: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        """Return patterns [L, .] and patches [L, K] of the first regions, and which these are."""
        found = self._patches(count)
        if not found:
            raise Failure(
                f"no patch could be computed for any of {count} regions ({self.unsolved[0]}); "
                "raise seconds_per_point"
            )
        solved = np.array(sorted(found))
        patches = np.stack([found[region] for region in solved])
        return (self.faults.patterns[solved], patches), solved

    def _patches(self, count: int) -> dict[int, np.ndarray]:
        """Solve what is new among the first `count` regions, on all cores.

        Threads are enough: the solver works outside Python's global lock.
        """
        chosen = self.regions[:count]
        new = [int(r) for r in chosen if r not in self._solved]
        executor = ThreadPoolExecutor(_cores())
        done = len(chosen) - len(new)
        try:
            futures: list[tuple[int, Future]] = [
                (region, executor.submit(self._patch, region)) for region in new
            ]
            for region, future in futures:
                while not self._ready(future):
                    self.task.progress(done, len(self.regions), "regions")
                self._solved[region] = self._result(future)
                done += 1
            self.task.progress(done, len(self.regions), "regions")
        finally:
            # What still runs ends by its own limit; nobody waits for it.
            executor.shutdown(wait=False, cancel_futures=True)
        return {int(r): patch for r in chosen if (patch := self._solved[r]) is not None}

    @cached_property
    def _solved(self) -> dict[int, np.ndarray | None]:
        return {}

    @staticmethod
    def _ready(future: Future) -> bool:
        return bool(wait([future], timeout=0.5).done)

    def _result(self, future: Future) -> np.ndarray | None:
        try:
            return future.result()
        except NotSolved as reason:
            self.unsolved.append(str(reason))
            logger.warning("a region is left out: %s", reason)
            return None

    def _patch(self, index: int) -> np.ndarray:
        region = build_region(self.block, self.faults.patterns[index], *self.box)
        label = int(self.faults.labels[index])
        example = self.repair.h[self.repair.wrong][self.faults.example[index]]
        excesses = self.solver.excesses(region, label, example)
        return constant_patch(excesses, label, self.config.tau)

    # -- candidates ----------------------------------------------------------------------------

    def _candidate(self, network: PatchNetwork, solved: np.ndarray) -> Candidate:
        self.task.progress(len(self._solved), len(self.regions), f"n = {network.n:g}")
        validation = self.validation
        supports = network.supports(validation.h)
        after = network.logits(validation.logits, supports).argmax(axis=1)
        model = extend(self.task.model, network)
        return Candidate(
            model=model,
            validation_accuracy=float(np.mean(after == validation.y)),
            step=len(network),
            values={
                "n": network.n,
                "supported": float(len(np.unique(supports.row))),
                **self._repaired(network, solved),
            },
        )

    def _repaired(self, network: PatchNetwork, solved: np.ndarray) -> dict[str, float]:
        """Count among the faults: those with a patch, the repaired, and those another reaches."""
        wrong = self.repair.wrong
        position = np.full(len(self.faults.labels), -1)
        position[solved] = np.arange(len(solved))
        own = position[self.faults.region]
        targets = (own >= 0) & self.faults.consistent
        supports = network.supports(self.repair.h[wrong])
        after = network.logits(self.repair.logits[wrong], supports).argmax(axis=1)
        right = after == self.repair.y[wrong]
        return {
            "targets": float(targets.sum()),
            "repaired": float((targets & right).sum()),
            "leaks": float((supports.leaks(own, len(network)) & targets).sum()),
            "inconsistent": float((~self.faults.consistent).sum()),
            "largest_change": float(np.abs(network.patches).max()),
        }

    def _log_guarantees(self, best: Candidate | None) -> None:
        if best is None or best.model is None:
            return
        task = self.task
        guarantees = verify(task.model, best.model, task.repair, task.validation)
        text = ", ".join(f"{key} {value}" for key, value in asdict(guarantees).items())
        level = logging.INFO if guarantees.local and guarantees.complete else logging.WARNING
        logger.log(level, "guarantees of the best candidate: %s", text)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
