"""What of the published study can be reproduced from its tables."""

import numpy as np
import pytest
from modelfix_stats import (
    adjust,
    agreement,
    beside_published,
    category_means,
    compact_letters,
    compare,
    effectiveness,
    from_summary,
    groups,
    identity,
    properties,
    published_letters,
    times,
)
from modelfix_stats.study import implied_original, read_table

METRICS = {
    "accuracy": "accuracy",
    "repair_rate": "repair_rate",
    "asr": "asr",
    "aaod": "aaod",
    "nfr": "nfr",
    "time": "seconds",
}


@pytest.fixture(scope="module")
def compared(study):
    return {name: compare(study, metric, mode="study") for name, metric in METRICS.items()}


def by_pair(frame, a: str, b: str) -> dict:
    return {
        frozenset(pair): row
        for pair, row in zip(
            zip(frame[a], frame[b], strict=True), frame.to_dict("records"), strict=True
        )
    }


@pytest.mark.parametrize("name", METRICS)
def test_pooled_students_t_of_every_pair(compared, golden, name):
    expected = golden("table4_pairs").query("metric == @name")
    ours = by_pair(compared[name].pairs, "a", "b")
    assert len(ours) == len(expected)
    for key, row in by_pair(expected, "approach_a", "approach_b").items():
        pair = ours[key]
        assert pair["common"] == row["common_datasets"]
        for column in ("df", "p"):
            np.testing.assert_allclose(pair[column], row[column], rtol=1e-4, atol=1e-12)
        sign = 1 if pair["a"] == row["approach_a"] else -1
        np.testing.assert_allclose(sign * pair["t"], row["t"], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_corrected_p_of_every_pair(compared, golden, name):
    expected = golden("table4_pairs").query("metric == @name")
    np.testing.assert_allclose(adjust(expected["p"]), expected["p_bh"], rtol=1e-4, atol=1e-12)
    ours = by_pair(compared[name].pairs.assign(bh=adjust(compared[name].pairs["p"])), "a", "b")
    for key, row in by_pair(expected, "approach_a", "approach_b").items():
        np.testing.assert_allclose(ours[key]["bh"], row["p_bh"], rtol=2e-4, atol=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_group_letters_of_every_approach(compared, golden, name):
    expected = golden("table4_reproduction").query("metric == @name").set_index("approach")
    order = compared[name].order.set_index("entrant")
    assert order["letters"].to_dict() == expected["letters_group_mode"].to_dict()
    np.testing.assert_allclose(order["score"], expected["score"].reindex(order.index), atol=5e-5)
    assert order["subjects"].to_dict() == expected["datasets"].to_dict()
    assert any("not a compact letter display" in line for line in compared[name].notes)


@pytest.mark.parametrize("name", METRICS)
def test_the_valid_display_of_the_studys_p_values(compared, golden, name):
    """Which pairs share a letter once the same p values are corrected and displayed validly."""
    comparison = compared[name]
    names = list(comparison.order["entrant"])
    different = np.zeros((len(names), len(names)), bool)
    pairs = comparison.pairs
    for a, b, p in zip(pairs["a"], pairs["b"], adjust(pairs["p"]), strict=True):
        i, j = names.index(a), names.index(b)
        different[i, j] = different[j, i] = p < 0.05
    share = compact_letters(names, different).share()
    for row in golden("table4_pairs").query("metric == @name").itertuples():
        i, j = names.index(row.approach_a), names.index(row.approach_b)
        assert share[i, j] == row.share_cld_bh


def test_how_much_of_table_4_is_reproduced(compared):
    """647 of 691 pairs share a letter in print iff they do here; RR and time all but one each."""
    printed = {
        (row.entrant, row.metric): set(row.letters) for row in published_letters().itertuples()
    }
    agree = {}
    for name, comparison in compared.items():
        pairs = comparison.pairs
        letters = comparison.letters
        agree[name] = sum(
            bool(set(letters[a]) & set(letters[b]))
            == bool(printed[a, METRICS[name]] & printed[b, METRICS[name]])
            for a, b in zip(pairs["a"], pairs["b"], strict=True)
        )
    assert sum(len(c.pairs) for c in compared.values()) == 691
    assert sum(agree.values()) == 647
    assert agree["repair_rate"] == agree["time"] == 119


def test_pairs_without_common_letter_need_not_differ_in_print(compared):
    printed = {
        (row.entrant, row.metric): set(row.letters) for row in published_letters().itertuples()
    }
    apart = similar = 0
    for name, comparison in compared.items():
        for row in comparison.pairs.query("common >= 2").itertuples():
            if not printed[row.a, METRICS[name]] & printed[row.b, METRICS[name]]:
                apart += 1
                similar += row.p >= 0.05
    assert (similar, apart) == (129, 432)


def test_worked_examples_of_the_two_tests(study):
    standard = compare(study, "repair_rate")
    pooled = compare(study, "repair_rate", mode="study")
    ap = standard.pairs.query("a == 'AP' and b == 'HUDD'").iloc[0]
    np.testing.assert_allclose(
        [ap.delta, ap.t, ap.df, ap.p, ap.low, ap.high],
        [2.145, 4.285, 4.659, 0.00916, 0.83, 3.46],
        rtol=2e-3,
    )
    np.testing.assert_allclose([ap.new_p, ap.new_low, ap.new_high], [0.851, -31.2, 35.5], rtol=2e-3)
    ir = standard.pairs.query("a == 'IR' and b == 'NR'").iloc[0]
    np.testing.assert_allclose([ir.delta, ir.df], [13.937, 5.945], rtol=1e-4)
    np.testing.assert_allclose(ir.p, 3.1e-6, rtol=2e-2)
    assert (ir.won, ir.lost) == (2, 0)
    pooled_ap = pooled.pairs.query("a == 'AP' and b == 'HUDD'").iloc[0]
    np.testing.assert_allclose(
        [pooled_ap.t, pooled_ap.df, pooled_ap.p], [0.2347, 22, 0.8166], rtol=1e-3
    )


# -- the numbers of the tables ---------------------------------------------------------------------


def test_the_accuracy_identity_of_every_cell(study, golden):
    expected = golden("derived_identity").set_index(["dataset", "approach"])
    ours = identity(study).set_index(["subject", "entrant"]).loc[expected.index]
    assert len(ours) == 63
    pairs = {
        "accuracy": "accuracy_fixed",
        "repair_rate": "repair_rate",
        "nfr": "nfr",
        "nfr_implied": "nfr_implied",
        "residual": "identity_residual",
    }
    for column, printed in pairs.items():
        np.testing.assert_allclose(100 * ours[column], expected[printed], atol=6e-4)
    np.testing.assert_allclose(ours["gain"], expected["gain_printed"])
    np.testing.assert_allclose(ours["gain_implied"], expected["gain_recomputed"], atol=6e-4)
    assert (100 * ours["residual"].abs() <= 0.03).sum() == 54


def test_originals_that_means_and_gains_imply(golden):
    for row in golden("derived_originals").itertuples():
        step = 0.01 if row.metric == "asr" else 0.0001
        implied = implied_original(row.fixed_mean, row.gain_percent, mean_step=step)
        expected = (row.original_implied, row.original_low, row.original_high)
        np.testing.assert_allclose(implied, expected, rtol=1e-5, atol=6e-5)


def test_repair_rates_of_mnist_are_counts_over_105(study):
    rates = study.frame.query("metric == 'repair_rate' and subject == 'MNIST'")["mean"].dropna()
    assert len(rates) == 14

    def on_grid(faults: int) -> int:
        grid = np.round(100 * np.arange(3 * faults + 1) / (3 * faults), 2)
        return int(np.isin(np.round(100 * rates, 2), grid).sum())

    assert on_grid(105) == 14
    assert max(on_grid(n) for n in (103, 104, 106, 107)) <= 3


@pytest.mark.parametrize(
    ("metric", "column", "category", "percent"),
    [
        ("repair_rate", "mean", "layer", 5.99),
        ("repair_rate", "mean", "neuron", 7.32),
        ("nfr", "mean", "layer", 0.94),
        ("nfr", "mean", "neuron", 1.72),
        ("accuracy", "gain", "layer", -0.50),
        ("accuracy", "gain", "neuron", -1.015),
    ],
)
def test_category_averages_of_the_text(study, metric, column, category, percent):
    means = category_means(study, metric, column)
    value = means.loc[category, "value"] * (100 if column == "mean" else 1)
    assert value == pytest.approx(percent, abs=0.005)


def test_numbers_of_cells(study):
    cells = study.frame.query("metric == 'accuracy'")["outcome"].value_counts().to_dict()
    assert cells == {"FIXED": 63, "UNADAPTABLE": 10, "CORRUPTED": 5, "FAILURE": 2}


# -- the tables as printed -------------------------------------------------------------------------


def printed(table: str, digits: dict[str, int]) -> dict[tuple[str, str, str], str]:
    """Return the text of every cell of one of the study's tables."""
    texts = {}
    for row in read_table(table).itertuples():
        text = row.status
        if row.status == "OK":
            text = f"{row.mean:.{digits.get(row.metric, 2)}f}"
            text += "" if np.isnan(row.std) else f" ± {row.std:.3f}"
        texts[row.approach, row.dataset, row.metric] = text
    return texts


@pytest.mark.parametrize(
    ("make", "source", "metrics"),
    [
        (effectiveness, "table3_effectiveness", {"ACC": "accuracy", "RR": "repair_rate"}),
        (properties, "table5_properties", {"ASR": "asr", "AAOD": "aaod", "NFR": "nfr"}),
    ],
)
def test_tables_3_and_5_are_filled_as_printed(study, make, source, metrics):
    table = make(study, ddof=0)
    expected = printed(source, {"aaod": 4})
    seen = 0
    for row in table.to_frame().to_dict("records"):
        outcome = {}
        for head, text in list(row.items())[2:]:
            dataset, title = head.split()
            metric = metrics[title.removeprefix("↑")] + ("_gain_percent" if title[0] == "↑" else "")
            outcome[dataset] = text or outcome.get(dataset, "")
            value = expected[row["approach"], dataset, metric]
            assert (text or outcome[dataset]) == value
            seen += 1
    assert seen == len(expected)


def test_table_6_is_filled_as_printed(study):
    rows = times(study).to_frame().set_index("approach")
    for row in read_table("table6_time").itertuples():
        short = {"CORRUPTED": "CORR.", "FAILURE": "FAIL.", "UNADAPTABLE": "UNAD."}
        text = row.printed if row.status == "OK" else short[row.status]
        assert rows.loc[row.approach, row.dataset] == text


def test_table_4_has_a_row_for_every_approach(study):
    table = groups(study, mode="study").to_frame().set_index("approach")
    assert list(table.columns) == ["category", "ACC", "RR", "ASR", "AAOD", "NFR", "time"]
    assert table.loc["HUDD", "RR"] == "a"
    assert table.loc["VERE", "AAOD"] == table.loc["RA", "AAOD"] == "-"


def test_top_three_of_accuracy_are_model_level_in_13_of_15(study):
    """The study counts so, by category, over its five subjects."""
    table = effectiveness(study, ddof=0)
    accuracy = [i for i, column in enumerate(table.columns) if column == "↑ACC"]
    marks = []
    for row in table.rows:
        spread = [cell for cell in row for _ in range(cell.span)]
        marks += [(row[0].text, spread[i].mark) for i in accuracy]
    top = [category for category, mark in marks if mark == "top"]
    assert (top.count("model"), len(top)) == (13, 15)
    bottom = [category for category, mark in marks if mark == "bottom"]
    assert (bottom.count("neuron"), len(bottom)) == (13, 15)


# -- beside the study ------------------------------------------------------------------------------


def test_the_study_beside_itself(study):
    beside = beside_published(study)
    assert len(beside) == 80 * 5 + 32
    assert (beside["status"] == beside["published_status"]).all()
    summed = agreement(beside)
    assert (summed["same_status"] == summed["cells"]).all()
    # All but RA on MNIST, whose printed mean and gain contradict each other.
    assert (summed.loc["accuracy", "compared"], summed.loc["accuracy", "same_sign"]) == (63, 62)
    assert summed.loc["seconds", "largest_deviation"] == pytest.approx(1)
    assert summed.loc["nfr", "largest_deviation"] == pytest.approx(0, abs=1e-12)


def test_our_names_are_matched_with_the_studys(results):
    frame = results(
        {"i-repair:study": {"mnist-lenet5": [0.975, 0.977, 0.976], "mine": [0.5, 0.5, 0.5]}},
        metric="accuracy",
        original=0.979,
        approach="i-repair",
    )
    beside = beside_published(frame)
    row = beside.iloc[0]
    assert len(beside) == 1
    assert row["published_mean"] == pytest.approx(0.9806)
    assert row["deviation"] == pytest.approx(0.976 - 0.9806)
    assert (row["sign"], row["published_sign"], row["same_sign"]) == (-1, 1, False)


def test_an_outcome_here_and_a_value_there(results):
    frame = results(
        {"arachne": {"mnist-lenet5": [np.nan]}}, "accuracy", original=0.979, outcome="FAILURE"
    )
    row = beside_published(frame).iloc[0]
    assert (row["status"], row["published_status"]) == ("FAILURE", "OK")
    assert np.isnan(row["deviation"])
    assert row["same_sign"] is None


def test_seconds_deviate_by_a_factor(results):
    frame = results({"arachne": {"mnist-lenet5": [36.0, 36.0]}}, "seconds")
    assert beside_published(frame).iloc[0]["deviation"] == pytest.approx(0.5)


def test_ddof_must_be_known(study):
    with pytest.raises(ValueError, match="ddof"):
        from_summary(study.frame, ddof=2)
