"""One repair: growing sets of faults, a smallest change for each, the best on validation."""

import logging
from collections.abc import Callable, Iterator
from functools import cached_property, partial

import numpy as np
from modelfix_core.approach import Candidate, Evidence, Task
from modelfix_core.errors import Failure
from modelfix_core.margins import margins, rounding
from modelfix_core.seeds import generator

from modelfix_minimal_3m.chain import Chain
from modelfix_minimal_3m.change import Change, Infeasible, Unsolved
from modelfix_minimal_3m.faults import Faults, find_faults
from modelfix_minimal_3m.heuristics import HEURISTICS
from modelfix_minimal_3m.highs import Solver
from modelfix_minimal_3m.inner_layer import InnerLayer
from modelfix_minimal_3m.last_layer import LastLayer
from modelfix_minimal_3m.marabou import Marabou
from modelfix_minimal_3m.memory import estimate
from modelfix_minimal_3m.proof import Proof
from modelfix_minimal_3m.separation import Separation, forward

logger = logging.getLogger(__name__)

GIGABYTE = 1e9
LARGER_MARGIN = 10.0  # factor, where the margin was lost in float32
Solve = Callable[[int], Change]  # from a number of faults
Proven = tuple[Candidate, Evidence]


class Repair:
    """The repair of one task.

    Parameters
    ----------
    task : Task
    chain : Chain
        From the first layer that may change to the logits.
    config : Minimal3MConfig
    """

    def __init__(self, task: Task, chain: Chain, config) -> None:
        self.task = task
        self.chain = chain
        self.config = config
        self.solver = Solver(config.query_seconds, self._tick)
        self.reasons: list[str] = []
        self.done, self.cells = 0, 1
        self.note = ""

    def candidates(self) -> Iterator[Candidate | Evidence]:
        """Yield a candidate and its proofs whenever one is better on validation than all before.

        Raises
        ------
        Failure
            If no set of faults could be made right.
        """
        self._tick()
        if not len(self.faults) and not self.faults.left_out:
            yield Candidate(weights={})
            return
        if not len(self.faults):
            raise Failure(
                f"infeasible: none of the {self.faults.left_out} faults can be made right, all "
                f"inputs of layer {self.chain.names()[0]!r} are 0 for them"
            )
        best = -1.0
        for candidate, proofs in self._sweep():
            accuracy = candidate.validation_accuracy
            assert accuracy is not None, "the sweep measures every candidate"
            if accuracy > best:
                best = accuracy
                yield candidate
                yield proofs
        if best < 0:
            raise Failure("; ".join(dict.fromkeys(self.reasons)))

    @cached_property
    def faults(self) -> Faults:
        """The faults that can be made right."""
        task = self.task
        faults = find_faults(task.model, task.repair, self._features, self.config.order)
        if faults.left_out:
            logger.warning(
                "%d faults are left out: they look like others with another label to layer %s",
                faults.left_out,
                self.chain.names()[0],
            )
        return faults

    @cached_property
    def validation(self) -> np.ndarray:
        """Input of the first layer that may change for the validation split, [N, D]."""
        found = self.task.model.activations(self.task.validation, [self._features])
        return found[self._features].astype(float)

    @property
    def _features(self) -> str:
        return self.chain.layers[0].layer.input

    # -- the sweep -----------------------------------------------------------------------------

    def _counts(self) -> list[int]:
        total = len(self.faults)
        return sorted({total if c == "all" else min(c, total) for c in self.config.faults})

    def _sweep(self) -> Iterator[Proven]:
        """Yield a candidate for each number of faults and norm that can be solved."""
        solves = {norm: self._solve(norm, self.config.margin) for norm in self.config.norms}
        reached = dict.fromkeys(solves, 0)
        counts = self._counts()
        self.cells = len(counts) * len(solves)
        for count in counts:
            for norm in list(solves):
                self.note = f"{_faults(count)}, {norm}"
                self._tick()
                proven = None
                try:
                    proven = self._candidate(solves[norm], norm, count)
                    reached[norm] = count
                except Infeasible:
                    self._give_up(
                        f"{self.note}: infeasible, no change of up to "
                        f"{self.config.epsilon_max:g} makes all right"
                    )
                    proven = self._largest(solves.pop(norm), norm, reached[norm], count)
                except (Unsolved, MemoryError) as error:
                    self._give_up(f"{self.note}: {_reason(error)}")
                    del solves[norm]  # more faults would be harder still
                self.done += 1
                if proven is not None:
                    yield proven

    def _largest(self, solve: Solve, norm: str, low: int, high: int) -> Proven | None:
        """Bisect for the most faults, in order, that can be made right together."""
        best = None
        while high - low > 1:
            middle = (low + high) // 2
            try:
                found = self._candidate(solve, norm, middle)
            except (Infeasible, Unsolved, MemoryError):
                high = middle
            else:
                best, low = found or best, middle
        return best

    def _candidate(self, solve: Solve, norm: str, count: int) -> Proven | None:
        """Return what makes the first faults right with its proofs, or None if float32 cannot."""
        self._check_memory(norm, count)
        for margin in (self.config.margin, self.config.margin * LARGER_MARGIN):
            if margin != self.config.margin:
                solve = self._solve(norm, margin)
            change = solve(count)
            if self._right(change, count):
                break
        else:
            self._give_up(f"{_faults(count)}, {norm}: the change is lost in float32 rounding")
            return None
        accuracy = self._accuracy(change)
        ids, y = self.faults.ids[:count], self.faults.y[:count]
        logits = self._logits(change, count)
        proof = Proof(change, norm, margin, ids, y, margins(logits, y), rounding(logits))
        logger.info("%s Validation accuracy %.4f.", proof.summary(), accuracy)
        candidate = Candidate(
            weights=self._weights(change),
            validation_accuracy=accuracy,
            step=count,
            values=proof.values(),
        )
        return candidate, proof.evidence()

    def _give_up(self, reason: str) -> None:
        self.reasons.append(reason)
        logger.warning("%s", reason)

    def _tick(self) -> None:
        self.task.progress(self.done, self.cells, self.note)

    # -- solving -------------------------------------------------------------------------------

    def _solve(self, norm: str, margin: float) -> Solve:
        """Return what finds the smallest change for the first points."""
        config, faults, layers = self.config, self.faults, self.chain.layers
        problem = (faults.h, faults.y, norm, margin, config.epsilon_max)
        if config.mode == "multi":
            return partial(self._several, norm, margin)
        if config.engine == "marabou":
            interval, memory = config.epsilon_interval, int(self._memory)
            return Marabou(layers, *problem, interval, self.solver, memory).solve
        if len(layers) > 1:
            return InnerLayer(layers, *problem, self.solver).solve
        return LastLayer(layers[0], *problem, self.solver, config.engine == "lp_lazy").solve

    def _several(self, norm: str, margin: float, count: int) -> Change:
        """Search over the values of the separation layers."""
        config, faults = self.config, self.faults
        # The spread over all faults: over one point it would be 0.
        steps = [config.step * values.std(axis=0) for values in forward(self.chain, faults.h)]
        points = (faults.h[:count], faults.y[:count])
        separation = Separation(
            self.chain, *points, steps, norm, margin, config.epsilon_max, self.solver
        )
        rng = generator(self.task.seed, stage=f"{config.heuristic} {norm} {count}")
        single = separation.single()
        search = HEURISTICS[config.heuristic]
        return separation.search(
            single,
            search(rng, separation.neurons, single.cost, config.ucb),
            config.proposals,
            config.timeout,
            lambda change: self._right(change, count),
        )

    @property
    def _memory(self) -> float:
        """Bytes that the solver may need: its own limit, or what the task's leaves of it."""
        return min(self.config.memory * GIGABYTE, self.task.budget.free_memory)

    def _check_memory(self, norm: str, count: int) -> None:
        config, layers = self.config, self.chain.layers
        changed = layers[-1] if config.mode == "multi" else layers[0]
        inner = changed is not layers[-1] and config.engine != "marabou"
        engine = "milp" if inner else config.engine
        outputs, features = changed.weight.shape
        needed = estimate(engine, norm, count, features, outputs, len(layers[-1].bias))
        if needed > (free := self._memory):
            raise Unsolved(
                f"memory: engine {config.engine!r} would need about {needed / GIGABYTE:.3g} GB "
                f"for a layer of {features} inputs and {outputs} outputs, "
                f"{free / GIGABYTE:.3g} GB are free within the limit"
            )

    # -- the real network ----------------------------------------------------------------------

    def _weights(self, change: Change) -> dict[str, np.ndarray]:
        weights = self.task.model.weights
        return {n: (weights[n] + delta).astype(np.float32) for n, delta in change.weights.items()}

    def _logits(self, change: Change, count: int) -> np.ndarray:
        """Compute the logits of the first faults in the changed model, [count, K]."""
        fixed = self.task.model.with_weights(self._weights(change))
        return fixed.predict(self.task.repair.select(self.faults.index[:count]))

    def _right(self, change: Change, count: int) -> bool:
        return bool(margins(self._logits(change, count), self.faults.y[:count]).min() > 0)

    def _accuracy(self, change: Change) -> float:
        weights = self.task.model.weights
        stored = {name: array - weights[name] for name, array in self._weights(change).items()}
        logits = self.chain.logits(self.validation, stored)
        return float(np.mean(logits.argmax(axis=1) == self.task.validation.y))


def _faults(count: int) -> str:
    return f"{count} fault{'s' * (count != 1)}"


def _reason(error: Exception) -> str:
    return "the solver ran out of memory" if isinstance(error, MemoryError) else str(error)
