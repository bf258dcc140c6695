import copy

import numpy as np
import pytest
import torch
from modelfix_core.approach import Candidate, Localisation, Outcome, Task
from modelfix_core.errors import ModelfixError
from modelfix_core.fixing import run
from modelfix_core.torch import export
from modelfix_i_repair import IRepair
from modelfix_i_repair.repair import repair
from torch import nn


@pytest.fixture(scope="module")
def task(digits):
    model = export(digits.module, (1, 8, 8))
    return Task(model=model, repair=digits.repair, validation=digits.validation)


def test_candidates_come_at_the_interval_and_at_the_end_of_each_gamma(task):
    approach = IRepair(gamma=(1.0, 2.0), iterations=25, evaluate_every=10)
    proposals = list(approach.candidates(task))
    candidates = [p for p in proposals if isinstance(p, Candidate)]
    assert [(c.values["gamma"], c.step) for c in candidates] == [
        (gamma, step) for gamma in (1.0, 2.0) for step in (10, 20, 25)
    ]
    assert isinstance(proposals[0], Localisation)


def test_each_gamma_starts_from_the_original(task):
    def last(gamma):
        approach = IRepair(gamma=gamma, iterations=10)
        return list(approach.candidates(task))[-1].weights

    together, alone = last((0.5, 2.0)), last((2.0,))
    assert together.keys() == alone.keys()
    for name, weights in alone.items():
        np.testing.assert_array_equal(together[name], weights)


def test_claimed_accuracy_is_that_of_the_proposed_model(task):
    approach = IRepair(gamma=(1.0,), iterations=20, evaluate_every=10)
    for proposal in approach.candidates(task):
        if isinstance(proposal, Candidate):
            accuracy = proposal.apply(task.model).accuracy(task.validation)
            assert proposal.validation_accuracy == pytest.approx(accuracy, abs=2e-3)


def test_localisation_holds_the_unlocked_weights_of_the_leading_gamma(task):
    result = run(IRepair(gamma=(0.1, 1.0, 5.0), iterations=30), task)
    assert result.outcome is Outcome.FIXED
    blamed = result.localisation
    assert blamed.kind == "weight"
    assert (blamed.score >= 1).all()
    sizes = {x.name: task.model.weights[x.weight].size for x in task.model.layers()}
    assert set(blamed.layer) <= sizes.keys()
    assert all(i < sizes[name] for name, i in zip(blamed.layer, blamed.index, strict=True))
    gamma = result.candidates[result.best]["gamma"]
    alone = run(IRepair(gamma=(gamma,), iterations=30), task).localisation
    np.testing.assert_array_equal(blamed.index, alone.index)


def test_same_seed_gives_the_same_model_and_another_seed_another(digits, task):
    def fixed(seed):
        changed = Task(
            model=task.model, repair=digits.repair, validation=digits.validation, seed=seed
        )
        return run(IRepair(gamma=(1.0,), iterations=20), changed).model.hash

    assert fixed(1) == fixed(1)
    assert fixed(1) != fixed(2)


def test_specific_set_can_be_limited(task):
    proposals = IRepair(gamma=(1.0,), iterations=1, specific=3).candidates(task)
    last = list(proposals)[-1]
    assert last.values["remaining"] == 3


def test_dropout_is_at_work_in_the_step_only_and_leaves_no_trace(digits):
    module = nn.Sequential(*digits.module[:3], nn.Dropout(0.5), *digits.module[3:]).eval()

    def weights_after(seed):
        copied = copy.deepcopy(module)
        steps = repair(
            copied,
            list(copied.parameters()),
            *digits.sets(),
            gamma=1.0,
            learning_rate=1e-4,
            iterations=3,
            seed=seed,
        )
        assert len(list(steps)) == 3
        assert not any(part.training for part in copied.modules())
        return copied[-1].weight

    state = torch.random.get_rng_state()
    first = weights_after(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, weights_after(1))
    assert not torch.equal(first, weights_after(2))


@pytest.mark.parametrize(
    "options",
    [{"gamma": ()}, {"gamma": (-1.0,)}, {"iterations": 0}, {"learning_rate": 0.0}, {"specific": 0}],
)
def test_bad_options_are_refused_by_name(options):
    with pytest.raises(ModelfixError, match=next(iter(options))):
        IRepair(**options)


def test_a_model_that_is_never_right_is_unadaptable(digits, task):
    right = task.model.predict(digits.repair).argmax(axis=1) == digits.repair.y
    wrong_only = Task(
        model=task.model, repair=digits.repair.select(~right), validation=digits.validation
    )
    result = run(IRepair(), wrong_only)
    assert result.outcome is Outcome.UNADAPTABLE
    assert "correctly" in result.reason
