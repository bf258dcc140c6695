"""The verifier Marabou as solver: bisection over verification queries, each in its own process."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
from modelfix_core.errors import Failure
from scipy import sparse

from modelfix_minimal_3m import marabou_query
from modelfix_minimal_3m.chain import Dense
from modelfix_minimal_3m.change import Change, Infeasible, Unsolved, norm_of
from modelfix_minimal_3m.encoding import Encoding, encode
from modelfix_minimal_3m.highs import TICK_SECONDS, Solver

TOLERANCE = 1e-7  # Marabou's, of its simplex
GRACE_SECONDS = 10.0  # beyond its own limit, before a query is ended from outside


class Marabou:
    """Finds the smallest change as the reference implementation does: by bisection on its norm.

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
        Where the bisection starts.
    interval : float
        Where it stops.
    solver : Solver
        For the limit of one query and the reports.
    memory : int
        Limit of one query in bytes.
    """

    def __init__(
        self,
        layers: Sequence[Dense],
        h: np.ndarray,
        y: np.ndarray,
        norm: str,
        margin: float,
        limit: float,
        interval: float,
        solver: Solver,
        memory: int,
    ) -> None:
        self.layers = layers
        self.h, self.y = h, y
        self.norm, self.margin = norm, margin
        self.limit, self.interval = limit, interval
        self.solver, self.memory = solver, memory

    def solve(self, count: int) -> Change:
        """Return a change that makes the first `count` points right, smallest to `interval`.

        Raises
        ------
        Infeasible, Unsolved
        Failure
            If Marabou is not installed.
        """
        if importlib.util.find_spec("maraboupy") is None:
            raise Failure(
                "engine 'marabou' needs the package maraboupy (Python 3.11): install "
                "modelfix-minimal-3m[verify], or choose engine 'lp_lazy', which needs nothing more"
            )
        best = self.query(count, self.limit)
        if best is None:
            raise Infeasible
        low, high = 0.0, norm_of(best, self.norm)
        while high - low > self.interval:
            middle = (low + high) / 2
            try:
                found = self.query(count, middle)
            except Unsolved:
                break  # what was found stays right; only its minimality is less certain
            if found is None:
                low = middle
            else:
                best, high = found, min(middle, norm_of(found, self.norm))
        name = self.layers[0].layer.weight
        return Change({name: best}, norm_of(best, self.norm), low, "marabou", TOLERANCE)

    def query(self, count: int, limit: float) -> np.ndarray | None:
        """Return a change of norm `limit` or less, [out, in], or None if there is none.

        Raises
        ------
        Unsolved
            If Marabou reaches a limit, crashes or does not know.
        """
        h, y = self.h[:count], self.y[:count]
        encoding = encode(self.layers, h, y, self.norm, self.margin, limit)
        if self.norm == "l1":
            encoding = bounded_sum(encoding, limit)
        with TemporaryDirectory() as folder:
            columns = self._run(encoding, Path(folder))
        return None if columns is None else columns[: encoding.weights].reshape(encoding.shape)

    def _run(self, encoding: Encoding, folder: Path) -> np.ndarray | None:
        rows = encoding.rows
        np.savez(
            folder / "query.npz",
            lower=encoding.lower,
            upper=encoding.upper,
            data=rows.data,
            indices=rows.indices,
            indptr=rows.indptr,
            row_lower=encoding.row_lower,
            row_upper=encoding.row_upper,
            relus=encoding.relus,
        )
        limits = [str(int(np.ceil(self.solver.seconds))), str(self.memory)]
        # As a file rather than a module: the query starts at once, without the package's imports.
        command = [sys.executable, "-P", marabou_query.__file__, *limits]
        # Marabou writes files of its own into the working folder.
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._wait(process)
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            raise Unsolved(
                f"Marabou ended with exit code {process.returncode}, most likely for want of "
                f"memory (limit {self.memory / 1e9:.1f} GB)"
            )
        answer = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
        if answer["status"] == "unsat":
            return None
        if answer["status"] != "sat":
            raise Unsolved(f"Marabou answered {answer['status']} (limit {self.solver.seconds:g} s)")
        return np.load(folder / "columns.npy", allow_pickle=False)

    def _wait(self, process: subprocess.Popen) -> None:
        start = perf_counter()
        while perf_counter() - start < self.solver.seconds + GRACE_SECONDS:
            try:
                process.wait(TICK_SECONDS)
                return
            except subprocess.TimeoutExpired:
                self.solver.tick()
        raise Unsolved(f"Marabou did not end within {self.solver.seconds:g} s")


def bounded_sum(encoding: Encoding, limit: float) -> Encoding:
    """Add that the absolute changes sum to `limit` or less, with ``|w| = relu(2 w) - w``."""
    weights, present = encoding.weights, len(encoding.lower)
    twice = present + np.arange(weights)
    index, one = np.arange(weights), np.ones(weights)
    total = present + 2 * weights
    doubled = sparse.csr_array(
        (
            np.concatenate([one, -2 * one]),
            (np.tile(index, 2), np.concatenate([twice, index])),
        ),
        shape=(weights, total),
    )
    summed = sparse.csr_array(
        (
            np.concatenate([one, -one]),
            (np.zeros(2 * weights, dtype=int), np.concatenate([twice + weights, index])),
        ),
        shape=(1, total),
    )
    zero = np.zeros(weights)
    return encoding.extended(
        np.concatenate([np.full(weights, -2 * limit), zero]),
        np.full(2 * weights, 2 * limit),
        sparse.vstack([doubled, summed], format="csr"),
        np.concatenate([zero, [-np.inf]]),
        np.concatenate([zero, [limit]]),
        np.stack([twice, twice + weights], axis=1),
    )
