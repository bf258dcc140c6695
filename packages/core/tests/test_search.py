import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfix_core.search import DifferentialEvolution, InertiaSwarm, ParticleSwarm, race
from modelfix_core.search.differential_evolution import draw
from modelfix_core.search.inertia_swarm import wrap

INPUTS = np.random.default_rng(7).normal(size=(60, 12))


def gains(values):
    """What each of 60 inputs adds, in (0, 1]; a row's result does not depend on other rows."""
    values = np.asarray(values, dtype=np.float64)
    points = INPUTS[:, : values.shape[1]]
    return 1 / (1 + np.abs(values[:, None, :] - points).sum(axis=2) / values.shape[1])


def fitness(values):
    return gains(values).sum(axis=1)


def blocks(block, values):
    return gains(values)[:, 15 * block : 15 * (block + 1)].sum(axis=1)


def raced(values, bars):
    return race(blocks, [15.0] * 4, values, bars)


def start(seed, size=20, dimensions=4):
    return np.random.default_rng(seed).normal(size=(size, dimensions)).astype(np.float32)


def evolve(seed, size=20, dimensions=4, evaluate=lambda values, bars: fitness(values), **options):
    bounds = np.full(dimensions, 2.0)
    search = DifferentialEvolution(
        start(seed, size, dimensions), -bounds, bounds, np.random.default_rng(seed), **options
    )
    while not search.finished:
        search.tell(evaluate(*search.ask()))
    return search


def sequential(seed, size, dimensions, generations, synchronous=False):
    """The textbook loop: one trial after the other, each seeing the winners before it."""
    rng = np.random.default_rng(seed)
    population = start(seed, size, dimensions)
    fit = [fitness(row[None])[0] for row in population]
    for _ in range(generations):
        factor, donors, crossed = draw(rng, size, dimensions, 0.7, (0.5, 1.0))
        source = population.copy() if synchronous else population
        for p in range(size):
            a, b, c = source[donors[p]]
            trial = population[p].copy()
            mutant = np.clip(a + factor * (b - c), np.float32(-2), np.float32(2))
            trial[crossed[p]] = mutant[crossed[p]]
            score = fitness(trial[None])[0]
            if score >= fit[p]:
                population[p], fit[p] = trial, score
    return population, np.array(fit)


class TestDifferentialEvolution:
    @settings(deadline=None, max_examples=40)
    @given(
        seed=st.integers(0, 10_000),
        size=st.integers(4, 30),
        dimensions=st.integers(1, 12),
        synchronous=st.booleans(),
    )
    def test_is_the_sequential_loop_bit_for_bit(self, seed, size, dimensions, synchronous):
        search = evolve(seed, size, dimensions, generations=6, synchronous=synchronous)
        population, fit = sequential(seed, size, dimensions, 6, synchronous)
        assert np.array_equal(search.population, population)
        assert np.array_equal(search.fitness, fit)

    def test_asynchronous_differs_from_synchronous(self):
        asynchronous, synchronous = evolve(0), evolve(0, synchronous=True)
        assert not np.array_equal(asynchronous.population, synchronous.population)

    def test_batches_instead_of_single_calls(self):
        calls = []

        def counted(values, bars):
            calls.append(len(values))
            return fitness(values)

        search = evolve(1, size=100, dimensions=8, evaluate=counted, generations=60)
        assert search.evaluations == sum(calls)
        assert len(calls) - 1 <= 4 * 60
        assert sum(calls) <= 100 + 1.4 * 100 * 60

    def test_synchronous_needs_one_batch_per_generation(self):
        search = evolve(1, size=30, generations=5, synchronous=True)
        assert search.evaluations == 30 * 6

    @settings(deadline=None, max_examples=25)
    @given(seed=st.integers(0, 10_000), synchronous=st.booleans())
    def test_racing_changes_nothing(self, seed, synchronous):
        options = {"generations": 8, "synchronous": synchronous}
        complete = evolve(seed, evaluate=lambda v, b: raced(v, np.full(len(v), -np.inf)), **options)
        hurried = evolve(seed, evaluate=raced, **options)
        assert np.array_equal(complete.population, hurried.population)
        assert np.array_equal(complete.fitness, hurried.fitness)

    def test_trials_stay_inside_the_bounds_and_best_never_falls(self):
        bounds = np.array([0.5, 1.0, 0.25], dtype=np.float32)
        rng = np.random.default_rng(3)
        initial = np.clip(rng.normal(size=(20, 3)), -bounds, bounds)
        search = DifferentialEvolution(initial, -bounds, bounds, rng, generations=15)
        best = -np.inf
        while not search.finished:
            values, _ = search.ask()
            assert (np.abs(values) <= bounds).all()
            search.tell(fitness(values))
            assert search.best_fitness >= best
            best = search.best_fitness
        assert fitness(search.best[None])[0] == best

    def test_initial_individuals_are_not_clipped(self):
        initial = np.full((5, 2), 9.0)
        search = DifferentialEvolution(initial, [-1, -1], [1, 1], np.random.default_rng(0))
        values, bars = search.ask()
        assert np.array_equal(values, initial)
        assert (bars == -np.inf).all()

    def test_stops_after_more_than_patience_equal_generations(self):
        search = evolve(0, evaluate=lambda values, bars: np.zeros(len(values)), patience=10)
        assert search.generation == 11

    def test_compares_the_best_in_float32(self):
        ticks = iter(range(10**6))

        def creeping(values, bars):
            return 1000 + 1e-9 * np.array([next(ticks) for _ in values])

        assert evolve(0, evaluate=creeping, patience=3).generation == 4

    def test_stops_at_the_target(self):
        search = evolve(0, evaluate=lambda values, bars: np.full(len(values), 5.0), target=5.0)
        assert search.generation == 0
        assert evolve(0, generations=7).generation == 7

    def test_refuses_fewer_than_four_individuals(self):
        with pytest.raises(ValueError, match="4 individuals"):
            DifferentialEvolution(np.zeros((3, 2)), [0, 0], [1, 1], np.random.default_rng(0))

    @settings(deadline=None, max_examples=30)
    @given(seed=st.integers(0, 10_000), size=st.integers(4, 40), dimensions=st.integers(1, 9))
    def test_draws(self, seed, size, dimensions):
        factor, donors, crossed = draw(
            np.random.default_rng(seed), size, dimensions, 0.7, (0.5, 1.0)
        )
        assert 0.5 <= factor <= 1.0
        together = np.column_stack([np.arange(size), donors])
        assert all(len(set(row)) == 4 for row in together.tolist())
        assert crossed.any(axis=1).all()

    def test_donors_are_uniform(self):
        rng = np.random.default_rng(0)
        first = [draw(rng, 5, 1, 0.7, (0.5, 1.0)).donors[0, 0] for _ in range(4000)]
        assert np.allclose(np.bincount(first, minlength=5)[1:] / 4000, 0.25, atol=0.03)


class TestRacing:
    def test_totals_are_exact_for_those_that_reach_their_bar(self):
        values = start(0)
        exact = raced(values, np.full(len(values), -np.inf))
        bars = exact + np.where(np.arange(len(values)) % 2, 0.0, 1.0)
        result = raced(values, bars)
        assert np.array_equal(result[1::2], exact[1::2])
        assert (result[::2] < bars[::2]).all()

    def test_dropped_trials_are_not_evaluated_again(self):
        seen = []

        def gain(block, values):
            seen.append(len(values))
            return np.where(values[:, 0] > 0, 1.0, 0.0)

        result = race(gain, [1.0] * 5, np.array([[1.0], [-1.0]]), np.array([5.0, 4.5]))
        assert seen == [2, 1, 1, 1, 1]
        assert result.tolist() == [5.0, -np.inf]


def swarm(seed, evaluate=fitness, **options):
    rng = np.random.default_rng(seed)
    return ParticleSwarm(rng.normal(size=(15, 3)), 0.2, 5.0, rng, **options), evaluate


class TestParticleSwarm:
    def test_is_the_textbook_loop(self):
        search, _ = swarm(4, iterations=8, patience=8)
        while not search.finished:
            search.tell(fitness(search.ask()[0]))
        rng = np.random.default_rng(4)
        x = rng.normal(size=(15, 3))
        v = np.zeros_like(x)
        own, own_fit = x.copy(), fitness(x)
        chi = 0.7298437881283576
        for _ in range(8):
            g = own[own_fit.argmax()].copy()
            x = x + v
            r = rng.uniform(0, 4.1, (2, 15, 1))
            v = chi * (v + r[0] * (own - x) + r[1] * (g - x))
            size = np.minimum(np.maximum(np.abs(v), 0.2), 5.0)
            v = np.where(v > 0, size, -size)
            fit = fitness(x)
            for i in np.flatnonzero(fit > own_fit):
                own[i], own_fit[i] = x[i], fit[i]
        assert np.allclose(search.own, own, rtol=1e-12)
        assert np.allclose(search.own_fitness, own_fit, rtol=1e-12)
        assert np.allclose(search.velocities, v, rtol=1e-9)
        assert search.evaluations == 15 * 8  # the first iteration moves nothing

    def test_zero_velocity_becomes_the_slowest_backwards(self):
        search = ParticleSwarm(np.ones((2, 2)), 0.2, 5.0, np.random.default_rng(0))
        search.ask()
        search.tell(np.zeros(2))
        assert (search.velocities == -0.2).all()

    def test_stops_at_the_first_iteration_after_ten_without_gain(self):
        search, _ = swarm(0)
        while not search.finished:
            search.tell(np.ones(len(search.ask()[0])))
        assert search.iteration == 11

    def test_goes_on_while_it_gains(self):
        search, _ = swarm(0, iterations=40)
        while not search.finished:
            search.tell(np.full(len(search.ask()[0]), float(search.evaluations)))
        assert search.iteration == 40

    def test_best_never_falls_and_personal_bests_need_a_strict_gain(self):
        search, _ = swarm(2, iterations=30, patience=30)
        best = -np.inf
        while not search.finished:
            values, bars = search.ask()
            fit = fitness(values)
            fit[::2] = bars[::2]
            before = search.own.copy()
            search.tell(fit)
            if search.iteration > 1:
                assert np.array_equal(search.own[::2], before[::2])
            assert search.best_fitness >= best
            best = search.best_fitness


def inertia_swarm(seed, dimensions=3, **options):
    rng = np.random.default_rng(seed)
    return InertiaSwarm(np.zeros((12, dimensions)), -1.0, 1.0, rng, **options)


class TestInertiaSwarm:
    def test_is_the_textbook_loop(self):
        search = inertia_swarm(4, iterations=30, patience=30)
        while not search.finished:
            search.tell(fitness(search.ask()[0]))
        rng = np.random.default_rng(4)
        x = np.zeros((12, 3))
        v = rng.uniform(0, 1, (12, 3))
        own, own_fit = x.copy(), fitness(x)
        for _ in range(29):
            g = own[own_fit.argmax()].copy()
            r = rng.uniform(0, 1, (12, 3)), rng.uniform(0, 1, (12, 3))
            v = 0.8 * v + 0.41 * r[0] * (own - x) + 0.41 * r[1] * (g - x)
            x = (x + v + 1) % 2 - 1
            fit = fitness(x)
            for i in np.flatnonzero(fit > own_fit):
                own[i], own_fit[i] = x[i], fit[i]
        assert np.allclose(search.own, own, rtol=1e-12)
        assert np.allclose(search.own_fitness, own_fit, rtol=1e-12)
        assert search.evaluations == 12 * 30

    def test_the_first_move_follows_the_velocities_alone(self):
        search = inertia_swarm(0)
        assert (search.ask()[0] == 0).all()
        velocities = search.velocities.copy()
        assert ((velocities >= 0) & (velocities < 1)).all()
        search.tell(np.zeros(12))
        assert np.array_equal(search.ask()[0], 0.8 * velocities)

    def test_stops_after_patience_iterations_without_notable_gain(self):
        ticks = iter(range(1000))

        def run(gain):
            search = inertia_swarm(0, patience=10, tolerance=1e-3)
            while not search.finished:
                search.tell(np.full(len(search.ask()[0]), gain * next(ticks)))
            return search.iteration

        assert run(0.0) == 11
        assert run(9e-4) == 11
        assert run(0.5) == 100

    def test_a_single_notable_gain_starts_the_patience_anew(self):
        search = inertia_swarm(0, patience=5)
        while not search.finished:
            search.tell(np.full(len(search.ask()[0]), float(search.iteration >= 3)))
        assert search.iteration == 4 + 5

    def test_the_leader_keeps_its_place_on_ties(self):
        search = inertia_swarm(1, patience=50, iterations=50)
        search.ask()
        search.tell(np.zeros(12))
        values, _ = search.ask()
        search.tell(np.arange(12) == 7)
        assert np.array_equal(search.leader, values[7])
        search.ask()
        search.tell((np.arange(12) <= 7).astype(float))
        assert np.array_equal(search.leader, values[7])
        assert np.array_equal(search.best, search.own[0])

    def test_dropped_particles_change_nothing(self):
        search = inertia_swarm(2)
        search.ask()
        search.tell(np.zeros(12))
        search.ask()
        search.tell(np.full(12, -np.inf))
        assert (search.own == 0).all()
        assert search.best_fitness == search.leader_fitness == 0

    @settings(deadline=None, max_examples=50)
    @given(
        value=st.floats(-9, 9, allow_nan=False),
        low=st.floats(-3, 0.5),
        span=st.floats(0.1, 4),
    )
    def test_wrapping_moves_by_whole_turns_into_the_box(self, value, low, span):
        (wrapped,) = wrap(np.array([[value]]), low, low + span)[0]
        assert low - 1e-9 <= wrapped <= low + span + 1e-9
        turns = (wrapped - value) / span
        assert abs(turns - round(turns)) < 1e-6
