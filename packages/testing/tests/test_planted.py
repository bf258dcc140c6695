import numpy as np
import pytest
from modelfix_core import Localisation, ModelfixError
from modelfix_testing import plant, rank_of_planted, tiny_task


@pytest.mark.parametrize("size", [1, 3])
def test_planted_weights_are_the_only_difference_and_do_damage(size):
    task = tiny_task()
    layer = task.model.layers("dense")[-1]
    fault = plant(task.model, task.repair, layer.name, size=size, broken=0.1, seed=3)
    before, after = task.model.weights[layer.weight], fault.model.weights[layer.weight]
    changed = np.flatnonzero(before.ravel() != after.ravel())
    np.testing.assert_array_equal(changed, fault.index)
    for name, array in task.model.weights.items():
        if name != layer.weight:
            np.testing.assert_array_equal(array, fault.model.weights[name])
    lost = task.model.accuracy(task.repair) - fault.model.accuracy(task.repair)
    assert lost > 0.02


def test_impossible_damage_is_said():
    task = tiny_task()
    with pytest.raises(ModelfixError, match="breaks 100%"):
        plant(task.model, task.repair, task.model.layers()[0].name, broken=1.0)


def test_rank_of_planted():
    task = tiny_task()
    fault = plant(task.model, task.repair, task.model.layers("dense")[-1].name)
    blamed = Localisation(
        "weight", [fault.layer] * 3, np.array([9999, fault.index[0], 5]), np.array([1.0, 0.5, 0.7])
    )
    assert rank_of_planted(blamed, fault) == 3
    nothing = Localisation("weight", [], np.array([]), np.array([]))
    assert rank_of_planted(nothing, fault) == np.inf
