import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from modelfix_apricot import Apricot, ApricotConfig
from modelfix_apricot import submodels as submodels_module
from modelfix_apricot.submodels import (
    Plan,
    _orders,
    flat,
    set_flat,
    subset,
    train_one,
    train_stacked,
    train_submodels,
)
from modelfix_core import Budget, BudgetExceeded, Evidence, Failure, Outcome, Split
from modelfix_core.fixing import run
from modelfix_core.subjects.architectures import build
from modelfix_core.torch import export, load
from modelfix_core.torch.initialising import reinitialise

QUICK = {
    "submodels": 4,
    "submodel_epochs": 3,
    "submodel_learning_rate": 1e-3,
    "submodel_batch_size": 32,
    "eta": 1e-2,
    "rounds": 3,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "patience": None,
}
SHAPES = {"lenet5": (1, 28, 28), "facenet": (3, 64, 64)}
OF_THE_STUDY = ("lenet5", "facenet", "vgg16", "resnet18", "densenet121")
SMALL = ("lenet5", "resnet8", "densenet")


def untrained(name):
    shape = SHAPES.get(name, (3, 32, 32))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return export(build(name, 10, shape[0]).eval(), shape)


def random_split(shape, n=200):
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % 10)


def proposals(task, **options):
    return list(Apricot(**QUICK | options).candidates(task))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, Evidence):
            for name, column in one.columns.items():
                np.testing.assert_array_equal(column, other.columns[name])
            continue
        assert (one.step, one.values) == (other.step, other.values)
        assert one.validation_accuracy == other.validation_accuracy
        assert one.weights.keys() == other.weights.keys()
        for name, array in one.weights.items():
            np.testing.assert_array_equal(array, other.weights[name])


# -- what it proposes ------------------------------------------------------------------------------


def test_original_then_votes_then_the_best_after_each_round(digits_task):
    task = digits_task()
    original, votes, *rounds = proposals(task)
    assert original.weights == {}
    assert original.validation_accuracy == pytest.approx(task.model.accuracy(task.validation))
    predicted = task.model.predict(task.train).argmax(axis=1)
    np.testing.assert_array_equal(
        votes.columns["sample"], np.flatnonzero(predicted != task.train.y)
    )
    assert max(votes.columns["right_submodels"]) <= 4
    assert [c.step for c in rounds] == [1, 2, 3]
    accuracies = [original.validation_accuracy, *(c.validation_accuracy for c in rounds)]
    assert accuracies == sorted(accuracies)
    for candidate in rounds:
        true = candidate.apply(task.model).accuracy(task.validation)
        assert candidate.validation_accuracy == pytest.approx(true)
        assert candidate.values["steps"] == candidate.step * 11
        assert candidate.values["moved"] <= candidate.values["failing"]
    assert rounds[0].values["moved"] > 0
    assert rounds[-1].validation_accuracy > original.validation_accuracy


def test_control_arm_trains_no_submodels(digits_task, monkeypatch):
    monkeypatch.setattr(submodels_module, "train_one", None)
    original, *rounds = proposals(digits_task(), eta=0)
    assert [c.step for c in rounds] == [1, 2, 3]
    assert {c.values["moved"] for c in rounds} == {0}
    assert rounds[-1].validation_accuracy > original.validation_accuracy


def test_no_failing_image_is_plain_retraining(digits_task):
    task = digits_task()
    predicted = task.model.predict(task.train).argmax(axis=1)
    perfect = replace(task, train=task.train.select(predicted == task.train.y))
    config = {"rounds": 1, "subset_fraction": 0.5}
    adapted, control = (proposals(perfect, eta=eta, **config)[-1] for eta in (1e-2, 0))
    assert adapted.values["failing"] == 0
    assert_same([adapted], [control])


def test_batches_pass_over_all_images(digits_task):
    from modelfix_apricot.repair import Loop

    task = digits_task()
    config = Apricot("paper", adaptation_batch_size=300, retraining_epochs=1).config
    loop = Loop(load(task.model), task, config)
    assert loop.total == 3
    first, second = ([loop._batch(n) for n in numbers] for numbers in ((1, 2, 3), (4, 5, 6)))
    assert [len(part) for part in first] == [300, 300, 100]
    for parts in (first, second):
        assert sorted(np.concatenate(parts)) == list(range(700))
    assert not np.array_equal(first[0], second[0])


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "correct"},
        {"strategy": "incorrect"},
        {"sigma": 1},
        {"granularity": "batch", "adaptation_batch_size": 100},
        {"subset_mode": "partition"},
        {"submodel_start": "model"},
        {"retraining_epochs": 2},
        {"recalibrate_bn": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_change_the_result(digits_task, accuracies_rise, options):
    task = digits_task("conv")
    plain, other = (proposals(task, rounds=2, **changes)[-1] for changes in ({}, options))
    assert other.values["loss"] != plain.values["loss"]
    assert np.isfinite(other.values["loss"])


def test_adapted_models_alone_can_be_selected(digits_task):
    *_, plain = proposals(digits_task(), rounds=1)
    *_, other = proposals(digits_task(), rounds=1, select_post_training=False)
    assert plain.values["loss"] == other.values["loss"]
    assert other.validation_accuracy < plain.validation_accuracy


@pytest.fixture
def accuracies_rise(monkeypatch):
    """Keep every model, so that what differs shows."""
    from modelfix_apricot import repair

    stream = iter(np.linspace(0.1, 0.9, 100))
    monkeypatch.setattr(repair, "validate", lambda net, feed: (0.0, next(stream)))


# -- interruptions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [1, 2, 3, 4])
def test_interrupted_between_rounds_goes_on(digits_task, tmp_path, finished):
    whole = proposals(digits_task("conv"))
    task = digits_task("conv", folder=tmp_path)
    started = Apricot(**QUICK).candidates(task)
    for _ in range(finished):
        next(started)
    started.close()
    assert_same(proposals(task), whole)
    assert_same(proposals(task), whole)  # nothing left to do


class Stop(Exception):
    pass


@pytest.mark.parametrize("point", [2, 9, 14, 20, 26, 33])
def test_interrupted_anywhere_goes_on(digits_task, tmp_path, monkeypatch, point):
    from modelfix_apricot import repair
    from modelfix_core.torch import training

    options = {"retraining_epochs": 2, "granularity": "batch", "adaptation_batch_size": 200}
    whole = proposals(digits_task("conv"), **options)
    for module in (repair, training):
        monkeypatch.setattr(module, "REPORT_EVERY", 0.0)
    reports = []

    def stop(done, total, note):
        reports.append(done)
        if len(reports) == point:
            raise Stop

    with pytest.raises(Stop):
        proposals(digits_task("conv", folder=tmp_path, reporter=stop), **options)
    monkeypatch.undo()
    assert_same(proposals(digits_task("conv", folder=tmp_path), **options), whole)


def test_checkpoints_of_another_run_are_ignored(digits_task, tmp_path):
    proposals(digits_task(folder=tmp_path))
    assert_same(proposals(digits_task(folder=tmp_path, seed=1)), proposals(digits_task(seed=1)))
    changed = {"submodel_epochs": 2}
    assert_same(
        proposals(digits_task(folder=tmp_path), **changed), proposals(digits_task(), **changed)
    )


def test_progress_never_goes_back_and_ends_at_its_total(digits_task):
    reports = []
    task = digits_task(reporter=lambda done, total, note: reports.append((done, total)))
    proposals(task)
    done = [d for d, _ in reports]
    assert done == sorted(done)
    assert reports[-1][0] == reports[-1][1]


# -- submodels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_fresh_weights_are_those_of_torch(name):
    net = load(untrained(name))
    reinitialise(net, seed=3)
    before, names = net.model.weights, net.parameter_names
    fresh = {n: net.tensors[n].detach().numpy() for n in names}
    kinds = {p: layer for layer in net.model.layers() for p in layer.parameters}
    assert kinds.keys() == names.keys()
    for parameter, layer in kinds.items():
        value = fresh[parameter]
        if layer.kind == "batchnorm":
            assert (value == (parameter == layer.weight)).all()
            continue
        assert not np.array_equal(value, before[parameter])
        bound = 1 / np.sqrt(before[layer.weight][0].size)
        assert np.abs(value).max() <= bound * (1 + 1e-6)
        if value.size > 200:
            # As uniform as what torch's own reset_parameters gave the untrained model.
            assert value.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)
            assert before[parameter].std() == pytest.approx(value.std(), rel=0.15)
    again, other = load(net.model), load(net.model)
    reinitialise(again, seed=3)
    reinitialise(other, seed=4)
    assert torch.equal(flat(again), flat(net))
    assert not torch.equal(flat(other), flat(net))


def test_fresh_statistics_of_batchnorm(digits_task):
    net = load(digits_task("conv").model)
    reinitialise(net, seed=0)
    (layer,) = net.model.layers("batchnorm")
    mean, variance = (net.tensors[name] for name in layer.statistics)
    assert (mean == 0).all()
    assert (variance == 1).all()


def test_weights_in_a_row_and_back(digits_task):
    net = load(digits_task("conv").model)
    theta = flat(net)
    set_flat(net, theta + 1)
    assert torch.equal(flat(net), theta + 1)
    set_flat(net, theta)
    assert net.weights() == {}


def test_submodels_start_from_the_model_if_asked(digits_task):
    task = digits_task()
    config = ApricotConfig(submodel_start="model", submodel_epochs=1, submodel_learning_rate=1e-9)
    net = load(task.model)
    weights, _ = train_one(net, task.train, 0, config, 0, lambda done: None)
    np.testing.assert_allclose(weights, flat(load(task.model)), atol=1e-5)


def stacked_and_alone(model, train, config, numbers=(0, 1, 3)):
    net, steps = load(model), []
    alone = [train_one(net, train, n, config, 7, steps.append) for n in numbers]
    stacked = train_stacked(net, train, numbers, config, 7, steps.append)
    assert steps[-1] == len(numbers) * config.submodel_epochs * 5
    return [np.stack(part) for part in zip(*alone, strict=True)], stacked


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_stacked_submodels_are_those_trained_alone(digits_task, kind):
    task = digits_task(kind)
    config = Apricot(**QUICK).config
    (weights, right), (weights_s, right_s) = stacked_and_alone(task.model, task.train, config)
    assert np.abs(weights[0] - weights[1]).max() > 0.05
    np.testing.assert_allclose(weights_s, weights, atol=2e-4)
    assert np.mean(right != right_s) < 0.01


@pytest.mark.parametrize("name", SMALL)
def test_stacking_takes_convolutions_batchnorm_and_branches(name):
    model = untrained(name)
    train = random_split(model.input_shape, 40)
    config = ApricotConfig(submodel_epochs=1, submodel_batch_size=5, subset_fraction=0.5)
    net = load(model)
    weights, right = train_stacked(net, train, (0, 1), config, 0, lambda done: None)
    assert weights.shape == (2, sum(p.numel() for p in net.parameters()))
    assert right.shape == (2, 40)
    assert np.isfinite(weights).all()


def test_orders_of_stacked_submodels_hold_their_subsets(digits):
    config = ApricotConfig()
    parts = np.stack([subset(digits.y, number, config, 0) for number in (0, 5)])
    first, second = (_orders(parts, (0, 5), epoch, 0) for epoch in (1, 2))
    np.testing.assert_array_equal(np.sort(first), parts)
    assert not np.array_equal(first, second)


def test_processes_give_the_same_submodels(digits_task, tmp_path, monkeypatch):
    config = Apricot(**QUICK).config
    notes = []
    report = lambda steps, note: notes.append(steps)  # noqa: E731
    task = digits_task("conv")
    here = train_submodels(load(task.model), task, config, report)
    monkeypatch.setattr(submodels_module, "LITTLE_WORK", 0)
    task = digits_task("conv", folder=tmp_path)
    apart = train_submodels(load(task.model), task, config, report)
    assert torch.equal(here.weights, apart.weights)
    np.testing.assert_array_equal(here.right, apart.right)
    # What is there already is not trained again.
    monkeypatch.setattr(submodels_module, "_in_processes", None)
    again = train_submodels(load(task.model), task, config, report)
    assert torch.equal(here.weights, again.weights)


def test_a_failing_process_is_a_failure_with_its_reason(digits_task, tmp_path, monkeypatch):
    monkeypatch.setattr(submodels_module, "LITTLE_WORK", 0)
    hand_over = Plan.hand_over

    def spoil(self, task):
        hand_over(self, task)
        (self.folder / "model.onnx").unlink()

    monkeypatch.setattr(Plan, "hand_over", spoil)
    task = digits_task(folder=tmp_path)
    with pytest.raises(Failure, match=r"model\.onnx: does not exist"):
        train_submodels(load(task.model), task, Apricot(**QUICK).config, lambda *_: None)


def test_processes_end_with_the_time_limit(digits_task, tmp_path, monkeypatch):
    monkeypatch.setattr(submodels_module, "LITTLE_WORK", 0)
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    task = digits_task(folder=tmp_path, budget=Budget(seconds=0.5))
    with pytest.raises(BudgetExceeded):
        proposals(task, submodel_epochs=10_000)
    assert started
    assert all(process.poll() is not None for process in started)


def test_processes_end_with_the_one_that_started_them(digits_task, tmp_path):
    task, config = digits_task(), Apricot(**QUICK | {"submodel_epochs": 10_000}).config
    plan = Plan.of(task, config, tmp_path)
    plan.hand_over(task)
    command = [sys.executable, "-m", "modelfix_apricot.worker", str(tmp_path), "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        while plan.progress()[0] == 0:
            assert process.poll() is None
            time.sleep(0.1)
        process.stdin.close()
        assert process.wait() == 1


# -- applicability ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OF_THE_STUDY)
def test_every_architecture_of_the_study_is_taken(digits_task, name):
    model = untrained(name)
    for preset in Apricot.presets:
        Apricot(preset).check(replace(digits_task(), model=model, train=random_split((1, 1, 1))))


def test_what_cannot_be_taken(digits_task):
    task = digits_task()
    few = task.train.select(
        np.concatenate([np.flatnonzero(task.train.y == k)[:8] for k in range(10)])
    )
    for changes, options, reason in (
        ({"train": None}, {}, "no training images"),
        ({"train": few}, {}, "would see 1 training images of class 0"),
        ({"train": few}, {"subset_mode": "partition", "submodels": 5}, "would see 1 training"),
        ({"budget": Budget(memory=100_000)}, {}, "take 525,600 bytes; the memory limit is 100,000"),
    ):
        result = run(Apricot(**options), replace(task, **changes))
        assert result.outcome is Outcome.UNADAPTABLE
        assert reason in result.reason
    # The control arm has no submodels that could be too poor.
    Apricot(eta=0).check(replace(task, train=few, budget=Budget(memory=100_000)))


def test_few_images_of_a_class_are_warned_of(digits_task, caplog):
    Apricot().check(digits_task())
    assert "below 50" in caplog.text
