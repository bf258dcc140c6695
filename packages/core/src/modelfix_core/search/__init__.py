"""Search strategies over real vectors, ask and tell, numpy only; all of them maximise.

Every strategy is used alike, so that the evaluation can be batched, raced or distributed::

    while not search.finished:
        values, bars = search.ask()
        search.tell(fitness(values, bars))

``values`` [p, D] are the trials whose fitness is wanted next; ``bars`` [p] is what each has to
reach to change anything: a trial that provably falls short may be told as ``-inf`` (`race`).
"""

from modelfix_core.search.differential_evolution import DifferentialEvolution
from modelfix_core.search.genetic_algorithm import GeneticAlgorithm
from modelfix_core.search.inertia_swarm import InertiaSwarm
from modelfix_core.search.particle_swarm import ParticleSwarm
from modelfix_core.search.racing import race

__all__ = ["DifferentialEvolution", "GeneticAlgorithm", "InertiaSwarm", "ParticleSwarm", "race"]
