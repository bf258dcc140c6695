"""What the statistics know of a metric: which way is better, and how its values become scores."""

import difflib
from dataclasses import dataclass
from typing import Literal

from modelfix_stats.errors import StatsError

Scoring = Literal["change", "value", "time"]


@dataclass(frozen=True)
class Metric:
    """A metric as the statistics see it.

    Attributes
    ----------
    id : str
        As in the data frames.
    title : str
        Head of a column.
    higher : bool
        Whether higher values are better.
    scoring : {"change", "value", "time"}
        ``change``: scored relative to the original model; ``value``: relative to it by definition
        already; ``time``: seconds.
    percent : bool
        Whether values in [0, 1] are printed in percent.
    decimals, spread_decimals : int
        Printed digits of mean and standard deviation.
    noisy : bool
        Whether measuring it twice on one model gives two values (an attack, a clock): then even
        a deterministic entrant has replications.
    """

    id: str
    title: str
    higher: bool
    scoring: Scoring
    percent: bool = True
    decimals: int = 2
    spread_decimals: int = 3
    noisy: bool = False

    @property
    def sign(self) -> int:
        """Return 1 where higher is better, else -1."""
        return 1 if self.higher else -1

    @property
    def attacked(self) -> bool:
        """Whether inputs are attacked, each entrant's on its own pool of correct inputs."""
        return self.noisy and self.scoring != "time"

    @property
    def shown(self) -> float:
        """Return the factor from stored to printed values."""
        return 100.0 if self.percent else 1.0


def _aaod(id: str) -> Metric:
    return Metric(id, "AAOD", False, "change", percent=False, decimals=4)


def _asr(id: str, title: str = "ASR", *, higher: bool = False) -> Metric:
    return Metric(id, title, higher, "change", noisy=True)


METRICS = {
    metric.id: metric
    for metric in (
        Metric("accuracy", "ACC", True, "change"),
        Metric("repair_rate", "RR", True, "value"),
        Metric("repair_rate_printed", "RR over N", True, "value"),
        _asr("asr"),
        _asr("asr_study"),
        _asr("asr_margin"),
        _asr("asr_printed"),
        _asr("asr_conditional"),
        _asr("robust_accuracy", "robust ACC", higher=True),
        _aaod("aaod"),
        _aaod("aaod_study"),
        _aaod("aaod_soft"),
        _aaod("aaod_max"),
        Metric("nfr", "NFR", False, "value"),
        Metric("seconds", "time", False, "time", percent=False, decimals=1, noisy=True),
    )
}


def find_metric(id: str) -> Metric:
    """Return a metric by id.

    Raises
    ------
    StatsError
        If there is none; names the nearest.
    """
    if id in METRICS:
        return METRICS[id]
    near = difflib.get_close_matches(id, METRICS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(METRICS)}."
    raise StatsError(f"no metric is called {id!r}; {hint}")
