# environment: stats
"""Statistics of 50 entrants: letters, and the comparison of all pairs.

Letters: the baseline is scikit-posthocs' compact letter display; ours without the sweep must give
the same letters. Pairs: the baseline tests one pair after the other; ours (tests, correction,
effect sizes, ranking and letters) must give the same p values.
"""

import argparse
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from time import process_time
from typing import TypeVar

import numpy as np
import pandas as pd
import scikit_posthocs
from modelfix_stats import compact_letters, compare
from scipy import stats

T = TypeVar("T")
ENTRANTS, SUBJECTS, REPETITIONS = 50, 5, 3


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return the result and the processor time of `work`."""
    started = process_time()
    return work(), process_time() - started


def made_up(rng: np.random.Generator) -> pd.DataFrame:
    """Return repair rates of entrants on subjects."""
    shape = (ENTRANTS, SUBJECTS, REPETITIONS)
    values = rng.uniform(0.2, 0.6, (ENTRANTS, 1, 1)) + rng.normal(0, 0.05, shape)
    e, s, r = np.indices(shape).reshape(3, -1)
    frame = {"entrant": [f"e{i:02d}" for i in e], "subject": [f"s{i}" for i in s], "repetition": r}
    return pd.DataFrame({**frame, "metric": "repair_rate", "value": values.ravel()})


def graph(rng: np.random.Generator) -> np.ndarray:
    """Return which of 50 entrants differ: those whose scores are far apart, with some noise."""
    scores = np.sort(rng.normal(size=ENTRANTS))[::-1]
    noise = 0.05 * rng.normal(size=(ENTRANTS, ENTRANTS))
    upper = np.triu(np.abs(scores[:, None] - scores + noise) > 0.6, 1)
    return upper | upper.T


def letters(different: np.ndarray) -> dict:
    """Compare the letter display with scikit-posthocs'."""
    names = [f"e{i:02d}" for i in range(ENTRANTS)]
    p = pd.DataFrame(np.where(different, 0.001, 0.9), index=names, columns=names)
    theirs, slow = timed(lambda: scikit_posthocs.compact_letter_display(p, alpha=0.05))
    ours, fast = timed(lambda: compact_letters(names, different, sweep=False))
    members: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        for word in theirs[name].replace(" ", ""):
            members.setdefault(word, []).append(position)
    assert ours is not None
    assert sorted(map(tuple, members.values())) == sorted(ours.columns)
    _, swept = timed(lambda: compact_letters(names, different))
    return report("stats-letters", slow, fast, letters=len(ours.columns), with_sweep_seconds=swept)


def one_pair_each(frame: pd.DataFrame) -> dict[frozenset, float]:
    """Return the p value of every pair by the stratified Welch test, one after the other."""
    cells = {key: part["value"] for key, part in frame.groupby(["entrant", "subject"])}
    found = {}
    for a, b in combinations(sorted(frame["entrant"].unique()), 2):
        difference, terms, squares = 0.0, 0.0, 0.0
        for subject in frame["subject"].unique():
            x, y = 100 * cells[a, subject], 100 * cells[b, subject]
            difference += (x.mean() - y.mean()) / SUBJECTS
            for values in (x, y):
                term = values.var() / len(values) / SUBJECTS**2
                terms += term
                squares += term**2 / (len(values) - 1)
        t = difference / np.sqrt(terms)
        found[frozenset((a, b))] = 2 * stats.t.sf(abs(t), terms**2 / squares)
    return found


def pairs(frame: pd.DataFrame) -> dict:
    """Compare the whole comparison with a loop that does the tests alone."""
    theirs, slow = timed(lambda: one_pair_each(frame))
    ours, fast = timed(lambda: compare(frame, "repair_rate"))
    for row in ours.pairs.itertuples():
        np.testing.assert_allclose(row.p, theirs[frozenset((row.a, row.b))], rtol=1e-9)
    return report("stats-pairs", slow, fast, pairs=len(theirs))


def report(name: str, slow: float, fast: float, **values: float) -> dict:
    """Print the ratio and return it with the seconds."""
    print(f"{name}: ratio {slow / fast:.1f} x (baseline {slow:.3f} s, ours {fast:.3f} s)")
    seconds = {"baseline_seconds": slow, "ours_seconds": fast}
    return {"name": name, "ratio": slow / fast, **seconds, **values}


def main(arguments: list[str] | None = None) -> list[dict]:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write JSON lines to this file")
    options = parser.parse_args(arguments)
    frame = made_up(np.random.default_rng(0))
    compare(frame.iloc[: 2 * SUBJECTS * REPETITIONS], "repair_rate")  # imports before the clock
    results = [letters(graph(np.random.default_rng(0))), pairs(frame)]
    if options.json is not None:
        options.json.write_text("".join(json.dumps(result) + "\n" for result in results))
    return results


if __name__ == "__main__":
    main()
