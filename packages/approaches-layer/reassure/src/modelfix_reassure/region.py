"""The linear region of a pattern, and the smallest patch that makes a whole region right."""

from dataclasses import dataclass

import highspy
import numpy as np
from modelfix_core.highs import QuietHighs

from modelfix_reassure.block import Block

SIMPLEX_FEATURES = 300  # above, interior point was faster (specification section 7)
TOLERANCE = 1e-7  # HiGHS's, of constraints and of optima
OPTIMUM_TOLERANCE = 1e-7  # relative gap at which HiGHS's interior point stops, rounded up


@dataclass(frozen=True)
class Region:
    """All features of a box that share one activation pattern, and the block's map there.

    Attributes
    ----------
    a : ndarray of float64, [m, d]
    b : ndarray of float64, [m]
        ``a h <= b`` for every hidden neuron (section 4.1).
    f : ndarray of float64, [K, d]
    g : ndarray of float64, [K]
        The logits are ``f h + g`` in the region.
    lower, upper : ndarray of float64, [d]
        The box.
    """

    a: np.ndarray
    b: np.ndarray
    f: np.ndarray
    g: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    def binding(self) -> np.ndarray:
        """Return which rows a point of the box can violate, bool [m]; the others say nothing."""
        return _box_maximum(self.a, self.lower, self.upper) > self.b


@dataclass(frozen=True)
class Patch:
    """What makes one region right.

    Attributes
    ----------
    values : ndarray of float64, [K]
        What is added to the logits in the region.
    excesses : ndarray of float64, [K]
        By how much each class exceeds `label` in the region at most, before the patch.
    label : int
    constraints : int
        Rows that describe the region, one for each hidden neuron.
    faces : int
        Of these, rows that a point within the box can violate; the others say nothing.
    """

    values: np.ndarray
    excesses: np.ndarray
    label: int
    constraints: int
    faces: int

    @property
    def margin(self) -> float:
        """By how much `label` wins everywhere in the region, at least."""
        rivals = np.arange(len(self.values)) != self.label
        lead = self.values[self.label] - self.values - self.excesses
        return float(lead[rivals].min())


class NotSolved(Exception):
    """The linear programs of a region could not be solved; the message says why."""


def build_region(block: Block, pattern: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> Region:
    """Assemble the region of `pattern` by matrix products (section 4.1).

    Parameters
    ----------
    block : Block
    pattern : ndarray of bool, [sum of hidden]
    lower, upper : ndarray of float64, [d]
    """
    rows, bounds = [], []
    first = block.maps[0]
    m, c = first.weight, first.bias
    for active, slope, affine in zip(
        block.layers_of(pattern), block.slopes, block.maps[1:], strict=True
    ):
        sign = np.where(active, -1.0, 1.0)
        rows.append(sign[:, None] * m)
        bounds.append(-sign * c)
        gain = np.where(active, 1.0, slope)
        m = affine.weight @ (gain[:, None] * m)
        c = affine.weight @ (gain * c) + affine.bias
    return Region(np.concatenate(rows), np.concatenate(bounds), m, c, lower, upper)


@dataclass(frozen=True)
class Solver:
    """How the linear programs are solved.

    Attributes
    ----------
    seconds : float
        Limit for all programs of one region.
    method : str
        ``simplex``, ``ipm``, or ``auto`` to choose by the number of features.
    early_exit : bool
        Stop a program as soon as it cannot be the worst.
    """

    seconds: float = 60.0
    method: str = "auto"
    early_exit: bool = True

    def excesses(self, region: Region, label: int, inside: np.ndarray) -> np.ndarray:
        """Bound how far each class can exceed `label` in the region (section 4.3).

        The largest entry is exact. With `early_exit` others may be upper bounds that do not exceed
        it.

        Parameters
        ----------
        region : Region
        label : int
        inside : ndarray of float64, [d]
            A point of the region.

        Returns
        -------
        ndarray of float64, [K]
            ``max over h of (f_j - f_label)(h)``; minus infinity at `label`.

        Raises
        ------
        NotSolved
            If the time is up or the solver gives no optimum.
        """
        slope = region.f - region.f[label]
        offset = region.g - region.g[label]
        simple = _box_maximum(slope, region.lower, region.upper) + offset
        result = np.full(len(offset), -np.inf)
        # The point itself shows how bad it gets at least: programs below that need not be solved.
        worst = float(np.max(np.delete(slope @ inside + offset, label)))
        highs = self._start(region)
        for j in np.argsort(-simple, kind="stable"):
            if j == label:
                continue
            if self.early_exit and simple[j] <= worst:
                result[j] = simple[j]
                continue
            optimum = self._maximum(highs, slope[j], worst - offset[j])
            result[j] = worst if optimum is None else optimum + offset[j]
            worst = max(worst, result[j])
        return result

    def _start(self, region: Region) -> highspy.Highs:
        highs = QuietHighs()
        highs.setOptionValue("time_limit", float(self.seconds))
        if self._uses_simplex(region):
            highs.setOptionValue("solver", "simplex")
        else:
            highs.setOptionValue("solver", "ipm")
            highs.setOptionValue("run_crossover", "off")
        if highs.passModel(_program(region)) == highspy.HighsStatus.kError:
            raise NotSolved("the solver refused the region")
        return highs

    def _uses_simplex(self, region: Region) -> bool:
        if self.method != "auto":
            return self.method == "simplex"
        return region.a.shape[1] <= SIMPLEX_FEATURES

    def _maximum(self, highs: highspy.Highs, cost: np.ndarray, known: float) -> float | None:
        """Return max of ``cost h``, or None once it is known not to exceed `known`."""
        highs.changeColsCost(len(cost), np.arange(len(cost), dtype=np.int32), -cost)
        if self.early_exit:
            highs.setOptionValue("objective_bound", -known)
        highs.run()
        status = highs.getModelStatus()
        if status == highspy.HighsModelStatus.kObjectiveBound:
            return None
        if status != highspy.HighsModelStatus.kOptimal:
            raise NotSolved(highs.modelStatusToString(status).lower())
        optimum = -highs.getInfo().objective_function_value
        if highs.getBasis().valid:
            return optimum
        # Interior point stops short of the corner: add what it may have missed.
        return optimum + OPTIMUM_TOLERANCE * (1.0 + abs(optimum))


def constant_patch(excesses: np.ndarray, label: int, tau: float) -> np.ndarray:
    """Return the constant patch of least infinity norm that makes `label` win (section 4.3).

    Parameters
    ----------
    excesses : ndarray of float64, [K]
        As `Solver.excesses` gives them.
    label : int
    tau : float
        By how much the label must win at least.

    Returns
    -------
    ndarray of float64, [K]
        Its norm is half of the largest excess plus `tau`: raising the label and lowering a rival
        share what is needed, and no affine patch can do with less at the worst point.
    """
    norm = max(0.0, float(excesses.max()) + tau) / 2
    patch = -np.maximum(0.0, excesses + tau - norm)
    patch[label] = norm
    return patch


def _box_maximum(rows: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    return np.maximum(rows, 0) @ upper + np.minimum(rows, 0) @ lower


def _program(region: Region) -> highspy.HighsLp:
    binding = region.binding()
    a, b = region.a[binding], region.b[binding]
    rows, columns = a.shape
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = columns, rows
    lp.col_cost_ = np.zeros(columns)
    lp.col_lower_, lp.col_upper_ = region.lower, region.upper
    lp.row_lower_, lp.row_upper_ = np.full(rows, -highspy.kHighsInf), b
    row, column = np.nonzero(a)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.searchsorted(row, np.arange(rows + 1)).astype(np.int32)
    lp.a_matrix_.index_ = column.astype(np.int32)
    lp.a_matrix_.value_ = a[row, column]
    return lp
