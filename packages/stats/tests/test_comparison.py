"""Comparisons: the tests against the libraries, missing cells, selections, families, designs."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfix_stats import StatsError, adjust, check, compare, compare_all, make_cells, permutation
from scipy import stats


def pair(comparison, a: str, b: str) -> pd.Series:
    """Return the row of a pair, turned to a - b."""
    rows = comparison.pairs
    found = rows[(rows["a"] == a) & (rows["b"] == b)]
    if len(found):
        return found.iloc[0]
    row = rows[(rows["a"] == b) & (rows["b"] == a)].iloc[0].copy()
    row[["delta", "t"]] *= -1
    row["low"], row["high"] = -row["high"], -row["low"]
    row["won"], row["lost"] = row["lost"], row["won"]
    return row


X = {"s": [0.40, 0.44, 0.47]}
Y = {"s": [0.30, 0.33, 0.29]}


def test_one_subject_is_welchs_test(results):
    comparison = compare(results({"x": X, "y": Y}), "repair_rate")
    expected = stats.ttest_ind(X["s"], Y["s"], equal_var=False)
    row = pair(comparison, "x", "y")
    interval = expected.confidence_interval()
    np.testing.assert_allclose(
        [row.t, row.df, row.p, row.low, row.high],
        [expected.statistic, expected.df, expected.pvalue, 100 * interval.low, 100 * interval.high],
    )


def test_study_mode_is_students_test_on_pooled_scores(results):
    x = {"s": [0.4, 0.44], "u": [0.1, 0.2, 0.15]}
    y = {"s": [0.3, 0.2], "u": [0.1, 0.1, 0.05]}
    row = pair(compare(results({"x": x, "y": y}), "repair_rate", mode="study"), "x", "y")
    expected = stats.ttest_ind([*x["s"], *x["u"]], [*y["s"], *y["u"]])
    np.testing.assert_allclose(
        [row.t, row.df, row.p], [expected.statistic, expected.df, expected.pvalue]
    )


def test_new_subjects_is_the_t_test_of_differences(random_results):
    frame = random_results(subjects=6)
    comparison = compare(frame, "repair_rate", scope="new-subjects")
    means = frame.groupby(["entrant", "subject"])["value"].mean().unstack()
    row = pair(comparison, "e0", "e1")
    difference = 100 * (means.loc["e0"] - means.loc["e1"])
    expected = stats.ttest_1samp(difference, 0)
    interval = expected.confidence_interval()
    np.testing.assert_allclose(
        [row.t, row.df, row.p, row.low, row.high],
        [expected.statistic, 5, expected.pvalue, interval.low, interval.high],
    )
    exact = stats.permutation_test(
        (difference.to_numpy(),), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert row.sign_flip_p == pytest.approx(exact.pvalue)


def test_new_subjects_need_three(random_results):
    comparison = compare(random_results(subjects=2), "repair_rate", scope="new-subjects")
    assert set(comparison.pairs["reason"]) == {"too_few_subjects"}
    assert comparison.pairs["p"].isna().all()


def test_unequal_weights_change_the_difference(results):
    x, y = {"s": [0.4, 0.5], "u": [0.1, 0.2]}, {"s": [0.2, 0.3], "u": [0.3, 0.4]}
    frame = results({"x": x, "y": y})
    assert pair(compare(frame, "repair_rate"), "x", "y").delta == pytest.approx(0)
    weighted = compare(frame, "repair_rate", weights={"s": 3, "u": 1})
    assert pair(weighted, "x", "y").delta == pytest.approx(10)
    scores = weighted.order.set_index("entrant")["score"]
    assert scores["x"] - scores["y"] == pytest.approx(10)
    with pytest.raises(StatsError, match="every subject"):
        compare(frame, "repair_rate", weights={"s": 1})


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from(["bh", "holm", "none"]))
def test_letters_and_significance_are_one_rule(seed, correction):
    rng = np.random.default_rng(seed)
    rows = [
        {"entrant": f"e{e}", "subject": f"s{s}", "repetition": r, "metric": "nfr", "value": v}
        for e, level in enumerate(rng.uniform(0, 0.2, 6))
        for s in range(2)
        if rng.random() < 0.8
        for r, v in enumerate(np.abs(level + rng.normal(0, 0.02, 3)))
    ]
    comparison = compare(pd.DataFrame(rows), "nfr", correction=correction)
    for row in comparison.pairs.itertuples():
        shares = bool(set(comparison.letters[row.a]) & set(comparison.letters[row.b]))
        assert shares != (row.p_adjusted < 0.05)
        assert row.significant == (row.p_adjusted < 0.05)
    np.testing.assert_allclose(
        comparison.pairs["p_adjusted"], adjust(comparison.pairs["p"], correction)
    )


def test_a_selection_is_computed_anew(random_results):
    frame = random_results(entrants=5)
    whole, part = (
        compare(frame, "repair_rate", entrants=names) for names in (None, ["e0", "e1", "e2"])
    )
    assert len(whole.pairs) == 10
    assert len(part.pairs) == 3
    np.testing.assert_allclose(part.pairs["p_adjusted"], adjust(part.pairs["p"]))
    key = {frozenset((row.a, row.b)): row.p_adjusted for row in whole.pairs.itertuples()}
    assert any(
        not np.isclose(key[frozenset((row.a, row.b))], row.p_adjusted)
        for row in part.pairs.itertuples()
    )
    with pytest.raises(StatsError, match="e9"):
        compare(frame, "repair_rate", entrants=["e9"])
    one = compare(frame, "repair_rate", subjects=["s0"])
    assert set(one.pairs["common"]) == {1}


def test_the_order_of_rows_does_not_matter(random_results):
    frame = random_results(entrants=4)
    shuffled = frame.sample(frac=1, random_state=1)
    a, b = compare(frame, "repair_rate"), compare(shuffled, "repair_rate")
    assert list(a.order["entrant"]) == list(b.order["entrant"])
    np.testing.assert_allclose(a.pairs["p"], b.pairs["p"])
    assert a.letters == b.letters


# -- families --------------------------------------------------------------------------------------


def two_metrics(random_results) -> pd.DataFrame:
    first, second = random_results(seed=1), random_results(seed=2)
    return pd.concat([first, second.assign(metric="nfr")])


def test_family_all_corrects_the_metrics_together(random_results):
    frame = two_metrics(random_results)
    together = compare_all(frame, family="all")
    raw = np.concatenate([c.pairs["p"] for c in together.values()])
    ours = np.concatenate([c.pairs["p_adjusted"] for c in together.values()])
    np.testing.assert_allclose(ours, adjust(raw))


def test_family_against_a_control(random_results):
    comparison = compare(random_results(), "repair_rate", family="vs-control", control="e2")
    assert all("e2" in (row.a, row.b) for row in comparison.pairs.itertuples())
    assert len(comparison.pairs) == 3
    assert comparison.letters is None
    with pytest.raises(StatsError, match="control"):
        compare(random_results(), "repair_rate", family="vs-control")


def test_family_against_the_original_is_the_one_sample_test(results):
    frame = results({"x": {"s": [0.91, 0.93, 0.95]}}, "accuracy", original=0.9)
    row = compare(frame, "accuracy", family="vs-original").pairs.iloc[0]
    expected = stats.ttest_1samp([1.0, 3.0, 5.0], 0)
    assert row.b == "original"
    np.testing.assert_allclose([row.delta, row.t, row.df, row.p], [3, expected[0], 2, expected[1]])
    with pytest.raises(StatsError, match="no time"):
        compare(results({"x": {"s": [1.0, 2.0]}}, "seconds"), "seconds", family="vs-original")


# -- scores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "value", "original", "scale", "score"),
    [
        ("accuracy", 0.99, 0.9, "points", 9),
        ("accuracy", 0.99, 0.9, "relative", 10),
        ("asr", 0.6, 0.8, "points", 20),
        ("asr", 0.6, 0.8, "relative", 25),
        ("aaod", 0.03, 0.02, "points", -1),
        ("aaod", 0.03, 0.02, "relative", -50),
        ("aaod", 0.0, 0.0, "relative", 0),
        ("repair_rate", 0.4, np.nan, "relative", 40),
        ("nfr", 0.02, np.nan, "points", -2),
        ("seconds", 100.0, np.nan, "log10", -2),
        ("seconds", 100.0, np.nan, "seconds", -100),
    ],
)
def test_scores_are_better_when_higher(results, metric, value, original, scale, score):
    frame = results({"x": {"s": [value]}}, metric, original=original)
    assert make_cells(frame, metric, scale).mean[0, 0] == pytest.approx(score)


def test_a_gain_from_zero_is_no_value(results):
    frame = results({"x": {"s": [0.1]}}, "aaod", original=0.0)
    assert not make_cells(frame, "aaod", "relative").present.any()


def test_accuracy_needs_the_original(results):
    with pytest.raises(StatsError, match="original"):
        compare(results({"x": X, "y": Y}, "accuracy"), "accuracy")


def test_modes_have_their_own_scales(results):
    frame = results({"x": X, "y": Y}, "accuracy", original=0.5)
    assert compare(frame, "accuracy").unit == "percentage points"
    assert compare(frame, "accuracy", mode="study").unit == "relative gain in percent"
    assert compare(frame, "accuracy", scale="relative").order["score"].iloc[0] < 0
    seconds = results({"x": {"s": [10.0, 12.0]}, "y": {"s": [100.0, 90.0]}}, "seconds")
    assert pair(compare(seconds, "seconds"), "x", "y").delta == pytest.approx(0.9376, abs=1e-4)


# -- missing cells and designs ---------------------------------------------------------------------


def missing(results) -> pd.DataFrame:
    frame = results(
        {
            "x": {"s": [0.5, 0.52, 0.51], "u": [0.7, 0.72, 0.71]},
            "y": {"s": [0.1, 0.12, 0.11]},
            "z": {"u": [0.2, 0.22, 0.23]},
            "w": {"s": [0.3, 0.31, 0.35], "u": [0.4, 0.41, 0.45]},
        }
    )
    failed = frame[(frame["entrant"] == "y")].assign(
        subject="u", outcome="UNADAPTABLE", reason="no layer", value=np.nan
    )
    corrupted = frame[(frame["entrant"] == "z")].assign(
        subject="s", outcome="CORRUPTED", value=0.99
    )
    return pd.concat([frame.assign(outcome="FIXED", reason=None), failed, corrupted])


def test_pairs_are_compared_on_common_subjects(results):
    comparison = compare(missing(results), "repair_rate")
    expected = stats.ttest_ind([0.5, 0.52, 0.51], [0.1, 0.12, 0.11], equal_var=False)
    assert pair(comparison, "x", "y").p == pytest.approx(expected.pvalue)
    # The value of a CORRUPTED cell does not count.
    assert pair(comparison, "x", "z").common == 1
    assert comparison.order.set_index("entrant")["subjects"].to_dict() == {
        "x": 2, "y": 1, "z": 1, "w": 2,
    }  # fmt: skip


def test_a_pair_without_common_subject_is_untestable(results):
    comparison = compare(missing(results), "repair_rate")
    row = pair(comparison, "y", "z")
    assert row.reason == "no_common_subject"
    assert np.isnan([row.p, row.p_adjusted, row.delta]).all()
    assert set(comparison.letters["y"]) & set(comparison.letters["z"])
    assert any("1 pair is untestable" in line for line in comparison.notes)
    known = comparison.pairs["p"].dropna()
    np.testing.assert_allclose(comparison.pairs["p_adjusted"].dropna(), adjust(known))
    assert "?" in comparison.to_markdown()


def test_ranking_over_shared_subjects_and_success_rates(results):
    order = compare(missing(results), "repair_rate", entrants=["x", "w", "y"]).order
    order = order.set_index("entrant")
    assert order.loc["y", "complete_score"] == order.loc["y", "score"]
    assert order.loc["x", "complete_score"] == pytest.approx(51)
    assert order.loc["x", "score"] == pytest.approx(61)
    assert order.loc["y", "success"] == 0.5
    assert order.loc["x", "fixed"] == order.loc["x", "attempted"] == 6
    assert order.loc["x", "success_low"] < 1 == order.loc["x", "success_high"]


def test_an_entrant_without_any_value_is_named(results):
    frame = results({"x": X, "y": Y})
    failed = results({"z": {"s": [np.nan]}}, outcome="FAILURE", reason="out of memory")
    comparison = compare(pd.concat([frame, failed]), "repair_rate")
    assert "Without any value: z." in comparison.notes
    assert set(comparison.order["entrant"]) == {"x", "y"}


@pytest.mark.parametrize("mode", ["standard", "study"])
def test_one_entrant_or_none(results, mode):
    alone = compare(results({"x": X}), "repair_rate", mode=mode)
    assert alone.letters.as_dict() == {"x": ("a",)}
    assert alone.pairs.empty
    failed = results({"x": {"s": [np.nan]}, "y": {"s": [np.nan]}}, outcome="FAILURE")
    nobody = compare(failed, "repair_rate", mode=mode)
    assert nobody.order.empty
    assert "Without any value: x, y." in nobody.notes
    for comparison in (alone, nobody):
        json.loads(comparison.to_json())
        comparison.to_markdown()


def test_failed_repetitions_leave_the_others(results):
    frame = results({"x": {"s": [0.4, 0.5, 0.9]}, "y": Y}).assign(outcome="FIXED")
    frame.loc[2, "outcome"] = "FAILURE"
    row = pair(compare(frame, "repair_rate"), "x", "y")
    expected = stats.ttest_ind([0.4, 0.5], Y["s"], equal_var=False)
    assert row.p == pytest.approx(expected.pvalue)


def test_in_study_mode_an_entrant_on_one_subject_stands_alone(results):
    frame = missing(results)
    comparison = compare(frame, "repair_rate", mode="study")
    assert len(comparison.letters["y"]) == 1
    alone = set(comparison.letters["y"])
    assert all(not alone & set(comparison.letters[name]) for name in "xzw")


def test_copies_of_a_deterministic_result_are_no_replication(results):
    deterministic = results({"d": {"s": [0.3, 0.3, 0.3]}}, deterministic=True)
    frame = pd.concat([results({"x": X}, deterministic=False), deterministic])
    row = pair(compare(frame, "repair_rate"), "x", "d")
    expected = stats.ttest_1samp(X["s"], 0.3)
    np.testing.assert_allclose([row.df, row.p], [2, expected.pvalue])
    both = pd.concat([deterministic, deterministic.assign(entrant="e", value=0.9)])
    row = pair(compare(both, "repair_rate"), "d", "e")
    assert row.reason == "no_replication"
    assert np.isnan(row.p)
    assert np.isnan(row.g)


def test_time_varies_even_for_deterministic_entrants(results):
    frame = results({"d": {"s": [3.0, 3.1]}, "e": {"s": [9.0, 9.3]}}, "seconds", deterministic=True)
    assert pair(compare(frame, "seconds"), "d", "e").p < 0.05


def test_a_single_repetition_cannot_be_tested(results):
    row = pair(compare(results({"x": X, "y": {"s": [0.3]}}), "repair_rate"), "x", "y")
    assert row.reason == "single_repetition"
    assert row.delta > 0


def test_subjects_won_lost_and_tied(results):
    x = {"s": [0.9, 0.91, 0.92], "u": [0.1, 0.11, 0.12], "v": [0.5, 0.2, 0.8]}
    y = {"s": [0.1, 0.11, 0.12], "u": [0.9, 0.91, 0.92], "v": [0.4, 0.7, 0.3]}
    row = pair(compare(results({"x": x, "y": y}), "repair_rate"), "x", "y")
    assert (row.won, row.lost, row.tied) == (1, 1, 1)


def test_effect_sizes(results):
    row = pair(compare(results({"x": X, "y": Y}), "repair_rate"), "x", "y")
    x, y = np.array(X["s"]), np.array(Y["s"])
    pooled = np.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)
    assert row.g == pytest.approx((x.mean() - y.mean()) / pooled * (1 - 3 / 15))
    assert (row.a12, row.cliff) == (1, 1)
    mixed = compare(
        results({"x": {"s": [1, 2, 3]}, "y": {"s": [1, 2, 2]}}, "repair_rate"), "repair_rate"
    )
    expected = stats.mannwhitneyu([1, 2, 3], [1, 2, 2]).statistic / 9
    assert pair(mixed, "x", "y").a12 == pytest.approx(expected)


def test_effects_are_never_pooled_across_subjects(results):
    """Simpson: better on every subject, though worse when thrown together."""
    x = {"s": [0.11, 0.12, 0.13], "u": [0.91, 0.92, 0.93]}
    y = {"s": [0.01, 0.02, 0.03], "u": [0.81, 0.82, 0.83]}
    row = pair(compare(results({"x": x, "y": y}), "repair_rate"), "x", "y")
    assert row.a12 == 1


# -- permutation -----------------------------------------------------------------------------------


def test_permutation_within_one_subject_is_scipys(results):
    cells = make_cells(results({"x": X, "y": Y}), "repair_rate", "points")
    ours = permutation(cells, "x", "y")
    exact = stats.permutation_test(
        (X["s"], Y["s"]), lambda a, b: np.mean(a) - np.mean(b), n_resamples=np.inf
    )
    assert ours.exact
    assert ours.p == pytest.approx(exact.pvalue) == pytest.approx(0.1)
    assert ours.smallest == pytest.approx(0.1)


def test_permutation_of_several_subjects(random_results):
    cells = make_cells(random_results(subjects=3), "repair_rate", "points")
    exact = permutation(cells, "e0", "e1")
    assert exact.exact
    assert exact.smallest == pytest.approx(2 / 20**3)
    many = make_cells(random_results(subjects=5), "repair_rate", "points")
    drawn = permutation(many, "e0", "e1", seed=1)
    assert not drawn.exact
    assert drawn == permutation(many, "e0", "e1", seed=1)
    assert 0 < drawn.p <= 1


# -- refusals and output ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.drop(columns="value"), "value"),
        (lambda f: pd.concat([f, f.iloc[:1]]), "twice"),
        (lambda f: f.assign(outcome="BROKEN"), "BROKEN"),
        (lambda f: f.assign(value=np.nan), "no reason"),
        (lambda f: f.assign(denominator=np.arange(len(f))), "denominator"),
        (
            lambda f: f.assign(definition=[f"repair_rate/{i % 2}" for i in range(len(f))]),
            "definition",
        ),
        (lambda f: f.assign(original=np.arange(len(f)) / 100), "original"),
    ],
)
def test_unusable_data_are_refused(results, spoil, message):
    with pytest.raises(StatsError, match=message):
        check(spoil(results({"x": X, "y": Y})))


def test_each_entrant_may_have_its_own_original_asr(results):
    frame = results({"x": X, "y": Y}, "asr")
    frame["original"] = np.where(frame["entrant"] == "x", 0.8, 0.79)
    comparison = compare(frame, "asr")
    assert any("attacked" in line for line in comparison.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "acuracy"}, "did you mean accuracy"),
        ({"metric": "nfr"}, "no rows"),
        ({"mode": "both"}, "standard, study"),
        ({"correction": "bonferroni"}, "bh, holm, none"),
        ({"alpha": 5}, "alpha"),
        ({"mode": "study", "scope": "new-subjects"}, "one test"),
        ({"mode": "study", "family": "vs-original"}, "standard"),
    ],
)
def test_unusable_options_are_refused(results, options, message):
    options = {"metric": "repair_rate"} | options
    with pytest.raises(StatsError, match=message):
        compare(results({"x": X, "y": Y}), **options)


def test_output_formats(results):
    comparison = compare(missing(results), "repair_rate")
    content = json.loads(comparison.to_json())
    assert [row["entrant"] for row in content["order"]] == list(comparison.order["entrant"])
    assert len(content["pairs"]) == len(comparison.pairs)
    assert None in [row["p"] for row in content["pairs"]]
    assert set(content["letters"]) == {"x", "y", "z", "w"}
    assert r"\toprule" in comparison.to_latex()
    assert "| x |" in comparison.to_markdown()


def test_data_are_left_as_they_were(results):
    frame = missing(results)
    before = frame.copy()
    compare(frame, "repair_rate")
    pd.testing.assert_frame_equal(frame, before)
