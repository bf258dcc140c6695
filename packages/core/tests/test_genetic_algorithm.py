import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfix_core.search import GeneticAlgorithm


def nudge(parents, rng):
    return parents + rng.normal(0, 0.1, parents.shape).astype(np.float32)


def fitness(values):
    return -np.abs(np.asarray(values, dtype=np.float64) - 1).sum(axis=1)


def evolve(seed=0, size=20, dimensions=3, evaluate=fitness, mutate=nudge, **options):
    start = np.random.default_rng(seed).normal(size=(size, dimensions))
    rng = np.random.default_rng(seed)
    search = GeneticAlgorithm(start, mutate, rng, **{"elite": 3, "generations": 15, **options})
    while not search.finished:
        search.tell(evaluate(search.ask()[0]))
    return search


def plain(seed, size, dimensions, elite, generations):
    """The algorithm as a loop over individuals, each with its fitness and its number of birth."""
    start = np.random.default_rng(seed).normal(size=(size, dimensions)).astype(np.float32)
    rng = np.random.default_rng(seed)
    born = 0
    people = []
    for row in start:
        people.append((-fitness(row[None])[0], born, row))
        born += 1
    people.sort(key=lambda person: person[:2])
    for _ in range(generations - 1):
        drawn = rng.integers(size, size=(size - elite, 2))
        parents = np.stack([people[min(a, b)][2] for a, b in drawn])
        people = people[:elite]
        for row in nudge(parents, rng):
            people.append((-fitness(row[None])[0], born, row))
            born += 1
        people.sort(key=lambda person: person[:2])
    return np.stack([row for _, _, row in people])


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    size=st.integers(2, 25),
    dimensions=st.integers(1, 6),
    data=st.data(),
)
def test_is_the_plain_loop(seed, size, dimensions, data):
    elite = data.draw(st.integers(1, size - 1))
    search = evolve(seed, size, dimensions, elite=elite, generations=6)
    np.testing.assert_array_equal(search.population, plain(seed, size, dimensions, elite, 6))


def test_best_never_falls_and_the_first_generation_counts():
    search = GeneticAlgorithm(
        np.zeros((10, 2)), nudge, np.random.default_rng(0), elite=1, generations=12
    )
    best = -np.inf
    while not search.finished:
        search.tell(fitness(search.ask()[0]))
        assert search.best_fitness >= best
        best = search.best_fitness
    assert search.generation == 12
    assert best > -2
    assert fitness(search.best[None])[0] == pytest.approx(best)


def test_elite_survives_unchanged_and_is_not_evaluated_again():
    asked = []

    def counted(values):
        asked.append(len(values))
        return fitness(values)

    search = evolve(evaluate=counted, generations=4)
    assert asked == [20, 17, 17, 17]
    assert search.evaluations == sum(asked)
    elite, scores = search.population[:3].copy(), search.fitness[:3].copy()
    search.ask()
    np.testing.assert_array_equal(search.population[:3], elite)
    np.testing.assert_array_equal(search.fitness[:3], scores)


def test_criteria_are_compared_in_their_order_and_full_ties_go_to_the_older():
    start = np.arange(5, dtype=np.float32)[:, None]
    search = GeneticAlgorithm(
        start, lambda parents, rng: parents + 10, np.random.default_rng(0), elite=4
    )
    search.ask()
    search.tell(np.array([[1, 0], [2, -3], [2, -1], [0, 9], [2, -1]]))
    assert search.population[:, 0].tolist() == [2, 4, 1, 0, 3]
    search.ask()
    search.tell(np.array([[2, -1]]))
    assert search.population[:3, 0].tolist() == [2, 4, search.population[2, 0]]
    assert search.population[2, 0] >= 10


def test_stops_at_the_target_or_when_the_first_criterion_stands_still():
    assert evolve(target=-3.0, generations=500).best_fitness >= -3.0
    assert evolve(target=-3.0, generations=500).generation < 500

    def second_only(values):
        return np.stack([np.zeros(len(values)), fitness(values)], axis=1)

    search = evolve(evaluate=second_only, patience=4, generations=500)
    assert search.generation == 5


def test_parents_are_the_fitter_of_two():
    parents = []

    def watched(chosen, rng):
        parents.append(chosen.copy())
        return chosen

    start = np.arange(200, dtype=np.float32)[:, None]
    search = GeneticAlgorithm(start, watched, np.random.default_rng(0), generations=2)
    while not search.finished:
        search.tell(search.ask()[0][:, 0])
    # The larger of two uniform draws from 0 to 199 is 133 on average.
    assert parents[0].mean() == pytest.approx(133, abs=10)


def test_crossover_mixes_two_parents():
    start = np.repeat(np.arange(30, dtype=np.float32)[:, None], 40, axis=1)

    def distinct(crossover):
        search = GeneticAlgorithm(
            start, lambda p, rng: p, np.random.default_rng(0), crossover=crossover, generations=2
        )
        search.ask()
        search.tell(np.zeros(30))
        return [len(np.unique(child)) for child in search.ask()[0]]

    assert set(distinct(0.0)) == {1}
    assert max(distinct(0.5)) == 2


def test_told_population_is_not_changed_through_what_was_asked():
    search = evolve(generations=1)
    before = search.population.copy()
    values, bars = search.ask()
    values[:] = np.nan
    assert np.isneginf(bars).all()
    assert np.isfinite(search.population).all()
    np.testing.assert_array_equal(search.population[:3], before[:3])


@pytest.mark.parametrize("elite", [0, 20])
def test_an_impossible_elite_is_refused(elite):
    with pytest.raises(ValueError, match="elite"):
        evolve(elite=elite)
