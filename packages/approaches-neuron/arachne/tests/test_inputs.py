import numpy as np
import pytest
from modelfix_arachne import inputs
from modelfix_core import Failure

Y = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
PREDICTED = np.array([0, 1, 1, 1, 1, 2, 2, 2, 0, 1])


def rng(seed=0):
    return np.random.default_rng(seed)


def test_all_failures():
    assert inputs.failing(PREDICTED, Y, "all", rng()).tolist() == [1, 2, 5, 8, 9]


def test_a_share_of_the_failures_changes_with_the_seed():
    predicted = np.where(np.arange(400) < 200, 1, 0)
    y = np.zeros(400, dtype=int)
    draws = [inputs.failing(predicted, y, "sample:0.1", rng(seed)) for seed in (0, 0, 1)]
    assert all(len(set(d.tolist())) == 20 and d.max() < 200 for d in draws)
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert len(inputs.failing(PREDICTED, Y, "sample:0.1", rng())) == 1


def test_types_rank_by_frequency_then_by_class():
    types = [inputs.failing(PREDICTED, Y, f"type:{k}", rng()).tolist() for k in (1, 2, 3, 4)]
    assert types == [[1, 2], [5], [8], [9]]
    with pytest.raises(Failure, match="4 types"):
        inputs.failing(PREDICTED, Y, "type:5", rng())


def test_nothing_to_fix_or_to_keep():
    with pytest.raises(Failure, match="nothing to fix"):
        inputs.failing(Y, Y, "all", rng())
    with pytest.raises(Failure, match="none to preserve"):
        inputs.passing((Y + 1) % 3, Y)


def test_balanced_draw_follows_the_classes():
    y = np.repeat([0, 1, 2], [600, 300, 2])
    passing = np.arange(len(y))[::2]
    drawn = inputs.balanced(passing, y, 30, rng())
    assert np.bincount(y[drawn]).tolist() == [20, 10, 1]
    assert set(drawn) <= set(passing.tolist())
    assert len(set(drawn.tolist())) == len(drawn)
    assert np.array_equal(inputs.balanced(passing, y, len(passing), rng()), passing)


def test_narrowly_right_inputs_come_first():
    logits = np.array([[5.0, 1.0, 0.0], [2.0, 1.9, 0.0], [0.0, 3.0, 1.0]])
    assert inputs.by_margin(np.array([0, 1, 2]), logits).tolist() == [1, 2, 0]
