"""A changed layer, ReLU and fixed layers up to the logits, as linear rows and ReLU pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from modelfix_minimal_3m.chain import Dense


@dataclass(frozen=True)
class Encoding:
    """Columns with bounds, rows between bounds, and pairs of columns joined by ReLU.

    Attributes
    ----------
    lower, upper : ndarray of float64, [columns]
        Finite. The first columns are the changes of the weights, row by row.
    rows : csr_array of float64, [rows, columns]
    row_lower, row_upper : ndarray of float64, [rows]
    relus : ndarray of int64, [R, 2]
        Columns before and after each ReLU.
    shape : (int, int)
        Of the change: ``[out, in]``.
    """

    lower: np.ndarray
    upper: np.ndarray
    rows: sparse.csr_array
    row_lower: np.ndarray
    row_upper: np.ndarray
    relus: np.ndarray
    shape: tuple[int, int]

    @property
    def weights(self) -> int:
        """Number of weights that may change."""
        return self.shape[0] * self.shape[1]

    def extended(
        self,
        lower: np.ndarray,
        upper: np.ndarray,
        rows: sparse.sparray,
        row_lower: np.ndarray,
        row_upper: np.ndarray,
        relus: np.ndarray | None = None,
    ) -> "Encoding":
        """Return a copy with more columns behind the present ones, and more rows over all."""
        wider = sparse.csr_array(
            (self.rows.data, self.rows.indices, self.rows.indptr),
            shape=(self.rows.shape[0], self.rows.shape[1] + len(lower)),
        )
        return Encoding(
            np.concatenate([self.lower, lower]),
            np.concatenate([self.upper, upper]),
            sparse.vstack([wider, rows], format="csr"),
            np.concatenate([self.row_lower, row_lower]),
            np.concatenate([self.row_upper, row_upper]),
            self.relus if relus is None else np.concatenate([self.relus, relus]),
            self.shape,
        )


def encode(
    layers: Sequence[Dense], h: np.ndarray, y: np.ndarray, norm: str, margin: float, limit: float
) -> Encoding:
    """Encode which changes of the first layer make all points right.

    Values of points are laid out neuron by neuron: column ``neuron * k + point``.

    Parameters
    ----------
    layers : sequence of Dense
        From the changed layer to the logits, with ReLU between each two.
    h : ndarray of float64, [k, D]
        Input of the changed layer.
    y : ndarray of int64, [k]
    norm : {"l1", "linf"}
        With `limit` it bounds how far the layer's output can move.
    margin : float
    limit : float
        Largest allowed norm of the change.

    Returns
    -------
    Encoding
    """
    points, width = h.shape
    outputs = len(layers[0].bias)
    size = outputs * width
    base = Encoding(
        np.full(size, -limit),
        np.full(size, limit),
        sparse.csr_array((0, size)),
        np.zeros(0),
        np.zeros(0),
        np.zeros((0, 2), dtype=int),
        (outputs, width),
    )
    moved = sparse.kron(sparse.eye_array(outputs), h, format="csr")
    values = layers[0](h).T.reshape(-1)
    if len(layers) == 1:
        return _labels(base, moved, values, outputs, y, margin)
    reach = limit * (np.abs(h).sum(axis=1) if norm == "linf" else np.abs(h).max(axis=1))
    reach = np.tile(reach, outputs)
    encoding, after = _relu(base, moved, values, values - reach, values + reach)
    for dense in layers[1:-1]:
        pass_on = sparse.kron(dense.weight, sparse.eye_array(points), format="csr")
        low, high = encoding.lower[after], encoding.upper[after]
        positive, negative = pass_on.maximum(0), pass_on.minimum(0)
        offset = np.repeat(dense.bias, points)
        encoding, after = _relu(
            encoding,
            _at(pass_on, after, len(encoding.lower)),
            offset,
            positive @ low + negative @ high + offset,
            positive @ high + negative @ low + offset,
        )
    last = layers[-1]
    pass_on = sparse.kron(last.weight, sparse.eye_array(points), format="csr")
    logits = _at(pass_on, after, len(encoding.lower))
    offset = np.repeat(last.bias, points)
    return _labels(encoding, logits, offset, len(last.bias), y, margin)


def _at(matrix: sparse.csr_array, columns: np.ndarray, total: int) -> sparse.csr_array:
    """Move the columns of `matrix`, which stand for consecutive `columns`, to their place."""
    before = sparse.csr_array((matrix.shape[0], columns[0]))
    behind = sparse.csr_array((matrix.shape[0], total - columns[-1] - 1))
    return sparse.hstack([before, matrix, behind], format="csr")


def _relu(
    encoding: Encoding,
    matrix: sparse.csr_array,
    offset: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
) -> tuple[Encoding, np.ndarray]:
    """Add ``before = matrix columns + offset`` and its ReLU; return the columns of the latter."""
    count, present = len(offset), len(encoding.lower)
    before = present + np.arange(count)
    nothing = sparse.csr_array((count, count))
    rows = sparse.hstack([-matrix, sparse.eye_array(count), nothing], format="csr")
    relus = np.stack([before, before + count], axis=1)
    encoding = encoding.extended(
        np.concatenate([lower, np.maximum(lower, 0)]),
        np.concatenate([upper, np.maximum(upper, 0)]),
        rows,
        offset,
        offset,
        relus,
    )
    return encoding, before + count


def _labels(
    encoding: Encoding,
    logits: sparse.csr_array,
    offset: np.ndarray,
    classes: int,
    y: np.ndarray,
    margin: float,
) -> Encoding:
    """Add that the logits ``logits columns + offset`` are largest at the labels by `margin`."""
    point, rival = np.nonzero(np.arange(classes) != y[:, None])
    own, other = y[point] * len(y) + point, rival * len(y) + point
    rows = logits[own] - logits[other]
    needed = margin - offset[own] + offset[other]
    none = np.zeros(0)
    return encoding.extended(none, none, rows, needed, np.full(len(needed), np.inf))
