"""Several layers: the network is cut, and each part gets its own smallest change."""

from collections.abc import Callable, Sequence
from time import perf_counter

import highspy
import numpy as np

from modelfix_minimal_3m.chain import Chain
from modelfix_minimal_3m.change import Change, Infeasible, Unsolved, reduce
from modelfix_minimal_3m.heuristics import Heuristic
from modelfix_minimal_3m.highs import TOLERANCE, Solver, add_columns, add_rows
from modelfix_minimal_3m.last_layer import LastLayer, Points, Program, below_twice_the_bound


class Rows:
    """Smallest rows ``w`` with ``H w = target``, for one ``H`` and many targets.

    Rows of a change with given outputs are independent of each other. Their cost grows in
    proportion to the target, so that one solution serves all targets of one direction.

    Parameters
    ----------
    h : ndarray of float64, [k, D]
    norm : {"l1", "linf"}
    limit : float
    solver : Solver
    """

    def __init__(self, h: np.ndarray, norm: str, limit: float, solver: Solver) -> None:
        self.h, self.expansion = reduce(h, norm)
        self.norm, self.limit = norm, limit
        self.solver = solver
        self.highs: highspy.Highs | None = None
        self._known: dict[bytes, np.ndarray | None] = {}

    def solve(self, targets: np.ndarray) -> np.ndarray:
        """Return the smallest rows, [rows, D].

        Parameters
        ----------
        targets : ndarray of float64, [rows, k]

        Raises
        ------
        Infeasible
            If a target cannot be reached, or only by a weight that changes by more than the limit.
        Unsolved
        """
        found = np.zeros((len(targets), self.h.shape[1]))
        touched = np.flatnonzero(targets.any(axis=1))
        peak = targets[touched, np.abs(targets[touched]).argmax(axis=1)]
        directions = np.round(targets[touched] / peak[:, None], 12)
        for row, scale, direction in zip(touched, peak, directions, strict=True):
            found[row] = scale * self._unit(direction)
        found = found if self.expansion is None else found @ self.expansion
        if np.abs(found).max(initial=0.0) > self.limit:
            raise Infeasible
        return found

    def _unit(self, direction: np.ndarray) -> np.ndarray:
        key = direction.tobytes()
        if key not in self._known:
            try:
                self._known[key] = self._minimise(direction)
            except Infeasible:
                self._known[key] = None
        row = self._known[key]
        if row is None:
            raise Infeasible
        return row

    def _minimise(self, direction: np.ndarray) -> np.ndarray:
        points, width = self.h.shape
        if self.highs is None:
            self.highs = self._build()
        index = np.arange(points, dtype=np.int32)
        self.highs.changeRowsBounds(points, index, direction, direction)
        columns, _ = self.solver.run(self.highs)
        if self.norm == "l1":
            return columns[:width] - columns[width:]
        # Where a feature is 0 for all points, its weight says nothing and stays as it is.
        return np.where(self.h.any(axis=0), columns[1:] - columns[0], 0.0)

    def _build(self) -> highspy.Highs:
        """Write the program as for the last layer: differences (``l1``) or ``w + t`` (``linf``)."""
        points, width = self.h.shape
        highs = self.solver.start()
        zero, infinite = np.zeros(points), np.full(2 * width, highspy.kHighsInf)
        if self.norm == "l1":
            add_columns(highs, np.ones(2 * width), np.zeros(2 * width), infinite)
            starts = np.tile([0, width], (points, 1))
            add_rows(highs, zero, zero, self.h, starts, np.array([1.0, -1.0]))
        else:
            add_columns(highs, np.eye(1, 1 + width)[0], np.zeros(1 + width), infinite[: 1 + width])
            values = np.concatenate([-self.h.sum(axis=1, keepdims=True), self.h], axis=1)
            add_rows(highs, zero, zero, values, np.zeros((points, 1), dtype=int), np.ones(1))
            below_twice_the_bound(highs, np.arange(1, 1 + width))
        return highs


class Separation:
    """Searches values of the separation layers under which the total change is smallest.

    The separation layers are the outputs, before ReLU, of all layers of the chain but the last.

    Parameters
    ----------
    chain : Chain
        The layers that may change.
    h : ndarray of float64, [k, D]
        Input of the first of them.
    y : ndarray of int64, [k]
    steps : sequence of ndarray of float64, [neurons] each
        Grid step of each separation layer.
    norm : {"l1", "linf"}
    margin : float
    limit : float
    solver : Solver
    """

    def __init__(
        self,
        chain: Chain,
        h: np.ndarray,
        y: np.ndarray,
        steps: Sequence[np.ndarray],
        norm: str,
        margin: float,
        limit: float,
        solver: Solver,
    ) -> None:
        self.chain = chain
        self.h, self.y = h, y
        self.norm, self.margin, self.limit = norm, margin, limit
        self.solver = solver
        self.steps = np.concatenate(steps)
        self.ends = np.cumsum([len(step) for step in steps])
        self.values = forward(chain, h)
        self.first_rows = Rows(h, norm, limit, solver)

    @property
    def neurons(self) -> int:
        """Number of neurons of all separation layers."""
        return len(self.steps)

    def single(self) -> Change:
        """Return the smallest change of the last layer alone: no value of a cut is changed."""
        last = self.chain.layers[-1]
        h = np.maximum(self.values[-1], 0.0)
        return LastLayer(last, h, self.y, self.norm, self.margin, self.limit, self.solver).solve(
            len(h)
        )

    def evaluate(self, offsets: np.ndarray, best: float) -> Change | None:
        """Return the smallest changes that take the separation layers to proposed values.

        Parameters
        ----------
        offsets : ndarray of float64, [neurons]
            In grid steps, the same for all points.
        best : float
            Cost to beat.

        Returns
        -------
        Change or None
            None where it would not cost less than `best` or does not exist.
        """
        weights, cost, h = {}, 0.0, self.h
        shifts = np.split(offsets * self.steps, self.ends[:-1])
        try:
            for position, shift in enumerate(shifts):
                dense, target = self.chain.layers[position], self.values[position] + shift
                rows = self.first_rows if position == 0 else self._rows(h)
                # In the first part the input is the original one: only the shift is missing.
                missing = np.tile(shift, (len(h), 1)) if position == 0 else target - dense(h)
                change = rows.solve(missing.T)
                cost = self._total(cost, change)
                if cost >= best:
                    return None
                weights[dense.layer.weight] = change
                h = np.maximum(target, 0.0)
            change = self._last(h)
        except (Infeasible, Unsolved):
            return None
        cost = self._total(cost, change)
        if cost >= best:
            return None
        weights[self.chain.layers[-1].layer.weight] = change
        return Change(weights, cost, 0.0, "highs-lp", TOLERANCE)

    def search(
        self,
        single: Change,
        heuristic: Heuristic,
        proposals: int,
        seconds: float,
        accept: Callable[[Change], bool],
    ) -> Change:
        """Return the cheapest change found; anytime, and never dearer than the last layer alone.

        Parameters
        ----------
        single : Change
            Of the last layer alone, as `single` gives it.
        heuristic : generator
            Yields offsets, is sent their cost (infinite where not below the best).
        proposals : int
            Largest number of proposals.
        seconds : float
        accept : callable
            Whether the real network is right with a change: float32 weights and the way through
            all parts may differ from what the solver was given.
        """
        best = single
        start, done = perf_counter(), 0
        offsets = next(heuristic)
        while done < proposals and perf_counter() - start < seconds:
            self.solver.tick()
            found = self.evaluate(offsets, best.cost)
            done += 1
            if found is not None and accept(found):
                best, cost = found, found.cost
            else:
                cost = np.inf
            offsets = heuristic.send(cost)
        heuristic.close()
        bound = best.lower_bound if best is single else 0.0
        return Change(
            best.weights, best.cost, bound, best.solver, best.tolerance, single.cost, done
        )

    def _rows(self, h: np.ndarray) -> Rows:
        return Rows(h, self.norm, self.limit, self.solver)

    def _last(self, h: np.ndarray) -> np.ndarray:
        last = self.chain.layers[-1]
        features, expansion = reduce(h, self.norm)
        points = Points(features, last(h), self.y, self.margin)
        change, _ = Program(points, self.norm, self.limit, self.solver).minimise(len(h))
        return change if expansion is None else change @ expansion

    def _total(self, cost: float, change: np.ndarray) -> float:
        if self.norm == "l1":
            return cost + float(np.abs(change).sum())
        return max(cost, float(np.abs(change).max(initial=0.0)))


def forward(chain: Chain, h: np.ndarray) -> list[np.ndarray]:
    """Compute the output before ReLU of every layer but the last, [N, neurons] each."""
    values = []
    for dense in chain.layers[:-1]:
        values.append(dense(h))
        h = np.maximum(values[-1], 0.0)
    return values
