"""The solver HiGHS with limits: it reports progress while it works and stops when told to."""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import highspy
import numpy as np
from highspy import cb
from modelfix_core.highs import QuietHighs

from modelfix_minimal_3m.change import Infeasible, Unsolved

TOLERANCE = 1e-9  # of constraints; HiGHS's smallest is 1e-10
TICK_SECONDS = 0.5
INTERRUPTS = (
    cb.HighsCallbackType.kCallbackSimplexInterrupt,
    cb.HighsCallbackType.kCallbackIpmInterrupt,
    cb.HighsCallbackType.kCallbackMipInterrupt,
)
INFEASIBLE = (
    highspy.HighsModelStatus.kInfeasible,
    highspy.HighsModelStatus.kUnboundedOrInfeasible,
)


class Solver:
    """How programs are solved: to the optimum, in limited time.

    Parameters
    ----------
    seconds : float
        Limit of one run.
    tick : callable
        Called about twice a second while a program is solved; what it raises stops the run and is
        raised from it.
    """

    def __init__(self, seconds: float, tick: Callable[[], None]) -> None:
        self.seconds = seconds
        self.tick = tick
        self._ticked = perf_counter()
        self._stopped: BaseException | None = None

    def start(self) -> highspy.Highs:
        """Return an empty program."""
        highs = QuietHighs()
        highs.setOptionValue("mip_rel_gap", 0.0)
        for kind in ("primal", "dual", "mip"):
            highs.setOptionValue(f"{kind}_feasibility_tolerance", TOLERANCE)
        highs.setCallback(self._interrupt, None)
        for kind in INTERRUPTS:
            highs.startCallback(kind)
        return highs

    def run(self, highs: highspy.Highs, incumbent: bool = False) -> tuple[np.ndarray, float]:
        """Solve a program to its optimum.

        Parameters
        ----------
        highs : Highs
        incumbent : bool
            When the time is up, return the best solution so far, where there is one.

        Returns
        -------
        columns : ndarray of float64
        objective : float

        Raises
        ------
        Infeasible
        Unsolved
            If the time is up or the solver has numerical trouble.
        """
        # HiGHS counts the time of all runs of a program together.
        highs.setOptionValue("time_limit", highs.getRunTime() + self.seconds)
        self._stopped = None
        highs.run()
        if self._stopped is not None:
            raise self._stopped
        status = highs.getModelStatus()
        if status in INFEASIBLE:
            raise Infeasible
        info = highs.getInfo()
        if status == highspy.HighsModelStatus.kTimeLimit:
            feasible = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
            if not (incumbent and feasible):
                raise Unsolved(f"HiGHS did not end within {self.seconds:g} s")
        elif status != highspy.HighsModelStatus.kOptimal:
            raise Unsolved(f"HiGHS ended with: {highs.modelStatusToString(status).lower()}")
        columns = np.asarray(highs.getSolution().col_value)
        return columns, info.objective_function_value

    def _interrupt(self, kind: Any, message: str, output: Any, answer: Any, user: Any) -> None:
        now = perf_counter()
        if self._stopped is None and now - self._ticked > TICK_SECONDS:
            self._ticked = now
            try:
                self.tick()
            except BaseException as error:  # nothing may be raised through the solver's C++
                self._stopped = error
        if self._stopped is not None:
            answer.user_interrupt = True


def add_rows(
    highs: highspy.Highs,
    lower: np.ndarray,
    upper: np.ndarray,
    h: np.ndarray,
    starts: np.ndarray,
    signs: np.ndarray,
) -> None:
    """Add rows that apply the same features to several blocks of columns.

    Row r is the sum over blocks b of ``signs[b] * h[r] @ columns[starts[r, b]:][:D]``; zeros among
    the features are left out.

    Parameters
    ----------
    highs : Highs
    lower, upper : ndarray of float64, [rows]
    h : ndarray of float64, [rows, D]
    starts : ndarray of int, [rows, blocks]
        First column of each block.
    signs : ndarray of float64, [blocks]
    """
    rows, width = h.shape
    kept = np.flatnonzero(h)
    counts = np.count_nonzero(h, axis=1)
    # All blocks of one feature stand together, so that the zeros are looked for only once.
    feature = kept.astype(np.int32) - np.repeat(np.arange(rows, dtype=np.int32) * width, counts)
    columns = np.repeat(starts.astype(np.int32), counts, axis=0)
    columns += feature[:, None]
    values = h.ravel()[kept][:, None] * signs
    ends = np.cumsum(counts) * len(signs)
    begin = np.concatenate([[0], ends[:-1]]).astype(np.int32)
    highs.addRows(rows, lower, upper, values.size, begin, columns.ravel(), values.ravel())


class Entries(NamedTuple):
    """Entries of some columns, column after column.

    Attributes
    ----------
    counts : ndarray of int, [columns]
    rows : ndarray of int32, [entries]
    values : ndarray of float64, [entries]
    """

    counts: np.ndarray
    rows: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, rows: np.ndarray, signs: np.ndarray) -> "Entries":
        """Return those of one column for each feature, which stands with signs in some rows.

        Parameters
        ----------
        features : ndarray of float64, [columns, all rows]
            Zeros are left out.
        rows : ndarray of int, [S]
        signs : ndarray of float64, [S]
        """
        values = features.take(rows, axis=1) * signs
        there = values != 0
        # Positions are found once; a mask would be gone through for rows and for values.
        kept = np.flatnonzero(there)
        index = np.tile(rows.astype(np.int32), len(values))
        return cls(np.count_nonzero(there, axis=1), index.take(kept), values.ravel().take(kept))

    def negative(self) -> "Entries":
        """Return the entries with the other sign."""
        return Entries(self.counts, self.rows, -self.values)


def add_columns(
    highs: highspy.Highs,
    cost: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    entries: Sequence[Entries] | None = None,
) -> int:
    """Add columns, without entries unless they are given, and return the position of the first."""
    first = highs.getNumCol()
    if not entries:
        entries = [Entries(np.zeros(len(cost), int), np.zeros(0, np.int32), np.zeros(0))]
    counts, rows, values = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    begin = (np.cumsum(counts) - counts).astype(np.int32)
    highs.addCols(len(cost), cost, lower, upper, len(values), begin, rows, values)
    return first


def add_empty_rows(highs: highspy.Highs, lower: np.ndarray, upper: np.ndarray) -> None:
    """Add rows in which no column stands yet."""
    begin = np.zeros(len(lower), dtype=np.int32)
    highs.addRows(len(lower), lower, upper, 0, begin, begin[:0], np.zeros(0))
