"""The smallest change of an inner layer: a mixed-integer program."""

from collections.abc import Sequence

import highspy
import numpy as np
from scipy import sparse

from modelfix_minimal_3m.chain import Dense
from modelfix_minimal_3m.change import Change, Infeasible, norm_of, reduce
from modelfix_minimal_3m.encoding import Encoding, encode
from modelfix_minimal_3m.highs import TOLERANCE, Solver

# The first bound on the change is this part of the limit; it grows until a change exists. Tight
# bounds fix most ReLUs, and an optimum within a bound is the optimum.
FIRST_BOUND = 4.0**-6
GROWTH = 4.0


class InnerLayer:
    """Finds the smallest change of a layer that others follow.

    Parameters
    ----------
    layers : sequence of Dense
        From the changed layer to the logits.
    h : ndarray of float64, [k, D]
        Input of the changed layer for all points.
    y : ndarray of int64, [k]
    norm : {"l1", "linf"}
    margin : float
    limit : float
        Largest allowed norm of the change.
    solver : Solver
    """

    def __init__(
        self,
        layers: Sequence[Dense],
        h: np.ndarray,
        y: np.ndarray,
        norm: str,
        margin: float,
        limit: float,
        solver: Solver,
    ) -> None:
        self.layers = layers
        self.h, self.y = h, y
        self.norm, self.margin, self.limit = norm, margin, limit
        self.solver = solver

    def solve(self, count: int) -> Change:
        """Return the smallest change that makes the first `count` points right.

        When the time is up it is the smallest found so far, and the lower bound says how far from
        the smallest it may be.

        Raises
        ------
        Infeasible, Unsolved
        """
        features, expansion = reduce(self.h[:count], self.norm)
        first = self.layers[0]
        for bound in self._bounds():
            try:
                change, lower = self._within(features, expansion, count, bound)
            except Infeasible:
                continue
            name = first.layer.weight
            return Change(
                {name: change}, norm_of(change, self.norm), lower, "highs-milp", TOLERANCE
            )
        raise Infeasible

    def _bounds(self) -> list[float]:
        bounds, bound = [], self.limit * FIRST_BOUND
        while bound < self.limit:
            bounds.append(bound)
            bound *= GROWTH
        return [*bounds, self.limit]

    def _within(
        self, features: np.ndarray, expansion: np.ndarray | None, count: int, bound: float
    ) -> tuple[np.ndarray, float]:
        """Return the smallest change within `bound` and a lower bound of its cost."""
        layers = self.layers
        if expansion is not None:
            # One feature stands for all: the layer's own output must be given as an offset.
            offset = layers[0](self.h[:count])[0]
            single = np.zeros((len(offset), 1))
            layers = [Dense(layers[0].layer, single, offset), *layers[1:]]
        encoding = encode(layers, features, self.y[:count], self.norm, self.margin, bound)
        highs = self.solver.start()
        highs.passModel(_program(encoding, self.norm))
        columns, _ = self.solver.run(highs, incumbent=True)
        change = columns[: encoding.weights].reshape(encoding.shape)
        lower = float(highs.getInfo().mip_dual_bound)
        return (change if expansion is None else change @ expansion), lower


def _program(encoding: Encoding, norm: str) -> highspy.HighsLp:
    """Write ReLUs with binary columns, and the norm as what is minimised."""
    encoding, binary = _with_binaries(encoding)
    encoding, cost = _with_norm(encoding, norm)
    lp = highspy.HighsLp()
    lp.num_row_, lp.num_col_ = encoding.rows.shape
    lp.col_cost_ = cost
    lp.col_lower_, lp.col_upper_ = encoding.lower, encoding.upper
    lp.row_lower_, lp.row_upper_ = encoding.row_lower, encoding.row_upper
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = encoding.rows.indptr.astype(np.int32)
    lp.a_matrix_.index_ = encoding.rows.indices.astype(np.int32)
    lp.a_matrix_.value_ = encoding.rows.data
    kinds = np.full(lp.num_col_, highspy.HighsVarType.kContinuous)
    kinds[binary] = highspy.HighsVarType.kInteger
    lp.integrality_ = list(kinds)
    return lp


def _with_binaries(encoding: Encoding) -> tuple[Encoding, np.ndarray]:
    """Add what ReLU means; only those whose sign is open need a binary column."""
    before, after = encoding.relus.T
    lower, upper = encoding.lower[before], encoding.upper[before]
    fixed = lower >= 0
    encoding = _equal(encoding, after[fixed], before[fixed])
    is_open = (lower < 0) & (upper > 0)
    before, after, lower, upper = (v[is_open] for v in (before, after, lower, upper))
    count, present = len(before), len(encoding.lower)
    binary = present + np.arange(count)
    row, one = np.arange(count), np.ones(count)
    total = (count, present + count)

    def rows(*entries: tuple[np.ndarray, np.ndarray]) -> sparse.csr_array:
        values = np.concatenate([value for _, value in entries])
        columns = np.concatenate([column for column, _ in entries])
        return sparse.csr_array((values, (np.tile(row, len(entries)), columns)), shape=total)

    # after >= before;  after <= before - lower (1 - binary);  after <= upper binary
    added = [
        rows((after, one), (before, -one)),
        rows((after, one), (before, -one), (binary, -lower)),
        rows((after, one), (binary, -upper)),
    ]
    row_lower = np.concatenate([np.zeros(count), np.full(2 * count, -np.inf)])
    row_upper = np.concatenate([np.full(count, np.inf), -lower, np.zeros(count)])
    encoding = encoding.extended(
        np.zeros(count), one, sparse.vstack(added, format="csr"), row_lower, row_upper
    )
    return encoding, binary


def _equal(encoding: Encoding, left: np.ndarray, right: np.ndarray) -> Encoding:
    count = len(left)
    values = np.repeat([1.0, -1.0], count)
    index = (np.tile(np.arange(count), 2), np.concatenate([left, right]))
    rows = sparse.csr_array((values, index), shape=(count, len(encoding.lower)))
    none, zero = np.zeros(0), np.zeros(count)
    return encoding.extended(none, none, rows, zero, zero)


def _with_norm(encoding: Encoding, norm: str) -> tuple[Encoding, np.ndarray]:
    """Add columns that are at least the absolute changes, one (``linf``) or one for each weight.

    The bound holds for their sum: the intervals of the encoding rest on it.
    """
    weights, present = encoding.weights, len(encoding.lower)
    extra = 1 if norm == "linf" else weights
    bound = encoding.upper[:weights].max(initial=0.0)
    row, one = np.arange(weights), np.ones(weights)
    column = np.concatenate([row, present + (row if norm == "l1" else 0 * row)])
    total = present + extra

    def rows(sign: float) -> sparse.csr_array:
        values = np.concatenate([sign * one, one])
        return sparse.csr_array((values, (np.tile(row, 2), column)), shape=(weights, total))

    summed = sparse.csr_array(np.concatenate([np.zeros(present), np.ones(extra)])[None])
    encoding = encoding.extended(
        np.zeros(extra),
        np.full(extra, bound),
        sparse.vstack([rows(1.0), rows(-1.0), summed], format="csr"),
        np.zeros(2 * weights + 1),
        np.append(np.full(2 * weights, np.inf), bound),
    )
    return encoding, np.concatenate([np.zeros(present), np.ones(extra)])
