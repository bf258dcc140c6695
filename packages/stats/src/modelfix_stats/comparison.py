"""Compare entrants on one metric: pairs, correction, letters, ranking, and what to know of them."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from modelfix_stats import inputs as over_inputs
from modelfix_stats.cells import ORIGINAL, Cells, Scale, default_scale, make_cells
from modelfix_stats.correction import Correction, adjust
from modelfix_stats.effects import a12, hedges_g
from modelfix_stats.errors import StatsError
from modelfix_stats.frame import Data, Summary, select
from modelfix_stats.letters import Letters, compact_letters, group_letters, note
from modelfix_stats.metrics import METRICS, find_metric
from modelfix_stats.pairs import (
    Tested,
    common_subjects,
    over_subjects,
    per_subject,
    pooled_student,
    sign_flips,
    stratified_welch,
    subject_weights,
)
from modelfix_stats.values import success_rates

Mode = Literal["standard", "study"]
Scope = Literal["these-subjects", "new-subjects"]
Family = Literal["metric", "all", "vs-original", "vs-control"]
GROUPS_NOTE = (
    "Group letters as in the study: not a compact letter display; entrants without a common "
    "letter need not differ significantly."
)
UNITS: dict[Scale, str] = {
    "points": "percentage points",
    "relative": "relative gain in percent",
    "log10": "powers of ten of seconds",
    "seconds": "seconds",
}


@dataclass(frozen=True)
class Options:
    """How entrants are compared; see `compare`."""

    mode: Mode = "standard"
    scope: Scope = "these-subjects"
    correction: Correction = "bh"
    family: Family = "metric"
    scale: Scale | None = None
    weights: Mapping[str, float] | None = None
    control: str | None = None
    alpha: float = 0.05
    sweep: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Comparison:
    """Entrants compared on one metric.

    Attributes
    ----------
    metric : str
    options : Options
    scale : str
        Unit of scores and differences; higher is better.
    order : DataFrame
        From best to worst: entrant, approach, category, subjects (number with a score), score
        (mean over these), low, high (its 95 % interval), letters (text), rank, complete_score and
        complete_rank (over the subjects that all have; NaN without), fixed, attempted, success,
        success_low, success_high.
    pairs : DataFrame
        a, b (a better ranked), common, delta (a - b), low, high, t, df, p, p_adjusted,
        significant, method, reason, g, a12, cliff, won, lost, tied, new_low, new_high, new_p
        (over new subjects), sign_flip_p.
    matrix : DataFrame
        Adjusted p values, entrants x entrants in order; NaN where untestable or not compared.
    letters : Letters or None
        None where not all pairs are compared or too many letters are needed.
    notes : tuple of str
        What a reader must know.
    """

    metric: str
    options: Options
    scale: Scale
    order: pd.DataFrame
    pairs: pd.DataFrame
    matrix: pd.DataFrame
    letters: Letters | None
    notes: tuple[str, ...]

    @property
    def unit(self) -> str:
        """The unit of scores and differences in words."""
        return UNITS[self.scale]

    def to_markdown(self) -> str:
        """Return ranking, pairs and notes in Markdown."""
        from modelfix_stats.tables import pairs_table, ranking_table

        notes = "\n".join(f"- {line}" for line in self.notes)
        return "\n\n".join(
            [ranking_table(self).to_markdown(), pairs_table(self).to_markdown(), notes]
        ).strip()

    def to_latex(self) -> str:
        """Return ranking and pairs as two booktabs tables."""
        from modelfix_stats.tables import pairs_table, ranking_table

        return ranking_table(self).to_latex() + "\n" + pairs_table(self).to_latex()

    def to_json(self) -> str:
        """Return everything as JSON; what has no value is null."""
        content = {
            "metric": self.metric,
            "unit": self.unit,
            "mode": self.options.mode,
            "scope": self.options.scope,
            "correction": self.options.correction,
            "family": self.options.family,
            "alpha": self.options.alpha,
            "order": _records(self.order),
            "pairs": _records(self.pairs),
            "letters": None if self.letters is None else self.letters.as_dict(),
            "notes": list(self.notes),
        }
        return json.dumps(content, indent=1, allow_nan=False)


def compare(
    data: Data,
    metric: str,
    *,
    mode: Mode = "standard",
    scope: Scope = "these-subjects",
    correction: Correction | None = None,
    family: Family = "metric",
    scale: Literal["points", "relative"] | None = None,
    weights: Mapping[str, float] | None = None,
    control: str | None = None,
    entrants: Collection[str] | None = None,
    subjects: Collection[str] | None = None,
    inputs: pd.DataFrame | None = None,
    alpha: float = 0.05,
    sweep: bool = True,
    seed: int = 0,
) -> Comparison:
    """Compare entrants on one metric.

    Everything is computed from the rows selected: another selection is another call.

    Parameters
    ----------
    data : DataFrame or Summary
        As `check` and `from_summary` describe.
    metric : str
    mode : {"standard", "study"}
        ``study`` reproduces how the letters of the study's table 4 were most probably made.
    scope : {"these-subjects", "new-subjects"}
        Which is better on these subjects (repetitions are the noise), or which would be on others
        (subjects are the noise).
    correction : {"bh", "holm", "none"}, optional
        Default: bh; in the mode `study` none, which reproduces its letters best.
    family : {"metric", "all", "vs-original", "vs-control"}
        What is corrected together: the pairs of this metric, of all metrics in the data, or only
        the comparisons with the original model or with one entrant.
    scale : {"points", "relative"}, optional
        Default: points; in the mode `study` relative.
    weights : mapping of str to float, optional
        Of subjects; default equal.
    control : str, optional
        The entrant of ``vs-control``.
    entrants, subjects : collection of str, optional
        The selection; default all.
    inputs : DataFrame, optional
        Outcomes per input (`check_inputs`): the noise for what has no replication.
    alpha : float
    sweep : bool
        Whether the letter display drops letters that say nothing.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Comparison

    Raises
    ------
    StatsError
        If the data or the options cannot be used as asked.
    """
    data = select(data, entrants=entrants, subjects=subjects)
    options = Options(
        mode=mode,
        scope=scope,
        correction=correction or ("bh" if mode == "standard" else "none"),
        family=family,
        scale=scale,
        weights=weights,
        control=control,
        alpha=alpha,
        sweep=sweep,
        seed=seed,
    )
    _check_options(options)
    cells, dropped = _ordered(data, metric, options)
    pairs = _pairs(cells, options, inputs)
    pairs["p_adjusted"] = _adjusted(data, pairs, metric, options, inputs)
    pairs["significant"] = pairs["p_adjusted"] < alpha
    matrix = _matrix(pairs, cells.entrants)
    letters, notes = _letters(cells, pairs, matrix, options)
    return Comparison(
        metric=metric,
        options=options,
        scale=cells.scale,
        order=_order(data, cells, letters, options),
        pairs=pairs,
        matrix=matrix,
        letters=letters,
        notes=(*_notes(data, cells, pairs, dropped, options), *notes),
    )


def compare_all(
    data: Data, metrics: Collection[str] | None = None, **options: Any
) -> dict[str, Comparison]:
    """Compare entrants on several metrics.

    Parameters
    ----------
    data : DataFrame or Summary
    metrics : collection of str, optional
        Default: every metric in the data that the statistics know.
    **options
        Of `compare`.

    Returns
    -------
    dict of str to Comparison
    """
    return {metric: compare(data, metric, **options) for metric in metrics or _metrics(data)}


def _check_options(options: Options) -> None:
    expected = {
        "mode": ("standard", "study"),
        "scope": ("these-subjects", "new-subjects"),
        "family": ("metric", "all", "vs-original", "vs-control"),
        "correction": ("bh", "holm", "none"),
        "scale": (None, "points", "relative"),
    }
    for name, choices in expected.items():
        if getattr(options, name) not in choices:
            words = ", ".join(str(choice) for choice in choices if choice)
            raise StatsError(f"{name}={getattr(options, name)!r}: expected one of {words}.")
    if options.mode == "study" and options.scope != "these-subjects":
        raise StatsError("the mode 'study' has one test; leave scope out.")
    if options.mode == "study" and options.weights is not None:
        raise StatsError("the mode 'study' knows no weights; leave them out.")
    if options.mode == "study" and options.family == "vs-original":
        raise StatsError("the mode 'study' compares entrants; family='vs-original' is standard's.")
    if not 0 < options.alpha < 1:
        raise StatsError(f"alpha={options.alpha}: expected a number between 0 and 1.")
    if (options.family == "vs-control") != (options.control is not None):
        raise StatsError("family='vs-control' and control=ENTRANT are given together.")


def _metrics(data: Data) -> list[str]:
    frame = data.frame if isinstance(data, Summary) else data
    return [metric for metric in frame["metric"].drop_duplicates() if metric in METRICS]


def _ordered(data: Data, metric: str, options: Options) -> tuple[Cells, list[str]]:
    """Return the cells from best to worst, and the entrants without any score."""
    scale = default_scale(metric, options.mode)
    if options.scale is not None and find_metric(metric).scoring != "time":
        scale = options.scale
    cells = make_cells(data, metric, scale)
    known = np.flatnonzero(cells.present.any(axis=1))
    dropped = [name for i, name in enumerate(cells.entrants) if i not in known]
    cells = cells.take(known)
    mean = _mean_scores(cells, cells.present, options)
    median = np.nanmedian(cells.mean, axis=1) if len(known) else np.empty(0)
    if options.mode == "study":
        median = np.zeros_like(mean)  # the study's order of ties is by name
    # Rounded: scores that are equal but for summation order are ties.
    order = np.lexsort((np.array(cells.entrants), -median.round(12), -mean.round(12)))
    return cells.take(order), dropped


def _chosen(cells: Cells, options: Options) -> tuple[Cells, np.ndarray, np.ndarray]:
    """Return the cells and the positions of the pairs to compare."""
    count = len(cells.entrants)
    if options.family == "vs-original":
        return cells.with_original(), np.arange(count), np.full(count, count)
    a, b = np.triu_indices(count, 1)
    if options.family == "vs-control":
        if options.control not in cells.entrants:
            raise StatsError(f"the control {options.control!r} has no score of this metric.")
        control = cells.entrants.index(options.control)
        chosen = (a == control) | (b == control)
        return cells, a[chosen], b[chosen]
    return cells, a, b


def _pairs(cells: Cells, options: Options, inputs: pd.DataFrame | None) -> pd.DataFrame:
    cells, a, b = _chosen(cells, options)
    tested, method = _test(cells, a, b, options, inputs)
    new = over_subjects(cells, a, b)
    won, lost, tied = per_subject(cells, a, b)
    common = common_subjects(cells, a, b)
    chance = a12(cells, a, b)
    names = np.array(cells.entrants, dtype=object)
    return pd.DataFrame(
        {
            "a": names[a],
            "b": names[b],
            "common": common.sum(axis=1),
            "delta": tested.delta,
            "low": tested.low,
            "high": tested.high,
            "t": tested.t,
            "df": tested.df,
            "p": tested.p,
            "method": method,
            "reason": tested.reason,
            "g": hedges_g(cells, a, b),
            "a12": chance,
            "cliff": 2 * chance - 1,
            "won": won,
            "lost": lost,
            "tied": tied,
            "new_low": new.low,
            "new_high": new.high,
            "new_p": new.p,
            "sign_flip_p": [
                sign_flips((cells.mean[i] - cells.mean[j])[both])
                for i, j, both in zip(a, b, common, strict=True)
            ],
        }
    )


def _test(
    cells: Cells, a: np.ndarray, b: np.ndarray, options: Options, inputs: pd.DataFrame | None
) -> tuple[Tested, np.ndarray]:
    """Return the tests of the mode and scope, and the name of the method used for each pair."""
    if options.mode == "study":
        return pooled_student(cells, a, b), np.full(len(a), "pooled-student", dtype=object)
    if options.scope == "new-subjects":
        return over_subjects(cells, a, b), np.full(len(a), "paired-over-subjects", dtype=object)
    weights = _weights(cells, options)
    if inputs is None or not over_inputs.supports(inputs, cells.metric.id):
        tested = stratified_welch(cells, a, b, weights)
        return tested, np.full(len(a), "stratified-welch", dtype=object)
    if cells.scale != "points":
        raise StatsError("outcomes per input are compared in points; leave scale='relative' out.")
    noisy = _with_input_noise(cells, inputs)
    tested = stratified_welch(noisy, a, b, weights)
    method = np.full(len(a), "stratified-welch", dtype=object)
    share = subject_weights(common_subjects(cells, a, b), weights)
    for pair in np.flatnonzero(np.equal(tested.reason, "no_replication")).tolist():
        _bootstrap_pair(cells, tested, pair, a[pair], b[pair], share[pair], inputs, options.seed)
        if tested.reason[pair] is None:
            method[pair] = "input-bootstrap"
    return tested, method


def _weights(cells: Cells, options: Options) -> np.ndarray | None:
    if options.weights is None:
        return None
    given = [options.weights.get(subject, np.nan) for subject in cells.subjects]
    weights = np.array(given, dtype=float)
    if not (weights > 0).all():
        raise StatsError("weights: expected one positive number for every subject.")
    return weights


def _with_input_noise(cells: Cells, inputs: pd.DataFrame) -> Cells:
    """Give cells with a single repetition the noise of their inputs instead."""
    checked = over_inputs.check_inputs(inputs)
    groups = dict(list(checked.groupby(["entrant", "subject"], sort=False)))
    variance, n = cells.variance.copy(), cells.n.copy()
    for e, s in np.argwhere((cells.n == 1) & ~cells.copies):
        part = groups.get((cells.entrants[e], cells.subjects[s]))
        if part is None or part["repetition"].nunique() != 1:
            continue
        error, count = over_inputs.input_error(part, cells.metric.id)
        variance[e, s], n[e, s] = error * count, count
    return replace(cells, variance=variance, n=n)


def _bootstrap_pair(
    cells: Cells,
    tested: Tested,
    pair: int,
    i: int,
    j: int,
    share: np.ndarray,
    inputs: pd.DataFrame,
    seed: int,
) -> None:
    """Test two entrants without replication over the inputs, where these are known."""
    weights = {s: w for s, w in zip(cells.subjects, share, strict=True) if w > 0}
    first, second = cells.entrants[i], cells.entrants[j]
    sides = [set(inputs.loc[inputs["entrant"] == name, "subject"]) for name in (first, second)]
    if not set(weights) <= sides[0] & sides[1]:
        return
    interval = over_inputs.difference(
        inputs, first, second, cells.metric.id, weights=weights, seed=seed
    )
    tested.low[pair], tested.high[pair], tested.p[pair] = interval.low, interval.high, interval.p
    tested.reason[pair] = None


def _adjusted(
    data: Data, pairs: pd.DataFrame, metric: str, options: Options, inputs: pd.DataFrame | None
) -> np.ndarray:
    """Return the adjusted p values of these pairs within their family."""
    if options.family != "all":
        return adjust(pairs["p"].to_numpy(), options.correction)
    others = [
        _pairs(_ordered(data, other, options)[0], options, inputs)["p"].to_numpy()
        for other in _metrics(data)
        if other != metric
    ]
    together = adjust(np.concatenate([pairs["p"].to_numpy(), *others]), options.correction)
    return together[: len(pairs)]


def _matrix(pairs: pd.DataFrame, entrants: tuple[str, ...]) -> pd.DataFrame:
    names = list(entrants)
    names += [ORIGINAL] if ORIGINAL in set(pairs["b"]) - set(names) else []
    matrix = pd.DataFrame(np.nan, index=names, columns=names)
    positions = pd.Index(names)
    i, j = positions.get_indexer(pairs["a"]), positions.get_indexer(pairs["b"])
    values = np.full((len(names), len(names)), np.nan)
    values[i, j] = values[j, i] = pairs["p_adjusted"]
    matrix[:] = values
    return matrix


def _letters(
    cells: Cells, pairs: pd.DataFrame, matrix: pd.DataFrame, options: Options
) -> tuple[Letters | None, list[str]]:
    if options.family not in ("metric", "all"):
        return None, []
    different = matrix.to_numpy() < options.alpha
    if options.mode == "study":
        # In the study entrants without a common subject share no letter.
        untested = np.isnan(matrix.to_numpy()) & ~np.eye(len(matrix), dtype=bool)
        alone = cells.present.sum(axis=1) < 2
        return group_letters(cells.entrants, different | untested, alone), [GROUPS_NOTE]
    letters = compact_letters(cells.entrants, different, sweep=options.sweep)
    return letters, note(letters, int(pairs["p"].isna().sum()))


def _order(data: Data, cells: Cells, letters: Letters | None, options: Options) -> pd.DataFrame:
    frame = data.frame if isinstance(data, Summary) else data
    about = frame.drop_duplicates("entrant").set_index("entrant")
    interval = _score_intervals(cells, options)
    score = _mean_scores(cells, cells.present, options)
    complete = np.broadcast_to(cells.present.all(axis=0), cells.present.shape)
    shared = _mean_scores(cells, complete, options)
    order = pd.DataFrame(
        {
            "entrant": cells.entrants,
            "approach": [_about(about, name, "approach", name) for name in cells.entrants],
            "category": [_about(about, name, "category", "") for name in cells.entrants],
            "subjects": cells.present.sum(axis=1),
            "score": score,
            "low": interval.low,
            "high": interval.high,
            "letters": [letters.text(name) if letters else "" for name in cells.entrants],
            "complete_score": shared,
        }
    )
    order["rank"] = order["score"].round(12).rank(ascending=False, method="min")
    order["complete_rank"] = order["complete_score"].round(12).rank(ascending=False, method="min")
    rates = success_rates(data).rename(
        columns={"rate": "success", "low": "success_low", "high": "success_high"}
    )
    return order.merge(rates, left_on="entrant", right_index=True, how="left")


def _mean_scores(cells: Cells, where: np.ndarray, options: Options) -> np.ndarray:
    """Return the weighted mean score over some subjects, [E]; NaN over none."""
    share = subject_weights(where, _weights(cells, options))
    total = (share * np.where(where, cells.mean, 0.0)).sum(axis=1)
    return np.where(where.any(axis=1), total, np.nan)


def _about(about: pd.DataFrame, name: str, column: str, default: str) -> str:
    return str(about.loc[name, column]) if column in about else default


def _score_intervals(cells: Cells, options: Options) -> Tested:
    """Return the 95 % interval of each mean score: its difference to a constant 0."""
    both = cells.with_zero(ORIGINAL)
    count = len(cells.entrants)
    rows, last = np.arange(count), np.full(count, count)
    if options.scope == "new-subjects":
        return over_subjects(both, rows, last)
    return stratified_welch(both, rows, last, _weights(cells, options))


def _notes(
    data: Data, cells: Cells, pairs: pd.DataFrame, dropped: list[str], options: Options
) -> list[str]:
    notes = []
    if dropped:
        notes.append(f"Without any value: {', '.join(dropped)}.")
    complete = int(cells.present.all(axis=0).sum())
    if complete < len(cells.subjects):
        notes.append(
            f"Missing cells: entrants are ranked on their own subjects; the second ranking is over "
            f"the {complete} of {len(cells.subjects)} subjects that all of them have."
        )
    counts = pairs["reason"].dropna().value_counts()
    for reason, count in counts.items():
        notes.append(f"{count} of {len(pairs)} pairs untestable: {reason}.")
    if cells.metric.attacked:
        notes.append(
            "Each entrant is attacked on inputs that it and the original model get right, so the "
            "original's value differs between entrants."
        )
    if options.mode == "study" and options.correction == "none":
        notes.append("p values are not corrected: the study's letters are reproduced best so.")
    return notes


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    plain = frame.astype(object).where(frame.notna(), None)
    plain = plain.replace({np.inf: None, -np.inf: None})
    return json.loads(plain.to_json(orient="records", double_precision=15))
