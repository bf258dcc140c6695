import numpy as np
import pytest
from modelfix_core import (
    Budget,
    Candidate,
    Dataset,
    Evidence,
    Failure,
    ModelfixError,
    Outcome,
    Split,
    Task,
    fix,
)
from modelfix_core.fixing import run


def task_of(model, dataset, **changes):
    fields = {"model": model, "repair": dataset["repair"], "validation": dataset["validation"]}
    return Task(**{**fields, **changes})


def proposing(nudge, *proposals):
    """Return an approach that makes just these proposals."""

    class Proposing(nudge):
        def candidates(self, task):
            for proposal in proposals:
                if isinstance(proposal, BaseException):
                    raise proposal
                yield proposal

    return Proposing()


def bias(model, *values):
    return {"fc2.bias": np.array(values, np.float32)}


def test_best_candidate_on_validation_is_selected(model, dataset, nudge):
    result = fix(model, dataset, nudge(steps=4))
    accuracies = [entry["validation_accuracy"] for entry in result.candidates]
    assert result.outcome is Outcome.FIXED
    assert accuracies[result.best] == max(accuracies)
    assert result.validation_accuracy["after"] == pytest.approx(max(accuracies))
    assert result.model.accuracy(dataset["validation"]) == pytest.approx(max(accuracies))
    assert len(result.localisation) == 1
    assert model.hash != result.model.hash


def test_later_candidate_wins_a_tie(model, dataset, nudge):
    result = fix(model, dataset, nudge(steps=3, size=0.0))
    assert result.best == 2


def test_unadaptable_does_no_work(model, dataset, nudge):
    result = fix(model, dataset, nudge(fail="unadaptable"))
    assert (result.outcome, result.reason) == (Outcome.UNADAPTABLE, "this model is too small")
    assert result.candidates == ()
    assert result.model is None


def test_crash_is_a_failure_with_its_reason(model, dataset, nudge):
    result = fix(model, dataset, nudge(fail="crash"))
    assert result.outcome is Outcome.FAILURE
    assert "divided by zero" in result.reason


def test_declared_failure(model, dataset, nudge):
    result = run(proposing(nudge, Failure("no faults to repair")), task_of(model, dataset))
    assert (result.outcome, result.reason) == (Outcome.FAILURE, "no faults to repair")


def test_no_candidate_is_a_failure(model, dataset, nudge):
    assert run(proposing(nudge), task_of(model, dataset)).outcome is Outcome.FAILURE


def test_time_limit_keeps_the_best_so_far(model, dataset, nudge):
    class Slow(nudge):
        def candidates(self, task):
            yield Candidate(weights={})
            object.__setattr__(task.budget, "seconds", 1e-9)
            task.progress(1, 2)
            pytest.fail("work went on")

    result = run(Slow(), task_of(model, dataset, budget=Budget(seconds=100.0)))
    assert result.outcome is Outcome.FIXED
    assert "time limit" in result.reason


def test_time_limit_without_a_candidate_is_a_failure(model, dataset, nudge):
    result = fix(model, dataset, nudge(), budget=Budget(seconds=1e-9))
    assert result.outcome is Outcome.FAILURE
    assert "time limit" in result.reason


def test_large_loss_of_accuracy_is_corrupted(model, dataset, nudge):
    broken = Candidate(weights=bias(model, 1e6, 0, 0))
    result = run(proposing(nudge, broken), task_of(model, dataset))
    assert result.outcome is Outcome.CORRUPTED
    assert result.model is not None


def test_corrupted_in_points_or_relative(model, dataset, nudge):
    """A fall from 3/4 by 8 points is 10.7 % of it."""
    validation = dataset["validation"]
    right = model.predict(validation).argmax(axis=1) == validation.y
    keep = np.concatenate([np.flatnonzero(right)[:15], np.flatnonzero(~right)[:5]])
    split = validation.select(keep)
    logits = model.predict(split)
    # Move one bias until exactly two of the twenty answers are lost.
    for shift in np.linspace(0, 20, 4001):
        after = np.mean((logits + np.array([shift, 0, 0])).argmax(axis=1) == split.y)
        if 0.075 <= 0.75 - after < 0.1 + 1e-9:
            break
    else:
        pytest.skip("no such shift for this model")
    moved = model.weights["fc2.bias"] + np.array([shift, 0, 0], np.float32)
    task = task_of(model, dataset, validation=split)
    proposal = Candidate(weights={"fc2.bias": moved})
    points = run(proposing(nudge, proposal), task, corrupted="points")
    relative = run(proposing(nudge, proposal), task, corrupted="relative")
    assert (points.outcome, relative.outcome) == (Outcome.FIXED, Outcome.CORRUPTED)


def test_false_claim_of_accuracy_is_a_failure(model, dataset, nudge):
    liar = Candidate(weights={}, validation_accuracy=1.0)
    result = run(proposing(nudge, liar), task_of(model, dataset))
    assert result.outcome is Outcome.FAILURE
    assert "1.0000" in result.reason


def test_nan_weights_are_a_failure(model, dataset, nudge):
    poisoned = Candidate(weights=bias(model, np.nan, 0, 0))
    assert run(proposing(nudge, poisoned), task_of(model, dataset)).outcome is Outcome.FAILURE


def test_approach_books_conversion_apart(model, dataset, nudge):
    class Converting(nudge):
        def candidates(self, task):
            with task.timing("conversion"):
                np.linalg.svd(np.random.default_rng(0).random((300, 300)))
            yield Candidate(weights={})

    seconds = run(Converting(), task_of(model, dataset)).seconds
    assert seconds["conversion"] > 0
    assert seconds["fixing"] >= 0
    assert seconds["conversion"] > seconds["fixing"]


def test_data_that_do_not_fit_are_refused(model, dataset, nudge):
    wrong_shape = {
        n: Split(np.zeros((3, 3, 4, 4), np.uint8), np.zeros(3, int)) for n in dataset.splits
    }
    with pytest.raises(ModelfixError, match="takes images of shape"):
        fix(model, Dataset(wrong_shape, dataset.classes), nudge())
    with pytest.raises(ModelfixError, match="predicts 3 classes but the data have 4"):
        fix(model, Dataset(dataset.splits, list("abcd")), nudge())
    with pytest.raises(ModelfixError, match="no repair split"):
        fix(model, Dataset({"validation": dataset["validation"]}, dataset.classes), nudge())


def test_options_are_checked(nudge):
    with pytest.raises(ModelfixError, match="no option 'stepps'; it has steps, size, fail"):
        nudge(stepps=3)
    with pytest.raises(ModelfixError, match="'steps' = 'many'"):
        nudge(steps="many")
    with pytest.raises(ModelfixError, match="no preset 'best'"):
        nudge("best")


def test_evidence_is_kept_the_later_of_one_name_wins(model, dataset, nudge):
    first = Evidence("proofs", "What was proven.", {"sample": [1, 2], "holds": [True, False]})
    later = Evidence("proofs", "What was proven.", {"sample": [1, 2], "holds": [True, True]})
    approach = proposing(nudge, first, Candidate(weights={}), later)
    assert list(run(approach, task_of(model, dataset)).evidence) == [later]


@pytest.mark.parametrize(
    ("name", "columns"),
    [("../up", {"a": [1]}), ("Upper", {"a": [1]}), ("good", {"a": [1], "b": [1, 2]}), ("good", {})],
)
def test_evidence_is_well_formed(name, columns):
    with pytest.raises(ValueError, match="evidence"):
        Evidence(name, "A summary.", columns)
