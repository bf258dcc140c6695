"""Statistics over test inputs, from stored predictions: the noise that repetitions do not show.

Inputs that agree in everything that matters form one *pattern*. Resampling inputs is then drawing
multinomial counts of a few patterns, which is the bootstrap exactly, at a fraction of its cost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from modelfix_stats.errors import StatsError

DRAWS = 9_999
CHUNK = 4_000_000  # counts drawn at once
REQUIRED = ["subject", "entrant", "repetition", "input", "correct_before", "correct_after"]
ATTACKS = ("asr", "asr_margin", "asr_study")
NEEDED = {
    **dict.fromkeys(("accuracy", "repair_rate", "nfr"), ("correct_before", "correct_after")),
    **dict.fromkeys(ATTACKS, ("attacked_before", "attacked_after")),
    "aaod": ("label", "group", "predicted_before", "predicted_after"),
}

Estimate = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float
    p: float
    """Two-sided bootstrap p value of the value being 0."""


def check_inputs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return outcomes per input, checked.

    Parameters
    ----------
    frame : DataFrame
        One row per (subject, entrant, repetition, input) with bool ``correct_before`` and
        ``correct_after``. For the attack ``attacked_before`` and ``attacked_after``: whether the
        attacked input is still right (missing: not attacked). For fairness ``label``, ``group``,
        ``predicted_before``, ``predicted_after``.

    Raises
    ------
    StatsError
        For missing columns or duplicates.
    """
    missing = [column for column in REQUIRED if column not in frame]
    if missing:
        raise StatsError(f"the outcomes per input lack the column {', '.join(missing)}.")
    if frame.duplicated(REQUIRED[:4]).any():
        raise StatsError(f"the outcomes per input have two rows of one {', '.join(REQUIRED[:4])}.")
    return frame


def supports(inputs: pd.DataFrame, metric: str) -> bool:
    """Return whether outcomes per input have what a metric needs.

    Parameters
    ----------
    inputs : DataFrame
    metric : str

    Returns
    -------
    bool
    """
    return metric in NEEDED and all(
        column in inputs and inputs[column].notna().any() for column in NEEDED[metric]
    )


def bootstrap(
    inputs: pd.DataFrame, metric: str, *, draws: int = DRAWS, seed: int = 0, runs: bool = False
) -> Interval:
    """Return a metric of one entrant on one subject with its interval over test inputs.

    The same resampled inputs serve the original and the fixed model; inputs are resampled within
    class and group where these are given.

    Parameters
    ----------
    inputs : DataFrame
        As in `check_inputs`, of one subject and entrant.
    metric : str
        accuracy, asr (and its kinds) and aaod: difference to the original towards better, in
        points; repair_rate: percent; nfr: negative percent.
    draws : int
    seed : int
    runs : bool
        Whether to draw a repetition first, then inputs of it: the interval covers both sources
        of noise and is a percentile interval; else the first repetition with BCa.

    Returns
    -------
    Interval

    Raises
    ------
    StatsError
        If columns that the metric needs are missing.
    """
    rng = np.random.default_rng(seed)
    repetitions = [part for _, part in check_inputs(inputs).groupby("repetition", sort=True)]
    samples = [_sample([part], metric) for part in (repetitions if runs else repetitions[:1])]
    if not runs:
        return _bca(samples[:1], np.ones(1), draws, rng)
    sizes = rng.multinomial(draws, np.full(len(samples), 1 / len(samples)))
    drawn = np.concatenate([s.draw(n, rng) for s, n in zip(samples, sizes, strict=True) if n])
    value = float(np.mean([s.value for s in samples]))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high), _p_value(drawn))


def difference(
    inputs: pd.DataFrame,
    a: str,
    b: str,
    metric: str,
    *,
    weights: dict[str, float] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Return the difference of two entrants, averaged over subjects, over the same inputs.

    Parameters
    ----------
    inputs : DataFrame
        As in `check_inputs`; the first repetition of each entrant is used.
    a, b : str
        Entrants.
    metric : str
    weights : dict of str to float, optional
        Of the subjects; default: equal over those that both have.
    draws, seed : int

    Returns
    -------
    Interval
        In the units of `bootstrap`; BCa.

    Raises
    ------
    StatsError
        If the entrants share no subject or not the same inputs.
    """
    checked = check_inputs(inputs)
    both = [_first(checked[checked["entrant"] == name]) for name in (a, b)]
    subjects = sorted(set(both[0]["subject"]) & set(both[1]["subject"]))
    if weights is not None:
        subjects = [subject for subject in subjects if weights.get(subject, 0) > 0]
    if not subjects:
        raise StatsError(f"the outcomes per input of {a} and {b} share no subject.")
    samples = [
        _sample([side[side["subject"] == subject] for side in both], metric) for subject in subjects
    ]
    share = np.array([1.0 if weights is None else weights[subject] for subject in subjects])
    return _bca(samples, share / share.sum(), draws, np.random.default_rng(seed))


def input_error(inputs: pd.DataFrame, metric: str) -> tuple[float, int]:
    """Return the squared standard error of a score over inputs, and the number of inputs.

    Parameters
    ----------
    inputs : DataFrame
        Of one subject, entrant and repetition.
    metric : str

    Returns
    -------
    error : float
        In squared points, by the jackknife.
    n : int
    """
    sample = _sample([check_inputs(inputs)], metric)
    left_out, counts = sample.jackknife()
    n = int(counts.sum())
    mean = counts @ left_out / n
    return float((n - 1) / n * (counts @ (left_out - mean) ** 2)), n


def paired_mcnemar(inputs: pd.DataFrame) -> pd.DataFrame:
    """Test fixed against original models: exact McNemar per subject, entrant and repetition.

    Parameters
    ----------
    inputs : DataFrame
        As in `check_inputs`.

    Returns
    -------
    DataFrame
        subject, entrant, repetition, repaired, regressed, odds_ratio, p.
    """
    rows = []
    for key, part in check_inputs(inputs).groupby(REQUIRED[:3], sort=False):
        before, after = part["correct_before"].to_numpy(bool), part["correct_after"].to_numpy(bool)
        rows.append(
            (*key, *mcnemar_exact(int((~before & after).sum()), int((before & ~after).sum())))
        )
    columns = [*REQUIRED[:3], "repaired", "regressed", "odds_ratio", "p"]
    return pd.DataFrame(rows, columns=columns)


def mcnemar_exact(repaired: int, regressed: int) -> tuple[int, int, float, float]:
    """Return repaired, regressed, their ratio (inf, or NaN for 0 / 0) and the two-sided p value."""
    p = float(mcnemar([[0, regressed], [repaired, 0]], exact=True).pvalue)
    odds = repaired / regressed if regressed else (np.inf if repaired else np.nan)
    return repaired, regressed, float(odds), p


@dataclass(frozen=True)
class Margin:
    """A one-sided check against a margin."""

    value: float
    bound: float
    """One-sided 95 % confidence bound on the unfavourable side."""
    margin: float
    passed: bool


def rate_below(count: int, total: int, margin: float) -> Margin:
    """Check that a rate such as NFR is below a margin, with its upper Wilson bound.

    Parameters
    ----------
    count, total : int
    margin : float
        In [0, 1].

    Returns
    -------
    Margin
    """
    bound = float(proportion_confint(count, total, alpha=0.1, method="wilson")[1])
    return Margin(count / total, bound, margin, bound < margin)


def accuracy_kept(inputs: pd.DataFrame, delta: float, *, seed: int = 0) -> Margin:
    """Check that accuracy fell by less than `delta`, with its lower bootstrap bound.

    Parameters
    ----------
    inputs : DataFrame
        As in `check_inputs`, of one subject and entrant; its first repetition.
    delta : float
        In [0, 1].
    seed : int

    Returns
    -------
    Margin
        Change of accuracy in [-1, 1]; the margin is ``-delta``.
    """
    sample = _sample([_first(check_inputs(inputs))], "accuracy")
    drawn = sample.draw(DRAWS, np.random.default_rng(seed)) / 100
    bound = float(np.quantile(drawn, 0.05))
    return Margin(sample.value / 100, bound, -delta, bound > -delta)


# -- patterns --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Inputs of one subject, as counts of patterns, with the statistic as a function of counts.

    Attributes
    ----------
    counts : ndarray of int64, [Q]
    strata : tuple of ndarray of int
        Positions of the patterns of each stratum.
    estimate : callable
        Counts [..., Q] to values [...].
    """

    counts: np.ndarray
    strata: tuple[np.ndarray, ...]
    estimate: Estimate

    @property
    def value(self) -> float:
        """The statistic of the inputs themselves."""
        return float(self.estimate(self.counts.astype(float)))

    def draw(self, draws: int, rng: np.random.Generator) -> np.ndarray:
        """Return the statistic of resampled inputs, [draws]."""
        chunk = max(1, CHUNK // len(self.counts))
        sizes = [min(chunk, draws - start) for start in range(0, draws, chunk)]
        return np.concatenate([self.estimate(self._resample(size, rng)) for size in sizes])

    def _resample(self, draws: int, rng: np.random.Generator) -> np.ndarray:
        drawn = np.empty((draws, len(self.counts)))
        for stratum in self.strata:
            counts = self.counts[stratum]
            drawn[:, stratum] = rng.multinomial(counts.sum(), counts / counts.sum(), size=draws)
        return drawn

    def jackknife(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the statistic without one input of each pattern, [Q], and how many there are."""
        return self.estimate(self.counts - np.eye(len(self.counts))), self.counts


def _first(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["repetition"] == frame.groupby("subject")["repetition"].transform("min")]


def _sample(sides: Sequence[pd.DataFrame], metric: str) -> Sample:
    """Return the sample of one entrant, or of the difference of two on the same inputs."""
    columns = _columns(metric, sides[0])
    frames = [side.set_index("input")[columns].sort_index() for side in sides]
    if not all(frames[0].index.equals(frame.index) for frame in frames):
        raise StatsError("two entrants were evaluated on different inputs; evaluate both again.")
    if "correct_before" in columns and not all(
        (frames[0]["correct_before"] == frame["correct_before"]).all() for frame in frames
    ):
        raise StatsError("two entrants started from different original models; evaluate again.")
    joined = pd.concat([f.add_suffix(f".{i}") for i, f in enumerate(frames)], axis=1)
    joined = joined.astype(float)
    grouped = joined.groupby(list(joined), dropna=False, sort=True).size()
    patterns = grouped.index.to_frame(index=False)
    strata = _strata(patterns)
    parts = [_estimate(patterns, i, metric) for i in range(len(sides))]

    def estimate(counts: np.ndarray) -> np.ndarray:
        values = [part(counts) for part in parts]
        return values[0] if len(values) == 1 else values[0] - values[1]

    return Sample(grouped.to_numpy(), strata, estimate)


def _columns(metric: str, frame: pd.DataFrame) -> list[str]:
    strata = [c for c in ("label", "group") if c in frame and frame[c].notna().all()]
    if metric not in NEEDED:
        raise StatsError(f"{metric} has no interval over inputs; known are {', '.join(NEEDED)}.")
    needed = NEEDED[metric]
    missing = [column for column in needed if column not in frame]
    if missing:
        raise StatsError(f"{metric} over inputs needs the column {', '.join(missing)}.")
    return [*needed, *(column for column in strata if column not in needed)]


def _strata(patterns: pd.DataFrame) -> tuple[np.ndarray, ...]:
    keys = [column for column in ("label.0", "group.0") if column in patterns]
    if not keys:
        return (np.arange(len(patterns)),)
    return tuple(np.asarray(rows) for rows in patterns.groupby(keys).indices.values())


def _estimate(patterns: pd.DataFrame, side: int, metric: str) -> Estimate:
    def column(name: str) -> np.ndarray:
        return patterns[f"{name}.{side}"].to_numpy()

    if metric == "aaod":
        label, group = column("label"), column("group")
        unfair_before = _aaod(label, group, column("predicted_before"))
        unfair_after = _aaod(label, group, column("predicted_after"))
        return lambda counts: 100 * (unfair_before(counts) - unfair_after(counts))
    kind = "attacked" if metric in ATTACKS else "correct"
    before, after = column(f"{kind}_before"), column(f"{kind}_after")
    if metric == "repair_rate":
        return _ratio((1 - before) * after, 1 - before)
    if metric == "nfr":
        return _ratio(-before * (1 - after), np.ones_like(before))
    known = ~np.isnan(before) & ~np.isnan(after)
    return _ratio(np.where(known, after - before, 0.0), known.astype(float))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> Estimate:
    def estimate(counts: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return 100 * (counts @ numerator) / (counts @ denominator)

    return estimate


def _aaod(label: np.ndarray, group: np.ndarray, predicted: np.ndarray) -> Estimate:
    """Return AAOD as a function of counts: rates per class and group are ratios of sums."""
    classes, groups = np.unique(label), np.unique(group)
    if len(groups) < 2:
        raise StatsError("aaod over inputs needs two groups.")
    cells: list[list[np.ndarray]] = []
    for k in classes:
        rates = []
        for of_class in (label == k, label != k):
            for g in groups:
                rates += [of_class & (predicted == k) & (group == g), of_class & (group == g)]
        cells.append(rates)
    masks = np.array(cells, dtype=float)  # [K, 2 rates x G groups x 2, Q]

    def estimate(counts: np.ndarray) -> np.ndarray:
        sums = np.einsum("...q,kmq->...km", counts, masks, optimize=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            rates = (sums[..., 0::2] / sums[..., 1::2]).reshape(*sums.shape[:-1], 2, len(groups))
        gaps = rates.max(axis=-1) - rates.min(axis=-1)
        return np.nanmean(gaps.mean(axis=-1), axis=-1)

    return estimate


def _bca(
    samples: Sequence[Sample], share: np.ndarray, draws: int, rng: np.random.Generator
) -> Interval:
    """Return the bias-corrected accelerated interval of a weighted sum over subjects."""
    value = float(sum(w * s.value for w, s in zip(share, samples, strict=True)))
    drawn = sum(w * s.draw(draws, rng) for w, s in zip(share, samples, strict=True))
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn) or np.isnan(value):
        return Interval(value, np.nan, np.nan, np.nan)
    acceleration = _acceleration(samples, share)
    below = ((drawn < value).mean() + (drawn <= value).mean()) / 2
    if not 0 < below < 1:  # nothing varies, or nothing lies on one side: no correction exists
        low, high = np.quantile(drawn, [0.025, 0.975])
    else:
        z = stats.norm.ppf(below) + stats.norm.ppf([0.025, 0.975])
        corrected = stats.norm.cdf(stats.norm.ppf(below) + z / (1 - acceleration * z))
        low, high = np.quantile(drawn, corrected)
    return Interval(value, float(low), float(high), _p_value(drawn))


def _acceleration(samples: Sequence[Sample], share: np.ndarray) -> float:
    cubes = squares = 0.0
    for weight, sample in zip(share, samples, strict=True):
        left_out, counts = sample.jackknife()
        n = counts.sum()
        deviation = weight * (n - 1) / n * (counts @ left_out / n - left_out)
        cubes += float(counts @ deviation**3)
        squares += float(counts @ deviation**2)
    return cubes / (6 * squares**1.5) if squares > 0 else 0.0


def _p_value(drawn: np.ndarray) -> float:
    drawn = drawn[~np.isnan(drawn)]
    fewer = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return float(min(1.0, 2 * (fewer + 1) / (len(drawn) + 1)))
