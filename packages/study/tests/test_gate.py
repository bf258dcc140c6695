import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfix.gate import Limits, judge, parse_share
from modelfix_core import Dataset, ModelfixError, Split
from modelfix_testing import mlp

CLASSES = 3


def answering(answers):
    """Return a model that answers image i, one-hot in pixel i, with answers[i]."""
    weight = np.zeros((CLASSES, len(answers)), np.float32)
    weight[answers, np.arange(len(answers))] = 1
    return mlp([weight], [np.zeros(CLASSES)], (1, 1, len(answers)))


def data(labels):
    x = np.eye(len(labels), dtype=np.float32).reshape(-1, 1, 1, len(labels))
    return Dataset({"whole": Split(x, np.array(labels))}, [str(k) for k in range(CLASSES)])


label = st.integers(0, CLASSES - 1)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(label, label, label), min_size=2, max_size=12))
def test_counts_are_those_of_a_plain_count(rows):
    labels, old, new = (list(column) for column in zip(*rows, strict=True))
    verdict = judge(answering(old), answering(new), data(labels), Limits(None, 1.0))
    broken = [i for i, (y, a, b) in enumerate(rows) if a == y != b]
    fixed = [i for i, (y, a, b) in enumerate(rows) if a != y == b]
    wrong = sum(a != y for y, a, _ in rows)
    assert verdict.passed
    assert (verdict.newly_broken, verdict.newly_fixed) == (broken, fixed)
    assert verdict.nfr == pytest.approx(len(broken) / len(rows))
    if wrong:
        assert verdict.repair_rate == pytest.approx(len(fixed) / wrong)
    else:
        assert np.isnan(verdict.repair_rate)
    assert verdict.accuracy_after == pytest.approx(
        verdict.accuracy_before + len(fixed) / len(rows) - verdict.nfr
    )
    json.dumps(verdict.as_dict(), allow_nan=False)


def test_limits_close_the_gate():
    labels = [0, 1, 2, 0]
    old, new = answering([0, 1, 0, 1]), answering([0, 0, 2, 1])
    assert judge(old, new, data(labels), Limits(None, 0.0)).passed
    assert not judge(old, new, data(labels), Limits(0.1, 0.0)).passed
    assert judge(old, new, data(labels), Limits(0.25, 0.0)).passed
    worse = judge(new, answering([1, 0, 2, 1]), data(labels), Limits(None, 0.0))
    assert not worse.passed
    assert "accuracy fell by 25.00%" in worse.reasons[0]


@pytest.mark.parametrize(("text", "value"), [("0.5%", 0.005), ("0.005", 0.005), ("0%", 0.0)])
def test_shares(text, value):
    assert parse_share(text, "--max-nfr") == pytest.approx(value)


@pytest.mark.parametrize("text", ["lots", "-1%", "101%", "2", ""])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(ModelfixError, match="--max-nfr"):
        parse_share(text, "--max-nfr")
