"""One verification query in a process of its own, since Marabou aborts where memory ends.

``python marabou_query.py SECONDS BYTES`` reads ``query.npz`` in the working
folder and writes ``answer.json`` and, where there is one, the assignment as ``columns.npy``.
"""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np


def main() -> None:
    """Answer the query."""
    seconds, memory = (int(argument) for argument in sys.argv[1:])
    _limit(memory)
    from maraboupy import MarabouCore

    with np.load("query.npz", allow_pickle=False) as file:
        arrays = dict(file)
    query = _query(MarabouCore, arrays)
    options = MarabouCore.Options()
    options._timeoutInSeconds = seconds
    options._verbosity = 0
    status, values, _ = MarabouCore.solve(query, options, "")
    if status == "sat":
        np.save("columns.npy", np.array([values[i] for i in range(len(arrays["lower"]))]))
    Path("answer.json").write_text(json.dumps({"status": status}), encoding="utf-8")


def _limit(memory: int) -> None:
    # Not every system has the module or lets a process limit itself.
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _query(core, arrays: dict[str, np.ndarray]):
    query = core.InputQuery()
    query.setNumberOfVariables(len(arrays["lower"]))
    for column, (lower, upper) in enumerate(zip(arrays["lower"], arrays["upper"], strict=True)):
        query.setLowerBound(column, float(lower))
        query.setUpperBound(column, float(upper))
    for row in range(len(arrays["row_lower"])):
        query.addEquation(_equation(core, arrays, row))
    for before, after in arrays["relus"]:
        core.addReluConstraint(query, int(before), int(after))
    return query


def _equation(core, arrays: dict[str, np.ndarray], row: int):
    lower, upper = arrays["row_lower"][row], arrays["row_upper"][row]
    kind = core.Equation.EquationType
    if lower == upper:
        equation, scalar = core.Equation(kind.EQ), lower
    elif np.isinf(upper):
        equation, scalar = core.Equation(kind.GE), lower
    else:
        equation, scalar = core.Equation(kind.LE), upper
    entries = slice(arrays["indptr"][row], arrays["indptr"][row + 1])
    for value, column in zip(arrays["data"][entries], arrays["indices"][entries], strict=True):
        equation.addAddend(float(value), int(column))
    equation.setScalar(float(scalar))
    return equation


if __name__ == "__main__":
    main()
