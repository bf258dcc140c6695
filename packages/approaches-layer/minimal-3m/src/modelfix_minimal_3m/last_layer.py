"""The smallest change of the last layer: a linear program with rows made on demand."""

from collections.abc import Sequence
from dataclasses import dataclass

import highspy
import numpy as np

from modelfix_minimal_3m.chain import Dense
from modelfix_minimal_3m.change import Change, reduce
from modelfix_minimal_3m.highs import (
    TOLERANCE,
    Entries,
    Solver,
    add_columns,
    add_empty_rows,
    add_rows,
)

# Room above the optimum of the largest entry when the sum is made least; far below float32.
SLACK = 1e-9
# Rows that a point gets at a time: all violated ones would bring in nearly all of 1,000 classes.
ROWS_AT_A_TIME = 4


@dataclass(frozen=True)
class Points:
    """Inputs to be made right, as the last layer sees them.

    Attributes
    ----------
    h : ndarray of float64, [k, D]
        Input of the last layer.
    z : ndarray of float64, [k, C]
        Logits before the change.
    y : ndarray of int64, [k]
    margin : float
        By how much the label must win.
    """

    h: np.ndarray
    z: np.ndarray
    y: np.ndarray
    margin: float

    def needs(self, change: np.ndarray) -> np.ndarray:
        """Return by how much each class is still ahead of what the margin allows, [k, C].

        Parameters
        ----------
        change : ndarray of float64, [C, D]
        """
        logits = self.z + self.h @ change.T
        rows = np.arange(len(self.y))
        excess = logits - logits[rows, self.y][:, None] + self.margin
        excess[rows, self.y] = -np.inf
        return excess

    def first(self, count: int) -> "Points":
        """Return the first `count` points."""
        return Points(self.h[:count], self.z[:count], self.y[:count], self.margin)


class LastLayer:
    """Finds the smallest change of the last layer for more and more points.

    Parameters
    ----------
    dense : Dense
        The last layer.
    h : ndarray of float64, [k, D]
        Its input for all points.
    y : ndarray of int64, [k]
    norm : {"l1", "linf"}
    margin : float
    limit : float
        Largest allowed absolute change of one weight.
    solver : Solver
    lazy : bool
        Constrain only what would be violated otherwise; the optimum is the same.
    """

    def __init__(
        self,
        dense: Dense,
        h: np.ndarray,
        y: np.ndarray,
        norm: str,
        margin: float,
        limit: float,
        solver: Solver,
        lazy: bool = True,
    ) -> None:
        self.dense = dense
        self.norm = norm
        self.points = Points(h, dense(h), y, margin)
        self.arguments = (limit, solver, lazy)
        self.program = Program(self.points, norm, *self.arguments)
        self.least = Program(self.points, "l1", *self.arguments)

    def solve(self, count: int) -> Change:
        """Return the smallest change that makes the first `count` points right.

        Of the changes with the smallest largest entry, the one with the smallest sum is taken: it
        does not depend on the solver's path, and weights that need no change keep their values.

        Raises
        ------
        Infeasible, Unsolved
        """
        if count == 1:
            points = self.points.first(1)
            features, expansion = reduce(points.h, self.norm)
            points = Points(features, points.z, points.y, points.margin)
            change, cost = Program(points, self.norm, *self.arguments).minimise(1)
            change = change if expansion is None else change @ expansion
        else:
            change, cost = self.program.minimise(count)
            if self.norm == "linf":
                self.least.require(self.program.required)
                self.least.allow(cost * (1 + SLACK))
                change, _ = self.least.minimise(count)
        return Change({self.dense.layer.weight: change}, cost, cost, "highs-lp", TOLERANCE)


class Program:
    """One linear program that grows.

    With ``l1`` a weight's change is the difference of two columns, both of cost 1. With ``linf``
    it is a column minus the bound ``t`` (the first column), so that one row for each weight says
    ``-t <= change <= t``; ``t`` then drops out of the rows of the points.

    Parameters
    ----------
    points : Points
    norm : {"l1", "linf"}
    limit : float
    solver : Solver
    lazy : bool
    """

    def __init__(
        self, points: Points, norm: str, limit: float, solver: Solver, lazy: bool = True
    ) -> None:
        self.points = points
        self.norm = norm
        self.limit = limit
        self.solver = solver
        self.lazy = lazy
        self.highs = solver.start()
        self.unchanged = np.zeros((points.z.shape[1], points.h.shape[1]))
        self.needed = points.needs(self.unchanged)
        self.required = np.zeros(points.z.shape, dtype=bool)
        self.first = np.full(points.z.shape[1], -1)  # first column of each class; -1 is none
        if norm == "linf":
            add_columns(self.highs, np.ones(1), np.zeros(1), np.full(1, limit))

    def minimise(self, count: int) -> tuple[np.ndarray, float]:
        """Solve for the first `count` points.

        Returns
        -------
        change : ndarray of float64, [C, D]
        cost : float
        """
        pairs = np.isfinite(self.needed) & (np.arange(len(self.needed)) < count)[:, None]
        self.require(_worst(self.needed, pairs) if self.lazy else pairs)
        if not self.required.any():
            return self.unchanged, 0.0
        while True:
            columns, cost = self.solver.run(self.highs)
            change = self._change(columns)
            missing = _worst(self.points.needs(change) - TOLERANCE, pairs & ~self.required)
            if not missing.any():
                return change, cost
            self.require(missing)

    def require(self, pairs: np.ndarray) -> None:
        """Add the rows of `pairs` of point and rival class, bool [k, C], that are missing."""
        point, rival = np.nonzero(pairs & ~self.required)
        if not len(point):
            return
        self.required |= pairs
        label, h = self.points.y[point], self.points.h[point]
        lower = self.needed[point, rival]
        infinite = np.full(len(point), highspy.kHighsInf)
        if (self.first < 0).all():
            # HiGHS takes columns several times as fast as rows.
            add_empty_rows(self.highs, lower, infinite)
            self._add_classes(np.union1d(label, rival), by_class(h, label, rival))
            return
        classes = np.union1d(label, rival)
        self._add_classes(classes[self.first[classes] < 0])
        blocks = self._blocks(self.first[label], self.first[rival])
        add_rows(self.highs, lower, infinite, h, *blocks)

    def allow(self, limit: float) -> None:
        """Set the largest allowed absolute change of a weight (``l1`` only)."""
        self.limit = limit
        count = self.highs.getNumCol()
        index = np.arange(count, dtype=np.int32)
        self.highs.changeColsBounds(count, index, np.zeros(count), np.full(count, limit))

    def _add_classes(self, new: np.ndarray, entries: Sequence[Entries] | None = None) -> None:
        """Add the columns of classes, with their entries in the rows that are there."""
        size = len(new) * self.points.h.shape[1]
        if not size:
            return
        pair = self.norm == "l1"
        columns = 2 * size if pair else size
        cost, upper = (1.0, self.limit) if pair else (0.0, 2 * self.limit)
        if entries and pair:
            entries = [part for given in entries for part in (given, given.negative())]
        bounds = np.full(columns, cost), np.zeros(columns), np.full(columns, upper)
        start = add_columns(self.highs, *bounds, entries)
        self.first[new] = start + columns // len(new) * np.arange(len(new))
        if not pair:
            below_twice_the_bound(self.highs, np.arange(start, start + size))

    def _blocks(self, label: np.ndarray, rival: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return blocks [pairs, blocks] and signs that mean ``change_label - change_rival``."""
        if self.norm == "linf":
            return np.stack([label, rival], axis=1), np.array([1.0, -1.0])
        width = self.points.h.shape[1]
        starts = np.stack([label, label + width, rival, rival + width], axis=1)
        return starts, np.array([1.0, -1.0, -1.0, 1.0])

    def _change(self, columns: np.ndarray) -> np.ndarray:
        change = self.unchanged.copy()
        width = change.shape[1]
        present = np.flatnonzero(self.first >= 0)
        index = self.first[present][:, None] + np.arange(width)
        if not len(present):
            return change
        if self.norm == "l1":
            change[present] = columns[index] - columns[index + width]
        else:
            change[present] = columns[index] - columns[0]
        return change


def by_class(h: np.ndarray, label: np.ndarray, rival: np.ndarray) -> list[Entries]:
    """Return the entries of ``(change_label - change_rival) @ h`` by class, in ascending order.

    Parameters
    ----------
    h : ndarray of float64, [rows, D]
    label, rival : ndarray of int, [rows]
    """
    rows = len(h)
    side = np.concatenate([label, rival])
    order = np.argsort(side, kind="stable")
    ends = np.flatnonzero(np.diff(side[order])) + 1
    features = np.ascontiguousarray(h.T)
    return [
        Entries.of(features, members % rows, np.where(members < rows, 1.0, -1.0))
        for members in np.split(order, ends)
    ]


def below_twice_the_bound(highs: highspy.Highs, columns: np.ndarray) -> None:
    """Add that `columns`, each a change plus the bound in column 0, are at most twice the bound."""
    count = len(columns)
    starts = np.stack([columns, np.zeros(count, dtype=int)], axis=1)
    below = np.full(count, -highspy.kHighsInf)
    add_rows(highs, below, np.zeros(count), np.ones((count, 1)), starts, np.array([1.0, -2.0]))


def _worst(excess: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return for each point the most violated pairs among the allowed, bool [k, C]."""
    excess = np.where(allowed, excess, -np.inf)
    count = min(ROWS_AT_A_TIME, excess.shape[1])
    worst = np.argpartition(-excess, count - 1, axis=1)[:, :count]
    found = np.zeros_like(allowed)
    np.put_along_axis(found, worst, np.take_along_axis(excess, worst, axis=1) > 0, axis=1)
    return found
