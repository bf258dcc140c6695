import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from modelfix_core.errors import ModelfixError
from modelfix_metrics.decisions import (
    Flips,
    accuracy,
    are_probabilities,
    check_identity,
    nfr,
    predicted,
    repair_rate,
    repair_rate_printed,
)


@st.composite
def classified(draw, classes=4):
    n = draw(st.integers(1, 40))
    column = hnp.arrays(np.int64, n, elements=st.integers(0, classes - 1))
    return draw(column), draw(column), draw(column)


@given(classified())
def test_against_the_plain_formulas(arrays):
    y, before, after = arrays
    rows = list(zip(y, before, after, strict=True))
    repaired = sum(b != label and a == label for label, b, a in rows)
    regressed = sum(b == label and a != label for label, b, a in rows)
    wrong = sum(b != label for label, b, _ in rows)
    flips = Flips.count(y, before, after)
    assert accuracy(y, after).value == sum(a == label for label, _, a in rows) / len(y)
    assert nfr(flips).value == regressed / len(y)
    assert repair_rate_printed(flips).value == repaired / len(y)
    value = repair_rate(flips)
    if wrong:
        assert (value.numerator, value.denominator, value.value) == (
            repaired,
            wrong,
            repaired / wrong,
        )
        assert repair_rate_printed(flips).value == pytest.approx(value.value * wrong / len(y))
    else:
        assert math.isnan(value.value)
        assert value.reason == "no_misprediction"


@given(classified())
def test_identity_holds_in_integers(arrays):
    y, before, after = arrays
    flips = Flips.count(y, before, after)
    old, new = accuracy(y, before), accuracy(y, after)
    repaired, regressed = repair_rate(flips), nfr(flips)
    assert new.numerator == old.numerator + repaired.numerator - regressed.numerator
    check_identity(old, new, repaired, regressed)


@given(classified())
def test_an_unchanged_model_repairs_and_breaks_nothing(arrays):
    y, before, _ = arrays
    flips = Flips.count(y, before, before)
    assert flips.repaired == flips.regressed == 0


@given(classified())
def test_swapping_the_models_swaps_repaired_and_regressed(arrays):
    y, before, after = arrays
    there, back = Flips.count(y, before, after), Flips.count(y, after, before)
    assert (there.repaired, there.regressed) == (back.regressed, back.repaired)
    assert (there.stayed_wrong, there.stayed_right) == (back.stayed_wrong, back.stayed_right)


def test_a_violated_identity_is_an_error():
    y = np.array([0, 1, 1, 0])
    before, after = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    flips = Flips.count(y, before, after)
    values = [accuracy(y, before), accuracy(y, after), repair_rate(flips), nfr(flips)]
    check_identity(*values)
    for position in range(4):
        wrong = list(values)
        wrong[position] = dataclasses.replace(
            wrong[position], numerator=wrong[position].numerator + 1
        )
        with pytest.raises(ModelfixError, match="contradict"):
            check_identity(*wrong)
    other = dataclasses.replace(values[2], denominator=3)
    with pytest.raises(ModelfixError, match="contradict"):
        check_identity(values[0], values[1], other, values[3])


def test_ties_go_to_the_lowest_index():
    assert predicted(np.array([[1.0, 1.0], [0.0, 2.0]])).tolist() == [0, 1]


def test_nan_logits_are_wrong_and_warned_about():
    logits = np.array([[np.nan, 0.0], [5.0, np.nan], [1.0, 0.0]])
    pred = predicted(logits)
    value = accuracy(np.array([0, 0, 0]), pred)
    assert value.numerator == 1
    assert value.warnings == ("2 of 3 inputs have NaN logits in the fixed model: counted as wrong",)


def test_no_inputs_and_unequal_inputs_are_errors():
    nothing = np.zeros(0, dtype=int)
    with pytest.raises(ModelfixError, match="no inputs"):
        Flips.count(nothing, nothing, nothing)
    with pytest.raises(ModelfixError, match="no inputs"):
        accuracy(nothing, nothing)
    with pytest.raises(ModelfixError, match="same inputs"):
        Flips.count(np.zeros(3), np.zeros(3), np.zeros(2))


def test_probabilities_are_recognised():
    logits = np.random.default_rng(0).normal(size=(20, 4))
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert are_probabilities(probability.astype(np.float32))
    assert not are_probabilities(logits)
    assert not are_probabilities(probability * 1.1)


# Table 3, MNIST, 5,000 inputs of which 105 are mispredicted, three runs.
@pytest.mark.parametrize(
    ("repaired", "mean", "std"),
    [
        ((15, 15, 19), "15.56", "1.796"),
        ((7, 7, 7), "6.67", "0.000"),
        ((23, 23, 23), "21.90", "0.000"),
    ],
)
def test_the_studys_repair_rates_divide_by_the_mispredictions(repaired, mean, std):
    def one(count):
        y = np.zeros(5000, dtype=int)
        before = np.where(np.arange(5000) < 105, 1, 0)
        after = np.where(np.arange(5000) < count, 0, before)
        return repair_rate(Flips.count(y, before, after))

    values = [one(count) for count in repaired]
    assert {value.denominator for value in values} == {105}
    percent = np.array([100 * value.value for value in values])
    assert f"{percent.mean():.2f}" == mean
    assert f"{percent.std(ddof=0):.3f}" == std


# Tables 3 and 5: accuracy before and after, repair rate, NFR in percent; mispredictions, inputs.
@pytest.mark.parametrize(
    ("before", "after", "rr", "flipped", "wrong", "n"),
    [
        (97.90, 99.06, 73.97, 0.39, 105, 5000),
        (97.90, 97.75, 12.70, 0.41, 105, 5000),
        (97.90, 97.59, 13.97, 0.61, 105, 5000),
    ],
)
def test_the_studys_tables_satisfy_the_identity(before, after, rr, flipped, wrong, n):
    assert before + rr * wrong / n - flipped == pytest.approx(after, abs=0.03)
