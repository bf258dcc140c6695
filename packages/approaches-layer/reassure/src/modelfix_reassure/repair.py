"""One repair: faults to regions, regions to patches, patches to candidates (section 4.6)."""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from modelfix_core.approach import Candidate, Evidence, Task
from modelfix_core.dataset import Split
from modelfix_core.errors import Failure

from modelfix_reassure.block import Block
from modelfix_reassure.evidence import Given, growth, guarantees, proofs
from modelfix_reassure.faults import Faults, locate, merge
from modelfix_reassure.graph import extend
from modelfix_reassure.memory import estimate
from modelfix_reassure.network import PatchNetwork
from modelfix_reassure.region import NotSolved, Patch, Solver, build_region, constant_patch

logger = logging.getLogger(__name__)

GIGABYTE = 1e9
CHUNK = 2**28  # bytes of training features at a time: only their range is kept


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
        self.solved: dict[tuple[bytes, int], Patch | None] = {}
        self.unsolved: list[str] = []

    def candidates(self) -> Iterator[Candidate | Evidence]:
        """Yield candidates, few faults first, and what holds of the best so far."""
        self._check_memory()
        if not len(self.wrong):
            yield Candidate(weights={})
            return
        highest = 0.0
        for count in self._counts():
            given = self._given(count)
            best: tuple[Candidate, PatchNetwork] | None = None
            for n in sorted(self.config.n):
                network = given.network(self.block, n)
                candidate = self._candidate(network, given)
                accuracy = candidate.validation_accuracy
                assert accuracy is not None, "every candidate is measured as it is made"
                if accuracy >= highest:
                    best, highest = (candidate, network), accuracy
                yield candidate
            if best is not None:
                yield from self._evidence(given, *best)

    # -- limits and data -----------------------------------------------------------------------

    def _check_memory(self) -> None:
        task, features = self.task, self.block.maps[0].weight.shape[1]
        inputs = len(task.repair) + len(task.validation)
        needed = estimate(inputs, features, self.block.hidden, _cores())
        free = min(self.config.memory * GIGABYTE, task.budget.free_memory)
        if needed > free:
            raise Failure(
                f"memory: {inputs} inputs with {features} features and regions of "
                f"{sum(self.block.hidden)} constraints would need about "
                f"{needed / GIGABYTE:.3g} GB, {free / GIGABYTE:.3g} GB are free within the limit"
            )

    def _features(self, split: Split) -> Features:
        model = self.task.model
        tensors = [self.block.features, model.output_name]
        values = model.activations(split, tensors)
        return Features(values[tensors[0]].astype(float), values[tensors[1]], split.y)

    @cached_property
    def repair(self) -> Features:
        """The faults of the repair split."""
        return self._features(self.task.repair.select(self.wrong))

    @cached_property
    def wrong(self) -> np.ndarray:
        """Positions of the faults in the repair split, int64 [B]."""
        split = self.task.repair
        return np.flatnonzero(self.task.model.predict(split).argmax(axis=1) != split.y)

    @cached_property
    def validation(self) -> Features:
        """The validation split."""
        return self._features(self.task.validation)

    def _train(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield features and labels of training images; validation images where there are none."""
        split = self.task.train
        if split is None:
            yield self.validation.h, self.validation.y
            return
        tensor, width = self.block.features, self.block.maps[0].weight.shape[1]
        size = max(1, CHUNK // (8 * width))
        for start in range(0, len(split), size):
            part = split.select(slice(start, start + size))
            yield self.task.model.activations(part, [tensor])[tensor].astype(float), part.y

    @cached_property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Range of each feature over training images and faults."""
        lower, upper = self.repair.h.min(axis=0), self.repair.h.max(axis=0)
        for h, _ in self._train():
            lower, upper = np.minimum(lower, h.min(axis=0)), np.maximum(upper, h.max(axis=0))
        return lower, upper

    @cached_property
    def patterns(self) -> np.ndarray:
        """Activation patterns of the faults, bool [B, sum of hidden]."""
        return self.block.patterns(self.repair.h)

    def _counts(self) -> list[int]:
        total = len(self.wrong)
        return sorted({total if c == "all" else min(c, total) for c in self.config.faults})

    def _conflicts(self, faults: Faults) -> np.ndarray:
        """Return which regions hold training images of another class, bool [R]."""
        conflicts = np.zeros(len(faults.labels), dtype=bool)
        for h, y in self._train():
            found = locate(self.block.patterns(h), faults.patterns)
            conflicts[found[(found >= 0) & (y != faults.labels[found])]] = True
        return conflicts

    # -- patches -------------------------------------------------------------------------------

    def _given(self, count: int) -> Given:
        """Return the first `count` faults with the patches of their regions."""
        faults = merge(self.patterns[:count], self.repair.y[:count])
        chosen = np.arange(len(faults.labels))
        if self.config.skip_conflicts:
            chosen = chosen[~self._conflicts(faults)]
            if not len(chosen):
                raise Failure(
                    "every region with faults also holds training images of another class; repair "
                    "them all the same with skip_conflicts=false"
                )
        self._solve(faults, chosen)
        patches = {int(r): self.solved[_key(faults, int(r))] for r in chosen}
        found = {region: patch for region, patch in patches.items() if patch is not None}
        if not found:
            raise Failure(
                f"no patch could be computed for any of {len(chosen)} regions "
                f"({self.unsolved[0]}); give it more time (seconds_per_point) or memory"
            )
        split = self.task.repair.select(self.wrong[:count])
        return Given(split, faults, np.array(list(found)), list(found.values()))

    def _solve(self, faults: Faults, chosen: np.ndarray) -> None:
        """Compute the patches that are new, on all cores.

        Threads are enough: the solver works outside Python's global lock.
        """
        new = [int(r) for r in chosen if _key(faults, int(r)) not in self.solved]
        executor = ThreadPoolExecutor(_cores())
        done = len(chosen) - len(new)
        try:
            futures = [(region, executor.submit(self._patch, faults, region)) for region in new]
            for region, future in futures:
                while not wait([future], timeout=0.5).done:
                    self.task.progress(done, len(chosen), "regions")
                self.solved[_key(faults, region)] = self._result(future)
                done += 1
            self.task.progress(done, len(chosen), "regions")
        finally:
            # What still runs ends by its own limit; nobody waits for it.
            executor.shutdown(wait=False, cancel_futures=True)

    def _result(self, future: Future) -> Patch | None:
        try:
            return future.result()
        except (NotSolved, MemoryError) as error:
            reason = "out of memory" if isinstance(error, MemoryError) else str(error)
            self.unsolved.append(reason)
            logger.warning("a region is left out: %s", reason)
            return None

    def _patch(self, faults: Faults, index: int) -> Patch:
        region = build_region(self.block, faults.patterns[index], *self.box)
        label = int(faults.labels[index])
        example = self.repair.h[faults.example[index]]
        excesses = self.solver.excesses(region, label, example)
        values = constant_patch(excesses, label, self.config.tau)
        return Patch(values, excesses, label, len(region.b), int(region.binding().sum()))

    # -- candidates ----------------------------------------------------------------------------

    def _candidate(self, network: PatchNetwork, given: Given) -> Candidate:
        self.task.progress(len(given.patches), len(given.faults.labels), f"n = {network.n:g}")
        validation = self.validation
        supports = network.supports(validation.h)
        after = network.logits(validation.logits, supports).argmax(axis=1)
        return Candidate(
            model=extend(self.task.model, network),
            validation_accuracy=float(np.mean(after == validation.y)),
            step=len(given.split),
            values={
                "n": network.n,
                "patches": len(network),
                "supported": float(len(np.unique(supports.row))),
                **self._repaired(network, given),
            },
        )

    def _repaired(self, network: PatchNetwork, given: Given) -> dict[str, float]:
        """Count among the given faults: with a patch of their class, repaired, reached by more."""
        count = len(given.split)
        supports = network.supports(self.repair.h[:count])
        after = network.logits(self.repair.logits[:count], supports).argmax(axis=1)
        right = after == self.repair.y[:count]
        covered = given.covered
        return {
            "covered": float(covered.sum()),
            "repaired": float((covered & right).sum()),
            "leaks": float((supports.leaks(given.own, len(network)) & covered).sum()),
            "inconsistent": float((~given.faults.consistent).sum()),
            "largest_change": float(np.abs(network.patches).max()),
        }

    def _evidence(
        self, given: Given, candidate: Candidate, network: PatchNetwork
    ) -> Iterator[Evidence]:
        original, fixed = self.task.model, candidate.apply(self.task.model)
        checked = guarantees(original, fixed, given, self.task.validation)
        logger.info("%d faults, n = %g: %s", len(given.split), network.n, checked.summary)
        yield checked
        yield proofs(fixed, given, self.config.tau)
        yield growth(original, fixed, self.task.validation)


def _key(faults: Faults, region: int) -> tuple[bytes, int]:
    return faults.patterns[region].tobytes(), int(faults.labels[region])


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
