import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from modelfix_core.errors import ModelfixError
from modelfix_metrics.attacks import (
    Attack,
    AttackContext,
    Attacked,
    Sample,
    derived_values,
    masking_warning,
    random_starts,
    success_value,
)
from modelfix_metrics.value import MetricValue

POOLS = hnp.arrays(np.bool_, st.integers(1, 200))


@given(POOLS, st.integers(0, 5), st.integers(1, 250))
def test_a_sample_is_the_first_of_the_order_in_the_pool(pool, seed, attacked):
    sample = Sample.draw(pool, seed, attacked)
    assert sorted(sample.order) == list(range(len(pool)))
    expected = [position for position in sample.order if pool[position]][:attacked]
    assert sample.positions.tolist() == expected
    assert sample.pool == pool.sum()
    assert len(sample) == min(attacked, pool.sum())


@given(POOLS, st.integers(0, 5), st.integers(1, 100))
def test_a_smaller_sample_is_a_prefix(pool, seed, attacked):
    large, small = Sample.draw(pool, seed, attacked + 30), Sample.draw(pool, seed, attacked)
    assert small.positions.tolist() == large.positions[: len(small)].tolist()


@given(POOLS, st.integers(0, 5))
def test_the_order_does_not_depend_on_the_pool(pool, seed):
    everything = Sample.draw(np.ones_like(pool), seed, len(pool))
    sample = Sample.draw(pool, seed, len(pool))
    assert sample.positions.tolist() == [p for p in everything.positions if pool[p]]


def test_different_seeds_give_different_orders():
    pool = np.ones(100, dtype=bool)
    assert Sample.draw(pool, 1).order.tolist() != Sample.draw(pool, 2).order.tolist()


def test_asking_for_no_inputs_is_an_error():
    with pytest.raises(ModelfixError, match="at least one"):
        Sample.draw(np.ones(3, dtype=bool), 0, 0)


def test_a_start_depends_on_its_position_alone():
    every = random_starts(np.arange(300), (1, 3, 2), 5)
    ranks = np.array([250, 3, 64, 63])
    assert np.array_equal(random_starts(ranks, (1, 3, 2), 5), every[ranks])
    assert not np.array_equal(random_starts(ranks, (1, 3, 2), 6), every[ranks])
    assert every.min() < -0.99
    assert every.max() > 0.99
    assert abs(every.mean()) < 0.05
    assert len(np.unique(every)) > 1790


def test_settings_are_checked():
    with pytest.raises(ModelfixError, match="no attack metric"):
        Attack("accuracy", 0.1)
    with pytest.raises(ModelfixError, match="no attack"):
        Attack("asr", 0.1, "carlini")
    with pytest.raises(ModelfixError, match="epsilon"):
        Attack("asr", float("nan"))


def context(n, attacked=None, pool=None):
    pool = np.ones(n, dtype=bool) if pool is None else pool
    return AttackContext(Sample.draw(pool, 0, attacked or n))


@st.composite
def flags(draw):
    n = draw(st.integers(1, 60))
    return draw(hnp.arrays(np.bool_, n)), draw(hnp.arrays(np.bool_, n))


@given(flags())
def test_identities_of_the_variants(drawn):
    wrong, right = drawn
    n = len(wrong)
    attacked = Attacked(wrong, np.zeros(n, dtype=bool), 41 * n)
    asr = success_value("asr", attacked, context(n))
    printed, conditional, robust = derived_values(attacked, right, context(n))
    wrong_both = int((~right & wrong).sum())
    assert asr.numerator == printed.numerator + wrong_both
    assert robust.numerator == n - asr.numerator
    if right.any():
        share = right.sum() / n
        assert conditional.value == pytest.approx(printed.value / share)
    else:
        assert conditional.reason == "empty_pool"
    if right.all():
        assert asr.value == printed.value == conditional.value


def test_an_empty_pool_has_no_rate():
    value = success_value("asr", Attacked.none(), context(5, pool=np.zeros(5, dtype=bool)))
    assert value.reason == "empty_pool"
    assert np.isnan(value.value)
    assert (value.details["pool"], value.details["pool_share"]) == (0, 0.0)


def test_masking_is_warned_about_above_ten_points():
    def value(metric, count):
        return MetricValue.ratio(metric, count, 100, "test")

    assert masking_warning(value("asr", 40), value("asr_margin", 50)) == ()
    assert "masked" in masking_warning(value("asr", 40), value("asr_margin", 51))[0]
    assert masking_warning(value("asr", 60), value("asr_margin", 40))
    missing = MetricValue.undefined("asr", "empty_pool", "test")
    assert masking_warning(missing, value("asr_margin", 40)) == ()
