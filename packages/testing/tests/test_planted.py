import numpy as np
import pytest
from modelfix_core import Localisation, ModelfixError
from modelfix_core.planting import load_truth, score_blame
from modelfix_core.subjects.planted import TRUTH_FILE, prepare_planted
from modelfix_testing import plant, rank_of_planted, tiny_subject, tiny_task


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


def test_score_of_blame():
    task = tiny_task()
    layer = task.model.layers("dense")[-1]
    fault = plant(task.model, task.repair, layer.name, size=2, seed=1)
    first, second = fault.index
    fan_in = int(np.prod(task.model.weights[layer.weight].shape[1:]))
    possible = sum(task.model.weights[x.weight].size for x in task.model.layers())
    weights = Localisation(
        "weight", [layer.name] * 4, np.array([7, first, 3, 9]), np.array([3.0, 2.0, 2.0, 1.0])
    )
    score = score_blame(weights, fault)
    assert (score.possible, score.planted, score.found, score.blamed) == (possible, 2, 1, 4)
    assert score.first_rank == 2.5  # ties share their mean rank
    assert score.mean_rank == pytest.approx((2.5 + (4 + possible + 1) / 2) / 2)
    assert score.precision == {1: 0.0, 2: 0.5, 10: 0.1, 100: 0.01}
    neurons = Localisation("neuron", [layer.name], np.array([second // fan_in]), np.array([1.0]))
    assert score_blame(neurons, fault).first_rank == 1
    assert score_blame(neurons, fault).possible == sum(
        len(task.model.weights[x.weight]) for x in task.model.layers()
    )
    wrong = Localisation("layer", [task.model.layers()[0].name], np.array([0]), np.array([1.0]))
    assert score_blame(wrong, fault).found == 0
    nothing = Localisation("weight", [], np.array([], int), np.array([]))
    assert score_blame(nothing, fault).first_rank == (possible + 1) / 2


def test_planted_subject(tmp_path):
    base = tiny_subject(tmp_path)
    prepared = prepare_planted(base, size=2, seed=4)
    subject = prepared.subject
    assert not prepared.reused
    assert prepare_planted(base, size=2, seed=4).reused
    assert subject.problems() == []
    assert subject.card.data_hash == base.card.data_hash
    assert len(subject.history) == len(base.history)
    truth = load_truth(subject.model, subject.folder / TRUTH_FILE)
    changed = {
        name: np.flatnonzero(array.ravel() != subject.model.weights[name].ravel())
        for name, array in base.model.weights.items()
        if (array != subject.model.weights[name]).any()
    }
    assert changed.keys() == {subject.model.layer(truth.layer).weight}
    np.testing.assert_array_equal(next(iter(changed.values())), truth.index)
    repair = base.dataset()["repair"]
    assert subject.model.accuracy(repair) < base.model.accuracy(repair) - 0.02
    with pytest.raises(ModelfixError, match="no planted fault"):
        load_truth(base.model, base.folder / TRUTH_FILE)
    (subject.folder / TRUTH_FILE).write_text("{}")
    with pytest.raises(ModelfixError, match="damaged"):
        load_truth(subject.model, subject.folder / TRUTH_FILE)
    with pytest.raises(ModelfixError, match="no layer 'nowhere'"):
        prepare_planted(base, layer="nowhere")
    with pytest.raises(ModelfixError, match="cannot be disturbed"):
        prepare_planted(base, size=10**9)
