"""Margins of labels and the rounding of logits."""

import numpy as np
import pytest
from modelfix_core.margins import ROUNDING, margins, rounding


def test_margin_is_the_lead_over_the_best_rival():
    logits = np.array([[1.0, 4.0, 2.5], [3.0, 3.0, 0.0], [0.0, 1.0, 5.0]], dtype=np.float32)
    np.testing.assert_allclose(margins(logits, np.array([1, 0, 1])), [1.5, 0.0, -4.0])
    assert logits[0, 1] == 4.0  # the input stays


def test_rounding_grows_with_the_logits():
    assert rounding(np.zeros((0, 3))) == ROUNDING
    assert rounding(np.array([[-50.0, 3.0]])) == pytest.approx(50 * ROUNDING)
