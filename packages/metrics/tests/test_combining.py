import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from modelfix_core.errors import ModelfixError
from modelfix_metrics.combining import (
    METHODS,
    Dropout,
    Mixture,
    MoreConfident,
    Perturbation,
    aligned_temperature,
    alignment_weights,
    fit,
    fit_weight,
    log_probabilities,
)

FITTED = ("sv", "hv", "us", "us-paper", "us-labelled", "us-weight")


def rows(*values):
    """Return probabilities as the logits that stand for them."""
    return np.log(np.array(values, dtype=np.float64))


@st.composite
def logits(draw, most=5):
    """Labels and logits of two models; no two logits of a row tie."""
    n, k = draw(st.integers(1, 8)), draw(st.integers(2, most))
    values = arrays(np.int64, (n, k), elements=st.integers(-800, 800))
    # Hundredths, and a smaller part that differs from class to class.
    before, after = (draw(values) / 100 + 0.0013 * np.arange(k) for _ in range(2))
    y = draw(arrays(np.int64, n, elements=st.integers(0, k - 1)))
    return y, before, after


# -- the worked examples of the specification ------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "q", "soft", "hard"),
    [
        ((0.7, 0.2, 0.1), (0.3, 0.6, 0.1), (0.5, 0.4, 0.1), (0.7, 0.2, 0.1)),
        ((0.5, 0.4, 0.1), (0.1, 0.8, 0.1), (0.3, 0.6, 0.1), (0.1, 0.8, 0.1)),
        # Two wrong models that both rank the right class second: SV repairs, HV cannot.
        ((0.5, 0.4, 0.1), (0.1, 0.4, 0.5), (0.3, 0.4, 0.3), (0.1, 0.4, 0.5)),
    ],
)
def test_votes(p, q, soft, hard):
    np.testing.assert_allclose(np.exp(Mixture().combine(rows(p), rows(q))), [soft])
    np.testing.assert_allclose(np.exp(MoreConfident().combine(rows(p), rows(q))), [hard])


def test_a_tie_of_confidence_goes_to_the_fixed_model():
    r = MoreConfident().combine(rows((0.75, 0.25)), rows((0.25, 0.75)))
    np.testing.assert_allclose(np.exp(r), [[0.25, 0.75]])


@pytest.mark.parametrize(
    ("u_o", "u_n", "w_o"),
    [(0.2, 0.1, 1 / 6), (0, 0, 0.25), (0.9, 0, 0.001 / (2 * 0.901)), (0, 0.9, 0.499445)],
)
def test_alignment_weights(u_o, u_n, w_o):
    found = alignment_weights(np.array([u_o]), np.array([u_n]))
    assert found[0][0] == pytest.approx(w_o, abs=1e-6)
    assert found[0] + found[1] == pytest.approx(1)


def test_a_doubled_logit_has_temperature_two():
    z = np.random.default_rng(0).normal(size=(300, 4))
    found = fit("us", 2 * z, z, np.zeros(300, int))
    assert found.rule.original == pytest.approx(2, abs=1e-6)
    assert not found.warnings
    # r = q then.
    r = found.rule.combine(2 * z, z)
    np.testing.assert_allclose(r, log_probabilities(z), atol=1e-6)


@pytest.mark.parametrize("classes", [2, 10])
def test_the_published_penalty_biases_the_temperature(classes):
    z = np.random.default_rng(1).normal(size=(4000, classes))
    y = np.zeros(len(z), int)
    biased = fit("us-paper", 2 * z, z, y).rule.original
    assert 1.6 < biased < 1.95
    grid = np.linspace(1.5, 2.1, 601)
    q = np.exp(log_probabilities(z))
    losses = [((np.exp(log_probabilities(2 * z, t)) - q) ** 2).mean() + 5e-4 * t * t for t in grid]
    assert biased == pytest.approx(grid[np.argmin(losses)], abs=1.1e-3)


def test_a_penalty_that_dominates_is_dropped():
    z = np.random.default_rng(2).normal(size=(60, 1000))
    penalised = aligned_temperature(2 * z, z, 5e-4)
    assert penalised is None or penalised < 0.8
    assert fit("us-paper", 2 * z, z, np.zeros(60, int)).rule.original == pytest.approx(2, abs=1e-6)


# -- properties ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", FITTED)
@given(data=logits())
def test_where_both_agree_the_label_stays_and_nfr_cannot_rise(method, data):
    y, before, after = data
    r = fit(method, before, after, y).rule.combine(before, after)
    old, new, label = before.argmax(1), after.argmax(1), r.argmax(1)
    agreed = old == new
    assert (label[agreed] == old[agreed]).all()
    nfr = ((old == y) & (label != y)).mean()
    assert nfr <= ((old == y) & (new != y)).mean()
    np.testing.assert_allclose(np.exp(r).sum(axis=1), 1, atol=1e-9)


@given(data=logits())
def test_repair_rate_can_only_fall_under_hard_voting(data):
    y, before, after = data
    label = MoreConfident().combine(before, after).argmax(1)
    wrong = before.argmax(1) != y
    assert (wrong & (label == y)).sum() <= (wrong & (after.argmax(1) == y)).sum()


@given(data=logits(most=2))
def test_with_two_classes_both_votes_are_one_rule(data):
    _, before, after = data
    assume((MoreConfident().margin(before, after) > 1e-9).all())
    soft, hard = (rule.combine(before, after).argmax(1) for rule in (Mixture(), MoreConfident()))
    assert (soft == hard).all()


@given(
    arrays(np.float64, 6, elements=st.floats(0, 2)), arrays(np.float64, 6, elements=st.floats(0, 2))
)
def test_weights_lie_in_their_halves(u_o, u_n):
    w_o, w_n = alignment_weights(u_o, u_n)
    assert ((w_o >= 0) & (w_o <= 0.5) & (w_n >= 0.5) & (w_n <= 1)).all()
    np.testing.assert_allclose(w_o + w_n, 1)


@given(data=logits())
def test_the_fitted_weight_keeps_accuracy_and_never_adds_flips(data):
    y, before, after = data
    weight = fit_weight(before, after, y)
    # The straightforward search over all inputs.
    p, q = (np.exp(log_probabilities(z)) for z in (before, after))
    old, new = before.argmax(1), after.argmax(1)
    best = (((old == y) & (new != y)).sum(), 0.0)
    for k in np.arange(1001) / 1000:
        label = (k * p + (1 - k) * q).argmax(1)
        flips = ((old == y) & (label != y)).sum()
        if (label == y).mean() >= (new == y).mean() and flips < best[0]:
            best = (flips, k)
    assert weight == pytest.approx(best[1])


@given(data=logits())
def test_unlabelled_fits_never_look_at_labels(data):
    y, before, after = data
    for method in ("us", "us-paper"):
        assert fit(method, before, after, y) == fit(method, before, after, 0 * y)


@given(data=logits())
def test_temperature_is_no_worse_than_a_grid(data):
    _, before, after = data
    found = aligned_temperature(before, after)
    q = np.exp(log_probabilities(after))

    def loss(t):
        return ((np.exp(log_probabilities(before, t)) - q) ** 2).mean()

    if found is not None:
        assert loss(found) <= min(loss(t) for t in np.geomspace(0.05, 20, 100)) + 1e-9


# -- what does not fit -----------------------------------------------------------------------------


def test_no_temperature_is_one_with_a_warning():
    flat = np.zeros((5, 3))
    sharp = np.array([[9.0, 0, 0]] * 5)
    found = fit("us", sharp, flat, np.zeros(5, int))  # the flatter the better: at the bound
    assert found.rule.original == 1
    assert "1 is used" in found.warnings[0]
    nan = fit("us", np.full((2, 3), np.nan), flat[:2], np.zeros(2, int))
    assert nan.rule.original == 1


def test_probabilities_are_taken_by_their_logarithm():
    p, q = np.array([[0.7, 0.2, 0.1]]), np.array([[0.3, 0.6, 0.1]])
    np.testing.assert_allclose(np.exp(Mixture().combine(p, q)), [[0.5, 0.4, 0.1]])
    certain = Mixture().combine(np.array([[1.0, 0.0]]), q[:, :2] / 0.9)
    assert np.isfinite(certain).all()


@pytest.mark.parametrize("weight", [0, 1])
def test_a_weight_of_nothing_leaves_a_model_out(weight):
    before, after = rows((0.7, 0.3)), rows((0.2, 0.8))
    r = np.exp(Mixture(weight=weight).combine(before, after))
    np.testing.assert_allclose(r, np.exp(before if weight else after))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Perturbation(samples=0),
        lambda: Perturbation(noise=-1),
        lambda: Perturbation(space="log"),
        lambda: Dropout(rate=1),
        lambda: fit("mean", np.zeros((1, 2)), np.zeros((1, 2)), np.zeros(1, int)),
    ],
)
def test_wrong_settings_are_one_sentence(wrong):
    with pytest.raises(ModelfixError, match=r"^[^\n]*\.$"):
        wrong()


def test_every_method_is_described():
    assert set(METHODS) == {*FITTED, "up", "ud"}
