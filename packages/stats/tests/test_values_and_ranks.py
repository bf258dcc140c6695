"""Single values, success rates, ranks, Pareto fronts, power, and how tables are written."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scikit_posthocs
from modelfix_stats import (
    StatsError,
    compare,
    counted,
    describe,
    detectable,
    effectiveness,
    groups,
    make_cells,
    matrix_table,
    mean_ranks,
    pareto_front,
    success_rates,
    times,
    wilson,
)
from modelfix_stats.tables import Cell, Table, duration
from scipy import stats
from statsmodels.stats.power import TTestIndPower


def test_wilson():
    low, high = wilson(76, 105)
    np.testing.assert_allclose([low, high], [0.632, 0.800], atol=1e-3)
    assert wilson([0, 5], [5, 5])[0].shape == (2,)


def test_every_counted_repetition_has_its_own_interval(results):
    data = results({"a": {"s": [0.78, 0.0]}}, numerator=78, denominator=100)
    data.loc[1, "numerator"] = 0
    data = pd.concat([data, results({"a": {"s": [5.0]}}, "seconds")])
    found = counted(data)
    assert list(found["metric"]) == ["repair_rate", "repair_rate"]
    low, high = wilson(np.array([78, 0]), np.array([100, 100]))
    np.testing.assert_allclose(found[["low", "high"]], np.stack([low, high], axis=1))
    assert counted(data.iloc[2:]).empty


def test_describe(results):
    row = describe(results({"x": {"s": [0.95, 0.97, 0.96]}}, "accuracy", original=0.9)).iloc[0]
    interval = stats.ttest_1samp([0.95, 0.97, 0.96], 0).confidence_interval()
    np.testing.assert_allclose([row.low, row.high], [interval.low, interval.high])
    np.testing.assert_allclose([row["mean"], row["std"]], [0.96, 0.01])
    np.testing.assert_allclose([row.gain, row.better], [100 * 0.06 / 0.9, 0.06])
    frame = results({"x": {"s": [0.95, 0.97, 0.96]}}, "accuracy", original=0.9)
    assert describe(frame, ddof=0).iloc[0]["std"] == pytest.approx(np.std([0.95, 0.97, 0.96]))


def test_copies_have_no_spread(results):
    frame = results({"x": {"s": [0.3, 0.3, 0.3]}}, deterministic=True)
    assert np.isnan(describe(frame).iloc[0]["std"])
    assert describe(frame.assign(deterministic=False)).iloc[0]["std"] == 0


def test_statuses(results):
    frame = pd.concat(
        [
            results({"x": {"s": [np.nan]}}, outcome="UNADAPTABLE", reason="no layer"),
            results({"y": {"s": [np.nan]}}, outcome="FIXED", reason="no_misprediction"),
            results({"z": {"s": [0.2]}}),
        ]
    )
    statuses = describe(frame).set_index("entrant")["status"]
    assert statuses.to_dict() == {"x": "UNADAPTABLE", "y": "ABSENT", "z": "OK"}
    assert describe(frame).set_index("entrant").loc["x", "reason"] == "no layer"


def test_metrics_that_are_not_known_are_left_out(results):
    frame = results({"x": {"s": [0.1]}})
    memory = frame.assign(metric="peak_memory", value=1e9)
    assert set(describe(pd.concat([frame, memory]))["metric"]) == {"repair_rate"}
    assert effectiveness(pd.concat([frame, memory])).heads == ("category", "approach", "s RR")
    with pytest.raises(StatsError, match="none of the metrics"):
        describe(memory)


def test_success_rates_count_cells_once(results):
    frame = results({"x": {"s": [0.1, 0.2], "u": [0.3, 0.4]}}).assign(outcome="FIXED")
    frame.loc[3, "outcome"] = "FAILURE"
    rates = success_rates(pd.concat([frame, frame.assign(metric="nfr")])).loc["x"]
    assert (rates.fixed, rates.attempted, rates.rate) == (3, 4, 0.75)
    np.testing.assert_allclose([rates.low, rates.high], wilson(3, 4))


def test_ranks_over_complete_subjects(random_results):
    cells = make_cells(random_results(subjects=6), "repair_rate", "points")
    ranks = mean_ranks(cells)
    expected = stats.rankdata(-cells.mean, axis=0).mean(axis=1)
    np.testing.assert_allclose(ranks.mean.loc[list(cells.entrants)], expected)
    assert ranks.friedman_p == pytest.approx(stats.friedmanchisquare(*cells.mean).pvalue)
    nemenyi = scikit_posthocs.posthoc_nemenyi_friedman(cells.mean.T)
    np.testing.assert_allclose(ranks.nemenyi, nemenyi, atol=1e-6)


def test_ranks_without_enough_subjects(random_results):
    frame = random_results(subjects=5)
    frame = frame[~((frame["entrant"] == "e1") & (frame["subject"] == "s2"))]
    ranks = mean_ranks(make_cells(frame, "repair_rate", "points"))
    assert ranks.subjects == ("s0", "s1", "s3", "s4")
    assert np.isnan(ranks.friedman_p)
    assert ranks.nemenyi is None


def test_pareto_front():
    scores = pd.DataFrame(
        {"rr": [3, 1, 2, 3, np.nan], "nfr": [1, 3, 0, 0, 9]}, index=list("abcde"), dtype=float
    )
    assert pareto_front(scores).to_dict() == {
        "a": True, "b": True, "c": False, "d": False, "e": False,
    }  # fmt: skip
    twins = pd.DataFrame({"rr": [1.0, 1.0]}, index=["a", "b"])
    assert pareto_front(twins).all()


def test_the_detectable_difference_has_its_power(results):
    cells = make_cells(results({"x": {"s": [0.1, 0.2, 0.3]}}), "repair_rate", "points")
    smallest = detectable(cells)[0, 0]
    power = TTestIndPower().power(smallest / np.sqrt(cells.variance[0, 0]), 3, 0.05)
    assert power == pytest.approx(0.8, abs=1e-4)


def test_the_package_stands_alone():
    code = (
        "import sys, modelfix_stats; print([name for name in sys.modules "
        "if name.partition('.')[0] in {'torch', 'tensorflow', 'matplotlib', 'scikit_posthocs'} "
        "or name.startswith('modelfix') and not name.startswith('modelfix_stats')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# -- tables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4s"),
        (13, "00m13s"),
        (545, "09m05s"),
        (3599.6, "01h00m"),
        (49560, "13h46m"),
        (486960, "135h16m"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_marks_of_the_best_and_worst(results):
    values = {f"e{i}": {"s": [i / 10, i / 10]} for i in range(8)}
    table = effectiveness(results(values))
    marks = {row[1].text: row[2].mark for row in table.rows}
    assert [name for name, mark in marks.items() if mark == "top"] == ["e5", "e6", "e7"]
    assert [name for name, mark in marks.items() if mark == "bottom"] == ["e0", "e1", "e2"]
    few = effectiveness(results({name: values[name] for name in ("e1", "e2", "e3")}))
    assert [row[2].mark for row in few.rows] == ["bottom", "", "top"]
    equal = effectiveness(results({name: {"s": [0.1, 0.1]} for name in "abcdefgh"}))
    assert {row[2].mark for row in equal.rows} == {""}


def test_low_metrics_are_marked_the_other_way(results):
    table = times(results({"x": {"s": [1.0]}, "y": {"s": [9.0]}}, "seconds"))
    assert [row[2].mark for row in table.rows] == ["top", "bottom"]


def test_outcomes_span_their_subject(results):
    fixed = results({"x": {"s": [0.9, 0.9]}}, "accuracy", original=0.8)
    failed = results({"y": {"s": [np.nan]}}, "accuracy", original=0.8, outcome="UNADAPTABLE")
    table = effectiveness(pd.concat([fixed, failed]))
    assert table.rows[1][2] == Cell("UNADAPTABLE", span=2)
    assert r"\multicolumn{2}{c}{UNADAPTABLE}" in table.to_latex()
    assert table.to_csv().splitlines()[2] == ",y,UNADAPTABLE,"


def test_categories_are_in_the_studys_order(results):
    frame = pd.concat(
        [
            results({"x": {"s": [0.1]}}, category="neuron"),
            results({"y": {"s": [0.1]}}, category="model"),
            results({"arachne": {"s": [0.1]}}, category="neuron"),
        ]
    )
    table = effectiveness(frame)
    assert [row[1].text for row in table.rows] == ["y", "x", "AR"]
    assert table.to_latex().count(r"\midrule") == 2


def test_every_row_of_every_format_has_all_columns(study):
    for table in (
        effectiveness(study),
        times(study),
        groups(study),
        matrix_table(compare(study, "nfr")),
    ):
        assert {len(row) for row in table.texts()} == {len(table.columns)}
        lines = table.to_markdown().splitlines()[2:]
        rows = [line for line in lines if line.startswith("|")]
        assert {line.count("|") for line in rows} == {len(table.columns) + 1}
        assert len(rows) == len(table.rows) + 2
        latex = table.to_latex()
        for word in (r"\toprule", r"\midrule", r"\bottomrule"):
            assert word in latex


def test_latex_escapes():
    row = (Cell("50 % & a_b"), Cell("1 ± 2", "top"))
    table = Table("A # title", (), ("approach", "↑ACC"), (row,))
    latex = table.to_latex()
    assert r"50 \% \& a\_b & \textbf{1 $\pm$ 2} \\" in latex
    assert r"\caption{A \# title}" in latex
    assert r"$\uparrow$ACC" in latex


def test_a_table_without_its_metrics(results):
    with pytest.raises(StatsError, match="accuracy"):
        effectiveness(results({"x": {"s": [0.1]}}, "nfr"))
