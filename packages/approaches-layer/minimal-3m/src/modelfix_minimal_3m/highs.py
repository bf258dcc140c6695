"""The solver HiGHS with limits: it reports progress while it works and stops when told to."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import highspy
import numpy as np
from highspy import cb

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
    """How programs are solved: one thread, a fixed seed, limited time.

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
        highs = highspy.Highs()
        highs.setOptionValue("output_flag", False)
        highs.setOptionValue("threads", 1)
        highs.setOptionValue("random_seed", 0)
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
    columns: np.ndarray,
    values: np.ndarray,
) -> None:
    """Add rows with equally many entries each; zeros among them are left out.

    Parameters
    ----------
    highs : Highs
    lower, upper : ndarray of float64, [rows]
    columns : ndarray of int, [rows, entries]
    values : ndarray of float64, [rows, entries]
    """
    ends = np.cumsum(np.count_nonzero(values, axis=1))
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int32)
    kept = np.flatnonzero(values)
    index = columns.ravel()[kept].astype(np.int32, copy=False)
    highs.addRows(len(lower), lower, upper, len(kept), starts, index, values.ravel()[kept])


def add_columns(
    highs: highspy.Highs, cost: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> int:
    """Add columns that no row has yet, and return the position of the first."""
    first = highs.getNumCol()
    none, starts = np.zeros(0), np.zeros(len(cost), dtype=np.int32)
    highs.addCols(len(cost), cost, lower, upper, 0, starts, none.astype(np.int32), none)
    return first
