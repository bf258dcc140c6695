import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelfix_core.errors import ModelfixError
from modelfix_metrics import DEFINITIONS, Comparison, MetricValue, Status, relative_gain
from modelfix_metrics.value import mcnemar_p, wilson


def test_wilson_interval_of_the_studys_example():
    low, high = wilson(76, 105)
    assert (round(100 * low, 1), round(100 * high, 1)) == (63.2, 80.0)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_follows_the_closed_formula(counts):
    count, total = counts
    z, share = 1.959963984540054, count / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total)
    half *= math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    assert wilson(count, total) == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_values_survive_json():
    values = [
        MetricValue.ratio("nfr", 3, 7, "test", warnings=("one",), details={"a": [1]}),
        MetricValue.undefined(
            "repair_rate", "no_misprediction", "test", numerator=0, denominator=0
        ),
        MetricValue.absent("aaod", "no_sensitive_attribute", "validation"),
        MetricValue.mean("aaod_max", 0.25, 1, "test", variant="x"),
    ]
    for value in values:
        text = json.dumps(value.as_dict(), allow_nan=False)
        again = MetricValue.from_dict(json.loads(text))
        assert again.as_dict() == value.as_dict()
        assert math.isnan(again.value) == (value.status is not Status.OK)
    assert MetricValue.from_dict(values[0].as_dict()) == values[0]
    assert values[3].definition == "aaod_max/1:x"


def test_only_ratios_hold_counts():
    assert MetricValue.ratio("nfr", 3, 7, "test").counts == (3, 7)
    for value in (
        MetricValue.absent("aaod", "no_sensitive_attribute", "test"),
        MetricValue.mean("aaod", 0.25, 1, "test"),
    ):
        with pytest.raises(ModelfixError, match="no ratio of counts"):
            _ = value.counts


def test_damaged_stored_values_are_refused():
    good = MetricValue.ratio("nfr", 3, 7, "test").as_dict()
    for bad in ({}, {**good, "status": "FINE"}, {**good, "more": 1}):
        with pytest.raises(ModelfixError, match="cannot be read"):
            MetricValue.from_dict(bad)


def test_every_definition_has_a_direction_and_a_version():
    assert {d.metric for d in DEFINITIONS.values()} == set(DEFINITIONS)
    lower = {name for name, d in DEFINITIONS.items() if d.direction == "low"}
    assert lower == {
        "nfr",
        *("aaod", "aaod_soft", "aaod_max", "aaod_study"),
        *("asr", "asr_margin", "asr_study", "asr_printed", "asr_conditional"),
    }


@pytest.mark.parametrize(
    ("metric", "before", "after", "gain", "reason"),
    [
        ("accuracy", 0.5, 0.6, 20.0, None),
        ("accuracy", 0.5, 0.4, -20.0, None),
        ("asr", 0.8, 0.6, 25.0, None),
        ("aaod", 0.2, 0.3, -50.0, None),
        ("asr", 0.0, 0.0, 0.0, None),
        ("asr", 0.0, 0.1, math.nan, "zero_before"),
        ("accuracy", 0.0, 0.1, math.nan, "zero_before"),
        ("aaod", math.nan, 0.1, math.nan, "undefined_value"),
    ],
)
def test_relative_gain(metric, before, after, gain, reason):
    found, why = relative_gain(metric, before, after)
    assert found == pytest.approx(gain, nan_ok=True)
    assert why == reason


@pytest.mark.parametrize("metric", ["repair_rate", "nfr", "repair_rate_printed"])
def test_metrics_relative_to_the_original_have_no_gain(metric):
    with pytest.raises(ModelfixError, match="has no gain"):
        relative_gain(metric, 0.1, 0.2)


def test_only_equal_definitions_are_compared():
    plain = MetricValue.ratio("asr", 1, 2, "test")
    other = MetricValue.ratio("asr", 1, 2, "test", variant="fast-gradient")
    with pytest.raises(ModelfixError, match="different metrics"):
        Comparison(plain, other)
    assert Comparison(plain, plain).gain == 0


@pytest.mark.parametrize(
    ("b", "c", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 32), (6, 0, 2 / 64)]
)
def test_mcnemar_is_exact(b, c, p):
    assert mcnemar_p(b, c) == pytest.approx(p)
