import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfix_core.approach import Outcome
from modelfix_core.errors import ModelfixError
from modelfix_core.fixing import run
from modelfix_core.torch import load
from modelfix_genmunn import GenMuNN
from modelfix_genmunn.approach import mutable_layers
from modelfix_genmunn.fitness import Fitness
from modelfix_genmunn.mutation import Mutation
from modelfix_genmunn.run import first_generation, fitness_data
from modelfix_genmunn.samples import fitness_samples
from modelfix_genmunn.spectrum import Spectrum, blame, spectra, suspiciousness


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), most=st.integers(1, 80), classes=st.integers(1, 6))
def test_fitness_samples_are_balanced_and_hold_every_failure(seed, most, classes):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, 60)
    right = rng.random(60) > 0.1
    chosen = fitness_samples(right, y, most, np.random.default_rng(seed))
    assert (np.diff(chosen) > 0).all()
    assert set(np.flatnonzero(~right)) <= set(chosen)
    drawn = fitness_samples(np.ones(60, bool), y, most, np.random.default_rng(seed))
    assert len(drawn) == min(most, 60)
    count, available = np.bincount(y[drawn], minlength=classes), np.bincount(y, minlength=classes)
    short = count < available
    assert not short.any() or count[short].min() >= count.max() - 1


def test_repair_failures_join_where_training_failures_are_few(digits):
    wrong = np.flatnonzero(~digits.right())
    few = digits.train.select(np.concatenate([np.flatnonzero(digits.right()), wrong[:3]]))
    task, config = digits.task(train=few), GenMuNN(fitness_samples=200).config
    data, failing = fitness_data(task, load(digits.model), config)
    faults = int((~digits.right(split=digits.repair)).sum())
    assert failing.sum() == 3 + faults
    assert len(data) == len(failing)
    np.testing.assert_array_equal(~digits.right(split=data), failing)
    data, failing = fitness_data(digits.task(), load(digits.model), config)
    assert failing.sum() == len(wrong)


def test_formulas_at_known_counts_and_where_they_are_undefined():
    covered_failing, covered_passing = np.array([[4.0, 2, 0, 4]]), np.array([[0.0, 6, 0, 0]])
    found = Spectrum(covered_failing, covered_passing, np.ones((1, 4)), 4, 8)
    np.testing.assert_allclose(found.ochiai(), [[1, 2 / np.sqrt(32), 0, 1]])
    np.testing.assert_allclose(found.tarantula(), [[1, 0.5 / 1.25, 0, 1]])
    np.testing.assert_allclose(found.dstar(), [[16, 4 / 8, 0, 16]])
    nothing = Spectrum(*(np.zeros((1, 4)) for _ in range(3)), 0, 0)
    for formula in (nothing.ochiai, nothing.tarantula, nothing.dstar):
        assert (formula() == 0).all()


def test_spectrum_score_leaves_ties_to_the_influence():
    found = Spectrum(np.full((1, 3), 2.0), np.ones((1, 3)), np.array([[1.0, 3, 2]]), 4, 4)
    weight = np.array([[1.0, -1, 1]])
    first, second = suspiciousness(found, weight, "ochiai", "spectrum")
    assert len(set(first)) == 1
    np.testing.assert_array_equal(second, [1, 3, 2])
    product, _ = suspiciousness(found, weight, "ochiai", "product")
    np.testing.assert_allclose(product, first * second)


def test_weights_of_grouped_convolutions_get_the_counts_of_their_own_channels():
    counts = np.arange(16.0).reshape(4, 4)
    found = Spectrum(counts, np.zeros((4, 4)), counts, 100, 0)
    weight = np.ones((4, 2, 1, 1))
    _, influence = suspiciousness(found, weight, "ochiai", "product")
    np.testing.assert_array_equal(influence.reshape(4, 2), [[0, 1], [4, 5], [10, 11], [14, 15]])


def test_each_layer_gives_its_share_and_at_least_one_weight(digits):
    layers = mutable_layers(digits.model)
    found = spectra(load(digits.model), layers, digits.train, ~digits.right())
    patches, localisation = blame(digits.model, layers, found, 0.001)
    assert [len(patch.index) for patch in patches] == [4, 4, 1]
    assert len(localisation) == 9
    ends = np.cumsum([0, 4, 4, 1])
    for begin, end in itertools.pairwise(ends):
        assert (np.diff(localisation.score[begin:end]) <= 0).all()


def test_weights_are_drawn_with_chances_in_proportion_to_one_over_rank(digits):
    layers = mutable_layers(digits.model)
    found = spectra(load(digits.model), layers, digits.train, ~digits.right())
    patches, _ = blame(digits.model, layers, found, 0.001)
    mutation = Mutation(digits.model, patches, 1, 0.5)
    drawn = mutation._draw(40_000, np.random.default_rng(0))[:, 0]
    ranks = np.array([1, 2, 3, 4, 1, 2, 3, 4, 1])
    expected = (1 / ranks) / (1 / ranks).sum()
    share = np.bincount(drawn, minlength=9) / len(drawn)
    np.testing.assert_allclose(share, expected, atol=0.01)
    several = Mutation(digits.model, patches, 9, 0.5)._draw(50, np.random.default_rng(0))
    assert (np.sort(several, axis=1) == np.arange(9)).all()


def test_variants_met_before_are_not_evaluated_again(digits):
    layers = mutable_layers(digits.model)
    found = spectra(load(digits.model), layers, digits.train, ~digits.right())
    patches, _ = blame(digits.model, layers, found, 0.01)
    mutation = Mutation(digits.model, patches, 4, 0.5)
    calls = []
    fitness = Fitness(load(digits.model), patches, digits.train, progress=lambda: calls.append(1))
    variants = first_generation(mutation, 20, np.random.default_rng(0))
    first = fitness(variants)
    count = len(calls)
    np.testing.assert_array_equal(fitness(variants[::-1]), first[::-1])
    assert len(calls) == count


@pytest.mark.parametrize(
    "options",
    [{"share": 0.0}, {"noise": -1.0}, {"population": 1}, {"operators": ()}, {"formula": "x"}],
)
def test_bad_options_are_refused_by_name(options):
    with pytest.raises(ModelfixError, match=next(iter(options))):
        GenMuNN(**options)


def test_an_elite_without_children_is_refused():
    with pytest.raises(ModelfixError, match="elite"):
        GenMuNN(elite=50, population=50)


def test_a_task_without_training_data_is_unadaptable(digits):
    result = run(GenMuNN(), digits.task(train=None))
    assert result.outcome is Outcome.UNADAPTABLE
    assert "training data" in result.reason


def test_constant_layers_are_left_alone(digits):
    constant = np.full_like(digits.model.weights["fc2.weight"], 0.5)
    model = digits.model.with_weights({"fc2.weight": constant})
    assert [layer.name for layer in mutable_layers(model)] == ["fc1", "fc3"]


@pytest.mark.parametrize("score", ["product", "spectrum"])
@pytest.mark.parametrize("formula", ["ochiai", "tarantula", "dstar"])
def test_every_formula_and_operator_runs(digits, formula, score):
    options = {"population": 10, "elite": 2, "generations": 3, "crossover": 0.5}
    operators = ("noise", "sign", "zero", "scale")
    approach = GenMuNN(formula=formula, score=score, operators=operators, **options)
    assert run(approach, digits.task()).outcome is Outcome.FIXED
