import math
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from modelfix_core import Budget, Split, Task
from modelfix_core.errors import BudgetExceeded
from modelfix_core.torch import export, load, training
from modelfix_core.torch.training import Feed, FineTuning, fine_tune, fine_tune_at, jensen_shannon
from torch import nn

RECIPE = FineTuning(epochs=3, learning_rate=0.05, batch_size=16, patience=None)


@cache
def model():
    """A small net with BatchNorm and dropout."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(144, 3))
    torch.random.set_rng_state(state)
    return export(net.eval(), (1, 8, 8))


def split(n, seed):
    """Bright bars whose place is the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    x = rng.integers(0, 120, (n, 1, 8, 8), dtype=np.uint8)
    for label in range(3):
        x[y == label, :, 2 * label + 1] += 100
    return Split(x, y)


def task(**changes):
    fields = {"model": model(), "repair": split(20, 1), "validation": split(60, 2)}
    return Task(**fields | {"train": split(100, 3)} | changes)


def tuned(given, recipe=RECIPE, net=None, **options):
    net = net or load(given.model)
    return list(fine_tune(net, given, given.train, recipe, **options))


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.step == other.step
        assert one.values == other.values
        assert one.validation_accuracy == other.validation_accuracy
        assert one.weights.keys() == other.weights.keys()
        for name, array in one.weights.items():
            np.testing.assert_array_equal(array, other.weights[name])


def noisy(x, y, rng):
    noise = torch.from_numpy(rng.normal(0, 0.05, (2, *x.shape)).astype(np.float32))
    return torch.cat([x[None], (x + noise).clamp(0, 1)])


consistency = partial(training.consistency, weight=1)


def test_learns_and_measures_truly():
    given = task()
    found = tuned(given, replace(RECIPE, epochs=6))
    before = given.model.accuracy(given.validation)
    assert [c.step for c in found] == [1, 2, 3, 4, 5, 6]
    assert found[-1].validation_accuracy > before + 0.2
    assert found[-1].values["loss"] < found[0].values["loss"]
    fixed = found[-1].apply(given.model)
    assert fixed.accuracy(given.validation) == pytest.approx(found[-1].validation_accuracy)
    logits = torch.from_numpy(fixed.predict(given.validation))
    loss = float(nn.functional.cross_entropy(logits, torch.from_numpy(given.validation.y)))
    assert found[-1].values["validation_loss"] == pytest.approx(loss, rel=1e-4)
    # Statistics of BatchNorm are part of the candidate.
    assert any("running_mean" in name for name in found[-1].weights)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("stop", [1, 2])
def test_goes_on_after_an_interruption_as_if_there_was_none(tmp_path, optimizer, stop):
    recipe = replace(RECIPE, optimizer=optimizer, learning_rate=0.01)
    options = {"views": noisy, "loss": consistency}
    whole = tuned(task(), recipe, **options)
    given = task(folder=tmp_path)
    run = fine_tune(load(given.model), given, given.train, recipe, **options)
    for _ in range(stop):
        next(run)
    run.close()
    assert_same(tuned(given, recipe, **options), whole)
    assert_same(tuned(given, recipe, **options), whole)  # nothing left to train


def test_interruption_within_an_epoch_repeats_that_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "REPORT_EVERY", 0.0)

    def interrupt(done, total, note):
        if done == 10:  # an epoch has 7 steps
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(task(folder=tmp_path, reporter=interrupt))
    assert_same(tuned(task(folder=tmp_path)), tuned(task()))


def test_checkpoints_of_another_run_are_ignored(tmp_path):
    tuned(task(folder=tmp_path))
    other = replace(RECIPE, learning_rate=0.01)
    assert_same(tuned(task(folder=tmp_path), other), tuned(task(), other))
    assert_same(tuned(task(folder=tmp_path, seed=1)), tuned(task(seed=1)))


def test_incomplete_checkpoints_start_over(tmp_path):
    whole = tuned(task(folder=tmp_path))
    next(tmp_path.rglob("epoch-02.npz")).unlink()
    assert_same(tuned(task(folder=tmp_path)), whole)


def test_seed_decides_and_global_state_does_not():
    net = load(model())
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = tuned(task(), views=noisy, net=net)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert_same(tuned(task(), views=noisy), first)
    other = tuned(task(seed=1), views=noisy)
    assert other[0].values["loss"] != first[0].values["loss"]


def test_read_ahead_gives_what_resident_tensors_give(monkeypatch):
    given = task()
    small, large = Feed(given.train, "cpu", memory=10), Feed(given.train, "cpu")
    assert small.resident is None
    assert large.resident is not None
    order = np.random.default_rng(0).permutation(100)[:90]
    batches = list(zip(small.batches(order, 16), large.batches(order, 16), strict=True))
    assert [len(x) for (x, _), _ in batches] == [16] * 5 + [10]
    for (x, y), (x2, y2) in batches:
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    np.testing.assert_array_equal(batches[0][0][0].numpy(), given.train.images(order[:16]))


def test_frozen_parameters_stay():
    given = task()
    net = load(given.model)
    name = next(n for n in net.tensors if n.endswith("0.weight"))
    net.tensors[name].requires_grad_(False)
    found = tuned(given, net=net)
    assert name not in found[-1].weights
    assert any(n.endswith("5.weight") for n in found[-1].weights)


def test_without_learning_rate_parameters_stay_bit_equal():
    found = tuned(task(), replace(RECIPE, learning_rate=0.0))
    assert all("running" in name for name in found[-1].weights)


def test_stops_without_improvement():
    recipe = replace(RECIPE, epochs=9, patience=2, schedule="constant", learning_rate=3.0)
    net = load(task().model)
    found = tuned(task(), recipe, net=net)
    losses = [c.values["validation_loss"] for c in found]
    assert len(found) < 9
    assert len(losses) - 1 - int(np.argmin(losses)) == 2


def test_images_per_epoch_are_drawn_anew(monkeypatch):
    seen = []

    def watch(x, y, rng):
        seen.append(x.sum(dim=(1, 2, 3)))
        return x[None]

    tuned(task(), replace(RECIPE, epochs=2, images_per_epoch=32), views=watch)
    assert [len(s) for s in seen] == [16, 16, 16, 16]
    first, second = (set(torch.cat(part).tolist()) for part in (seen[:2], seen[2:]))
    assert first != second


def test_recalibrated_batchnorm_has_the_statistics_of_clean_images():
    given = task()
    recipe = replace(RECIPE, epochs=1, batch_size=100, recalibrate_bn=True)

    def bright(x, y, rng):
        return torch.stack([x, torch.ones_like(x)])

    net = load(given.model)
    tuned(given, recipe, net=net, views=bright)
    convolution = given.model.layers()[0]
    x = torch.from_numpy(given.train.images())
    inner = net.activations(x, [convolution.name])[convolution.name]
    expected = inner.mean(dim=(0, 2, 3))
    [mean] = [t for n, t in net.tensors.items() if "running_mean" in n]
    torch.testing.assert_close(mean, expected.detach(), rtol=1e-4, atol=1e-5)


def test_reports_progress_and_obeys_the_budget(monkeypatch):
    monkeypatch.setattr(training, "REPORT_EVERY", 0.0)
    reports = []
    given = task(reporter=lambda *report: reports.append(report))
    list(fine_tune(load(model()), given, given.train, RECIPE, name="b", part=(1, 2)))
    assert {total for _, total, _ in reports} == {2 * 3 * 7}
    assert reports[0][0] == 3 * 7 + 1
    assert reports[-1][0] == 2 * 3 * 7
    assert "loss" in reports[0][2]
    assert "accuracy" in reports[0][2]
    with pytest.raises(BudgetExceeded):
        tuned(task(budget=Budget(seconds=0)))


def test_mixed_precision_trains_float32_weights():
    found = tuned(task(), replace(RECIPE, precision="bf16-mixed"), views=noisy, loss=consistency)
    assert all(array.dtype == np.float32 for array in found[-1].weights.values())
    assert math.isfinite(found[-1].values["loss"])
    assert (
        found[-1].values["loss"] != tuned(task(), views=noisy, loss=consistency)[-1].values["loss"]
    )


def test_cosine_falls_to_the_final_rate():
    rates = [RECIPE.rate(step, 100) for step in range(101)]
    assert rates[0] == RECIPE.learning_rate
    assert rates[50] == pytest.approx(RECIPE.learning_rate / 2, rel=1e-3)
    assert rates[100] == pytest.approx(1e-6)
    assert rates == sorted(rates, reverse=True)
    assert replace(RECIPE, learning_rate=0.0).rate(50, 100) == 0
    assert replace(RECIPE, schedule="constant").rate(99, 100) == RECIPE.learning_rate


def test_jensen_shannon_in_half_precision_is_finite():
    logits = torch.tensor([[[80.0, 0, 0]], [[0.0, 80, 0]], [[0.0, 0, 80]]], dtype=torch.bfloat16)
    assert float(jensen_shannon(logits)) == pytest.approx(math.log(3), abs=1e-4)


def test_training_goes_on_from_the_state_of_its_optimiser():
    given, recipe = task(), replace(RECIPE, optimizer="adam", learning_rate=0.01)

    def started():
        net = load(given.model)
        return training.Training(net, training.Supervised(net, given.train, recipe), recipe, seed=3)

    whole, *halves = (started() for _ in range(3))
    results = [whole.epoch(number) for number in (1, 2)]
    assert halves[0].epoch(1) == results[0]
    halves[1].net.load_state_dict(halves[0].net.state_dict())
    halves[1].load_state(halves[0].state())
    assert halves[1].epoch(2) == results[1]
    assert not whole.net.training
    for one, other in zip(whole.net.parameters(), halves[1].net.parameters(), strict=True):
        assert torch.equal(one, other)


class Drawn:
    """A lesson with one step for each of three random images, and work before the first."""

    def __init__(self, net, split):
        self.net, self.feed = net, Feed(split, "cpu")

    def __len__(self):
        return 3

    @property
    def identity(self):
        return {"drawn": 3}

    def epoch(self, epoch):
        epoch.report("drawing")
        for row in epoch.draws(stage="rows").choice(len(self.feed), 3):
            [(x, y)] = self.feed.batches(np.array([row, row]), 2)
            logits = epoch.module(x)
            right = (logits.argmax(dim=1) == y).sum()
            yield training.Step(nn.functional.cross_entropy(logits, y), right, len(y))


def test_any_lesson_is_taught_and_goes_on_after_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "REPORT_EVERY", 0.0)
    notes = []

    def taught(**changes):
        given = task(reporter=lambda done, total, note: notes.append((done, total, note)))
        given = replace(given, **changes)
        net = load(given.model)
        return training.teach(net, given, Drawn(net, given.train), RECIPE)

    whole = list(taught())
    assert [c.step for c in whole] == [1, 2, 3]
    assert notes[0] == (0, 9, "fine-tuning, epoch 1 of 3: drawing")
    assert notes[-1][:2] == (9, 9)
    next(taught(folder=tmp_path))
    assert_same(list(taught(folder=tmp_path)), whole)


def test_momentum_is_nesterovs_unless_told_otherwise():
    plain = tuned(task(), replace(RECIPE, nesterov=False))
    assert plain[0].values["loss"] != tuned(task())[0].values["loss"]
    assert_same(
        tuned(task(), replace(RECIPE, nesterov=False, momentum=0.0))[:1],
        tuned(task(), replace(RECIPE, momentum=0.0))[:1],
    )


# -- copies of the images, grids of learning rates ---------------------------------------------


@pytest.mark.parametrize("memory", [0, training.DEFAULT_MEMORY], ids=["read", "resident"])
def test_views_get_the_copies_of_their_images(monkeypatch, memory):
    monkeypatch.setattr(training.Feed.__init__, "__defaults__", (memory,))
    given = task()
    seen = []

    def views(x, y, rng, copies):
        seen.append((x, y, copies))
        return torch.stack([x, copies])

    copies = Split(255 - given.train.x, given.train.y)
    tuned(given, replace(RECIPE, epochs=1), views=views, copies=copies)
    assert sum(len(y) for _, y, _ in seen) == 100
    for x, _, copy in seen:
        torch.testing.assert_close(copy, 1 - x)


def test_recipe_is_read_from_options_of_the_same_names():
    options = SimpleNamespace(epochs=7, batch_size=3, learning_rates=(1.0,), unknown=0)
    assert FineTuning.of(options) == FineTuning(epochs=7, batch_size=3)


def test_every_rate_starts_from_the_original():
    given = task()
    recipe = replace(RECIPE, epochs=1)
    net = load(given.model)
    found = list(fine_tune_at((0.05, 0.01), net, given, given.train, recipe))
    assert [c.values["learning_rate"] for c in found] == [0.05, 0.01]
    alone = list(fine_tune_at((0.01,), net, given, given.train, recipe))
    assert_same(alone, found[1:])


@pytest.mark.parametrize(
    ("losses", "hopeless"),
    [
        ([2.0], False),
        ([2.0, 2.1], True),
        ([2.0, 1.9], False),
        ([0.5, 0.9], False),
        ([0.9, 1.1], True),
        ([0.9, 1.1, 1.2], False),
    ],
)
def test_rate_is_given_up_if_worse_and_rising_after_two_epochs(losses, hopeless):
    assert training.is_hopeless(losses, original=1.0) is hopeless
