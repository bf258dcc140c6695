import shutil

import numpy as np
import pytest
from modelfix_core import Outcome, Task, Unadaptable
from modelfix_core.fixing import run
from modelfix_editable_training import EditableTraining
from modelfix_editable_training.places import editable_layers, with_adapter
from modelfix_testing import tiny_task
from torch import nn


@pytest.fixture
def task(mlp, digits):
    def make(**changes):
        fields = {
            "model": mlp,
            "train": digits.select(slice(0, 600)),
            "validation": digits.select(slice(900, 1100)),
            "repair": digits.select(slice(1200, 1400)),
        }
        return Task(**fields | changes)

    return make


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(task, tmp_path):
    approach = EditableTraining(epochs=4, learning_rates=(1e-3,))
    whole = list(approach.candidates(task(folder=tmp_path / "whole")))
    folder = tmp_path / "cut"
    started = approach.candidates(task(folder=folder))
    for _ in range(3):  # the original and two epochs
        next(started)
    started.close()
    again = list(approach.candidates(task(folder=folder)))
    assert len(again) == len(whole) == 5
    for ours, theirs in zip(again, whole, strict=True):
        assert dict(ours.values) == dict(theirs.values)
        assert ours.weights.keys() == theirs.weights.keys()
        for name, array in ours.weights.items():
            np.testing.assert_array_equal(array, theirs.weights[name])
    shutil.rmtree(folder)


def test_edits_can_be_applied_to_the_result(task):
    approach = EditableTraining(epochs=1, learning_rates=(1e-4,), apply_edits=True, alpha=1e-2)
    given = task()
    *_, trained, edited = approach.candidates(given)
    assert edited.values["edits"] > 0
    assert edited.validation_accuracy >= trained.validation_accuracy
    true = edited.apply(given.model).accuracy(given.validation)
    assert edited.validation_accuracy == pytest.approx(true, abs=0.006)
    repaired = edited.apply(given.model).accuracy(given.repair)
    assert repaired > trained.apply(given.model).accuracy(given.repair)


def test_adapter_is_the_identity_until_it_is_trained(task):
    given = task()
    extended = with_adapter(given.model, 16, seed=0)
    np.testing.assert_array_equal(
        extended.predict(given.validation), given.model.predict(given.validation)
    )
    assert {"adapter.0", "adapter.1"} <= {layer.name for layer in extended.layers()}
    approach = EditableTraining(editable="adapter", adapter_width=16, epochs=1)
    result = run(approach, given)
    assert result.outcome is Outcome.FIXED
    assert {"adapter.0", "adapter.1"} <= {layer.name for layer in result.model.layers()}


@pytest.mark.parametrize("edits", ["repair-failures", "random-label"])
@pytest.mark.parametrize("base", ["cross-entropy", "distillation"])
def test_every_kind_of_edit_and_base(task, edits, base):
    approach = EditableTraining(edits=edits, base=base, epochs=1, learning_rates=(1e-3,), every=2)
    result = run(approach, task())
    assert result.outcome in (Outcome.FIXED, Outcome.CORRUPTED), result.reason
    assert len(result.candidates) == 2


def test_paper_starts_from_fresh_weights(task):
    approach = EditableTraining("paper", epochs=1)
    given = task()
    _, first = approach.candidates(given)
    changed = first.apply(given.model)
    for layer in given.model.layers():
        old, new = given.model.weights[layer.weight], changed.weights[layer.weight]
        assert abs(np.corrcoef(old.ravel(), new.ravel())[0, 1]) < 0.5


def test_which_layers_are_edited():
    model = tiny_task().model
    names = [layer.name for layer in model.layers()]
    assert editable_layers(model, "auto") == (names[-2],)  # LeNet5: 120 -> 84
    assert editable_layers(model, "adapter") == ()
    with pytest.raises(Unadaptable, match="no layer nowhere"):
        editable_layers(model, ("nowhere",))


def test_refusals(task, model_of):
    approach = EditableTraining()
    with pytest.raises(Unadaptable, match="training images"):
        approach.check(task(train=None))
    with pytest.raises(Unadaptable, match="fewer than two dense or convolutional"):
        approach.check(task(model=model_of([nn.Flatten, lambda: nn.Linear(64, 10)])))
    headless = model_of(
        [lambda: nn.Conv2d(1, 4, 3), nn.ReLU, lambda: nn.Conv2d(4, 10, 6), nn.Flatten]
    )
    with pytest.raises(Unadaptable, match="adapter"):
        EditableTraining(editable="adapter").check(task(model=headless))
    approach.check(task(model=headless))


def test_an_epoch_without_mispredictions_still_trains(task, digits):
    """A model that is right on all training images is edited where it is nearest to a mistake."""
    given = task()
    perfect = given.train.select(given.model.predict(given.train).argmax(axis=1) == given.train.y)
    result = run(EditableTraining(epochs=1, learning_rates=(1e-4,)), task(train=perfect))
    assert result.outcome is Outcome.FIXED, result.reason
