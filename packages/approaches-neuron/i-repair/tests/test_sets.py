import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfix_i_repair.sets import draw_sets


@settings(deadline=None)
@given(
    samples=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60),
    per_class=st.integers(1, 5),
    most=st.none() | st.integers(1, 10),
    seed=st.integers(0, 100),
)
def test_sets_are_what_they_say(samples, per_class, most, seed):
    y = np.array([label for label, _ in samples], dtype=np.int64)
    predicted = np.array([guess for _, guess in samples], dtype=np.int64)
    logits = np.eye(4)[predicted]
    sets = draw_sets(logits, y, per_class, most, seed)
    right = predicted == y
    for label in range(4):
        available = int((right & (y == label)).sum())
        assert (y[sets.general] == label).sum() == min(available, per_class)
    assert right[sets.general].all()
    assert not right[sets.specific].any()
    assert len(set(sets.general)) == len(sets.general)
    wrong = int((~right).sum())
    assert len(set(sets.specific)) == (wrong if most is None else min(wrong, most))


def test_the_seed_decides_which_samples_are_taken():
    y = np.zeros(100, dtype=np.int64)
    logits = np.tile([1.0, 0.0], (100, 1))
    draws = [draw_sets(logits, y, 10, None, seed).general.tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
