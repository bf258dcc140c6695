"""Data frames to compare: the study's tables, and small made-up results."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from modelfix_stats import Summary, published


@pytest.fixture(scope="session")
def study() -> Summary:
    """The study's tables 3, 5 and 6."""
    return published()


@pytest.fixture(scope="session")
def golden():
    """Read a table of expected values."""
    folder = Path(__file__).parent / "data"
    return lambda name: pd.read_csv(folder / f"{name}.csv")


@pytest.fixture
def results():
    """Make a long frame of one metric from {entrant: {subject: [values]}}."""

    def make(values: dict, metric: str = "repair_rate", **columns) -> pd.DataFrame:
        rows = [
            {"entrant": e, "subject": s, "repetition": r, "metric": metric, "value": v, **columns}
            for e, by_subject in values.items()
            for s, scores in by_subject.items()
            for r, v in enumerate(scores)
        ]
        return pd.DataFrame(rows)

    return make


@pytest.fixture
def random_results(results):
    """Make repetitions of some entrants on some subjects."""

    def make(seed: int = 0, entrants: int = 4, subjects: int = 3, repetitions: int = 3):
        rng = np.random.default_rng(seed)
        level = rng.uniform(0.2, 0.6, (entrants, 1, 1))
        values = level + rng.normal(0, 0.05, (entrants, subjects, repetitions))
        return results(
            {
                f"e{e}": {f"s{s}": list(values[e, s]) for s in range(subjects)}
                for e in range(entrants)
            }
        )

    return make
