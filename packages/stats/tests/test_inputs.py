"""Statistics over inputs: the bootstrap over patterns is the bootstrap over inputs."""

import numpy as np
import pandas as pd
import pytest
from modelfix_stats import (
    StatsError,
    accuracy_kept,
    bootstrap,
    compare,
    difference,
    mcnemar_exact,
    paired_mcnemar,
    rate_below,
)
from modelfix_stats.inputs import input_error
from scipy import stats


def outcomes(
    entrant: str = "x", n: int = 400, seed: int = 0, regress: float = 0.05, repair: float = 0.5
) -> pd.DataFrame:
    """Make outcomes per input; the original model is the same for every entrant."""
    rng = np.random.default_rng(7)
    label, group = rng.integers(0, 3, n), rng.integers(0, 2, n)
    before = rng.random(n) < 0.8
    rng = np.random.default_rng(seed)
    after = np.where(before, rng.random(n) > regress, rng.random(n) < repair)
    attacked = rng.random(n) < 0.5
    return pd.DataFrame(
        {
            "subject": "s",
            "entrant": entrant,
            "repetition": 0,
            "input": np.arange(n),
            "correct_before": before,
            "correct_after": after,
            "label": label,
            "group": group,
            "predicted_before": np.where(before, label, (label + 1 + group) % 3),
            "predicted_after": np.where(after, label, (label + 1) % 3),
            "attacked_before": np.where(attacked, rng.random(n) < 0.2, np.nan),
            "attacked_after": np.where(attacked, rng.random(n) < 0.4, np.nan),
        }
    )


def aaod(y: np.ndarray, group: np.ndarray, predicted: np.ndarray) -> float:
    """Compute AAOD with loops."""
    gaps = []
    for k in np.unique(y):
        rates = [
            [np.mean(predicted[of & (group == g)] == k) for g in (0, 1)] for of in (y == k, y != k)
        ]
        gaps.append(np.mean([abs(a - b) for a, b in rates]))
    return float(np.mean(gaps))


def test_values_are_those_of_the_formulas():
    frame = outcomes()
    before, after = frame["correct_before"], frame["correct_after"]
    known = frame.dropna(subset=["attacked_before"])
    expected = {
        "accuracy": after.mean() - before.mean(),
        "repair_rate": after[~before].mean(),
        "nfr": -(before & ~after).mean(),
        "asr": (known["attacked_after"] - known["attacked_before"]).mean(),
        "aaod": aaod(*(frame[c].to_numpy() for c in ("label", "group", "predicted_before")))
        - aaod(*(frame[c].to_numpy() for c in ("label", "group", "predicted_after"))),
    }
    for metric, value in expected.items():
        interval = bootstrap(frame, metric, draws=500)
        assert interval.value == pytest.approx(100 * value)
        assert interval.low < interval.value < interval.high


def test_intervals_are_scipys():
    frame = outcomes().drop(columns=["label", "group"])
    change = 100 * (frame["correct_after"].astype(float) - frame["correct_before"])
    ours = bootstrap(frame, "accuracy")
    theirs = stats.bootstrap(
        (change.to_numpy(),), np.mean, method="BCa", n_resamples=9_999, rng=np.random.default_rng(0)
    ).confidence_interval
    np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], atol=0.3)


def test_bias_correction_of_a_skewed_rate():
    """A rare event: the BCa interval is not symmetric and covers the exact one's shape."""
    frame = outcomes(n=1000, regress=0.004).drop(columns=["label", "group"])
    flips = -100 * (frame["correct_before"] & ~frame["correct_after"]).astype(float)
    ours = bootstrap(frame, "nfr")
    theirs = stats.bootstrap(
        (flips.to_numpy(),), np.mean, method="BCa", n_resamples=9_999, rng=np.random.default_rng(0)
    ).confidence_interval
    np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], atol=0.11)


def test_seeds_decide():
    frame = outcomes()
    assert bootstrap(frame, "nfr", seed=3) == bootstrap(frame, "nfr", seed=3)
    assert bootstrap(frame, "aaod", seed=3) != bootstrap(frame, "aaod", seed=4)


def test_strata_are_kept():
    """With strata that explain everything no resampling changes the value."""
    frame = outcomes()
    frame["correct_before"] = frame["label"] == 0
    frame["correct_after"] = frame["label"] != 1
    interval = bootstrap(frame, "accuracy", draws=200)
    assert interval.low == interval.high == pytest.approx(interval.value)


def test_repetitions_widen_the_interval():
    parts = [outcomes(seed=r, repair=p).assign(repetition=r) for r, p in enumerate([0.1, 0.5, 0.9])]
    frame = pd.concat(parts)
    both, alone = bootstrap(frame, "repair_rate", runs=True), bootstrap(frame, "repair_rate")
    assert both.high - both.low > 2 * (alone.high - alone.low)


def test_the_jackknife_error_is_that_of_a_mean():
    frame = outcomes()
    change = 100 * (frame["correct_after"].astype(float) - frame["correct_before"])
    error, n = input_error(frame, "accuracy")
    assert error == pytest.approx(change.var(ddof=1) / len(change))
    assert n == len(change)


def test_difference_of_two_entrants_is_paired():
    x, y = outcomes("x", repair=0.9), outcomes("y", repair=0.1)
    interval = difference(pd.concat([x, y]), "x", "y", "repair_rate")
    faults = ~x["correct_before"]
    expected = 100 * (x["correct_after"][faults].mean() - y["correct_after"][faults].mean())
    assert interval.value == pytest.approx(expected)
    assert interval.low > 0
    assert interval.p < 0.01
    same = difference(pd.concat([x, x.assign(entrant="z")]), "x", "z", "repair_rate")
    assert same.low == same.high == 0
    assert same.p == 1


def test_different_inputs_or_originals_are_refused():
    x, y = outcomes("x"), outcomes("y")
    with pytest.raises(StatsError, match="different inputs"):
        difference(pd.concat([x, y.iloc[1:]]), "x", "y", "nfr")
    y["correct_before"] = ~y["correct_before"]
    with pytest.raises(StatsError, match="different original"):
        difference(pd.concat([x, y]), "x", "y", "nfr")
    with pytest.raises(StatsError, match="no subject"):
        difference(pd.concat([x, y.assign(subject="u")]), "x", "y", "nfr")


def test_what_is_missing_is_named():
    with pytest.raises(StatsError, match="attacked_before"):
        bootstrap(outcomes().drop(columns="attacked_before"), "asr")
    with pytest.raises(StatsError, match="correct_after"):
        bootstrap(outcomes().drop(columns="correct_after"), "nfr")
    with pytest.raises(StatsError, match="seconds"):
        bootstrap(outcomes(), "seconds")


# -- comparisons without repetitions ---------------------------------------------------------------


def test_deterministic_entrants_are_compared_over_inputs(results):
    inputs = pd.concat([outcomes("x", repair=0.9), outcomes("y", repair=0.2)])
    rates = {
        name: part["correct_after"][~part["correct_before"]].mean()
        for name, part in inputs.groupby("entrant")
    }
    frame = results({name: {"s": [rate] * 3} for name, rate in rates.items()}, deterministic=True)
    row = compare(frame, "repair_rate", inputs=inputs).pairs.iloc[0]
    assert row.method == "input-bootstrap"
    assert row.delta == pytest.approx(100 * (rates["x"] - rates["y"]))
    assert row.low < row.delta < row.high
    assert row.p < 0.01
    without = compare(frame, "repair_rate", inputs=inputs[inputs["entrant"] == "x"]).pairs.iloc[0]
    assert without.reason == "no_replication"
    blind = compare(frame, "repair_rate", inputs=inputs.assign(correct_after=np.nan)).pairs.iloc[0]
    assert blind.reason == "no_replication"
    changes = frame.assign(metric="accuracy", original=0.8)
    with pytest.raises(StatsError, match="points"):
        compare(changes, "accuracy", inputs=inputs, scale="relative")


def test_a_single_repetition_is_compared_over_its_inputs(results):
    inputs = outcomes("y", repair=0.2)
    rate = inputs["correct_after"][~inputs["correct_before"]].mean()
    frame = results({"x": {"s": [0.8, 0.82, 0.85]}, "y": {"s": [rate]}})
    row = compare(frame, "repair_rate", inputs=inputs).pairs.iloc[0]
    error, _ = input_error(inputs, "repair_rate")
    runs = 100**2 * np.var([0.8, 0.82, 0.85], ddof=1) / 3
    assert row.t == pytest.approx(row.delta / np.sqrt(error + runs))
    assert row.p < 0.01


# -- fixed against original, gates -----------------------------------------------------------------


def test_mcnemar():
    repaired, regressed, odds, p = mcnemar_exact(78, 20)
    assert (repaired, regressed, odds) == (78, 20, 3.9)
    assert p == pytest.approx(2.9e-9, rel=0.02)
    assert p == pytest.approx(stats.binomtest(20, 98).pvalue)
    frame = pd.concat([outcomes("x"), outcomes("x", seed=1).assign(repetition=1)])
    table = paired_mcnemar(frame)
    assert len(table) == 2
    first = frame[frame["repetition"] == 0]
    assert table.iloc[0]["repaired"] == (~first["correct_before"] & first["correct_after"]).sum()


def test_no_flips_prove_nothing():
    assert mcnemar_exact(0, 0)[3] == 1
    assert np.isnan(mcnemar_exact(0, 0)[2])
    assert mcnemar_exact(3, 0)[2] == np.inf


def test_gates():
    assert rate_below(0, 5000, 0.005).passed
    assert not rate_below(24, 5000, 0.005).passed  # 0.48 %, but not surely below 0.5 %
    better, worse = outcomes(n=2000, repair=0.9), outcomes(n=2000, regress=0.2, repair=0)
    assert accuracy_kept(better, 0.01).passed
    kept = accuracy_kept(worse, 0.01)
    assert not kept.passed
    assert kept.bound < kept.value < kept.margin
