"""Corrections are those of the libraries, with NaN put aside."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfix_stats import StatsError, adjust
from scipy.stats import false_discovery_control
from statsmodels.stats.multitest import multipletests

P = [0.001, 0.008, 0.039, 0.041, 0.042, 0.06, 0.074, 0.205, 0.212, 0.216]


def test_worked_example():
    expected = [0.01, 0.04, 0.084, 0.084, 0.084, 0.1, 0.1057, 0.216, 0.216, 0.216]
    np.testing.assert_allclose(adjust(P), expected, atol=5e-5)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_benjamini_hochberg_is_scipys(p):
    np.testing.assert_allclose(adjust(p), false_discovery_control(p), rtol=1e-9, atol=1e-300)


def test_holm_is_statsmodels():
    np.testing.assert_allclose(adjust(P, "holm"), multipletests(P, method="holm")[1])


def test_nan_does_not_count():
    p = np.insert(np.array(P), [0, 4, 10], np.nan)
    adjusted = adjust(p)
    assert np.isnan(adjusted[np.isnan(p)]).all()
    np.testing.assert_allclose(adjusted[~np.isnan(p)], adjust(P))
    assert np.isnan(adjust([np.nan, np.nan])).all()


def test_none_changes_nothing():
    np.testing.assert_array_equal(adjust(P, "none"), P)


def test_unknown_correction():
    with pytest.raises(StatsError, match="bh, holm or none"):
        adjust(P, "bonferroni")
